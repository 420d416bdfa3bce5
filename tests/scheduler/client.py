"""A client of a real scheduler: stubs for every service, with a user's token and a runner's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sihlai.runner.v1 import runner_admin_service_pb2_grpc, runner_service_pb2_grpc
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    project_service_pb2,
    project_service_pb2_grpc,
)

from services.chassis import rpc
from tests import tokens


class Client:
    """Stubs for every service, and what tests ask all the time."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder
        token, runner_token = tokens.token(folder / "token.pem"), tokens.runner_token(folder / "token.pem")
        self.channel = rpc.channel(address, token=lambda: token)
        self.runners_channel = rpc.channel(address, token=lambda: runner_token)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(self.channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.checkpoints = checkpoint_service_pb2_grpc.CheckpointServiceStub(self.channel)
        self.runners = runner_service_pb2_grpc.RunnerServiceStub(self.runners_channel)
        self.runner_admin = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()
        await self.runners_channel.close()

    def source(self, name: str = "digits", **fields) -> dict:
        return {"uri": f"file://{self.folder}/datasets/{name}", **fields}

    async def create_project(self, project_id: str = "digits", **project) -> project_service_pb2.Project:
        project = {"training_dataset": self.source(), **project}
        request = project_service_pb2.CreateProjectRequest(project_id=project_id, project=project)
        return (await self.projects.CreateProject(request)).project

    def submission(self, project_id: str = "digits", **fields) -> job_service_pb2.SubmitJobRequest:
        spec = {"model": {"backbone": {"name": "tiny"}, "heads": [{"task": "TASK_MULTICLASS_CLASSIFICATION"}]}}
        spec |= fields.pop("spec", {})
        return job_service_pb2.SubmitJobRequest(parent=f"projects/{project_id}", spec=spec, **fields)

    async def submit(self, project_id: str = "digits", **fields):
        return (await self.jobs.SubmitJob(self.submission(project_id, **fields))).job

    async def get(self, name: str):
        return (await self.jobs.GetJob(job_service_pb2.GetJobRequest(name=name))).job

    async def until(self, name: str, state: int):
        """The job, once it is in the state."""

        async def is_there() -> bool:
            return (await self.get(name)).state == state

        await self.when(is_there)
        return await self.get(name)

    async def when(self, condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + seconds
        while not await condition():
            assert time.monotonic() < deadline, "it never came to hold"
            await asyncio.sleep(0.02)
