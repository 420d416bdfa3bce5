"""What runs on one machine, with which settings: the table that the supervisor goes by.

Every address is fixed before anything starts, so that all processes can start at once and one that died can come back
where the others look for it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sihlai.runner.v1 import runner_admin_service_pb2, runner_admin_service_pb2_grpc

from services.chassis.auth import TokenSigner
from services.chassis.bus import nats_server_path, server_configuration
from services.cli.child import Definition
from services.cli.folder import SERVICES, DataFolder

FREE_PORT = "127.0.0.1:0"
PYTHON = (sys.executable, "-P")
"""Without the current folder on its path: a stranger's `runner` in it would win over ours."""
PROBE_SECONDS_MAX = 1.0
"""How long one question whether a process serves may take."""
RUNNERS_MAX = 1_000
"""How many runners are asked for when one of them is looked for."""
MARK_VARIABLE = "SIHLAI_STACK"
"""Set in every process of a stack to the stack's id: finds what was left behind, grandchildren too."""
CLIENT_VARIABLES = ("SIHLAI_DATA", *(f"SIHLAI_{service.upper()}_ADDRESS" for service in SERVICES))
"""What commands read. Services must not see them: a variable with a service's prefix is a setting of that service."""


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """What is started where. Addresses with port 0 take a free port once, and keep it."""

    data: Path
    runners: int = 1
    listen_nats: str = FREE_PORT
    listen_conversion: str = FREE_PORT
    listen_scheduler: str = FREE_PORT
    listen_metrics: str = FREE_PORT
    allowed_roots: tuple[Path, ...] = ()
    """Folders that datasets may lie in, and be written to; to be read, the data folder always is one."""
    allowed_endpoint_hosts: tuple[str, ...] = ()
    device: str = "auto"
    """What runners train on: auto, cpu or cuda."""
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """More flags by process: `conversion`, `scheduler`, `metrics`, `runner` (of all runners)."""
    start_seconds_max: float = 60.0
    """How long everything may take until it serves."""
    runner_stop_seconds: float = 180.0
    """How long a runner may take to write its checkpoint and send what its spool holds."""
    service_stop_seconds: float = 15.0
    hurry_seconds: float = 3.0
    """How long anything may take after a second Ctrl-C."""
    restart_seconds_first: float = 0.5
    """The pause before a process that died is started again; it doubles with every death."""
    restart_seconds_max: float = 15.0
    steady_seconds: float = 60.0
    """A process that lived so long begins with the first pause again."""


def definitions(config: StackConfig, *, environ: Mapping[str, str], mark: str) -> list[Definition]:
    """Everything that runs, in the order of starting. Takes free ports where none are given, and makes the keys."""
    folder = DataFolder(root=config.data)
    addresses = {
        "nats": free_address(config.listen_nats),
        "conversion": free_address(config.listen_conversion),
        "scheduler": free_address(config.listen_scheduler),
        "metrics": free_address(config.listen_metrics),
    }
    # Made here, so that metrics can read the public half however early it starts.
    TokenSigner.from_file(folder.token_key)
    environ = {name: value for name, value in environ.items() if name not in CLIENT_VARIABLES} | {MARK_VARIABLE: mark}
    servers = [
        _server(config, folder, name, flags, addresses, environ)
        for name, flags in _server_flags(config, folder, addresses).items()
    ]
    runners = [
        _runner(config, folder, f"local-{number}", addresses, environ) for number in range(1, config.runners + 1)
    ]
    return [_nats(config, folder, addresses["nats"], environ), *servers, *runners]


def free_address(listen_address: str) -> str:
    """The address, with a free port in place of 0."""
    host, _, port = listen_address.rpartition(":")
    if port != "0":
        return listen_address
    with socket.socket() as probe:
        # Without it the port could stay blocked for a minute on systems that keep closed sockets.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _server_flags(
    config: StackConfig, folder: DataFolder, addresses: Mapping[str, str]
) -> dict[str, Sequence[str | Path]]:
    nats = ("--nats-url", f"nats://{addresses['nats']}")
    roots = [word for root in (config.data, *config.allowed_roots) for word in ("--allowed-roots", root.resolve())]
    written = [word for root in config.allowed_roots for word in ("--allowed-destination-roots", root.resolve())]
    hosts = [word for host in config.allowed_endpoint_hosts for word in ("--allowed-endpoint-hosts", host)]
    return {
        "conversion": (*nats, "--store-uri", folder.of("conversion").resolve().as_uri(), *roots, *written, *hosts),
        "scheduler": (
            *nats,
            *("--database-url", f"sqlite:///{folder.of('scheduler').resolve() / 'scheduler.sqlite'}"),
            *("--conversion-address", addresses["conversion"]),
            *("--checkpoint-root", folder.checkpoints.resolve().as_uri()),
            *("--token-key-file", folder.token_key),
            *("--credentials-key-file", folder.credentials_key),
            *roots,
            *hosts,
        ),
        "metrics": (
            *("--clickhouse", f"chdb://{folder.of('metrics').resolve()}"),
            *("--scheduler-address", addresses["scheduler"]),
            *("--token-public-keys", folder.token_public_key),
        ),
    }


