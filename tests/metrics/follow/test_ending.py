"""When tails end: by which clock, for which attempts, and what they say of it. The waits are long: a test that waits
for one of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sihlai.scheduler.v1 import job_pb2

from services.metrics.follow.ending import Patience
from services.metrics.job import AttemptFacts, JobFacts
from tests.metrics.client import LINES, IngestClient, Metrics, until
from tests.metrics.conftest import FLAGS
from tests.metrics.job_book import JobBook, Scheduler, submit
from tests.metrics.tail import Tail, write

HOUR = timedelta(hours=1)
LOST = job_pb2.ATTEMPT_OUTCOME_LOST
COMPLETED = job_pb2.ATTEMPT_OUTCOME_COMPLETED


@pytest.fixture(scope="module")
def server(scheduler: Scheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    flags = (*FLAGS, "--ended-wait-seconds", "600", "--unopened-wait-seconds", "0.5")
    server = Metrics(tmp_path_factory.mktemp("ending"), scheduler.address, flags)
    server.start()
    yield server
    assert server.stop() == 0, server.log_text()[-3000:]
    assert "call_crashed" not in server.log_text()


def still_open(tail: Tail) -> None:
    """The tail goes on."""
    seen = tail.heartbeats
    until(lambda: tail.heartbeats >= seen + 2 or tail.closed, "heartbeats")
    assert not tail.closed, tail.error


def test_the_scheduler_s_clock_being_behind_does_not_cut_off_the_last_lines(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    tail = Tail(server, job)
    tail.wait_caught_up()
    book.close_attempt(job.uid, 1, job_pb2.ATTEMPT_OUTCOME_FAILED, ago=HOUR)
    book.end(job.uid, job_pb2.JOB_STATE_FAILED, ago=HOUR)
    still_open(tail)
    write(ingest, 1, ["Traceback", "ValueError"])
    ingest.finish(1, 1)
    assert tail.wait_ended().logs_complete
    assert tail.lines == ["Traceback", "ValueError"]


def test_a_tail_ends_only_when_every_writer_has_finished(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    ingest.open(2, server.token(job.uid), kind=LINES, rank=1)
    tail = Tail(server, job)
    tail.wait_caught_up()
    book.end(job.uid)
    write(ingest, 1, ["late"])
    tail.wait_lines(1)
    ingest.finish(1, 1)
    still_open(tail)
    write(ingest, 1, ["of rank 1"], writer=2)
    ingest.finish(2, 1)
    assert tail.wait_ended().logs_complete
    assert tail.lines == ["late", "of rank 1"]


def test_a_job_that_had_ended_long_ago_makes_nobody_wait(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    write(ingest, 1, ["one"])
    book.close_attempt(job.uid, 1, LOST, ago=HOUR)
    book.end(job.uid, job_pb2.JOB_STATE_FAILED, ago=HOUR)
    tail = Tail(server, job)
    assert not tail.wait_ended().logs_complete
    assert tail.lines == ["one"]


def test_an_attempt_that_was_lost_long_ago_and_never_wrote_makes_nobody_wait(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book, attempts=(1, 2))
    book.close_attempt(job.uid, 1, LOST, ago=HOUR)
    ingest.open(1, server.token(job.uid, attempt=2), kind=LINES)
    tail = Tail(server, job)
    write(ingest, 1, ["one"])
    ingest.finish(1, 1)
    book.close_attempt(job.uid, 2, COMPLETED)
    book.end(job.uid)
    # What the lost attempt may have written nobody knows.
    assert not tail.wait_ended().logs_complete
    assert tail.lines == ["one"]


@pytest.mark.parametrize("outcome", [job_pb2.ATTEMPT_OUTCOME_HANDED_BACK, job_pb2.ATTEMPT_OUTCOME_STOPPED])
def test_an_attempt_that_never_began_is_waited_for_a_moment_only_and_lacks_nothing(
    server: Metrics, book: JobBook, outcome: job_pb2.AttemptOutcome.ValueType
) -> None:
    job = submit(book)
    tail = Tail(server, job)
    tail.wait_caught_up()
    book.close_attempt(job.uid, 1, outcome)
    book.end(job.uid, job_pb2.JOB_STATE_STOPPED)
    assert tail.wait_ended().logs_complete


def test_late_lines_of_an_attempt_that_was_just_lost_still_come(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book, attempts=(1, 2))
    tail = Tail(server, job)
    tail.wait_caught_up()
    book.close_attempt(job.uid, 1, LOST)
    ingest.open(2, server.token(job.uid, attempt=2), kind=LINES)
    write(ingest, 1, ["second"], writer=2)
    ingest.finish(2, 1)
    book.close_attempt(job.uid, 2, COMPLETED)
    book.end(job.uid)
    tail.wait_lines(1)
    still_open(tail)
    ingest.open(1, server.token(job.uid), kind=LINES)
    write(ingest, 1, ["first, late"])
    ingest.finish(1, 1)
    assert tail.wait_ended().logs_complete
    assert tail.lines == ["second", "first, late"]


def test_a_gap_makes_the_log_not_complete(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    tail = Tail(server, job)
    tail.wait_caught_up()
    ingest.open(1, server.token(job.uid), kind=LINES, first_sequence=5)
    ingest.lines(1, 5, 41, ["after the gap"])
    ingest.finish(1, 5)
    book.close_attempt(job.uid, 1, COMPLETED)
    book.end(job.uid)
    assert not tail.wait_ended().logs_complete
    assert tail.lines == ["after the gap"]


class Clock:
    """A wall clock that jumps, beside one that does not."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.wall = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds


