"""What may happen, in values (msgspec Structs) and pure functions, with `chassis.errors` alone.

Time, ids and randomness are arguments. In reading order: `job` (states and what changes them), `ending` (whose fault,
and what then), `lease` (who holds what), `timekeeping` (when a lease may run out), `placement` (what fits where),
`dispatcher` (who gets what), then the values beside them: `view` (jobs and runners as callers give and see them),
`project`, `request`, `fact`, `retention`.
"""
