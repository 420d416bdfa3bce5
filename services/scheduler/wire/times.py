"""Timestamps and durations ↔ microseconds and seconds."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.job import SECOND_US


def timestamp(time_us: int | None) -> Timestamp | None:
    """Microseconds since 1970 as a Timestamp; None stays None, which leaves a field out."""
    if time_us is None:
        return None
    return Timestamp(seconds=time_us // SECOND_US, nanos=time_us % SECOND_US * 1000)


def time_us(proto: Timestamp) -> int:
    """A Timestamp as microseconds since 1970."""
    return proto.seconds * SECOND_US + proto.nanos // 1000


def duration(seconds: float) -> Duration:
    """Seconds as a Duration."""
    micros = round(seconds * SECOND_US)
    return Duration(seconds=micros // SECOND_US, nanos=micros % SECOND_US * 1000)


def duration_us(proto: Duration) -> int:
    """A Duration as microseconds."""
    return proto.seconds * SECOND_US + proto.nanos // 1000
