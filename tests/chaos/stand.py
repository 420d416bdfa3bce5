"""What a round runs on: the scheduler's double, an engine, one or more metrics services, and clients that write.

Everything is a process that can be killed at any moment, and comes back at the same address.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.wire_client import WireClient, WireWriter, pair_of_writers
from tests.metrics.clickhouse_server import ClickHouse
from tests.metrics.client import Metrics, until
from tests.metrics.job_book import Job, Scheduler, submit

FLAGS = (
    *("--block-seconds", "0.05"),
    *("--block-rows", "3000"),
    *("--principal-streams-max", "20000"),  # all followers are one user
    *("--principal-processor-share", "1000"),
    *("--ended-wait-seconds", "3"),
    *("--ended-check-seconds", "0.2"),
    *("--job-fresh-seconds", "0"),
    *("--scheduler-seconds", "2"),
)
SETTLE_SECONDS = 90.0
READ = """
import json, sys
from services.metrics.clickhouse.engine import open_engine
connection = open_engine("chdb://" + sys.argv[1], lock_seconds=20, query_seconds=60, insert_seconds=60).connect()
for sql in json.load(sys.stdin):
    print(json.dumps(connection.read(sql, {}).to_pylist()))
"""


@dataclass(eq=False)
class Stand:
    """One of them a kind of round; each round has jobs of its own."""

    folder: Path
    random: random.Random
    scheduler: Scheduler
    clickhouse: ClickHouse | None
    servers: list[Metrics]
    brief: bool = False
    """In the tests: everything happens, but less of it."""
    clients: list[WireClient] = field(default_factory=list)

    @property
    def server(self) -> Metrics:
        return self.servers[0]

    @property
    def wire_writers(self) -> list[WireWriter]:
        return [writer for client in self.clients for writer in client.writers]

    def write(self, *, clients: int, jobs_a_client: int = 1) -> list[Job]:
        """Let clients write, each to jobs of its own; the jobs."""
        made = []
        for _ in range(clients):
            jobs = [submit(self.scheduler.book) for _ in range(jobs_a_client)]
            writers = [writer for job in jobs for writer in pair_of_writers(job)]
            self.clients.append(WireClient(self.servers, writers, random.Random(self.random.random())))
            made += jobs
        return made

    def wait(self, seconds: float) -> None:
        """Let them write for this time; a finding of any writer ends the wait."""
        deadline = time.monotonic() + seconds
        until(
            lambda: time.monotonic() > deadline or any(writer.findings for writer in self.wire_writers),
            "the time to pass",
            seconds + 10,
        )

    def move(self, clients: int) -> None:
        """Let so many clients break off, and go on at whichever service."""
        for client in self.random.sample(self.clients, clients):
            client.move()

    def finish(self) -> list[str]:
        """No more faults: every client sends what it has to the end; findings."""
        for client in self.clients:
            client.finish()
        deadline = time.monotonic() + SETTLE_SECONDS
        findings = []
        for client in self.clients:
            if not client.join(max(0.0, deadline - time.monotonic())):
                client.leave()
                client.join(10)
                left = [f"{w.name} {w.acknowledged} of {w.made}" for w in client.writers if not w.finished]
                findings.append(f"not done {SETTLE_SECONDS:.0f} s after the last fault: {', '.join(left)}")
        return findings

    def forget(self) -> None:
        """The round is over."""
        for client in self.clients:
            client.leave()
        for client in self.clients:
            client.join(20)
        self.clients.clear()

    def query(self, *texts: str) -> list[list[dict[str, Any]]]:
        """The rows of some SQL, past the service. With an engine of its own the service is stopped for it."""
        if self.clickhouse is not None:
            return [self.clickhouse.rows(sql) for sql in texts]
        (server,) = self.servers
        status = server.stop()
        assert status == 0, f"the service ended with {status}: {server.log_text()[-3000:]}"
        result = subprocess.run(
            [sys.executable, "-c", READ, str(server.folder / "data")],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
        )
        server.start()
        return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def stand(
    folder: Path, randomness: random.Random, *, front: bool, services: int = 1, flags: Sequence[str] = ()
) -> Iterator[Stand]:
    """A stand whose services are up; with the HTTP front, or an embedded engine."""
    scheduler = Scheduler()
    scheduler.start()
    clickhouse = ClickHouse(folder / "clickhouse") if front else None
    made = Stand(folder, randomness, scheduler, clickhouse, [])
    try:
        if clickhouse is not None:
            clickhouse.start()
        for number in range(services):
            url = clickhouse.url if clickhouse is not None else ""
            server = Metrics(folder / f"metrics-{number}", scheduler.address, (*FLAGS, *flags), clickhouse=url)
            made.servers.append(server)
            if number:  # replicas share the keys of who signs
                server.folder.mkdir(parents=True)
                for key in ("token.pem", "token.pub.pem"):
                    shutil.copy(made.server.folder / key, server.folder / key)  # with its mode
            server.start()
        yield made
    finally:
        made.forget()
        for server in made.servers:
            for channel in server.channels:
                channel.close()
            if server.process is not None and not server.process_ended():
                server.kill()
        if clickhouse is not None and not clickhouse.ended:
            clickhouse.kill()
        scheduler.stop()
