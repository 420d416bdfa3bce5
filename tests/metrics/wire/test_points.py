"""Points on the wire: however a client lays them out, the arrays are the numbers that it meant."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sihlai.metrics.v1 import ingest_service_pb2, series_pb2

from services.metrics.wire.points import FlatPoints, _even_points, flat_points

INTEGERS = st.integers(-(2**63), 2**63 - 1)
SERIES_IDS = st.integers(0, 2**64 - 1)
VALUES = st.floats(width=64)


@st.composite
def columns(draw: st.DrawFn, length: int) -> series_pb2.PointColumns:
    return series_pb2.PointColumns(
        series_id=draw(SERIES_IDS),
        steps=draw(st.lists(INTEGERS, min_size=length, max_size=length)),
        times_unix_us=draw(st.lists(INTEGERS, min_size=length, max_size=length)),
        values=draw(st.lists(VALUES, min_size=length, max_size=length)),
    )


@st.composite
def batches(draw: st.DrawFn, *, even: bool) -> ingest_service_pb2.PointBatch:
    count = draw(st.integers(1, 6))
    lengths = [draw(st.integers(1, 40))] * count if even else [draw(st.integers(1, 20)) for _ in range(count)]
    return ingest_service_pb2.PointBatch(
        sequence=draw(st.integers(1, 2**31)),
        new_series=[series_pb2.SeriesDefinition(series_id=7, name="a")] * draw(st.integers(0, 2)),
        columns=[draw(columns(length)) for length in lengths],
    )


def meant(batch: ingest_service_pb2.PointBatch) -> tuple[list[int], list[int], list[int], list[int], list[bytes]]:
    return (
        [part.series_id for part in batch.columns],
        [len(part.steps) for part in batch.columns],
        [step for part in batch.columns for step in part.steps],
        [time for part in batch.columns for time in part.times_unix_us],
        [struct.pack("<d", value) for part in batch.columns for value in part.values],
    )


def found(points: FlatPoints) -> tuple[list[int], list[int], list[int], list[int], list[bytes]]:
    return (
        points.series_ids.tolist(),
        points.lengths.tolist(),
        points.steps.tolist(),
        points.times_unix_us.tolist(),
        [struct.pack("<d", value) for value in points.values.tolist()],
    )


@given(batches(even=True))
def test_columns_of_one_length_are_read_where_they_lie(batch: ingest_service_pb2.PointBatch) -> None:
    if any(number_is_absent(part) for part in batch.columns):
        return
    points = _even_points(batch)
    assert points is not None
    assert found(points) == meant(batch)


def number_is_absent(part: series_pb2.PointColumns) -> bool:
    """A series id of 0 is not on the wire."""
    return part.series_id == 0


@given(batches(even=False) | batches(even=True))
def test_any_layout_gives_the_numbers_that_were_meant(batch: ingest_service_pb2.PointBatch) -> None:
    points, problems = flat_points(batch)
    assert not problems
    assert found(points) == meant(batch)


@given(batches(even=True), st.integers(0, 2), st.integers(0, 5))
def test_columns_of_different_lengths_are_named(batch: ingest_service_pb2.PointBatch, which: int, place: int) -> None:
    place %= len(batch.columns)
    field = ("steps", "times_unix_us", "values")[which]
    getattr(batch.columns[place], field).append(1)
    _, problems = flat_points(batch)
    assert [problem.field for problem in problems] == [f"points.columns[{place}]"]


@pytest.mark.parametrize("length", [1, 15, 16, 2_047, 2_048, 20_000])
def test_every_width_of_a_length_on_the_wire_is_known(length: int) -> None:
    part = series_pb2.PointColumns(
        series_id=3, steps=range(length), times_unix_us=range(length), values=[math.nan] * length
    )
    points = _even_points(ingest_service_pb2.PointBatch(sequence=1, columns=[part, part]))
    assert points is not None
    assert np.array_equal(points.steps, [*range(length), *range(length)])
