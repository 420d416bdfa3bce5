"""Log tails: history, live lines, the end; nothing lost, nothing doubled, filters on the server."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sihlai.logs.v1 import log_line_pb2, log_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument, NotFound, Reason
from tests.metrics.client import LINES, IngestClient, Metrics, refused, tail_all, texts, until
from tests.metrics.job_book import Job, JobBook, submit
from tests.metrics.tail import Tail, write

LEVELS = log_line_pb2.LogLevel
STREAMS = log_line_pb2.LogStream


@pytest.fixture
def job(server: Metrics, book: JobBook, ingest: IngestClient) -> Job:
    """A job whose writer 1 writes lines."""
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    return job


def test_a_tail_gives_history_then_live_lines_then_the_end(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job
) -> None:
    write(ingest, 1, ["one", "two"])
    tail = Tail(server, job)
    tail.wait_caught_up()
    assert tail.lines == ["one", "two"]
    write(ingest, 2, ["three", "four"])
    tail.wait_lines(4)
    ingest.finish(1, 2)
    book.end(job.uid, job_pb2.JOB_STATE_STOPPED)
    ended = tail.wait_ended()
    assert ended.state == job_pb2.JOB_STATE_STOPPED
    assert ended.logs_complete
    assert tail.lines == ["one", "two", "three", "four"]


def test_without_follow_the_stream_closes_after_caught_up(server: Metrics, ingest: IngestClient, job: Job) -> None:
    write(ingest, 1, ["one"])
    responses = tail_all(server.logs(), job)
    assert texts(responses) == ["one"]
    assert responses[-1].HasField("caught_up")


def test_every_field_of_a_line_comes_back(server: Metrics, ingest: IngestClient, job: Job) -> None:
    write(
        ingest,
        1,
        ["\tüñí\x00 " + "x" * 40, ""],
        levels=[LEVELS.LOG_LEVEL_ERROR, LEVELS.LOG_LEVEL_UNSPECIFIED],
        sources=["agent", "trainer"],
        streams=[STREAMS.LOG_STREAM_STDERR, STREAMS.LOG_STREAM_LOG],
        continued=[True, False],
        times_unix_us=[1_700_000_000_123_456, 1],
    )
    first, second = tail_all(server.logs(), job)[0].batch.lines
    assert first == log_line_pb2.LogLine(
        attempt=1,
        rank=0,
        number=1,
        time=Timestamp(seconds=1_700_000_000, nanos=123_456_000),
        level=LEVELS.LOG_LEVEL_ERROR,
        source="agent",
        stream=STREAMS.LOG_STREAM_STDERR,
        line="\tüñí\x00 " + "x" * 40,
        continued=True,
    )
    assert (second.line, second.number, second.time.nanos) == ("", 2, 1000)


def test_a_tail_ends_as_not_complete_when_the_wait_for_a_lost_runner_is_over(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job
) -> None:
    write(ingest, 1, ["one"])
    book.end(job.uid, job_pb2.JOB_STATE_FAILED)
    tail = Tail(server, job)
    assert not tail.wait_ended().logs_complete
    assert tail.lines == ["one"]
    # Long ended: nobody waits again.
    assert not Tail(server, job).wait_ended().logs_complete


def test_dropped_lines_make_the_log_not_complete(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job
) -> None:
    write(ingest, 1, ["one"])
    ingest.finish(1, 1, rows_dropped=7)
    book.end(job.uid)
    assert not Tail(server, job).wait_ended().logs_complete


def test_a_job_that_never_ran_ends_at_once_and_complete(server: Metrics, book: JobBook) -> None:
    job = submit(book, attempts=(), state=job_pb2.JOB_STATE_QUEUED)
    tail = Tail(server, job)
    tail.wait_caught_up()
    book.end(job.uid, job_pb2.JOB_STATE_STOPPED)
    assert tail.wait_ended().logs_complete


def test_cursors_go_on_where_they_were_at_any_message(server: Metrics, ingest: IngestClient, job: Job) -> None:
    lines = [f"line {number}" for number in range(240)]
    for sequence in range(1, 5):
        write(ingest, sequence, lines[(sequence - 1) * 60 : sequence * 60])
    responses = tail_all(server.logs(), job)
    assert texts(responses) == lines
    assert len(responses) > 5
    for index, response in enumerate(responses):
        rest = tail_all(server.logs(), job, cursor=response.cursor)
        assert texts(responses[: index + 1]) + texts(rest) == lines


def test_a_cursor_holds_across_attempts_and_their_late_lines(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job
) -> None:
    write(ingest, 1, ["first attempt"])
    tail = Tail(server, job)
    tail.wait_lines(1)
    tail.close()
    book.add_attempt(job.uid, 2, 0)
    ingest.open(2, server.token(job.uid, attempt=2), kind=LINES)
    write(ingest, 1, ["second attempt"], writer=2)
    write(ingest, 2, ["first attempt, late"])
    again = Tail(server, job, cursor=tail.cursor)
    again.wait_lines(2)
    assert again.lines == ["first attempt, late", "second attempt"]
    again.close()
    attempts = tail_all(server.logs(), job, filter=log_service_pb2.LogFilter(attempts=[2]))
    assert texts(attempts) == ["second attempt"]


def test_a_tail_can_start_with_the_newest_lines_or_at_a_time(server: Metrics, ingest: IngestClient, job: Job) -> None:
    lines = [f"line {number}" for number in range(1, 121)]
    for sequence in range(1, 3):
        write(ingest, sequence, lines[(sequence - 1) * 60 : sequence * 60])
    assert texts(tail_all(server.logs(), job, tail_last=7)) == lines[-7:]
    assert texts(tail_all(server.logs(), job, tail_last=0)) == []
    assert texts(tail_all(server.logs(), job, tail_last=10_000)) == lines
    errors = log_service_pb2.LogFilter(contains="line 1")
    assert texts(tail_all(server.logs(), job, tail_last=3, filter=errors)) == lines[-3:]
    since = Timestamp(seconds=1_700_000_000, nanos=101 * 1_000_000)
    assert texts(tail_all(server.logs(), job, since=since)) == lines[100:]


FILTERS = [
    log_service_pb2.LogFilter(level_min=LEVELS.LOG_LEVEL_WARNING),
    log_service_pb2.LogFilter(sources=["agent"]),
    log_service_pb2.LogFilter(sources=["agent", "conversion"]),
    log_service_pb2.LogFilter(streams=[STREAMS.LOG_STREAM_STDERR]),
    log_service_pb2.LogFilter(ranks=[1]),
    log_service_pb2.LogFilter(contains="ß 7"),
    log_service_pb2.LogFilter(contains="' OR 1 = 1 --"),
    log_service_pb2.LogFilter(regex=r"^line ß \d*[05]$"),
    log_service_pb2.LogFilter(regex=r"(?i)LINE.*9"),
    log_service_pb2.LogFilter(regex=r"12.*below|^nothing"),
    log_service_pb2.LogFilter(level_min=LEVELS.LOG_LEVEL_INFO, sources=["agent"], contains="1"),
]


@pytest.mark.parametrize("wanted", FILTERS)
def test_filters_choose_the_same_lines_in_history_and_live(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job, wanted: log_service_pb2.LogFilter
) -> None:
    ingest.open(2, server.token(job.uid), kind=LINES, rank=1)
    tail = Tail(server, job, filter=wanted)
    tail.wait_caught_up()
    numbers = range(30)
    for writer in (1, 2):
        write(
            ingest,
            1,
            [f"line ß {number}" if number != 12 else "line ß 12\nand below" for number in numbers],
            writer=writer,
            levels=[number % 5 for number in numbers],
            sources=[("agent", "trainer", "conversion")[number % 3] for number in numbers],
            streams=[number % 4 for number in numbers],
        )
        ingest.finish(writer, 1)
    book.end(job.uid)
    assert tail.wait_ended().logs_complete
    assert tail.lines == texts(tail_all(server.logs(), job, filter=wanted))
    assert bool(tail.lines) == (wanted.contains != "' OR 1 = 1 --")


def test_a_slow_follower_falls_back_to_storage_and_misses_nothing(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job
) -> None:
    call = server.logs().TailLogs(log_service_pb2.TailLogsRequest(job=job.name, follow=True), timeout=60)
    responses = iter(call)
    assert next(responses).HasField("caught_up")
    # Far more than the buffers of the follower and of the connection hold, while nobody reads.
    lines = [f"{number} " + "x" * 3000 for number in range(3000)]
    for sequence in range(1, 31):
        write(ingest, sequence, lines[(sequence - 1) * 100 : sequence * 100])
    ingest.finish(1, 30)
    book.end(job.uid)
    rest = list(responses)
    assert texts(rest) == lines
    assert rest[-1].ended.logs_complete


def test_many_followers_see_the_same_lines(server: Metrics, book: JobBook, ingest: IngestClient, job: Job) -> None:
    tails = [Tail(server, job) for _ in range(20)]
    for tail in tails:
        tail.wait_caught_up()
    for sequence in range(1, 11):
        ingest.lines(1, sequence, sequence, [f"line {sequence}"])
    ingest.finish(1, 10)
    book.end(job.uid)
    for tail in tails:
        assert tail.wait_ended().logs_complete
        assert tail.lines == [f"line {sequence}" for sequence in range(1, 11)]


def test_a_silent_tail_shows_that_it_lives(server: Metrics, job: Job) -> None:
    tail = Tail(server, job)
    until(lambda: tail.heartbeats >= 2, "heartbeats")
    tail.close()


def test_a_deleted_job_ends_its_tails_with_not_found(server: Metrics, book: JobBook, job: Job) -> None:
    tail = Tail(server, job)
    tail.wait_caught_up()
    book.delete(job.uid)
    until(lambda: tail.closed, "the tail to end")
    assert isinstance(tail.error, NotFound)


def test_starts_and_filters_that_mean_nothing_are_refused(
    server: Metrics, book: JobBook, ingest: IngestClient, job: Job
) -> None:
    write(ingest, 1, ["one"])
    foreign = tail_all(server.logs(), job)[-1].cursor
    other = submit(book)
    requests: list[dict[str, Any]] = [
        {"cursor": "nonsense"},
        {"cursor": foreign},
        {"tail_last": -1},
        {"since": Timestamp(seconds=2**60)},
        {"filter": log_service_pb2.LogFilter(regex="(")},
        {"filter": log_service_pb2.LogFilter(attempts=[0])},
        {"filter": log_service_pb2.LogFilter(ranks=[-1])},
    ]
    for request in requests:
        with refused() as errors:
            tail_all(server.logs(), other, **request)
        assert isinstance(errors[0], InvalidArgument), request
        assert (errors[0].reason is Reason.INVALID_CURSOR) == ("cursor" in request)


def test_the_fields_that_filters_take_are_listed(server: Metrics, ingest: IngestClient, job: Job) -> None:
    fields = server.logs().ListLogFields(log_service_pb2.ListLogFieldsRequest(job=job.name))
    assert fields == log_service_pb2.ListLogFieldsResponse()
    write(ingest, 1, ["one", "two"], sources=["trainer", "agent"], levels=[2, 4], streams=[1, 1])
    fields = server.logs().ListLogFields(log_service_pb2.ListLogFieldsRequest(job=job.name))
    assert list(fields.sources) == ["agent", "trainer"]
    assert list(fields.levels) == [LEVELS.LOG_LEVEL_INFO, LEVELS.LOG_LEVEL_ERROR]
    assert (list(fields.streams), list(fields.ranks), list(fields.attempts)) == ([1], [0], [1])

    first = server.logs().ListLogFields(log_service_pb2.ListLogFieldsRequest(job=job.name, page_size=1))
    request = log_service_pb2.ListLogFieldsRequest(job=job.name, page_size=1, page_token=first.next_page_token)
    second = server.logs().ListLogFields(request)
    assert (list(first.sources), list(first.ranks)) == (["agent"], [0])
    assert second == log_service_pb2.ListLogFieldsResponse(sources=["trainer"])
