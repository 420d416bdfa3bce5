"""The `sihlai` command: a gRPC client of the services, and the one that starts them all on one machine.

In reading order: `__main__` and `commands` (the tree of commands), `session` (services, output and exit codes of one
command), then the commands by noun: `project`, `job`, `log`, `metric`, `checkpoint`, `up`, `demo`. What they use:
`endpoints` (where the services are), `name`, `specification` and `defaults` (what is typed becomes protos), `stream`
(long reads that go on after a break), `table`, `curve` and `output` (what people and programs get), `download`;
`supervisor`, `machine`, `child`, `leash` and `folder` (processes and their files); `digits`, `witness`, `audit` and
`screen` (the demo's parts).

It must never import a service: what it knows of them stands in protos/.
"""