def job_facts(*, ended_at: datetime | None, attempt_ended_at: datetime | None = None) -> JobFacts:
    attempt = AttemptFacts(number=1, ended=ended_at is not None, ended_at=attempt_ended_at or ended_at, began=True)
    ended = ended_at is not None
    return JobFacts(name="n", uid="u", state=5, ended=ended, ended_at=ended_at, attempts=(attempt,))


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
@pytest.mark.parametrize("clock_error", [-HOUR, timedelta(), HOUR])
def test_the_wait_after_an_end_that_is_heard_of_goes_by_the_clock_that_does_not_jump(
    jump: timedelta, clock_error: timedelta
) -> None:
    clock = Clock()
    patience = Patience(job_facts(ended_at=None), clock=clock.now, monotonic=clock.monotonic)
    assert not patience.is_over(1, 0)
    patience.hear(job_facts(ended_at=clock.wall + clock_error))
    clock.wall += jump
    clock.seconds += 29
    patience.hear(job_facts(ended_at=clock.wall + clock_error))
    assert not patience.is_over(1, 30)
    assert not patience.is_over(7, 30)
    clock.seconds += 1
    assert patience.is_over(1, 30)
    assert patience.is_over(7, 30)


@pytest.mark.parametrize(("ended_ago", "left"), [(timedelta(seconds=20), 10), (-HOUR, 30), (HOUR, 0)])
def test_of_an_end_before_the_call_the_rest_of_the_wait_is_left(ended_ago: timedelta, left: float) -> None:
    clock = Clock()
    patience = Patience(job_facts(ended_at=clock.wall - ended_ago), clock=clock.now, monotonic=clock.monotonic)
    clock.wall += HOUR
    clock.seconds += left - 0.5
    assert patience.is_over(1, 30) == (left == 0)
    clock.seconds += 1
    assert patience.is_over(1, 30)


def test_a_job_that_is_resumed_is_waited_for_anew() -> None:
    clock = Clock()
    patience = Patience(job_facts(ended_at=clock.wall - HOUR), clock=clock.now, monotonic=clock.monotonic)
    assert patience.is_over(1, 30)
    patience.hear(job_facts(ended_at=None))
    assert not patience.is_over(1, 30)
    patience.hear(job_facts(ended_at=clock.wall - HOUR))
    assert not patience.is_over(1, 30)
