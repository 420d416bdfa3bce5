"""The Python client, `import sihlai`: what scripts, notebooks and the `sihlai` command talk to the services with.

In reading order: `connecting` (how it begins), `face` (both faces, a line a method), `method` (how that line is a
method of both), `facts` (what both know without a call); then what they do, as operations without a channel or a loop:
`job`, `project`, `series`, `comparison`, `checkpoint`, `dataset`, `installation`; `call` (calls as values, and how a
read goes on after a break) and `driver` (which runs them); `endpoints` and `context` (where the services are, and the
token); `specification`, `name` and `frame`.

It must never import a service: what it knows of them stands in protos/.
"""
