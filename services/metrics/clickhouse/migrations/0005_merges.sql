-- What a merge writes reaches the disk before it takes the place of what it was made of, and that stays for ten minutes
-- more: else a loss of power takes rows that were acknowledged long ago. A disk that fills up during a merge was seen to
-- leave a part that cannot be read: when its table is attached anew, it is left out for what it was made of.

ALTER TABLE points MODIFY SETTING min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,
    old_parts_lifetime = 600;

ALTER TABLE logs MODIFY SETTING min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,
    old_parts_lifetime = 600;
