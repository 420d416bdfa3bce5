"""A spool's segment as it lies on disk: a head, then records, each with a checksum.

A segment's name is the sequence number of its first record; the others follow it. The head repeats the name and says
how many rows came before; whoever can read the records needs it no more.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

SUFFIX = ".segment"
MAGIC = b"SIHLSPL1"
HEAD = struct.Struct("<8sqqqI")
"""Magic, first sequence number, rows before, rows dropped before, checksum of all that."""
RECORD = struct.Struct("<IIqI")
"""Length of the body, checksum, sequence number, rows; the checksum covers all but itself."""
RECORD_BYTES_MAX = 8 * 2**20

_Read: TypeAlias = Callable[[int], bytes]


class Record(NamedTuple):
    """One record. `rows` is how many points or lines the body holds."""

    sequence: int
    rows: int
    body: bytes


class Head(NamedTuple):
    """What a segment says of what came before it."""

    first: int
    rows: int
    rows_dropped: int


@dataclass(kw_only=True)
class Segment:
    """One file. `last` is `first - 1` while it holds no record; `rows` are those of its whole records.

    `size_bytes` is changed before `last`: who reads meanwhile never finds a record missing.
    """

    path: Path
    first: int
    last: int
    size_bytes: int
    rows: int = 0


def segment_path(folder: Path, first: int) -> Path:
    """Where the segment lies that begins with record `first`; names sort by number."""
    return folder / f"{first:020d}{SUFFIX}"


def framed(record: Record) -> bytes:
    """The record as it lies on disk."""
    head = struct.pack("<IqI", len(record.body), record.sequence, record.rows)
    checksum = zlib.crc32(record.body, zlib.crc32(head))
    return RECORD.pack(len(record.body), checksum, record.sequence, record.rows) + record.body


def packed_head(head: Head) -> bytes:
    """The head as it lies on disk."""
    packed = HEAD.pack(MAGIC, head.first, head.rows, head.rows_dropped, 0)[: -struct.calcsize("<I")]
    return packed + struct.pack("<I", zlib.crc32(packed))


def head_of(data: bytes) -> Head | None:
    """The head at the start of `data`; None where there is no whole one."""
    if len(data) < HEAD.size:
        return None
    magic, first, rows, rows_dropped, checksum = HEAD.unpack_from(data)
    if magic != MAGIC or zlib.crc32(data[: HEAD.size - struct.calcsize("<I")]) != checksum:
        return None
    return Head(first, rows, rows_dropped)


def whole_records(data: bytes) -> list[Record]:
    """The records at the start of `data`, up to the first that is torn or damaged."""
    view = memoryview(data)
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        return bytes(view[position - size : position])

    return list(records_from(read, len(data)))


def records_from(read: _Read, size_bytes: int) -> Iterator[Record]:
    """The records of the next `size_bytes` that `read` gives, up to the first that is torn or damaged."""
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
