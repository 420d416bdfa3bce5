"""Writers: what is acknowledged is stored, once; what is wrong is refused."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sihlai.metrics.v1 import ingest_service_pb2, metrics_service_pb2, series_pb2

from services.chassis.auth.keys import TokenSigner
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import (
    InvalidArgument,
    Reason,
)
from tests.metrics.client import LINES, IngestClient, Metrics, Refused, columns, definition, reason_of, tail_all, texts
from tests.metrics.job_book import Job, JobBook, submit

LOSS = "digits/train/loss"


def stored_steps(server: Metrics, job: Job, name: str = LOSS) -> list[int]:
    selector = metrics_service_pb2.SeriesSelector(names=[name])
    request = metrics_service_pb2.QuerySeriesRequest(job=job.name, selector=selector)
    return [step for series in server.metrics().QuerySeries(request).series for step in series.points.steps]


def open_points(client: IngestClient, server: Metrics, job: Job, **changes: object) -> int:
    return client.open(1, server.token(job.uid), series=[definition(job.uid, LOSS)], **changes)  # type: ignore[arg-type]  # first_sequence alone


def test_what_is_acknowledged_can_be_read(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    assert open_points(ingest, server, job) == 0
    ingest.points(1, 1, columns(job.uid, LOSS, range(100), range(100)))
    ingest.wait_stored(1, 1)
    assert stored_steps(server, job) == list(range(100))


def test_a_message_that_comes_again_is_acknowledged_and_not_stored_again(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    for sequence in (1, 2, 1, 2, 3):
        ingest.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
    ingest.wait_stored(1, 3)
    assert stored_steps(server, job) == [1, 2, 3]


def test_a_new_stream_goes_on_from_what_is_stored(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    for sequence in range(1, 4):
        ingest.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
    ingest.wait_stored(1, 3)
    ingest.close()
    again = server.ingest()
    assert open_points(again, server, job) == 3
    again.points(1, 4, columns(job.uid, LOSS, [4], [0.0]))
    again.wait_stored(1, 4)
    again.close()
    assert stored_steps(server, job) == [1, 2, 3, 4]


def test_writers_of_other_ranks_attempts_and_kinds_have_numbers_of_their_own(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book, attempts=(1, 2))
    token, later = server.token(job.uid), server.token(job.uid, attempt=2)
    assert ingest.open(1, token, series=[definition(job.uid, LOSS)]) == 0
    ingest.points(1, 1, columns(job.uid, LOSS, [1], [1.0]))
    ingest.wait_stored(1, 1)
    assert ingest.open(2, token, rank=1) == 0
    assert ingest.open(3, later) == 0
    assert ingest.open(4, token, kind=LINES) == 0


def test_a_series_is_of_one_process_so_that_its_points_have_an_order(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    token = server.token(job.uid)
    shared = [definition(job.uid, LOSS)]
    with pytest.raises(Refused) as raised:
        ingest.open(1, token, rank=1, series=shared)
    assert raised.value.reason is Reason.INVALID_FIELDS
    assert "'rank' of 1" in str(raised.value)
    assert ingest.open(2, token, rank=1, series=[definition(job.uid, LOSS, {"rank": "1"})]) == 0
    ingest.points(2, 1, columns(job.uid, LOSS, [1], [0.0]), new_series=shared)
    refusal = ingest.wait_refusal(2)
    assert refusal.permanent
    assert "points.new_series[0].context" in refusal.message


def test_a_missing_message_refuses_its_writer_and_nothing_after_it_is_stored(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    ingest.points(1, 1, columns(job.uid, LOSS, [1], [0.0]))
    ingest.points(1, 3, columns(job.uid, LOSS, [3], [0.0]))
    ingest.points(1, 4, columns(job.uid, LOSS, [4], [0.0]))
    refusal = ingest.wait_refusal(1)
    assert reason_of(refusal) is Reason.SEQUENCE_GAP
    assert "sent message 3, but 2 is the next" in refusal.message
    assert not refusal.permanent
    assert open_points(ingest, server, job) == 1
    ingest.points(1, 2, columns(job.uid, LOSS, [2], [0.0]))
    ingest.wait_stored(1, 2)
    assert stored_steps(server, job) == [1, 2]


def test_a_spool_that_begins_later_is_accepted_and_its_log_is_not_complete(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    assert ingest.open(1, server.token(job.uid), kind=LINES, first_sequence=5) == 4
    ingest.lines(1, 5, 41, ["after the gap"])
    ingest.finish(1, 5)
    book.end(job.uid)
    responses = tail_all(server.logs(), job, follow=True)
    assert texts(responses) == ["after the gap"]
    assert not responses[-1].ended.logs_complete


def test_a_finish_before_the_last_message_is_a_gap(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    ingest.send(ingest_service_pb2.IngestRequest(writer=1, finish=ingest_service_pb2.FinishWriter(last_sequence=2)))
    assert reason_of(ingest.wait_refusal(1)) is Reason.SEQUENCE_GAP


def test_a_finished_writer_says_so_when_it_is_opened_again(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    ingest.points(1, 1, columns(job.uid, LOSS, [1], [0.0]))
    ingest.finish(1, 1)
    again = server.ingest()
    assert open_points(again, server, job) == 1
    assert again.finished[1]
    again.close()


def test_the_second_stream_of_a_writer_waits_for_the_rows_of_the_first(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    for sequence in range(1, 301):
        ingest.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
    ingest.wait_stored(1, 1)
    second = server.ingest()
    stored = open_points(second, server, job)
    assert reason_of(ingest.wait_refusal(1)) is Reason.WRITER_TAKEN
    assert ingest.stored[1] <= stored
    for sequence in range(stored + 1, 401):
        second.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
    second.wait_stored(1, 400)
    second.close()
    assert stored_steps(server, job) == list(range(1, 401))


def test_streams_that_fight_for_a_writer_lose_and_double_nothing(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    clients = [server.ingest() for _ in range(4)]
    for turn in range(12):
        clients[turn % 4].close()
        clients[turn % 4] = client = server.ingest()
        stored = open_points(client, server, job)
        for sequence in range(stored + 1, stored + 11):
            client.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
        if turn % 3 == 0:
            client.wait_stored(1, stored + 5)
    last = server.ingest()
    stored = open_points(last, server, job)
    for client in (*clients, last):
        client.close()
    assert stored_steps(server, job) == list(range(1, stored + 1))


def test_tokens_that_do_not_hold_open_nothing(server: Metrics, book: JobBook, tmp_path: Path) -> None:
    job = submit(book)
    foreign = TokenSigner.from_file(tmp_path / "foreign.pem").sign(
        WriteToken(
            project="digits",
            job_uid=job.uid,
            attempt=1,
            epoch=1,
            from_step=0,
            expires_at=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1),
        )
    )
    good = server.token(job.uid)
    for token in ("", "nonsense", foreign, good[:-4] + "AAAA", server.token(job.uid, seconds=-60)):
        client = server.ingest()
        with pytest.raises(Refused) as raised:
            client.open(1, token)
        assert raised.value.reason is Reason.TOKEN_INVALID
        assert not raised.value.refusal.permanent
        assert not token or token not in str(raised.value)
        assert client.open(1, good) == 0
        client.close()


def test_a_token_that_runs_out_refuses_its_writer_unless_it_is_renewed(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    # Tokens hold five seconds longer than they say, for clocks that differ: this one for about three.
    short = server.token(job.uid, seconds=-2)
    ingest.open(1, short, series=[definition(job.uid, LOSS)])
    ingest.open(2, short, rank=1, series=[definition(job.uid, LOSS, {"rank": "1"})])
    ingest.renew(1, server.token(job.uid))
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        ingest.points(1, sequence := ingest.stored[1] + 1, columns(job.uid, LOSS, [sequence], [0.0]))
        ingest.wait_stored(1, sequence)
    ingest.points(2, 1, columns(job.uid, LOSS, [1], [0.0], {"rank": "1"}))
    assert reason_of(ingest.wait_refusal(2)) is Reason.TOKEN_INVALID
    ingest.points(1, sequence := ingest.stored[1] + 1, columns(job.uid, LOSS, [sequence], [0.0]))
    ingest.wait_stored(1, sequence)


def test_a_token_of_another_attempt_renews_nothing(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book, attempts=(1, 2))
    open_points(ingest, server, job)
    ingest.renew(1, server.token(job.uid, attempt=2))
    refusal = ingest.wait_refusal(1)
    assert reason_of(refusal) is Reason.PERMISSION_DENIED
    assert refusal.permanent


def test_another_protocol_version_is_refused(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    with pytest.raises(Refused) as raised:
        ingest.open(1, server.token(job.uid), protocol_version=2)
    assert raised.value.reason is Reason.PROTOCOL_VERSION
    assert "version 2, this server 1" in str(raised.value)
    assert (raised.value.refusal.permanent, raised.value.refusal.sequence) == (True, 0)


Wrong = Callable[[IngestClient, Job], None]


def at_times(job: Job, *times_unix_us: int) -> series_pb2.PointColumns:
    """Points of these times."""
    points = columns(job.uid, LOSS, range(len(times_unix_us)), [1.0] * len(times_unix_us))
    points.times_unix_us[:] = times_unix_us
    return points


@pytest.mark.parametrize(
    ("send", "field"),
    [
        (lambda c, j: c.points(1, 1, columns(j.uid, "unknown", [1], [1.0])), "points.columns[0].series_id"),
        (lambda c, j: c.points(1, 1), "points.columns"),
        (lambda c, j: c.points(1, 0, columns(j.uid, LOSS, [1], [1.0])), "points.sequence"),
        (lambda c, j: c.points(1, 1, columns(j.uid, LOSS, [1, 2], [1.0])), "points.columns[0]"),
        (lambda c, j: c.points(1, 1, series_pb2.PointColumns(series_id=1)), "points.columns[0]"),
        (lambda c, j: c.points(1, 1, at_times(j, 1, 253_402_300_800_000_000)), "points.columns"),
        (lambda c, j: c.points(1, 1, at_times(j, -(2**63), 1)), "points.columns"),
        (
            lambda c, j: c.points(
                1, 1, columns(j.uid, "x", [1], [1.0]), new_series=[series_pb2.SeriesDefinition(series_id=1, name="x")]
            ),
            "points.new_series[0].series_id",
        ),
        (lambda c, j: c.lines(1, 1, 1, ["a line"]), "message"),
        (lambda c, j: c.send(ingest_service_pb2.IngestRequest(writer=1)), "message"),
        (lambda c, j: c.lines(2, 1, 1, ["a line"], levels=[9]), "lines.levels"),
        (lambda c, j: c.lines(2, 1, 1, ["a line"], sources=[]), "lines.sources"),
        (lambda c, j: c.lines(2, 1, 1, ["a line"], sources=["s" * 257]), "lines.sources"),
        (lambda c, j: c.lines(2, 1, 0, ["a line"]), "lines.first_number"),
        (lambda c, j: c.lines(2, 1, 1, ["a line"], times_unix_us=[2**62]), "lines.times_unix_us"),
        (lambda c, j: c.lines(2, 1, 1, ["x" * 70_000]), "lines.lines"),
        (lambda c, j: c.lines(2, 1, 1, []), "lines.lines"),
    ],
)
def test_wrong_messages_are_refused_with_the_field(
    server: Metrics, book: JobBook, ingest: IngestClient, send: Wrong, field: str
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    ingest.open(2, server.token(job.uid), kind=LINES)
    send(ingest, job)
    ingest.wait(lambda: bool(ingest.refusals), "a refusal")
    ((writer, refusal),) = ingest.refusals.items()
    assert reason_of(refusal) is Reason.INVALID_FIELDS
    assert f"{field}: " in refusal.message
    assert refusal.permanent
    # The other writer of the stream has not noticed.
    other = 3 - writer
    if other == 1:
        ingest.points(1, 1, columns(job.uid, LOSS, [1], [1.0]))
    else:
        ingest.lines(2, 1, 1, ["a line"])
    ingest.wait_stored(other, 1)


def test_a_message_of_a_writer_that_was_never_opened_ends_the_stream(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    ingest.points(7, 1, columns(job.uid, LOSS, [1], [1.0]))
    error = ingest.wait_error()
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["writer"]


def test_the_writer_goes_on_behind_a_message_that_is_refused_for_good_and_all_before_it_is_stored(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    for sequence in (1, 2, 3):
        ingest.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
    ingest.points(1, 4, columns(job.uid, LOSS, [1, 2], [1.0]))
    ingest.points(1, 5, columns(job.uid, LOSS, [5], [0.0]))
    refusal = ingest.wait_refusal(1)
    assert (refusal.permanent, refusal.sequence) == (True, 4)
    assert open_points(ingest, server, job, first_sequence=5) == 4
    ingest.points(1, 5, columns(job.uid, LOSS, [5], [0.0]))
    ingest.finish(1, 5)
    assert stored_steps(server, job) == [1, 2, 3, 5]


def test_a_refusal_is_told_once_and_never_as_the_answer_to_the_next_opening(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    for turn in range(40):
        stored = ingest.stored[1]
        for sequence in range(stored + 1, stored + 6):
            ingest.points(1, sequence, columns(job.uid, LOSS, [sequence], [0.0]))
        ingest.points(1, stored + 99, columns(job.uid, LOSS, [0], [0.0]))
        assert reason_of(ingest.wait_refusal(1)) is Reason.SEQUENCE_GAP
        told = ingest.refusals_told
        assert told == turn + 1
        again = open_points(ingest, server, job)
        assert again >= stored
    assert stored_steps(server, job) == list(range(1, ingest.stored[1] + 1))


def test_a_writer_that_is_open_is_opened_anew_under_its_number_but_not_another(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    ingest.points(1, 1, columns(job.uid, LOSS, [1], [0.0]))
    ingest.wait_stored(1, 1)
    assert open_points(ingest, server, job) == 1
    opening = ingest_service_pb2.OpenWriter(token=server.token(job.uid), kind=LINES, protocol_version=1)
    ingest.send(ingest_service_pb2.IngestRequest(writer=1, open=opening))
    assert isinstance(ingest.wait_error(), InvalidArgument)


def test_a_finished_writer_takes_nothing_more(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    ingest.lines(1, 1, 1, ["the last line"])
    ingest.finish(1, 1)
    stranger = server.ingest()
    assert stranger.open(1, server.token(job.uid), kind=LINES) == 1
    assert stranger.finished[1]
    for client in (ingest, stranger):
        client.stored.clear()
        client.lines(1, 2, 2, ["one more"])
        client.wait(lambda client=client: client.finished.get(1, False) and 1 in client.stored, "an answer")
        assert client.stored[1] == 1
    stranger.close()
    assert texts(tail_all(server.logs(), job)) == ["the last line"]


def test_a_token_that_may_only_drain_opens_what_wrote_before_and_rank_0_but_no_other_process(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    assert ingest.open(1, server.token(job.uid), kind=LINES, rank=1) == 0
    drain = server.token(job.uid, drain_only=True)
    again = server.ingest()
    assert again.open(1, drain, kind=LINES, rank=1) == 0
    assert again.open(2, drain, kind=LINES) == 0
    with pytest.raises(Refused) as raised:
        again.open(3, drain, kind=LINES, rank=2)
    assert raised.value.reason is Reason.PERMISSION_DENIED
    again.close()


def test_a_token_of_another_epoch_of_the_same_attempt_is_refused(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    ingest.open(1, server.token(job.uid), kind=LINES)
    with pytest.raises(Refused) as raised:
        ingest.open(2, server.token(job.uid, epoch=9), kind=LINES)
    assert raised.value.reason is Reason.PERMISSION_DENIED


def test_line_numbers_that_go_back_are_refused_also_by_a_later_stream(server: Metrics, book: JobBook) -> None:
    job = submit(book)
    first = server.ingest()
    first.open(1, server.token(job.uid), kind=LINES)
    first.lines(1, 1, 1, ["one", "two"])
    first.wait_stored(1, 1)
    first.close()
    second = server.ingest()
    second.open(1, server.token(job.uid), kind=LINES)
    second.lines(1, 2, 2, ["two again"])
    assert reason_of(second.wait_refusal(1)) is Reason.INVALID_FIELDS


def test_credit_comes_at_once_and_is_given_back_for_what_is_stored(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    ingest.wait(lambda: ingest.credit_bytes > 0, "credit")
    window = ingest.credit_bytes
    open_points(ingest, server, job)
    part = columns(job.uid, LOSS, range(50_000), [0.5] * 50_000)
    messages = 2 * window // part.ByteSize() + 2
    for sequence in range(1, messages + 1):
        ingest.wait(lambda: ingest.credit_bytes > part.ByteSize() + 100, "credit for one more message")
        ingest.points(1, sequence, part)
    ingest.wait_stored(1, messages)
    ingest.wait(lambda: ingest.credit_bytes >= window * 3 // 4, "the credit to come back")
    assert ingest.credit_bytes <= window


def test_a_client_that_closes_its_side_hears_the_last_acknowledgement(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    open_points(ingest, server, job)
    ingest.points(1, 1, columns(job.uid, LOSS, [1], [0.0]))
    ingest.half_close()
    assert ingest.error is None
    assert ingest.stored[1] == 1
