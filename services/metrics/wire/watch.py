"""Watches on the wire, as bytes: a message is put together of parts that many watches share."""

from __future__ import annotations

import struct

from sihlai.metrics.v1 import metrics_service_pb2, series_pb2
from sihlai.scheduler.v1 import job_pb2

from services.metrics.point import SeriesDefinition
from services.metrics.rows import PointColumns
from services.metrics.wire.field import LENGTH_DELIMITED, VARINT, delimited, tag, varint
from services.metrics.wire.series import definition_to_proto

FIXED64 = 1
RESPONSE = metrics_service_pb2.WatchMetricsResponse.DESCRIPTOR.fields_by_name
POINTS = metrics_service_pb2.LivePoints.DESCRIPTOR.fields_by_name
COLUMNS = series_pb2.PointColumns.DESCRIPTOR.fields_by_name
CURSOR = tag(RESPONSE["cursor"].number, LENGTH_DELIMITED)
LIVE_POINTS = tag(RESPONSE["points"].number, LENGTH_DELIMITED)
NEW_SERIES = tag(POINTS["new_series"].number, LENGTH_DELIMITED)
POINT_COLUMNS = tag(POINTS["columns"].number, LENGTH_DELIMITED)
ATTEMPT = tag(POINTS["attempt"].number, VARINT)
FROM_STEP = tag(POINTS["from_step"].number, VARINT)
SERIES_ID = tag(COLUMNS["series_id"].number, FIXED64)
STEPS = tag(COLUMNS["steps"].number, LENGTH_DELIMITED)
TIMES = tag(COLUMNS["times_unix_us"].number, LENGTH_DELIMITED)
VALUES = tag(COLUMNS["values"].number, LENGTH_DELIMITED)


class WatchWire:
    """Points and marks."""

    def names(self, definition: SeriesDefinition) -> bytes:
        """A series that is named, in LivePoints."""
        return delimited(NEW_SERIES, definition_to_proto(definition).SerializeToString())

    def columns(self, columns: PointColumns) -> bytes:
        """Points of one series, in LivePoints. The arrays are the packed fields already: little-endian, of 8 bytes."""
        body = b"".join(
            (
                SERIES_ID,
                struct.pack("<Q", columns.series_id),
                delimited(STEPS, columns.steps.astype("<i8", copy=False).tobytes()),
                delimited(TIMES, columns.times_unix_us.astype("<i8", copy=False).tobytes()),
                delimited(VALUES, columns.values.astype("<f8", copy=False).tobytes()),
            )
        )
        return delimited(POINT_COLUMNS, body)

    def rows(self, attempt: int, from_step: int, body: bytes, cursor: str) -> bytes:
        """Points of one attempt."""
        points = b"".join((body, ATTEMPT, varint(attempt), FROM_STEP, varint(from_step)))
        return delimited(CURSOR, cursor.encode()) + delimited(LIVE_POINTS, points)

    def caught_up(self, cursor: str) -> bytes:
        """All points that were stored when the call began have been sent."""
        mark = metrics_service_pb2.MetricsCaughtUp()
        return metrics_service_pb2.WatchMetricsResponse(cursor=cursor, caught_up=mark).SerializeToString()

    def heartbeat(self, cursor: str) -> bytes:
        """Nothing happened."""
        mark = metrics_service_pb2.MetricsHeartbeat()
        return metrics_service_pb2.WatchMetricsResponse(cursor=cursor, heartbeat=mark).SerializeToString()

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """The job has ended."""
        mark = metrics_service_pb2.MetricsEnded(state=job_pb2.JobState.ValueType(state), points_complete=complete)
        return metrics_service_pb2.WatchMetricsResponse(cursor=cursor, ended=mark).SerializeToString()
