"""Whether a process serves: its health, and whether the scheduler hears a runner."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sihlai.runner.v1 import runner_admin_service_pb2, runner_admin_service_pb2_grpc

from services.chassis.auth.carrying import TokenFile, authorization
from services.chassis.tls import ClientTls
from services.cli.machine.folder import DataFolder

PROBE_SECONDS_MAX = 1.0
"""How long one question whether a process serves may take."""


def is_healthy(address: str, tls: ClientTls | None = None) -> bool:
    """Whether the server at the address says that it serves, within PROBE_SECONDS_MAX."""
    with _channel(address, tls) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS_MAX
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def has_gpu(folder: DataFolder, scheduler_address: str, process_name: str, tls: ClientTls | None) -> bool:
    """Whether the runner of this process has a GPU."""
    runner = _registered(folder, scheduler_address, process_name.removeprefix("runner-"), tls)
    return runner is not None and len(runner.capabilities.gpus) > 0


def is_registered(folder: DataFolder, scheduler_address: str, runner_id: str, tls: ClientTls | None) -> bool:
    """Whether the scheduler hears the runner now."""
    runner = _registered(folder, scheduler_address, runner_id, tls)
    return runner is not None and runner.state != runner_admin_service_pb2.RUNNER_STATE_LOST


def _registered(
    folder: DataFolder, scheduler_address: str, runner_id: str, tls: ClientTls | None
) -> runner_admin_service_pb2.Runner | None:
    request = runner_admin_service_pb2.GetRunnerRequest(name=f"runners/{runner_id}")
    with _channel(scheduler_address, tls) as channel:
        try:
            answer = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(channel).GetRunner(
                request, timeout=PROBE_SECONDS_MAX, metadata=authorization(TokenFile(folder.token))
            )
        except grpc.RpcError:
            return None
    return answer.runner


def _channel(address: str, tls: ClientTls | None) -> grpc.Channel:
    # Not the chassis' channel: that one belongs to an event loop, and a supervisor has none.
    options = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=options)
