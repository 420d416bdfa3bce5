"""The scheduler: projects, jobs, the queue, leases, runners, checkpoints.

In reading order: `job`, `placement`, `lease` (what may happen: standard library only), `project` and `fact` (the values
beside them), `store` (rows and transactions), `wire` (protos), `servicer` (one call each), `desk` (where runners wait),
`reconcile` and `outbox` (what happens without a call), `__main__` (how it is put together).
"""
