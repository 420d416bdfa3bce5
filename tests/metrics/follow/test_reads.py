"""What tails read: no more of the log than is needed, and never all of it in one query."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sihlai.logs.v1 import log_line_pb2, log_service_pb2

from services.chassis.errors import InvalidArgument
from tests.metrics.client import LINES, IngestClient, Metrics, refused, tail_all, texts
from tests.metrics.job_book import Job, JobBook, submit
from tests.metrics.tail import Tail

FIRST_SECONDS = 1_700_000_000
LINES_A_MESSAGE = 60


class Log:
    """What was written of a job, to compare with: (attempt, rank, number, time, text)."""

    def __init__(self, server: Metrics, book: JobBook, ingest: IngestClient, ranks: dict[tuple[int, int], int]) -> None:
        attempts = sorted({attempt for attempt, _ in ranks})
        self.job: Job = submit(book, attempts=attempts)
        self.rows: list[tuple[int, int, int, int, str]] = []
        chance = random.Random(3)
        for writer, ((attempt, rank), messages) in enumerate(ranks.items(), 1):
            ingest.open(writer, server.token(self.job.uid, attempt=attempt), kind=LINES, rank=rank)
            time_us = FIRST_SECONDS * 1_000_000
            for sequence in range(1, messages + 1):
                first = (sequence - 1) * LINES_A_MESSAGE + 1
                times = []
                for _ in range(LINES_A_MESSAGE):
                    time_us += chance.randrange(1, 40_000)
                    times.append(time_us)
                words = [
                    f"{attempt} {rank} {first + i} {'rare' if chance.random() < 0.01 else 'usual'}"
                    for i in range(LINES_A_MESSAGE)
                ]
                self.rows += [(attempt, rank, first + i, times[i], words[i]) for i in range(LINES_A_MESSAGE)]
                ingest.lines(writer, sequence, first, words, times_unix_us=times)
            ingest.wait_stored(writer, messages)

    def newest(self, count: int, *, word: str = "", ranks: Sequence[int] = ()) -> list[str]:
        """By attempt, time, rank and number; in the order of a tail."""
        meant = [row for row in self.rows if word in row[4] and (not ranks or row[1] in ranks)]
        chosen = sorted(meant, key=lambda row: (row[0], row[3], row[1], row[2]))[len(meant) - count :]
        return [row[4] for row in sorted(chosen)] if count else []


@pytest.mark.parametrize(
    "ranks",
    [{(1, 0): 12}, {(1, 0): 2, (2, 0): 3, (3, 0): 1}, {(1, 0): 3, (1, 1): 8, (1, 7): 1, (2, 0): 1, (2, 1): 2}],
    ids=["one process", "three attempts", "several processes"],
)
def test_a_tail_begins_with_the_newest_lines_that_are_meant(
    server: Metrics, book: JobBook, ingest: IngestClient, ranks: dict[tuple[int, int], int]
) -> None:
    log = Log(server, book, ingest, ranks)
    for count in (0, 1, 7, 100, 333, 100_000):
        count = min(count, len(log.rows)) if count < 100_000 else count
        assert texts(tail_all(server.logs(), log.job, tail_last=count)) == log.newest(min(count, len(log.rows)))
    rare = log_service_pb2.LogFilter(contains="rare")
    for count in (1, 3):
        assert texts(tail_all(server.logs(), log.job, tail_last=count, filter=rare)) == log.newest(count, word="rare")
    nothing = log_service_pb2.LogFilter(contains="never")
    assert texts(tail_all(server.logs(), log.job, tail_last=5, filter=nothing)) == []
    of_rank_0 = log_service_pb2.LogFilter(ranks=[0])
    assert texts(tail_all(server.logs(), log.job, tail_last=90, filter=of_rank_0)) == log.newest(90, ranks=[0])


def test_a_tail_begins_at_a_time(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    log = Log(server, book, ingest, {(1, 0): 4, (1, 1): 9, (2, 0): 2})
    for seconds in (-1, 0, 1, 4, 1_000):
        since = Timestamp(seconds=FIRST_SECONDS + seconds)
        wanted = [row[4] for row in sorted(log.rows) if row[3] >= since.ToMicroseconds()]
        assert texts(tail_all(server.logs(), log.job, since=since)) == wanted


def test_a_filter_that_takes_nothing_for_long_says_how_far_it_is(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    log = Log(server, book, ingest, {(1, 0): 10})
    # Pages of this server look at 100 lines.
    wanted = log_service_pb2.LogFilter(contains=" 599 ")
    responses = tail_all(server.logs(), log.job, filter=wanted)
    assert [response.WhichOneof("message") for response in responses] == ["heartbeat"] * 5 + ["batch", "caught_up"]
    assert len({response.cursor for response in responses[:-1]}) == 6
    for response in responses[:5]:
        rest = tail_all(server.logs(), log.job, filter=wanted, cursor=response.cursor)
        assert texts(rest) == texts(responses)
    # Where nothing comes at all, a new call need not begin again.
    never = log_service_pb2.LogFilter(regex="^never$")
    last = tail_all(server.logs(), log.job, filter=never)[-1].cursor
    assert len(tail_all(server.logs(), log.job, filter=never, cursor=last)) == 1


def test_long_lines_come_in_messages_of_a_bounded_size(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    lines = [f"{number} " + "ß" * 1_500 for number in range(100)]
    ingest.lines(1, 1, 1, lines)
    ingest.wait_stored(1, 1)
    responses = tail_all(server.logs(), job)
    assert texts(responses) == lines
    assert max(response.ByteSize() for response in responses) < 4_000 + 3_100


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"regex": "x" * 1_001}, "filter.regex"),
        ({"regex": "(a{1000}){1000}"}, "filter.regex"),
        ({"contains": "x" * 1_001}, "filter.contains"),
        ({"sources": ["x" * 1_001]}, "filter.sources"),
        ({"sources": [str(number) for number in range(101)]}, "filter.sources"),
        ({"ranks": range(1_001)}, "filter.ranks"),
        ({"attempts": range(1, 1_002)}, "filter.attempts"),
        ({"streams": [log_line_pb2.LOG_STREAM_LOG] * 11}, "filter.streams"),
    ],
)
def test_filters_have_limits(server: Metrics, book: JobBook, changes: dict[str, object], field: str) -> None:
    job = submit(book)
    with refused() as errors:
        tail_all(server.logs(), job, filter=log_service_pb2.LogFilter(**changes))
    assert isinstance(errors[0], InvalidArgument)
    assert [violation.field for violation in errors[0].violations] == [field]


def test_filters_mean_the_same_in_any_order(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    wanted = [
        log_service_pb2.LogFilter(sources=["a", "b"]),
        log_service_pb2.LogFilter(sources=["b", "a", "b"]),
    ]
    tails = [Tail(server, job, filter=each) for each in wanted]
    for tail in tails:
        tail.wait_caught_up()
    ingest.lines(1, 1, 1, ["one", "two", "three"], sources=["a", "b", "c"])
    for tail in tails:
        tail.wait_lines(2)
        assert tail.lines == ["one", "two"]
        tail.close()
