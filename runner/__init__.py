"""GPU runners: an agent process that talks to the services, and a trainer process that talks to the agent.

Entry points: `__main__` starts the agent, `train` is the trainer's process and loop, `predict` uses a finished model,
`samples` draws what lies beside a checkpoint. `report` is what agent and trainer say to each other. `agent/` never
imports torch; `train`, `trainer/` and `tasks/` (one file a task) never import grpc or nats.
"""
