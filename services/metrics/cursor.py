"""Cursors: how far a follower is in each writer of a job. Opaque to callers; standard library and errors only.

For lines a place is the highest line number that was passed, for points the highest sequence. A cursor belongs to the
job's uid: a name that is used again does not take it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from services.chassis.errors import InvalidArgument, Reason, Violation
from services.metrics.writer_key import ATTEMPT_MAX, LINE_NUMBER_MAX, RANK_MAX, WriterKind

VERSION = 1
PLACES_MAX = 100_000
PLACE_MAX = 2 * LINE_NUMBER_MAX
"""A message may begin with the highest number."""
CURSOR_CHARACTERS_MAX = 64 * PLACES_MAX
NOT_OURS = "is not a cursor of this service"

Places = dict[tuple[int, int], int]
"""By attempt and rank; a writer that is missing is at 0."""


def encode_cursor(job_uid: str, kind: WriterKind, places: Mapping[tuple[int, int], int]) -> str:
    """The places as text."""
    rows = [[attempt, rank, place] for (attempt, rank), place in sorted(places.items()) if place]
    data = json.dumps([VERSION, kind.value, job_uid, rows], separators=(",", ":"))
    return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *, job_uid: str, kind: WriterKind) -> Places:
    """The places of a cursor that `encode_cursor` made for this job, or InvalidArgument."""
    if len(cursor) > CURSOR_CHARACTERS_MAX:
        raise _refused(NOT_OURS)
    try:
        data = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        version, found_kind, found_uid, rows = data
        places = {(attempt, rank): place for attempt, rank, place in rows}
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise _refused(NOT_OURS) from error
    if version != VERSION or found_kind != kind.value:
        raise _refused(f"is a cursor for other rows than {kind.value}")
    if found_uid != job_uid:
        raise _refused("belongs to another job, or to one of this name that was deleted")
    if len(places) > PLACES_MAX or not all(_is_place(*writer, place) for writer, place in places.items()):
        raise _refused(NOT_OURS)
    return places


def _is_place(attempt: object, rank: object, place: object) -> bool:
    """Whether a writer of ours can be there. JSON's true is an int to Python, and its numbers may be of any size."""
    return (
        type(attempt) is int
        and type(rank) is int
        and type(place) is int
        and 0 <= attempt <= ATTEMPT_MAX
        and 0 <= rank <= RANK_MAX
        and 0 < place <= PLACE_MAX
    )


def _refused(description: str) -> InvalidArgument:
    violation = Violation(field="cursor", description=f"{description}: start without a cursor")
    return InvalidArgument([violation], reason=Reason.INVALID_CURSOR)
