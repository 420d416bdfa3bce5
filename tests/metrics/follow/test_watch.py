"""Watching points: history, live points, the end; a cursor loses nothing and doubles nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from sihlai.metrics.v1 import metrics_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument
from tests.metrics.client import WAIT_SECONDS, IngestClient, Metrics, columns, definition, refused
from tests.metrics.job_book import Job, JobBook, submit

LOSS = "digits/train/loss"
GPU = "system/gpu"
Responses = Iterator[metrics_service_pb2.WatchMetricsResponse]


def watch(server: Metrics, job: Job, *names: str, cursor: str = "") -> Responses:
    selector = metrics_service_pb2.SeriesSelector(names=names)
    request = metrics_service_pb2.WatchMetricsRequest(job=job.name, selector=selector, cursor=cursor)
    return iter(server.metrics().WatchMetrics(request, timeout=WAIT_SECONDS))


def until_caught_up(responses: Responses) -> list[metrics_service_pb2.WatchMetricsResponse]:
    found = []
    for response in responses:
        found.append(response)
        if response.HasField("caught_up"):
            return found
    raise AssertionError("the stream ended before it caught up")


def steps(responses: Iterable[metrics_service_pb2.WatchMetricsResponse]) -> Counter[tuple[int, int, int]]:
    """Points by series id, attempt and step."""
    return Counter(
        (columns.series_id, response.points.attempt, step)
        for response in responses
        for columns in response.points.columns
        for step in columns.steps
    )


def open_writer(client: IngestClient, server: Metrics, job: Job, *, attempt: int = 1, from_step: int = 0) -> int:
    series = [definition(job.uid, LOSS), definition(job.uid, GPU)]
    return client.open(attempt, server.token(job.uid, attempt=attempt, from_step=from_step), series=series)


def write(client: IngestClient, job: Job, sequence: int, first: int, last: int, *, attempt: int = 1) -> None:
    span = range(first, last + 1)
    parts = [columns(job.uid, name, span, [float(attempt)] * len(span)) for name in (LOSS, GPU)]
    client.points(attempt, sequence, *parts)
    client.wait_stored(attempt, sequence)


def test_a_watch_gives_history_then_live_points_then_the_end(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_writer(ingest, server, job)
    write(ingest, job, 1, 1, 50)
    responses = watch(server, job)
    history = until_caught_up(responses)
    assert {d.name for d in history[0].points.new_series} == {LOSS, GPU}
    assert len(steps(history)) == 100
    write(ingest, job, 2, 51, 60)
    ingest.finish(1, 2)
    book.end(job.uid)
    live = list(responses)
    assert live[-1].ended == metrics_service_pb2.MetricsEnded(state=job_pb2.JOB_STATE_COMPLETED, points_complete=True)
    assert not any(response.points.new_series for response in live)
    found = steps([*history, *live])
    assert len(found) == 120
    assert set(found.values()) == {1}


def test_cursors_go_on_where_they_were_at_any_message(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    open_writer(ingest, server, job)
    for sequence in range(1, 11):
        write(ingest, job, sequence, sequence * 100, sequence * 100 + 99)
    history = until_caught_up(watch(server, job))
    whole = steps(history)
    assert len(whole) == 2000
    assert len(history) > 3
    for index, response in enumerate(history):
        rest = until_caught_up(watch(server, job, cursor=response.cursor))
        assert steps(history[: index + 1]) + steps(rest) == whole


def test_only_the_series_that_are_meant_come_also_those_that_are_new(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_writer(ingest, server, job)
    write(ingest, job, 1, 1, 5)
    responses = watch(server, job, "digits/*")
    history = until_caught_up(responses)
    assert {d.name for r in history for d in r.points.new_series} == {LOSS}
    new = definition(job.uid, "digits/valid/loss", unit="nats")
    ingest.points(
        1, 2, columns(job.uid, "digits/valid/loss", [5], [1.0]), columns(job.uid, GPU, [6], [1.0]), new_series=[new]
    )
    ingest.finish(1, 2)
    book.end(job.uid)
    live = list(responses)
    assert [d for r in live for d in r.points.new_series] == [new]
    assert set(steps(live)) == {(new.series_id, 1, 5)}


def test_points_of_a_lost_attempt_that_a_later_one_logs_again_are_not_sent(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book, attempts=(1, 2))
    open_writer(ingest, server, job)
    write(ingest, job, 1, 1, 20)
    responses = watch(server, job)
    until_caught_up(responses)
    open_writer(ingest, server, job, attempt=2, from_step=11)
    write(ingest, job, 1, 11, 12, attempt=2)
    write(ingest, job, 2, 9, 15)
    ingest.finish(1, 2)
    ingest.finish(2, 1)
    book.end(job.uid)
    live = [response for response in responses if response.HasField("points")]
    loss, gpu = definition(job.uid, LOSS).series_id, definition(job.uid, GPU).series_id
    assert {response.points.attempt: response.points.from_step for response in live} == {1: 0, 2: 11}
    assert {(a, s) for i, a, s in steps(live) if i == loss} == {(2, 11), (2, 12), (1, 9), (1, 10)}
    assert {(a, s) for i, a, s in steps(live) if i == gpu} >= {(1, s) for s in range(9, 16)}
    history = until_caught_up(watch(server, job))
    assert {(a, s) for i, a, s in steps(history) if i == loss} == {(1, s) for s in range(1, 11)} | {(2, 11), (2, 12)}


def test_a_slow_watcher_falls_back_to_storage(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    open_writer(ingest, server, job)
    responses = watch(server, job)
    assert until_caught_up(responses)
    for sequence in range(1, 9):
        span = range(sequence * 10_000, (sequence + 1) * 10_000)
        ingest.points(1, sequence, columns(job.uid, LOSS, span, [1.0] * len(span)))
    ingest.finish(1, 8)
    book.end(job.uid)
    found = steps(responses)
    assert len(found) == 80_000
    assert set(found.values()) == {1}


def test_a_cursor_of_another_kind_is_refused(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    open_writer(ingest, server, job)
    write(ingest, job, 1, 1, 2)
    cursor = until_caught_up(watch(server, job))[-1].cursor
    other = submit(book)
    for wrong in (cursor, "nonsense"):
        with refused() as errors:
            list(watch(server, other, cursor=wrong))
        assert isinstance(errors[0], InvalidArgument)
