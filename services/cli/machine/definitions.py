"""What runs on one machine, with which settings: the table that the supervisor goes by.

Every address is fixed before anything starts, so that all processes can start at once and one that died can come back
where the others look for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from services.chassis.endpoints import SERVICES
from services.chassis.files import replace_file
from services.chassis.nats_server import nats_server_path, server_configuration, server_url
from services.cli.machine.address import chosen_addresses, split_address
from services.cli.machine.child import Definition
from services.cli.machine.folder import DataFolder
from services.cli.machine.gpus import VISIBLE_VARIABLE, TooFewGpusError, divided, gpus_to_use
from services.cli.machine.issuing import nats_users
from services.cli.machine.probe import is_healthy, is_registered
from services.cli.machine.process import CLIENT_VARIABLES, FREE_PORT, PYTHON
from services.cli.machine.transport import Transport

MARK_VARIABLE = "SIHLAI_STACK"
"""Set in every process of a stack to the stack's id: finds what was left behind, grandchildren too."""


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
    """Folders that datasets may lie in, and be written to; of the data folder only converted datasets may be read."""
    allowed_endpoint_hosts: tuple[str, ...] = ()
    oidc_file: Path | None = None
    """Names an OpenID Connect issuer whose tokens are taken too."""
    device: str = "auto"
    """What runners train on: auto, cpu or cuda."""
    transport: Transport = field(default_factory=Transport)
    """How they are reached, with TLS or without."""
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
    """Everything that runs, in the order of starting. Takes free ports where none are given. The tokens are there."""
    folder = DataFolder(root=config.data)
    wanted = {
        "nats": config.listen_nats,
        "conversion": config.listen_conversion,
        "scheduler": config.listen_scheduler,
        "metrics": config.listen_metrics,
    }
    addresses = chosen_addresses(wanted, folder.kept_addresses)
    config.transport.check(addresses.values())
    environ = {name: value for name, value in environ.items() if name not in CLIENT_VARIABLES} | {MARK_VARIABLE: mark}
    servers = [
        _server(config, folder, name, flags, addresses, environ)
        for name, flags in _server_flags(config, folder, addresses).items()
    ]
    shares = divided([] if config.device == "cpu" else gpus_to_use(environ), config.runners)
    if config.device == "cuda" and not all(shares):
        found = sum(map(len, shares))
        if not found:
            raise TooFewGpusError("--device is cuda, but no GPU answers: install NVIDIA's driver, or give --device cpu")
        raise TooFewGpusError(
            f"{config.runners} runners want a GPU each, but {found} can be used: give --runners {found}, or "
            "--device auto to let the others train on the processor"
        )
    runners = [
        _runner(config, folder, runner_id, addresses, _with_gpus(environ, gpus, config.runners))
        for runner_id, gpus in zip(runner_ids(config), shares, strict=True)
    ]
    return [_nats(config, folder, addresses["nats"], environ), *servers, *runners]


def runner_ids(config: StackConfig) -> list[str]:
    """The names of the machine's runners."""
    return [f"local-{number}" for number in range(1, config.runners + 1)]


def _with_gpus(environ: Mapping[str, str], gpus: Sequence[str], runners: int) -> Mapping[str, str]:
    """The environment of a runner that has these GPUs. One alone sees what its machine has, and needs no list."""
    return environ if runners == 1 else {**environ, VISIBLE_VARIABLE: ",".join(gpus)}


def _server_flags(
    config: StackConfig, folder: DataFolder, addresses: Mapping[str, str]
) -> dict[str, Sequence[str | Path]]:
    transport = config.transport
    nats = (*transport.nats_flags(addresses["nats"]), "--nats-credentials-file", folder.nats_credentials)
    keys = ("--token-public-keys", folder.token_public_keys)
    store = folder.of("conversion").resolve()
    roots = [word for root in config.allowed_roots for word in ("--allowed-roots", root.resolve())]
    closed = ("--closed-roots", config.data.resolve())  # the keys and all projects' models lie there
    written = [word for root in config.allowed_roots for word in ("--allowed-destination-roots", root.resolve())]
    written += ["--closed-destination-roots", config.data.resolve()]
    hosts = [word for host in config.allowed_endpoint_hosts for word in ("--allowed-endpoint-hosts", host)]
    return {
        "conversion": (
            *nats,
            *keys,
            *("--scheduler-address", transport.reached(addresses["scheduler"])),
            *("--store-uri", store.as_uri()),
            *roots,
            *closed,
            *written,
            *hosts,
        ),
        "scheduler": (
            *nats,
            *("--database-url", f"sqlite:///{_quoted(folder.of('scheduler').resolve() / 'scheduler.sqlite')}"),
            *("--conversion-address", transport.reached(addresses["conversion"])),
            *("--announced-conversion-address", transport.announced(addresses["conversion"])),
            *("--announced-metrics-address", transport.announced(addresses["metrics"])),
            *("--checkpoint-root", folder.checkpoints.resolve().as_uri()),
            *("--token-key-file", folder.token_key),
            *("--credentials-key-file", folder.credentials_key),
            *("--allowed-roots", store),
            *roots,
            *hosts,
        ),
        "metrics": (
            *nats,
            *("--clickhouse", f"chdb://{_quoted(folder.of('metrics').resolve())}"),
            *("--scheduler-address", transport.reached(addresses["scheduler"])),
            *keys,
        ),
    }


