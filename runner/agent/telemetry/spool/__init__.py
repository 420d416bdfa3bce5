"""What is recorded and not stored yet, on the runner's disk.

`segment` (the files), `counts` (what the segments could not tell if they were damaged), `inventory` (what is there when
a spool is opened), `space` (what all spools may take), `writer_spool` and its `reader`, `attempt_spool` (two writers
and their series), `disk` (the threads through which everything passes).
"""
