"""Series, cuts, buckets, cursors, configurations: what needs no engine."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sihlai.metrics.v1 import ingest_service_pb2, series_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument, Reason
from services.metrics.cursor import decode_cursor, encode_cursor
from services.metrics.grid import Grid, split
from services.metrics.job_wire import configuration_from_proto, require_job_names
from services.metrics.point import (
    Cuts,
    SeriesDefinition,
    definition_violations,
    logged_from_steps,
    matches_pattern,
    series_id_of,
)
from services.metrics.rows import LineRows, Lines, PointRows
from services.metrics.wire.ingest import MessageLimits, ingest_message_from_proto
from services.metrics.wire.log import LogWire
from services.metrics.wire.times import TIME_UNIX_US_MAX
from services.metrics.writer_key import Finish, WriterKind, WriterRecord

STEPS = st.integers(-(2**63), 2**63 - 1)


def test_a_series_id_is_what_the_proto_says() -> None:
    digest = hashlib.sha256(b"uid\0name\0a\x001\0b\x002\0").digest()
    assert series_id_of("uid", "name", [("b", "2"), ("a", "1")]) == int.from_bytes(digest[:8], "little")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "series.name"),
        ({"name": "x" * 300}, "series"),
        ({"name": "a\0b"}, "series"),
        ({"context": tuple((str(i), "") for i in range(20))}, "series.context"),
        ({"series_id": 5}, "series.series_id"),
    ],
)
def test_wrong_definitions_are_named(changes: dict[str, object], field: str) -> None:
    values: dict[str, object] = {"name": "loss", "context": (), "unit": "", **changes}
    values.setdefault("series_id", series_id_of("uid", str(values["name"]), values["context"]))  # type: ignore[arg-type]  # pairs
    definition = SeriesDefinition(**values)  # type: ignore[arg-type]  # as above
    assert field in [v.field for v in definition_violations(definition, job_uid="uid", field="series")]


@pytest.mark.parametrize(
    ("from_steps", "bounds"),
    [
        ({}, {}),
        ({1: 0}, {}),
        ({1: 0, 2: 101}, {1: 101}),
        ({1: 0, 2: 101, 3: 51}, {1: 51, 2: 51}),
        ({1: 0, 2: 101, 4: 201}, {1: 101, 2: 201}),
        ({1: 0, 2: 0}, {1: 0}),
    ],
)
def test_a_row_counts_below_the_first_step_of_every_later_attempt(
    from_steps: dict[int, int], bounds: dict[int, int]
) -> None:
    assert Cuts(from_steps).bounds == bounds


def test_an_attempt_that_has_not_logged_hides_nothing_of_the_one_before() -> None:
    from_steps = {1: 0, 2: 101, 3: 0}
    assert Cuts(logged_from_steps(from_steps, {1, 2})).bounds == {1: 101}
    assert Cuts(logged_from_steps(from_steps, {1, 2, 3})).bounds == {1: 0, 2: 0}


@given(st.tuples(STEPS, STEPS).map(sorted), st.integers(1, 10_000))
def test_the_grid_covers_the_range_in_the_fewest_doublings(ends: list[int], buckets_max: int) -> None:
    first, last = ends
    grid = Grid.over(first, last, buckets_max)
    numbers = [0, 0] if grid.bits == 64 else [first >> grid.bits, last >> grid.bits]
    assert numbers[1] - numbers[0] < buckets_max
    for place, number in zip(ends, numbers, strict=True):
        assert grid.first(number) <= place <= grid.last(number)
        assert grid.first(number) % 2**grid.bits in (0, 2**63)
    if 0 < grid.bits < 64:
        assert (last >> grid.bits - 1) - (first >> grid.bits - 1) >= buckets_max


@given(st.tuples(STEPS, STEPS).map(sorted), st.sampled_from([(0,), (0, 6), (0, 6, 12), (0, 26, 32)]))
def test_an_interval_is_split_into_blocks_without_gap_or_overlap(ends: list[int], bits: tuple[int, ...]) -> None:
    pieces = sorted(
        (first << width, ((last + 1) << width) - 1)
        for width, intervals in zip(bits, split((ends[0], ends[1]), bits), strict=True)
        for first, last in intervals
    )
    assert (pieces[0][0], pieces[-1][1]) == tuple(ends)
    assert all(left[1] + 1 == right[0] for left, right in itertools.pairwise(pieces))
    # Of each smaller level there is less than one block of the next on either side.
    for level, intervals in enumerate(split((ends[0], ends[1]), bits)[:-1]):
        assert len(intervals) <= 2
        longest = 2 * (2 ** (bits[level + 1] - bits[level]) - 1)
        assert all(last - first + 1 <= longest for first, last in intervals)


def test_stars_stand_for_any_text_and_nothing_else_is_special() -> None:
    assert matches_pattern("digits/train/loss", "*/loss")
    assert matches_pattern("digits//loss", "digits/*/loss")
    assert not matches_pattern("digits/train/loss", "digits/?rain/loss")
    assert not matches_pattern("digits/loss", "loss")
    assert not matches_pattern("aba", "ab*ba")


@given(st.text("ab/", max_size=12), st.text("ab*/", max_size=8))
def test_patterns_mean_what_the_shell_means(name: str, pattern: str) -> None:
    assert matches_pattern(name, pattern) == fnmatch.fnmatchcase(name, pattern)


PLACES = st.dictionaries(st.tuples(st.integers(1, 65535), st.integers(0, 65535)), st.integers(1, 2**48))


@given(PLACES)
def test_cursors_come_back_as_they_were(places: dict[tuple[int, int], int]) -> None:
    cursor = encode_cursor("uid", WriterKind.LINES, places)
    assert decode_cursor(cursor, job_uid="uid", kind=WriterKind.LINES) == places
    for wrong in ({"job_uid": "other", "kind": WriterKind.LINES}, {"job_uid": "uid", "kind": WriterKind.POINTS}):
        with pytest.raises(InvalidArgument) as raised:
            decode_cursor(cursor, **wrong)  # type: ignore[arg-type]  # the names fit
        assert raised.value.reason is Reason.INVALID_CURSOR


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_other_texts_are_no_cursors(text: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_cursor(text, job_uid="uid", kind=WriterKind.LINES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
HOSTILE_PLACES = [
    [[[1], 0, 5]],
    [[1, 0, 2**70]],
    [[1, 0, True]],
    [[1, 0, 1.5]],
    [[1, 0, -1]],
    [[2**16, 0, 1]],
    [[1, 0]],
]


def cursor_of(data: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


@given(
    JSON.map(cursor_of)
    | (JSON | st.lists(st.lists(JSON, min_size=3, max_size=3))).map(lambda rows: cursor_of([1, "lines", "uid", rows]))
    | st.sampled_from(HOSTILE_PLACES).map(lambda rows: cursor_of([1, "lines", "uid", rows]))
    | st.integers(1, 100_000).map(lambda depth: base64.b64encode(b"[" * depth).decode())
)
def test_a_cursor_that_somebody_made_up_is_refused_or_holds_places(cursor: str) -> None:
    found: list[dict[tuple[int, int], int]] = []
    reason = Reason.INVALID_CURSOR
    try:
        found.append(decode_cursor(cursor, job_uid="uid", kind=WriterKind.LINES))
    except InvalidArgument as error:
        reason = error.reason
    assert reason is Reason.INVALID_CURSOR
    for places in found:
        again = encode_cursor("uid", WriterKind.LINES, places)
        assert decode_cursor(again, job_uid="uid", kind=WriterKind.LINES) == places
        assert all(type(number) is int for writer, place in places.items() for number in (*writer, place))


@pytest.mark.parametrize("rows", HOSTILE_PLACES)
def test_places_that_no_writer_has_make_no_cursor(rows: object) -> None:
    with pytest.raises(InvalidArgument) as raised:
        decode_cursor(cursor_of([1, "lines", "uid", rows]), job_uid="uid", kind=WriterKind.LINES)
    assert raised.value.reason is Reason.INVALID_CURSOR


@pytest.mark.parametrize(
    ("finish", "has_gaps", "finished", "complete"),
    [
        (None, False, False, False),
        (Finish(last_sequence=5, rows_dropped=0), False, True, True),
        (Finish(last_sequence=5, rows_dropped=1), False, True, False),
        (Finish(last_sequence=5, rows_dropped=0), True, True, False),
        (Finish(last_sequence=4, rows_dropped=0), False, False, False),
        (Finish(last_sequence=7, rows_dropped=0), True, True, False),
    ],
)
def test_a_writer_is_complete_when_its_end_is_recorded_and_nothing_is_missing(
    finish: Finish | None, has_gaps: bool, finished: bool, complete: bool
) -> None:
    record = WriterRecord(attempt=1, rank=0, epoch=1, stored_sequence=5, finish=finish, has_gaps=has_gaps)
    assert (record.finished, record.complete) == (finished, complete)


def test_configurations_are_flat_typed_and_without_secrets() -> None:
    job = job_pb2.Job()
    job.spec.priority = 0
    job.spec.labels["team"] = "ants"
    job.spec.model.neck.identity.SetInParent()
    job.spec.model.heads.add(id="digits", task=1)
    job.training_dataset.uri = "s3://bucket/digits"
    job.training_dataset.credentials.s3.secret_access_key = "never shown"
    fields = {path: json.loads(value) for path, value in configuration_from_proto(job).items()}
    assert fields["priority"] == 0
    assert fields["labels.team"] == "ants"
    assert fields["model.neck.identity"] == {}
    assert fields["model.heads[0].task"].startswith("TASK_")
    assert fields["training_dataset.uri"] == "s3://bucket/digits"
    assert "resources.gpus" not in fields
    assert "never shown" not in str(fields)


@pytest.mark.parametrize(
    "name", ["", "job", "projects/a/jobs/", "projects/A/jobs/b", "projects/a/jobs/b/c", "projects/a/jobs/b\n"]
)
def test_texts_that_name_no_job_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        require_job_names([name], field="job")
    require_job_names(["projects/a/jobs/b-1"], field="job")


LIMITS = MessageLimits(rows=1_000_000, line_characters=100)


@pytest.mark.parametrize("count", [1, 15, 16, 2047, 2048, 262_143, 262_144])
def test_columns_of_any_length_are_read_as_they_were_written(count: int) -> None:
    steps = [(-1) ** n * n * 2**40 for n in range(count)]
    proto = ingest_service_pb2.IngestRequest()
    proto.points.sequence = 1
    proto.points.columns.add(
        series_id=2**63, steps=steps, times_unix_us=range(count), values=[step / 7 for step in steps]
    )
    rows = ingest_message_from_proto(proto, LIMITS)
    assert isinstance(rows, PointRows)
    (columns,) = rows.columns
    assert (rows.row_count, columns.series_id) == (count, 2**63)
    assert columns.steps.tolist() == steps
    assert columns.times_unix_us.tolist() == list(range(count))
    assert columns.values.tolist() == [step / 7 for step in steps]


def test_lines_go_out_in_messages_that_are_small_also_where_their_sources_are_long() -> None:
    count = 100
    lines = Lines(
        attempt=2**16 - 1,
        rank=2**16 - 1,
        numbers=list(range(2**62, 2**62 + count)),
        times_unix_us=[TIME_UNIX_US_MAX] * count,
        levels=[2] * count,
        sources=["ü" * 1_000] * count,
        streams=[2] * count,
        texts=["x"] * count,
        continued=[True] * count,
    )
    pieces = list(lines.pieces(10_000))
    assert [number for piece in pieces for number in piece.numbers] == lines.numbers
    assert max(len(LogWire().body(piece)) for piece in pieces) <= 10_000
    assert LineRows(sequence=1, lines=lines).size_bytes >= len(LogWire().body(lines))


def test_a_message_that_is_laid_out_in_another_way_means_the_same() -> None:
    usual = series_pb2.PointColumns(steps=[5, 6], times_unix_us=[7, 8], values=[math.inf, -0.0])
    unknown_field_first = b"\xf8\x7f\x01" + usual.SerializeToString()
    proto = ingest_service_pb2.IngestRequest()
    proto.points.sequence = 1
    proto.points.columns.add().ParseFromString(unknown_field_first)
    rows = ingest_message_from_proto(proto, LIMITS)
    assert isinstance(rows, PointRows)
    assert rows.columns[0].steps.tolist() == [5, 6]
    assert rows.columns[0].values.tolist() == [math.inf, -0.0]
