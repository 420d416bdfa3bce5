"""What of a writer's spool is there when it is opened, whatever happened to it meanwhile.

A sequence number is never used twice: numbers go on behind the counts that were noted and behind the newest segment's
name. What is whole up to a segment's first damage is kept, a tail that was torn off is cut, and the rows that are
missing are counted as dropped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner.agent.telemetry.spool.counts import Counts
from runner.agent.telemetry.spool.segment import HEAD, RECORD, SUFFIX, Head, Segment, head_of, whole_records
from services.chassis.log import get_logger

log = get_logger(__name__)

SEQUENCES_SKIPPED = 2**20
ROWS_SKIPPED = 2**24
"""Where nobody knows which numbers were used last, so many are left out: more than anybody writes within
`spool_sync_seconds`, or than a segment holds."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The readable segments, oldest first, and the counts as they are now.

    `appendable`: the newest segment is whole to its end, and the next number follows its last.
    """

    segments: tuple[Segment, ...]
    counts: Counts
    appendable: bool


@dataclass(frozen=True, kw_only=True)
class _Found:
    segment: Segment
    head: Head | None
    records: Sequence[tuple[int, int]]
    """Sequence number and rows of each."""
    size_bytes: int

    @property
    def whole(self) -> bool:
        return self.head is not None and self.size_bytes == self.segment.size_bytes


def take_inventory(folder: Path, noted: Counts | None, *, counted: bool) -> Inventory:
    """Read all segments, cut torn tails, delete files of which nothing can be read. Raises OSError.

    `counted`: counts were noted once, so that what is not there was lost.
    """
    found = [_read(path) for path in sorted(folder.glob(f"*{SUFFIX}")) if path.stem.isdecimal()]
    readable = sum(each.segment.rows for each in found)
    if noted is None:
        counts = _counts_by_heads(found)
        if counted or found:  # the newest records may be gone too, without a trace: a gap is told
            log.warning("spool_counts_lost", folder=str(folder), last_sequence=counts.next_sequence - 1)
            counts = replace(
                counts, next_sequence=counts.next_sequence + SEQUENCES_SKIPPED, rows=counts.rows + ROWS_SKIPPED
            )
    else:
        counts = _counts_by_note(found, noted, readable)
    for each in found:
        _cut(each)
    segments = tuple(each.segment for each in found if each.segment.last >= each.segment.first)
    appendable = bool(segments) and segments[-1] is found[-1].segment and found[-1].whole
    return Inventory(
        segments=segments,
        counts=replace(counts, rows_kept=readable),
        appendable=appendable and counts.next_sequence == segments[-1].last + 1,
    )


def _counts_by_note(found: Sequence[_Found], noted: Counts, readable: int) -> Counts:
    newer = [rows for each in found for sequence, rows in each.records if sequence >= noted.next_sequence]
    next_sequence = max([noted.next_sequence, *(each.segment.last + 1 for each in found)])
    lost = 0
    if _missing(found, noted.stored, next_sequence):
        lost = max(0, noted.rows_kept + sum(newer) - readable)
    if lost:
        log.warning("spool_rows_lost", rows=lost, next_sequence=next_sequence)
    return replace(
        noted,
        next_sequence=next_sequence,
        rows=noted.rows + sum(newer),
        rows_dropped=noted.rows_dropped + lost,
    )


def _counts_by_heads(found: Sequence[_Found]) -> Counts:
    """Where the note is gone: the heads tell what came before each, and nobody what was behind the newest record."""
    rows = dropped = lost = 0
    known = False
    for each in found:
        if each.head is not None:
            lost += max(0, each.head.rows - rows) if known else 0
            rows = max(rows, each.head.rows)
            dropped = max(dropped, each.head.rows_dropped)
            known = True
        rows += each.segment.rows
    next_sequence = found[-1].segment.last + 1 if found else 1
    return Counts(next_sequence=next_sequence, rows=rows, rows_dropped=dropped + lost)


def _missing(found: Sequence[_Found], stored: int, next_sequence: int) -> bool:
    """Whether a record above `stored` is not there."""
    wanted = stored + 1
    for each in found:
        if each.segment.first > wanted:
            return True
        wanted = max(wanted, each.segment.last + 1)
    return wanted < next_sequence


def _read(path: Path) -> _Found:
    first = int(path.stem)
    data = _content(path)
    records: list[tuple[int, int]] = []
    size_bytes = HEAD.size
    for record in whole_records(data[HEAD.size :]):
        if record.sequence != first + len(records):
            break  # a record that is whole and does not belong here
        records.append((record.sequence, record.rows))
        size_bytes += RECORD.size + len(record.body)
    head = head_of(data)
    segment = Segment(
        path=path,
        first=first,
        last=first + len(records) - 1,
        size_bytes=size_bytes,
        rows=sum(rows for _, rows in records),
    )
    return _Found(segment=segment, head=head, records=records, size_bytes=len(data))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # a sector that cannot be read is damage like any other
        log.warning("spool_segment_unreadable", path=str(path), problem=error.strerror)
        return b""


def _cut(found: _Found) -> None:
    segment = found.segment
    if segment.last < segment.first:
        segment.path.unlink(missing_ok=True)
    elif found.size_bytes > segment.size_bytes:
        torn_bytes = found.size_bytes - segment.size_bytes
        log.warning("spool_tail_cut", path=str(segment.path), torn_bytes=torn_bytes, last_sequence=segment.last)
        os.truncate(segment.path, segment.size_bytes)