def _server(
    config: StackConfig,
    folder: DataFolder,
    name: str,
    flags: Sequence[str | Path],
    addresses: Mapping[str, str],
    environ: Mapping[str, str],
) -> Definition:
    address_file = folder.address_file(name)

    def prepare() -> None:
        folder.of(name).mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        address_file.unlink(missing_ok=True)  # one that was killed leaves it behind

    words = ("--listen-address", addresses[name], "--address-file", address_file, *flags, *config.extra.get(name, ()))
    return Definition(
        name=name,
        command=[*PYTHON, "-m", f"services.{name}", *(str(word) for word in words)],
        environ=environ,
        log=folder.log(name),
        address=addresses[name],
        serves=lambda: address_file.exists() and is_healthy(addresses[name]),
        prepare=prepare,
        stop_order={"metrics": 1, "scheduler": 2, "conversion": 3}[name],
        stop_seconds=config.service_stop_seconds,
    )


def _nats(config: StackConfig, folder: DataFolder, address: str, environ: Mapping[str, str]) -> Definition:
    host, _, port = address.rpartition(":")
    configuration = folder.of("nats") / "nats.conf"

    def prepare() -> None:
        configuration.parent.mkdir(parents=True, exist_ok=True)
        configuration.write_text(
            server_configuration(store_dir=(folder.of("nats") / "store").resolve(), host=host, port=int(port))
        )

    return Definition(
        name="nats",
        command=[str(nats_server_path()), "--config", str(configuration)],
        environ=environ,
        log=folder.log("nats"),
        address=address,
        serves=lambda: _answers_as_nats(host, int(port)),
        prepare=prepare,
        stop_order=4,
        stop_seconds=config.service_stop_seconds,
    )


def _runner(
    config: StackConfig, folder: DataFolder, runner_id: str, addresses: Mapping[str, str], environ: Mapping[str, str]
) -> Definition:
    words = (
        *("--runner-id", runner_id),
        *("--work-folder", folder.runner(runner_id).resolve()),
        *("--device", config.device),
        *(word for service in SERVICES for word in (f"--{service}-address", addresses[service])),
        *config.extra.get("runner", ()),
    )
    return Definition(
        name=f"runner-{runner_id}",
        command=[*PYTHON, "-m", "runner", *(str(word) for word in words)],
        environ=environ,
        log=folder.log(f"runner-{runner_id}"),
        address="",
        serves=lambda: _is_registered(addresses["scheduler"], runner_id),
        prepare=lambda: folder.runner(runner_id).mkdir(parents=True, exist_ok=True),
        stop_order=0,
        stop_seconds=config.runner_stop_seconds,
    )


def is_healthy(address: str) -> bool:
    """Whether the server at the address says that it serves, within PROBE_SECONDS_MAX."""
    with _channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS_MAX
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _is_registered(scheduler_address: str, runner_id: str) -> bool:
    """Whether the scheduler hears the runner now."""
    request = runner_admin_service_pb2.ListRunnersRequest(page_size=RUNNERS_MAX)
    with _channel(scheduler_address) as channel:
        try:
            answer = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(channel).ListRunners(
                request, timeout=PROBE_SECONDS_MAX
            )
        except grpc.RpcError:
            return False
    return any(
        runner.name == f"runners/{runner_id}" and runner.state != runner_admin_service_pb2.RUNNER_STATE_LOST
        for runner in answer.runners
    )


def _answers_as_nats(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS_MAX) as connection:
            connection.settimeout(PROBE_SECONDS_MAX)
            return connection.recv(4) == b"INFO"
    except OSError:
        return False


def _channel(address: str) -> grpc.Channel:
    # Not the chassis' channel: that one belongs to an event loop, and a supervisor has none.
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
