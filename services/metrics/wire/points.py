"""Points on the wire, as the flat arrays that they are stored from.

Packed numbers are little-endian and without gaps, so numpy reads them where they lie in the serialized message. Where
all columns of a message are equally long, as those of one moment are, one look is enough for all of them: a message of
twenty series with one point each then costs little more than one of a single series.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sihlai.metrics.v1 import ingest_service_pb2, series_pb2

from services.chassis.errors import Violation

NUMBER_BYTES = 8
SERIES_ID_TAG = 0x09
COLUMN_TAG = 0x1A
"""Of a series' columns within PointBatch."""
FIELD_TAGS = (0x12, 0x1A, 0x22)
"""Of steps, times and values within PointColumns, packed."""
INTEGERS = np.dtype("<i8")
DOUBLES = np.dtype("<f8")


class FlatPoints(NamedTuple):
    """All points of a message, series after series; `lengths` says how many each series has."""

    series_ids: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    times_unix_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


class Layout(NamedTuple):
    """How the columns of a series with a certain number of points lie in a message, if all is as usual."""

    record: np.dtype[np.void]
    places: npt.NDArray[np.intp]
    """Of the bytes that are the same in every such record."""
    expected: npt.NDArray[np.uint8]


def flat_points(proto: ingest_service_pb2.PointBatch) -> tuple[FlatPoints, list[Violation]]:
    """The points of a message that has columns, and what is wrong with them."""
    found = _even_points(proto)
    return (found, []) if found is not None else _uneven_points(proto)


def _even_points(proto: ingest_service_pb2.PointBatch) -> FlatPoints | None:
    """The points where all columns are equally long and lie as every client of protobuf writes them; else None."""
    count, length = len(proto.columns), len(proto.columns[0].steps)
    if not length:
        return None
    layout = _layout(length)
    data = proto.SerializeToString()
    size_bytes = count * layout.record.itemsize
    if len(data) < size_bytes:
        return None
    # The columns are the message's last field.
    start = len(data) - size_bytes
    raw = np.frombuffer(data, np.uint8, size_bytes, start).reshape(count, layout.record.itemsize)
    if not (raw[:, layout.places] == layout.expected).all():
        return None
    records = np.frombuffer(data, layout.record, count, start)
    return FlatPoints(
        series_ids=records["series_id"].copy(),
        lengths=np.full(count, length, np.int64),
        steps=records["steps"].reshape(-1),
        times_unix_us=records["times"].reshape(-1),
        values=records["values"].reshape(-1),
    )


def _uneven_points(proto: ingest_service_pb2.PointBatch) -> tuple[FlatPoints, list[Violation]]:
    problems = []
    parts = [_columns(part) for part in proto.columns]
    for index, (steps, times, values) in enumerate(parts):
        if not len(steps) or len({len(steps), len(times), len(values)}) > 1:
            found = f"{len(steps)} steps, {len(times)} times and {len(values)} values"
            description = f"has {found}, but needs the same number of each, at least 1"
            problems.append(Violation(field=f"points.columns[{index}]", description=description))
    points = FlatPoints(
        series_ids=np.array([part.series_id for part in proto.columns], np.uint64),
        lengths=np.array([len(steps) for steps, _, _ in parts], np.int64),
        steps=np.concatenate([steps for steps, _, _ in parts]),
        times_unix_us=np.concatenate([times for _, times, _ in parts]),
        values=np.concatenate([values for _, _, values in parts]),
    )
    return points, problems


def _columns(
    proto: series_pb2.PointColumns,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    return (
        np.array(proto.steps, INTEGERS),
        np.array(proto.times_unix_us, INTEGERS),
        np.array(proto.values, DOUBLES),
    )


@lru_cache(maxsize=1_024)
def _layout(length: int) -> Layout:
    width = NUMBER_BYTES * length
    head = bytes([SERIES_ID_TAG])
    fields = [(bytes([tag]) + _varint(width)) for tag in FIELD_TAGS]
    inner = len(head) + NUMBER_BYTES + sum(len(field) + width for field in fields)
    outer = bytes([COLUMN_TAG]) + _varint(inner)
    fixed: dict[int, int] = {}
    offsets = []
    position = 0
    for constant, variable in ((outer + head, NUMBER_BYTES), *((field, width) for field in fields)):
        fixed |= {position + index: byte for index, byte in enumerate(constant)}
        position += len(constant)
        offsets.append(position)
        position += variable
    record = np.dtype(
        {
            "names": ["series_id", "steps", "times", "values"],
            "formats": ["<u8", (INTEGERS, (length,)), (INTEGERS, (length,)), (DOUBLES, (length,))],
            "offsets": offsets,
            "itemsize": position,
        }
    )
    return Layout(
        record=record,
        places=np.array(list(fixed), np.intp),
        expected=np.array(list(fixed.values()), np.uint8),
    )


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
