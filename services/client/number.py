"""Numbers, whiles and moments that callers give, as messages can hold them. What does not fit is one sentence."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.client.specification import SpecificationError

INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1
SECONDS_MAX = 366 * 86_400.0
"""The longest while that can be asked for; gRPC's clocks reach not much further."""


def whole_number(value: int, what: str, *, at_least: int = 0, at_most: int = INT32_MAX) -> int:
    """The number, where it lies between the two. Raises SpecificationError."""
    if not at_least <= value <= at_most:
        raise SpecificationError(f"{what} is {value}, but must be a whole number from {at_least} to {at_most}")
    return value


def number(value: float, what: str, *, at_least: float = 0.0, at_most: float = INT32_MAX) -> float:
    """The number, where it lies between the two, as NaN never does. Raises SpecificationError."""
    if not at_least <= value <= at_most:
        raise SpecificationError(f"{what} is {value:g}, but must be a number from {at_least:.10g} to {at_most:.10g}")
    return value


def moment(value: datetime, what: str) -> Timestamp:
    """The moment. Without a zone it is UTC. Raises SpecificationError."""
    stamp = Timestamp()
    try:
        stamp.FromDatetime(value)
    except (ValueError, OverflowError):
        raise SpecificationError(f"{what} is {value}, but must be a time in the years 1 to 9999 of UTC") from None
    return stamp
