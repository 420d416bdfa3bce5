"""GPU runners: an agent process that talks to the services, and a trainer process that talks to the agent.

In reading order: `__main__` (wiring), `config`, `agent` (what the scheduler wants is made true), `process` (the trainer's
process: started, told, ended), `report` (what the two say to each other), `spool` (what is not stored yet), `download`
(datasets in, checkpoints out); then the trainer's side: `train` (the loop), `data`, `checkpoint`, `tasks/`.

The agent never imports torch; the trainer never imports grpc or nats.
"""
