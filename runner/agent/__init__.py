"""The agent: makes true what the scheduler wants, and loses nothing on the way. It never imports torch.

In reading order: `config`, `agent` (the Synchronize loop), `answer` and `decision` (an answer becomes an action; pure),
`attempt` (one attempt from assignment to end), files/ (datasets and checkpoints to this disk and from it), trainer/
(the running trainer), telemetry/ (points and lines, on disk until they are stored; the machine's own), `fitness` and
`fault` (whether this machine can train), `ends`, `ledger` and `recovery` (what an earlier agent left).
"""
