"""What a writer has written and ClickHouse does not have yet: records in append-only segments on the runner's disk.

A segment is a head and then records, each with a checksum. What `append` has returned for survives the death of every
process, as it is with the operating system; a loss of power may take what was appended since the last `sync`
(`spool_sync_seconds`). A tail that was torn off is cut at the last whole record when the spool is opened.

Sequence numbers are consecutive and go on where they were, also after a restart: the newest segment is never let go,
and its head says how many records and rows came before it. Nothing here knows what a record holds, and nothing may
ever change a record once it is appended.

SQLite would do all this, but network file systems break its locks.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from services.chassis.log import get_logger

log = get_logger(__name__)

SUFFIX = ".segment"
DRAFT_SUFFIX = ".draft"
MAGIC = b"SIHLSPL1"
HEAD = struct.Struct("<8sqqqI")
"""Magic, first sequence number, rows before, rows dropped before, checksum of all that."""
RECORD = struct.Struct("<IIqI")
"""Length of the body, checksum, sequence number, rows; the checksum covers all but itself."""
RECORD_BYTES_MAX = 8 * 2**20

_sync_file: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
_Read: TypeAlias = Callable[[int], bytes]


class SpoolFull(Exception):  # noqa: N818  # a state of the disk, not a mistake
    """The record was not appended: the spool has reached its limit, or the disk is full."""


class Record(NamedTuple):
    """One record. `rows` is how many points or lines the body holds."""

    sequence: int
    rows: int
    body: bytes


@dataclass(kw_only=True)
class Segment:
    """One file. `last` is `first - 1` while it holds no record."""

    path: Path
    first: int
    last: int
    size_bytes: int


class WriterSpool:
    """One writer's records. Not safe for threads; `sync` alone may run in another one."""

    def __init__(self, folder: Path, *, bytes_max: int, segment_bytes_max: int) -> None:
        """Open the spool in `folder`, or begin one. Raises OSError where the disk does not let it."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._segment_bytes_max = segment_bytes_max
        self.rows = 0
        self.rows_dropped = 0
        self._rows_dropped_noted = 0
        self.stored = 0
        """Everything up to this sequence number is known to be stored elsewhere."""
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob("*" + DRAFT_SUFFIX):
            draft.unlink()
        self._segments = self._read_segments()
        if not self._segments:
            self._segments = [self._new_segment(first=1)]
        newest = self._segments[-1]
        self._next = newest.last + 1
        self._file = os.open(newest.path, os.O_WRONLY | os.O_APPEND)
        self._synced = True

    @property
    def next_sequence(self) -> int:
        """The number that the next record gets."""
        return self._next

    @property
    def last_sequence(self) -> int:
        """The number of the last record; 0 where there was none. At least what is known to be stored."""
        return max(self._next - 1, self.stored)

    @property
    def first_sequence(self) -> int:
        """The lowest number above `stored` that is still here; else the next one."""
        for segment in self._segments:
            if segment.last > self.stored:
                return max(segment.first, self.stored + 1)
        return max(self._next, self.stored + 1)

    @property
    def size_bytes(self) -> int:
        """What the spool takes on disk."""
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, body: bytes, *, rows: int, reserve_bytes: int = 0) -> int:
        """Append one record and return its sequence number (`next_sequence` before the call).

        Raises SpoolFull where fewer than `reserve_bytes` would stay below the limit, or the disk is full: then nothing
        was appended. The caller counts what it drops in `rows_dropped`.
        """
        assert len(body) <= RECORD_BYTES_MAX, "records are bounded by their writer"
        record = framed(Record(self._next, rows, body))
        if self.size_bytes + len(record) + reserve_bytes > self._bytes_max:
            raise SpoolFull(f"{self._folder.name} holds {self.size_bytes} of {self._bytes_max} bytes")
        try:
            newest = self._segments[-1]
            if newest.last >= newest.first and newest.size_bytes + len(record) > self._segment_bytes_max:
                self._rotate()
            self._write(record)
        except OSError as error:
            raise SpoolFull(f"{self._folder.name} cannot be written: {error.strerror}") from error
        self._segments[-1].last = self._next
        self._segments[-1].size_bytes += len(record)
        self._next += 1
        self.rows += rows
        return self._next - 1

    def release(self, stored: int) -> None:
        """Everything up to `stored` is stored elsewhere: let go the segments that hold nothing else."""
        self.stored = max(self.stored, stored)
        while len(self._segments) > 1 and self._segments[0].last <= self.stored:
            with contextlib.suppress(FileNotFoundError):
                self._segments[0].path.unlink()
            self._segments.pop(0)

    def segment_after(self, sequence: int) -> Segment | None:
        """The segment of the lowest record above `sequence` that is here."""
        return next((segment for segment in self._segments if segment.last > sequence), None)

    def sync(self) -> None:
        """Make what was appended before the call survive a loss of power."""
        if not self._synced:
            self._synced = True
            # A duplicate, because a rotation may close the file meanwhile; what it closes it syncs itself.
            with contextlib.suppress(OSError), _duplicate(self._file) as descriptor:
                _sync_file(descriptor)

    def close(self) -> None:
        """Nothing is appended any more; how many rows were dropped is put on disk. Reading goes on."""
        if self.rows_dropped > self._rows_dropped_noted:
            with contextlib.suppress(OSError):  # the disk is full: a restart would tell a smaller number
                self._rotate()
        self.sync()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, record: bytes) -> None:
        try:
            written = os.write(self._file, record)
            if written < len(record):  # the disk is nearly full
                raise OSError(28, "the disk is full")
        except OSError:
            os.truncate(self._segments[-1].path, self._segments[-1].size_bytes)
            raise
        self._synced = False

    def _rotate(self) -> None:
        segment = self._new_segment(first=self._next)
        _sync_file(self._file)
        os.close(self._file)
        self._file = os.open(segment.path, os.O_WRONLY | os.O_APPEND)
        if self._segments[-1].path == segment.path:  # it held no record: its place is taken
            self._segments.pop()
        self._segments.append(segment)
        self.release(self.stored)

    def _new_segment(self, *, first: int) -> Segment:
        """On disk with its name before it is used: older segments may be let go because this one continues them."""
        path = self._folder / f"{first:020d}{SUFFIX}"
        draft = path.with_suffix(DRAFT_SUFFIX)
        head = HEAD.pack(MAGIC, first, self.rows, self.rows_dropped, 0)[: -struct.calcsize("<I")]
        with draft.open("wb") as file:
            file.write(head + struct.pack("<I", zlib.crc32(head)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(self._folder)
        self._rows_dropped_noted = self.rows_dropped
        return Segment(path=path, first=first, last=first - 1, size_bytes=HEAD.size)

    def _read_segments(self) -> list[Segment]:
        """The segments on disk, each cut at its last whole record."""
        segments = []
        for path in sorted(self._folder.glob("*" + SUFFIX)):
            head = _read_head(path)
            if head is None:
                log.warning("spool_segment_unreadable", path=str(path))
                path.unlink()
                continue
            first, self.rows, self.rows_dropped = head
            self._rows_dropped_noted = self.rows_dropped
            segment = Segment(path=path, first=first, last=first - 1, size_bytes=HEAD.size)
            with path.open("rb") as file:
                file.seek(HEAD.size)
                for record in _records(file.read, path.stat().st_size - HEAD.size):
                    segment.last = record.sequence
                    segment.size_bytes += RECORD.size + len(record.body)
                    self.rows += record.rows
            torn_bytes = path.stat().st_size - segment.size_bytes
            if torn_bytes:
                log.warning("spool_tail_cut", path=str(path), torn_bytes=torn_bytes, last_sequence=segment.last)
                os.truncate(path, segment.size_bytes)
            segments.append(segment)
        return segments


class SpoolReader:
    """Reads a spool's records in order from a place on, and goes on when more are appended."""

    def __init__(self, spool: WriterSpool, *, after: int) -> None:
        self._spool = spool
        self._after = after
        self._segment: Segment | None = None
        self._offset = 0
        self._file: BinaryIO | None = None

    def read(self) -> Record | None:
        """The next record, or None where there is none yet. A damaged record hides what follows in its segment."""
        while True:
            if self._segment is None or self._file is None:
                self._segment = self._spool.segment_after(self._after)
                if self._segment is None:
                    return None
                self._file = self._segment.path.open("rb")
                self._offset = HEAD.size
            self._file.seek(self._offset)
            record = next(_records(self._file.read, self._segment.size_bytes - self._offset), None)
            if record is not None:
                self._offset += RECORD.size + len(record.body)
                if record.sequence > self._after:
                    self._after = record.sequence
                    return record
            elif self._after >= self._segment.last and self._spool.segment_after(self._after) is None:
                return None
            else:
                self._after = max(self._after, self._segment.last)
                self.close()

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = self._segment = None


