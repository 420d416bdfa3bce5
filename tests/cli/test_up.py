"""What `sihlai up` asks of its scheduler, and what it tells to go on with."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sihlai.runner.v1 import runner_admin_service_pb2 as pb
from sihlai.runner.v1 import runner_admin_service_pb2_grpc

from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig
from services.chassis.rpc import Server
from services.cli.command.up import _how_to_go_on
from services.cli.machine.folder import DataFolder
from services.cli.machine.probe import has_gpu, is_registered
from services.cli.machine.supervisor import StackConfig


class OneRunner(runner_admin_service_pb2_grpc.RunnerAdminServiceServicer):
    """An installation of so many runners that nobody may ask for a list of them."""

    async def GetRunner(self, request: pb.GetRunnerRequest, context: Any) -> pb.GetRunnerResponse:  # noqa: N802
        assert request.name == "runners/local-1"
        return pb.GetRunnerResponse(runner=pb.Runner(name=request.name, state=pb.RUNNER_STATE_IDLE))


def test_up_asks_for_its_own_runner_and_for_no_list(tmp_path: Path) -> None:
    async def asked() -> tuple[bool, bool]:
        server = Server(ServerConfig(drain_seconds=0.1), OpenGuard())
        server.add(
            "sihlai.runner.v1.RunnerAdminService",
            lambda server: runner_admin_service_pb2_grpc.add_RunnerAdminServiceServicer_to_server(OneRunner(), server),
        )
        address, folder = await server.start(), DataFolder(root=tmp_path)
        folder.token.write_text("token")
        try:
            return (
                await asyncio.to_thread(is_registered, folder, address, "local-1", None),
                await asyncio.to_thread(has_gpu, folder, address, "runner-local-1", None),
            )
        finally:
            await server.stop()

    assert asyncio.run(asked()) == (True, False)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_where_there_is_no_gpu_a_small_model_is_told(tmp_path: Path, on_gpu: bool) -> None:
    told = _how_to_go_on(StackConfig(data=tmp_path), None, on_gpu=on_gpu)
    assert ("--backbone tiny --resolution 64" in told) is not on_gpu
