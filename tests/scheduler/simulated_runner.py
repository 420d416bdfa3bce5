"""A runner that tests drive call by call."""

from __future__ import annotations

import asyncio

from sihlai.runner.v1 import runner_service_pb2

from tests.scheduler.client import Client


class SimulatedRunner:
    """A runner's side of the protocol, call by call, against the real server."""

    def __init__(self, client: Client, runner_id: str = "one", session: str = "first", host: str = "") -> None:
        self.client = client
        self.runner_id = runner_id
        self.session = session
        self.sequence = 0
        self.assignment: runner_service_pb2.Assignment | None = None
        self.capabilities = {"tasks": ["TASK_MULTICLASS_CLASSIFICATION"], "software_version": "1.2.3", "host": host}

    def request(self, *, wait: float = 5.0, **fields) -> runner_service_pb2.SynchronizeRequest:
        self.sequence += 1
        fields = {"protocol_version": 1, "sequence": self.sequence, "capabilities": self.capabilities, **fields}
        request = runner_service_pb2.SynchronizeRequest(
            runner=f"runners/{self.runner_id}", session=self.session, **fields
        )
        request.wait_max.FromMilliseconds(round(wait * 1000))
        return request

    def call(self, **fields):
        """A call of this runner, not awaited."""
        return asyncio.ensure_future(_awaited(self.client.runners.Synchronize(self.request(**fields))))

    async def idle(self, **fields) -> runner_service_pb2.SynchronizeResponse:
        answer = await self.call(idle={}, **fields)
        if answer.run.HasField("assignment"):
            self.assignment = answer.run.assignment
        return answer

    async def work(self, phase: str = "ATTEMPT_PHASE_TRAINING", *, wait: float = 0.0, **active):
        call = {name: active.pop(name) for name in ("spools", "draining") if name in active}
        return await self.call(active={**self.key(), "phase": phase, **active}, wait=wait, **call)

    async def close(self, outcome: str, *, wait: float = 0.0, **closed):
        key = self.key()
        self.assignment = None
        call = {name: closed.pop(name) for name in ("spools", "draining") if name in closed}
        return await self.call(idle={}, closed=[{**key, "outcome": outcome, **closed}], wait=wait, **call)

    def key(self) -> dict:
        assignment = self.assignment
        return {"job_uid": assignment.job_uid, "attempt": assignment.attempt, "epoch": assignment.epoch}

    def checkpoint(self, iteration: int, **fields) -> dict:
        """What a runner reports of a checkpoint that it uploaded."""
        return {
            "uri": f"{self.assignment.checkpoint_uri}/{iteration}",
            "epoch": self.assignment.epoch,
            "iteration": iteration,
            "cause": "CHECKPOINT_CAUSE_VALIDATION",
            "files": [{"name": "model.safetensors", "size_bytes": 5, "sha256": "00"}],
            **fields,
        }


async def _awaited(call):
    return await call
