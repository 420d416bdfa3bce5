"""The `sihlai` command: the first user of the client, and the one that starts everything on one machine.

In reading order: `__main__` and `commands` (the tree of commands), `session` (client, output and exit codes of one
command), `command/` (one file or folder a noun), `specification`, `credentials` and `defaults` (what is typed becomes
protos), `completion`, `question`, `error`, `view/` (what people and programs get), `machine/` (the processes of `up`),
`demo/`.

It must never import a service: what it knows of them stands in protos/, and it talks to them with services/client.
"""