def _quoted(path: Path) -> str:
    """A path as part of a url."""
    return quote(os.fsencode(path), safe="/")


def _server(
    config: StackConfig,
    folder: DataFolder,
    name: str,
    flags: Sequence[str | Path],
    addresses: Mapping[str, str],
    environ: Mapping[str, str],
) -> Definition:
    address_file = folder.address_file(name)
    transport = config.transport
    reached = transport.reached(addresses[name])

    def prepare() -> None:
        folder.of(name).mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        folder.revocations(name).parent.mkdir(exist_ok=True)
        folder.issuer_keys(name).parent.mkdir(exist_ok=True)
        address_file.unlink(missing_ok=True)  # one that was killed leaves it behind

    words = (
        *("--listen-address", addresses[name]),
        *("--address-file", address_file),
        *("--token-file", folder.token_of(name)),
        *("--revocations-file", folder.revocations(name)),
        *transport.server_flags(),
        *_issuer_flags(config, folder, name),
        *flags,
        *config.extra.get(name, ()),
    )
    return Definition(
        name=name,
        command=[*PYTHON, "-m", f"services.{name}", *(str(word) for word in words)],
        environ=environ,
        log=folder.log(name),
        address=reached,
        serves=lambda process_id: address_file.exists() and is_healthy(reached, transport.client_tls),
        prepare=prepare,
        stop_order={"metrics": 1, "scheduler": 2, "conversion": 3}[name],
        stop_seconds=config.service_stop_seconds,
    )


def _issuer_flags(config: StackConfig, folder: DataFolder, name: str) -> Sequence[str | Path]:
    if config.oidc_file is None:
        return ()
    return ("--oidc-file", config.oidc_file.resolve(), "--oidc-keys-file", folder.issuer_keys(name))


def _nats(config: StackConfig, folder: DataFolder, address: str, environ: Mapping[str, str]) -> Definition:
    host, port = split_address(address, "the address of nats")
    home = folder.of("nats").resolve()
    configuration = home / "nats.conf"
    ports = home / "ports"

    def prepare() -> None:
        ports.mkdir(parents=True, exist_ok=True)
        for left in ports.glob("*.ports"):  # of one that was killed
            left.unlink()
        text = server_configuration(
            store_dir=home / "store",
            ports_file_dir=ports,
            host=host.strip("[]"),
            port=port,
            users=nats_users(folder),
            tls=config.transport.nats_tls(address),
        )
        replace_file(configuration, text.encode(errors="surrogateescape"), mode=0o600, synced=False)

    return Definition(
        name="nats",
        command=[str(nats_server_path()), "--config", str(configuration)],
        environ=environ,
        log=folder.log("nats"),
        address=config.transport.reached(address),
        # It writes this file once it listens; somebody else at its port does not.
        serves=lambda process_id: server_url(ports, process_id) is not None,
        prepare=prepare,
        stop_order=4,
        stop_seconds=config.service_stop_seconds,
    )


def _runner(
    config: StackConfig, folder: DataFolder, runner_id: str, addresses: Mapping[str, str], environ: Mapping[str, str]
) -> Definition:
    transport = config.transport
    scheduler = transport.reached(addresses["scheduler"])
    words = (
        *("--runner-id", runner_id),
        *("--work-folder", folder.runner(runner_id).resolve()),
        *("--token-file", folder.token_of(f"runner-{runner_id}")),
        *("--device", config.device),
        *(word for service in SERVICES for word in (f"--{service}-address", transport.reached(addresses[service]))),
        *transport.client_flags(),
        *config.extra.get("runner", ()),
    )
    return Definition(
        name=f"runner-{runner_id}",
        command=[*PYTHON, "-m", "runner", *(str(word) for word in words)],
        environ=environ,
        log=folder.log(f"runner-{runner_id}"),
        address="",
        serves=lambda process_id: is_registered(folder, scheduler, runner_id, transport.client_tls),
        prepare=lambda: folder.runner(runner_id).mkdir(parents=True, exist_ok=True),
        stop_order=0,
        stop_seconds=config.runner_stop_seconds,
    )
