"""Points and lines, on disk until they are stored, and what the machine says of itself.

`recorder` (checks and gathers; `definition`, `lines`, `levels`), `journal` (numbers and appends; `last_lines`), spool/
(the disk), `shipping`; `capabilities`, `gpu`, `system` (measured). `worker_thread` makes calls that may never return.
"""
