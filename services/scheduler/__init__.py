"""The scheduler: projects, jobs, the queue, leases, runners, checkpoints.

In reading order: `domain` (what may happen: values and pure functions), `specification`, `ranges` and `fields` (what a
job may ask for), `store` (rows and transactions), `wire` (protos), `servicer` (one call each), `desk` (where runners
wait), `assignment` (what a runner is given), `objects` (what lies in the object store), `loop` (what happens without a
call), `__main__` (how it is put together).
"""
