"""What is stored, beside what was made and what was acknowledged: read through the API, and by SQL past the service."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import grpc
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import metrics_service_pb2

from tests.chaos.stand import Stand
from tests.chaos.wire_client import SERIES, WireWriter
from tests.metrics.client import POINTS, Metrics
from tests.metrics.job_book import Job

QUERY_SECONDS = 60.0
TRIES_MAX = 5
Rows = TypeVar("Rows")
POINT_MESSAGES = """
SELECT job_uid, attempt, rank, seq, count() AS row_count, uniqExact(series_id, step) AS different,
    toInt64(min(step)) AS first, toInt64(max(step)) AS last
FROM points WHERE job_uid IN ({jobs}) GROUP BY job_uid, attempt, rank, seq ORDER BY job_uid, attempt, rank, seq
"""
LINE_MESSAGES = """
SELECT job_uid, attempt, rank, seq, count() AS row_count, uniqExact(number) AS different,
    toInt64(min(number)) AS first, toInt64(max(number)) AS last
FROM logs WHERE job_uid IN ({jobs}) GROUP BY job_uid, attempt, rank, seq ORDER BY job_uid, attempt, rank, seq
"""
GAPS = "SELECT job_uid, attempt, rank, kind, first_seq AS first, last_seq AS last FROM gaps WHERE job_uid IN ({jobs})"
FINISHES = """
SELECT job_uid, attempt, rank, kind, max(last_seq) AS last, argMax(rows_dropped, last_seq) AS dropped
FROM finishes WHERE job_uid IN ({jobs}) GROUP BY job_uid, attempt, rank, kind
"""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A message as it is stored."""

    sequence: int
    rows: int
    different: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A writer's rows in ClickHouse, and what is recorded of it."""

    messages: tuple[Message, ...]
    gaps: tuple[tuple[int, int], ...]
    finish: tuple[int, int] | None
    """The last sequence number, and the rows that were dropped."""

    @property
    def last(self) -> int:
        return self.messages[-1].sequence if self.messages else 0

    @property
    def rows(self) -> int:
        return sum(message.rows for message in self.messages)


def stored_writers(stand: Stand, jobs: Iterable[Job]) -> dict[str, Stored]:
    """What is stored of each writer of the jobs, by its name."""
    listed = ", ".join(f"'{job.uid}'" for job in jobs)
    texts = [sql.format(jobs=listed) for sql in (POINT_MESSAGES, LINE_MESSAGES, GAPS, FINISHES)]
    points, lines, gaps, finishes = stand.query(*texts)
    messages: dict[str, list[Message]] = defaultdict(list)
    for kind, rows in (("points", points), ("lines", lines)):
        for row in rows:
            messages[_name(row, kind)].append(_message(row))
    gaps_by_name: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in gaps:
        gaps_by_name[_name(row, row["kind"])].append((row["first"], row["last"]))
    ends = {_name(row, row["kind"]): (row["last"], row["dropped"]) for row in finishes}
    return {
        name: Stored(messages=tuple(messages[name]), gaps=tuple(gaps_by_name[name]), finish=ends.get(name))
        for name in {*messages, *gaps_by_name, *ends}
    }


def sequence_findings(name: str, stored: Stored) -> list[str]:
    """What must hold of every writer, whatever happened: nothing twice, in order, and no hole that is not recorded."""
    findings = []
    if twice := [message.sequence for message in stored.messages if message.different != message.rows]:
        findings.append(f"{name}: {len(twice)} messages are stored twice: {_shown(twice)}")
    if late := [after.sequence for before, after in pairwise(stored.messages) if after.first <= before.last]:
        findings.append(f"{name}: {len(late)} messages begin before the one before them ended: {_shown(late)}")
    last = max(stored.last, stored.finish[0] if stored.finish is not None else 0)
    there = {message.sequence for message in stored.messages}
    recorded = {number for first, last in stored.gaps for number in range(first, last + 1)}
    lost = [number for number in range(1, last + 1) if number not in there and number not in recorded]
    if lost:
        findings.append(f"{name}: {len(lost)} messages are gone and no gap tells of them: {_shown(lost)}")
    if both := sorted(there & recorded):
        findings.append(f"{name}: recorded as a gap, and stored: {_shown(both)}")
    return findings


