"""Times on the wire."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

TIME_UNIX_US_MIN = -62_135_596_800_000_000
TIME_UNIX_US_MAX = 253_402_300_799_999_999
"""What a Timestamp takes: the years 1 to 9999."""


def microseconds(time: Timestamp) -> int:
    """Since 1970, UTC."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def times_fit(times_unix_us: Sequence[int]) -> bool:
    """Whether a Timestamp takes these times; there is at least one."""
    return all(TIME_UNIX_US_MIN <= time <= TIME_UNIX_US_MAX for time in (min(times_unix_us), max(times_unix_us)))
