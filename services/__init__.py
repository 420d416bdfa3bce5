"""The services of sihlai, in reading order.

- `chassis`: what each process needs (configuration, log, errors, RPC, bus, objects); knows no word of the domain.
- `scheduler`: projects, jobs, the queue, leases, runners, checkpoints.
- `conversion`: datasets, read, checked and turned into datasets for other tasks.
- `metrics`: points and log lines in; series, comparisons and log tails out.
- `cli`: the `sihlai` command, a client of the three; `sihlai up` starts everything on one machine.

No service imports another: they meet in protos/ and on the bus.
"""