def wire_findings(writers: Sequence[WireWriter], stored: dict[str, Stored]) -> list[str]:
    """Of writers that have lost nothing themselves: what is stored is what they made, each message once and whole."""
    findings = []
    for writer in writers:
        findings += writer.findings
        found = stored.get(writer.name)
        if found is None:
            if writer.acknowledged:
                findings.append(f"{writer.name}: nothing is stored, but {writer.acknowledged} was acknowledged")
            continue
        findings += sequence_findings(writer.name, found)
        if found.last < writer.acknowledged:
            findings.append(
                f"{writer.name}: {writer.acknowledged} was acknowledged, but {found.last} is the last stored"
            )
        if writer.finished and found.last != writer.made:
            findings.append(f"{writer.name}: {found.last} messages are stored, but {writer.made} were made")
        torn = [m.sequence for m in found.messages if m.rows % writer.rows_a_message]
        if torn:
            findings.append(f"{writer.name}: not whole: {_shown(torn)}")
        if found.gaps:
            findings.append(f"{writer.name}: a gap is recorded, but it had every message: {found.gaps}")
    return findings


def answer_findings(server: Metrics, writers: Sequence[WireWriter]) -> list[str]:
    """What the API says of ended jobs whose writers have finished: every row once, in order, and complete."""
    with ThreadPoolExecutor(max_workers=len(writers) or 1) as threads:
        found = threads.map(partial(_writer_findings, server), (writer for writer in writers if writer.finished))
        return [finding for findings in found for finding in findings]


def _writer_findings(server: Metrics, writer: WireWriter) -> list[str]:
    points = writer.kind == POINTS
    rows, complete = points_of(server, writer.job) if points else lines_of(server, writer.job)
    wanted = list(range(writer.rows)) if points else [f"row {number}" for number in range(writer.rows)]
    findings = []
    if rows != wanted:
        findings.append(f"{writer.name}: the API shows {_difference(wanted, rows)}")
    if not complete:
        findings.append(f"{writer.name}: everything is there, but the answer does not say that it is complete")
    return findings


def points_of(server: Metrics, job: Job) -> tuple[list[int], bool]:
    """The steps of the job's one series, and whether a watch calls the points complete."""
    return _patiently(partial(_points_of, server, job))


def lines_of(server: Metrics, job: Job) -> tuple[list[str], bool]:
    """The lines of an ended job, and whether its tail calls them complete."""
    return _patiently(partial(_lines_of, server, job))


def _patiently(read: Callable[[], Rows]) -> Rows:
    """As clients do: what is away for a moment is asked again."""
    for _ in range(TRIES_MAX - 1):
        try:
            return read()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
    return read()


def _points_of(server: Metrics, job: Job) -> tuple[list[int], bool]:
    stub = server.metrics()
    found: list[int] = []
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name)
    request.selector.names.append(SERIES)
    while True:
        page = stub.QuerySeries(request, timeout=QUERY_SECONDS, wait_for_ready=True)
        found += [step for series in page.series for step in series.points.steps]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    watch = metrics_service_pb2.WatchMetricsRequest(job=job.name)
    last = list(stub.WatchMetrics(watch, timeout=QUERY_SECONDS, wait_for_ready=True))[-1]
    return found, last.ended.points_complete


def _lines_of(server: Metrics, job: Job) -> tuple[list[str], bool]:
    request = log_service_pb2.TailLogsRequest(job=job.name, follow=True)
    responses = list(server.logs().TailLogs(request, timeout=QUERY_SECONDS, wait_for_ready=True))
    return [line.line for response in responses for line in response.batch.lines], responses[-1].ended.logs_complete


def _difference(wanted: Sequence[Any], found: Sequence[Any]) -> str:
    missing, more = set(wanted) - set(found), set(found) - set(wanted)
    twice = len(found) - len(set(found))
    place = next(
        (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found))
    )
    return (
        f"{len(found)} rows of {len(wanted)}: {len(missing)} missing, {twice} twice, {len(more)} foreign; "
        f"from place {place} on it is not what was written"
    )


def _message(row: dict[str, Any]) -> Message:
    return Message(
        sequence=row["seq"], rows=row["row_count"], different=row["different"], first=row["first"], last=row["last"]
    )


def _name(row: dict[str, Any], kind: str) -> str:
    return f"{row['job_uid']}/{row['attempt']}/{row['rank']}/{kind}"


def _shown(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} … {numbers[-1]}"
