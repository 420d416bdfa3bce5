"""Timestamps and durations ↔ microseconds and seconds."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.errors import Violation
from services.scheduler.domain.job import SECOND_US

TIME_SECONDS_MIN = -62_135_596_800
TIME_SECONDS_MAX = 253_402_300_799
DURATION_SECONDS_MAX = 315_576_000_000
"""What the protos' own comments and JSON allow."""
NANOS = 1_000_000_000
TIME_US_MAX = TIME_SECONDS_MAX * SECOND_US


def timestamp(time_us: int | None) -> Timestamp | None:
    """Microseconds since 1970 as a Timestamp; None stays None, which leaves a field out."""
    if time_us is None:
        return None
    proto = Timestamp()
    set_timestamp(proto, time_us)
    return proto


def set_timestamp(proto: Timestamp, time_us: int) -> None:
    """Make it microseconds since 1970."""
    proto.seconds, proto.nanos = time_us // SECOND_US, time_us % SECOND_US * 1000


def time_violations(proto: Timestamp, field: str) -> list[Violation]:
    """What is wrong with a time: a Timestamp is of the years 1 to 9999."""
    if TIME_SECONDS_MIN <= proto.seconds <= TIME_SECONDS_MAX and 0 <= proto.nanos < NANOS:
        return []
    description = f"is {proto.seconds} s and {proto.nanos} ns, but must be of the years 1 to 9999"
    return [Violation(field=field, description=description)]


def known_time_us(proto: Timestamp) -> int:
    """A program's Timestamp as microseconds since 1970; 0 where it is none."""
    return 0 if time_violations(proto, "") else time_us(proto)


def known_duration_us(proto: Duration) -> int | None:
    """A program's Duration, such as a time left, as microseconds; None where it is none, or negative."""
    known = 0 <= proto.seconds <= DURATION_SECONDS_MAX and 0 <= proto.nanos < NANOS
    return duration_us(proto) if known else None


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