def framed(record: Record) -> bytes:
    """The record as it lies on disk."""
    head = struct.pack("<IqI", len(record.body), record.sequence, record.rows)
    checksum = zlib.crc32(record.body, zlib.crc32(head))
    return RECORD.pack(len(record.body), checksum, record.sequence, record.rows) + record.body


def whole_records(data: bytes) -> list[Record]:
    """The records at the start of `data`, up to the first that is torn or damaged."""
    view = memoryview(data)
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        return bytes(view[position - size : position])

    return list(_records(read, len(data)))


def _records(read: _Read, size_bytes: int) -> Iterator[Record]:
    left_bytes = size_bytes
    while left_bytes >= RECORD.size:
        head = read(RECORD.size)
        if len(head) < RECORD.size:
            return
        length, checksum, sequence, rows = RECORD.unpack(head)
        left_bytes -= RECORD.size + length
        if length > RECORD_BYTES_MAX or left_bytes < 0:
            return
        body = read(length)
        if zlib.crc32(body, zlib.crc32(struct.pack("<IqI", length, sequence, rows))) != checksum:
            return
        yield Record(sequence, rows, body)


def _read_head(path: Path) -> tuple[int, int, int] | None:
    with path.open("rb") as file:
        head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    magic, first, rows, rows_dropped, checksum = HEAD.unpack(head)
    if magic != MAGIC or zlib.crc32(head[: -struct.calcsize("<I")]) != checksum:
        return None
    return first, rows, rows_dropped


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[int]:
    duplicate = os.dup(descriptor)
    try:
        yield duplicate
    finally:
        os.close(duplicate)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
