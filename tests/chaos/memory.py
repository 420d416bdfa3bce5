"""What the service holds in memory while somebody does too much, or nothing: under a named bound, and a clear error.

A bound is of what is added to a service that has been warm: by the settings that are named beside it, and what Python,
gRPC and the engine need for as much.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from services.chassis.errors import Reason
from tests.bench.metrics.ingest import ingest_rate
from tests.bench.metrics.load import Sender, requests_of
from tests.bench.metrics.process import memory_bytes, peak_memory
from tests.chaos.round import Kind, Played
from tests.chaos.stand import Stand, stand
from tests.metrics.client import LINES, columns, definition, until
from tests.metrics.job_book import submit

MIB = 2**20
QUEUE_BYTES = 32 * MIB
STALLED_ENGINE_BYTES_MAX = 3 * QUEUE_BYTES
"""The queue (`queue_bytes_max`, here 32 MiB), a block of it on its way to the engine in Arrow and as a request (5 MiB
each), what gRPC has read and nobody has taken, and as much again for what allocators keep: 36 to 40 MiB were seen."""
SERIES_BYTES_MAX = 1_500
"""Of each series that an open writer may name (`series_per_writer_max`, `series_max`)."""
LONG_LINE_BYTES = 100 * 10**6
LONG_LINE_BYTES_MAX = 64 * MIB
"""gRPC reads no message beyond 16 MiB, so the rest of the line is never here."""
STALLED_SECONDS_MAX = 120
PLATEAU_RATIO_MAX = 1.15
STREAMS = 4
POINTS = r"INSERT\s+INTO\s+\S*points"


def embedded(*flags: str) -> Callable[[Path, random.Random], AbstractContextManager[Stand]]:
    return lambda folder, randomness: stand(folder, randomness, front=False, flags=flags)


@contextmanager
def stalled(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    # An insert that is held for longer would be given up, and its writers refused: not what is measured here.
    flags = ("--queue-bytes-max", str(QUEUE_BYTES), "--insert-seconds", str(2 * STALLED_SECONDS_MAX))
    with stand(folder, randomness, front=True, flags=flags) as made:
        yield made


def warm(stand: Stand) -> int:
    """What the service holds once all its parts have been used."""
    ingest_rate(stand.server, [submit(stand.scheduler.book)], messages=200, points=2_000)
    return memory_bytes(stand.server)


def within(name: str, before: int, highest: int, bound: int) -> Played:
    added = highest - before
    findings = [f"{name}: {added / MIB:.0f} MiB were added, but {bound / MIB:.0f} MiB are the bound"]
    return Played(findings=findings if added > bound else [], figures={"MiB added": added / MIB, "bound": bound / MIB})


def stalled_engine(stand: Stand, folder: Path) -> Played:
    """Streams send all that they have credit for while no insert returns; afterwards everything is stored."""
    assert stand.clickhouse is not None
    before = warm(stand)
    messages = 400 if stand.brief else 2_000
    jobs = [submit(stand.scheduler.book) for _ in range(STREAMS)]
    requests = [requests_of(number, job, 1, messages, 2_000) for number, job in enumerate(jobs, 1)]
    with peak_memory(stand.server) as highest:
        senders = [Sender(stand.server) for _ in jobs]
        for number, (sender, job) in enumerate(zip(senders, jobs, strict=True), 1):
            sender.open(stand.server, number, job)
        with stand.clickhouse.fault(POINTS, hold=True, times=1):
            for sender, all_of_it in zip(senders, requests, strict=True):
                sender.send(all_of_it)
            until(lambda: all(sender.waits for sender in senders), "all credit to be used up", STALLED_SECONDS_MAX)
        for number, sender in enumerate(senders, 1):
            sender.wait_stored(number, messages)
            sender.close()
    return within("a stalled engine", before, highest[0], STALLED_ENGINE_BYTES_MAX)


def series_names(stand: Stand, folder: Path) -> Played:
    """Writers name one series after the other until each is told that it may name no more; other writers go on."""
    names_a_message = 1_000
    writers, per_writer = (2, 20_000) if stand.brief else (51, 20_000)
    before = warm(stand)
    findings = []
    named = 0
    with peak_memory(stand.server) as highest:
        client = stand.server.ingest()
        for number in range(1, writers + 1):
            job = submit(stand.scheduler.book)
            client.open(number, stand.server.token(job.uid), series=[])
            last = per_writer // names_a_message + 1
            for sequence in range(1, last + 1):
                names = [f"name/{sequence}/{index}" for index in range(names_a_message)]
                client.points(
                    number,
                    sequence,
                    columns(job.uid, names[0], [sequence], [1.0]),
                    new_series=[definition(job.uid, name) for name in names],
                )
                client.wait(lambda n=number, s=sequence: _answered(client, n, s), "an answer", 60)
                if number in client.refusals:
                    break
                named += names_a_message
            refusal = client.refusals.get(number)
            if refusal is None or "series" not in refusal.message or not refusal.permanent:
                findings.append(f"a writer of {named} series was told {refusal}")
        client.close()
    played = within(f"{named} series", before, highest[0], named * SERIES_BYTES_MAX)
    return Played(findings=[*findings, *played.findings], figures={**played.figures, "series": named})


def _answered(client: object, number: int, sequence: int) -> bool:
    return number in client.refusals or client.stored.get(number, 0) >= sequence  # type: ignore[attr-defined]  # an IngestClient


def long_line(stand: Stand, folder: Path) -> Played:
    """A line of 100 MB ends its stream with an error that names the limit, and another stream does not notice."""
    before = warm(stand)
    findings = []
    job, other = submit(stand.scheduler.book), submit(stand.scheduler.book)
    with peak_memory(stand.server) as highest:
        client, neighbour = stand.server.ingest(), stand.server.ingest()
        client.open(1, stand.server.token(job.uid), kind=LINES)
        neighbour.open(1, stand.server.token(other.uid), kind=LINES)
        client.lines(1, 1, 1, ["x" * LONG_LINE_BYTES])
        error = client.wait_error()
        if error.reason is not Reason.MESSAGE_TOO_LARGE:
            findings.append(f"the stream of a line of 100 MB ended with {error}")
        neighbour.lines(1, 1, 1, ["a line"])
        neighbour.wait_stored(1, 1)
        neighbour.close()
        client.close()
    played = within("a line of 100 MB", before, highest[0], LONG_LINE_BYTES_MAX)
    return Played(findings=[*findings, *played.findings], figures=played.figures)


def one_point_columns(stand: Stand, folder: Path) -> Played:
    """Columns of one point as fast as one stream can: the second half of the time takes no more than the first."""
    warm(stand)
    seconds = 6.0 if stand.brief else 60.0
    job = submit(stand.scheduler.book)
    sender = Sender(stand.server)
    first = sender.open(stand.server, 1, job, series=200) + 1
    highest = []
    for _ in range(2):
        deadline = time.monotonic() + seconds / 2
        with peak_memory(stand.server) as half:
            while time.monotonic() < deadline:
                sender.send(requests_of(1, job, first, 500, 200, 200))
                first += 500
                sender.wait_stored(1, first - 250)
        highest.append(half[0])
    sender.close()
    ratio = highest[1] / highest[0]
    finding = f"one-point columns: {highest[0] / MIB:.0f} MiB in the first half, {highest[1] / MIB:.0f} in the second"
    figures = {"MiB": highest[1] / MIB, "ratio": ratio, "points": (first - 1) * 200}
    return Played(findings=[finding] if ratio > PLATEAU_RATIO_MAX else [], figures=figures)


def _kind(
    name: str,
    says: str,
    play: Callable[[Stand, Path], Played],
    stand: Callable[[Path, random.Random], AbstractContextManager[Stand]],
) -> Kind:
    return Kind(name=name, says=says, share=0, stand=stand, play=play)


ENGINE = _kind("stalled-engine", "memory while no insert returns", stalled_engine, stalled)
SERIES = _kind("series-names", "memory while writers name a million series", series_names, embedded())
LINE = _kind("long-line", "memory while a line of 100 MB comes in", long_line, embedded())
COLUMNS = _kind("one-point", "memory while columns of one point come in at full speed", one_point_columns, embedded())
