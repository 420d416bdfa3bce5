"""The agent: makes true what the scheduler wants, and loses nothing on the way. It never imports torch.

In reading order: `config`, `agent` (the Synchronize loop), `decision` (an answer becomes an action; pure),
`attempt` (one attempt from assignment to end), `provision` (datasets and checkpoints to this disk) with
`conversion` and `download`, `supervision` and `process` (the running trainer) with `lines` and `ending`, `upload`;
`recorder`, `spool` and `shipping` (points and lines, on disk until they are stored); `ledger` and `recovery` (what
an earlier agent left); `capabilities`, `gpu` and `system` (the machine); `backoff`.
"""
