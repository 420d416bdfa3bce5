"""Points as a file: Arrow's streaming format, or comma-separated values."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import csv
from sihlai.metrics.v1 import metrics_service_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.point import SeriesDefinition
from services.metrics.query.query import Curve

CONTEXT = pa.map_(pa.string(), pa.string())
COLUMNS = {
    "name": pa.string(),
    "context": CONTEXT,
    "unit": pa.string(),
    "step": pa.int64(),
    "time": pa.timestamp("us", tz="UTC"),
    "value": pa.float64(),
}
"""A row is a point. In comma-separated values the context is an object of JSON."""


class ExportFile(Protocol):
    """A file in the making: each call gives the bytes that follow."""

    def add(self, curves: Sequence[Curve]) -> bytes:
        """Points behind those before."""

    def end(self) -> bytes:
        """What stands behind the last points."""


class ArrowFile:
    """Arrow's streaming format, a record batch for each list of curves."""

    def __init__(self) -> None:
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()])
        self._bytes = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._bytes, self._schema)

    def add(self, curves: Sequence[Curve]) -> bytes:
        """See ExportFile."""
        self._writer.write_table(_table(curves, self._schema, _context_items))
        return self._taken()

    def end(self) -> bytes:
        """See ExportFile."""
        self._writer.close()
        return self._taken()

    def _taken(self) -> bytes:
        taken = self._bytes.getvalue()
        self._bytes.seek(0)
        self._bytes.truncate()
        return taken


class CsvFile:
    """Comma-separated values, the names of the columns first."""

    def __init__(self) -> None:
        self._schema = pa.schema({**COLUMNS, "context": pa.string()})
        self._options = csv.WriteOptions(include_header=True)

    def add(self, curves: Sequence[Curve]) -> bytes:
        """See ExportFile."""
        written = io.BytesIO()
        csv.write_csv(_table(curves, self._schema, _context_json), written, self._options)
        self._options = csv.WriteOptions(include_header=False)
        return written.getvalue()

    def end(self) -> bytes:
        """See ExportFile."""
        return b""


FILES: dict[int, Callable[[], ExportFile]] = {
    metrics_service_pb2.EXPORT_FORMAT_UNSPECIFIED: ArrowFile,
    metrics_service_pb2.EXPORT_FORMAT_ARROW: ArrowFile,
    metrics_service_pb2.EXPORT_FORMAT_CSV: CsvFile,
}


def export_file(number: int) -> ExportFile:
    """A file of the format that is asked for, or InvalidArgument."""
    if number not in FILES:
        names = ", ".join(metrics_service_pb2.ExportFormat.keys())
        raise InvalidArgument([Violation(field="format", description=f"is {number}, but must be one of {names}")])
    return FILES[number]()


def _table(curves: Sequence[Curve], schema: pa.Schema, context: Callable[[SeriesDefinition], Any]) -> pa.Table:
    """The points of the curves, which all have some, a row each."""
    points = [curve.points for curve in curves if curve.points is not None]
    of_series = np.repeat(np.arange(len(points)), [len(each.steps) for each in points])
    definitions = [curve.definition for curve in curves if curve.points is not None]

    def repeated(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(of_series, pa.int64()))

    def joined(columns: Sequence[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(np.concatenate(columns) if columns else [], kind)

    return pa.Table.from_arrays(
        [
            repeated([definition.name for definition in definitions], pa.string()),
            repeated([context(definition) for definition in definitions], schema.field("context").type),
            repeated([definition.unit for definition in definitions], pa.string()),
            joined([each.steps for each in points], pa.int64()),
            joined([each.times_unix_us for each in points], pa.int64()).cast(COLUMNS["time"]),
            joined([each.values for each in points], pa.float64()),
        ],
        schema=schema,
    )


def _context_items(definition: SeriesDefinition) -> tuple[tuple[str, str], ...]:
    return definition.context


def _context_json(definition: SeriesDefinition) -> str:
    return json.dumps(dict(definition.context), ensure_ascii=False) if definition.context else ""
