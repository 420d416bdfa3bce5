"""The Python client, `import sihlai`: what scripts, notebooks and the `sihlai` command talk to the services with.

In reading order: `connecting` (how it begins), `face` (both faces, a line a method), `method` (how that line is a
method of both); then what they do, as coroutines over a transport: `job`, `project`, `series`, `comparison`,
`checkpoint`, `dataset`; `call` (what they are made of, and how a read goes on after a break) and `driver` (the two
transports); `number`, `specification`, `name` and `frame`. Where the services are, and the token, is the chassis's
to find.

It must never import a service: what it knows of them stands in protos/.
"""
