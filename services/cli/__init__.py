"""The `sihlai` command: a gRPC client of the services, and the one that starts them all on one machine.

In reading order: `__main__` and `commands` (the tree of commands), `session` (services, output and exit codes of one
command), then the commands by noun: `project`, `dataset` with `dataset_exchange` and `dataset_preview`, `job`, `log`,
`metric`, `checkpoint`, `up`, `demo`. What they use: `endpoints` (where the services are), `conversion` (the one service
that a command may start for itself), `name`, `specification` and `defaults` (what is typed becomes protos), `stream`
(long reads that go on after a break), `table`, `dataset_options`, `dataset_table`, `progress`, `curve` and `output`
(what people and programs get), `download`; `supervisor`, `machine`, `child` and `folder` (processes and their files);
`digits`, `scenes`, `witness`, `audit`, `demo_conversions`, `demo_truth` and `screen` (the demo's parts).

It must never import a service: what it knows of them stands in protos/.
"""
