"""SIGKILL of the service, of a runner and of the engine, at random moments under load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.round import Kind, Played, settle, wire_figures
from tests.chaos.runner import Runner
from tests.chaos.stand import SETTLE_SECONDS, Stand, stand
from tests.metrics.job_book import submit

CLIENTS = 3
RUNNER_JOBS = 2
PAUSE_SECONDS = (0.1, 0.9)
AWAY_SECONDS = (0.0, 0.4)
"""How long a process stays away."""
LEASE = ("--lease-seconds", "6", "--lease-renew-seconds", "1")
"""What a killed service had is given to the next one when its lease has run out."""


@contextmanager
def embedded(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with stand(folder, randomness, front=False) as made:
        yield made


@contextmanager
def over_http(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with stand(folder, randomness, front=True, flags=(*LEASE, "--insert-seconds", "5")) as made:
        yield made


def play(stand: Stand, folder: Path) -> Played:
    """Load from the wire and from a runner; each of some kills hits a process that chance picks."""
    jobs = stand.write(clients=1 if stand.brief else CLIENTS)
    runner_jobs = [submit(stand.scheduler.book) for _ in range(1 if stand.brief else RUNNER_JOBS)]
    runner = Runner(folder / "runner", stand.servers, runner_jobs, stand.random.randrange(2**32))
    runner.start()
    runner.wait_writing()
    victims = {"service": (stand.server.kill, stand.server.start), "runner": (runner.kill, runner.start)}
    if stand.clickhouse is not None:
        victims["engine"] = (stand.clickhouse.kill, stand.clickhouse.start)
    # Each once in any order, and then two at once.
    hits = [[name] for name in stand.random.sample(list(victims), len(victims))]
    if not stand.brief:
        hits.append(stand.random.sample(list(victims), 2))
    for hit in hits:
        stand.wait(stand.random.uniform(*PAUSE_SECONDS))
        for name in hit:
            victims[name][0]()
        stand.wait(stand.random.uniform(*AWAY_SECONDS))
        for name in sorted(hit):  # in this order, because a service does not start without its engine
            victims[name][1]()
    runner.wait_writing()
    runner.finish(SETTLE_SECONDS)
    findings, stored = settle(stand, [*jobs, *runner_jobs])
    findings += runner.audit(stored, stand.server)
    uids = {job.uid for job in runner_jobs}
    rows = sum(each.rows for name, each in stored.items() if name.partition("/")[0] in uids)
    return Played(
        findings=findings, figures={**wire_figures(stand), "kills": sum(map(len, hits)), "rows of runners": rows}
    )


EMBEDDED = Kind(
    name="killed",
    says="SIGKILL of the service, with its engine inside, and of runners",
    share=0.5,
    stand=embedded,
    play=play,
)
OVER_HTTP = Kind(
    name="killed-http",
    says="SIGKILL of the service, of runners and of an engine behind HTTP",
    share=0.5,
    stand=over_http,
    play=play,
)
