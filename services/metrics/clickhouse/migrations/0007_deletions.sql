-- Jobs whose rows are to go. It is written before anything is deleted, and kept for longer than a writer's token lives:
-- what comes late of a deleted job goes too.
CREATE TABLE IF NOT EXISTS deletions (
    job_uid String,
    time DateTime DEFAULT now()
) ENGINE = MergeTree
ORDER BY job_uid
TTL time + INTERVAL 7 DAY
SETTINGS fsync_after_insert = 1, min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,
    old_parts_lifetime = 600;
