"""What a writer has written and ClickHouse does not have yet: records in append-only segments on the runner's disk.

What `append` has returned for survives the death of every process, as it is with the operating system; a loss of power
may take what was appended since the last `sync` (`spool_sync_seconds`). No call but `sync` and `close` waits for the
disk to have something.

Sequence numbers are consecutive and never used twice, also after a restart and on a damaged disk; where a loss of power
may have taken records that were stored elsewhere already, a part of them is left out. Nothing here knows what a record
holds, and nothing may ever change a record once it is appended.

SQLite would do all this, but network file systems break its locks.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.agent.telemetry.spool.counts import Counts, CountsFile, this_boot
from runner.agent.telemetry.spool.inventory import ROWS_SKIPPED, SEQUENCES_SKIPPED, take_inventory
from runner.agent.telemetry.spool.segment import (
    HEAD,
    RECORD,
    RECORD_BYTES_MAX,
    Head,
    Record,
    Segment,
    framed,
    packed_head,
    segment_path,
    whole_records,
)
from runner.agent.telemetry.spool.space import Space, SpoolFull
from services.chassis.files import DRAFT_SUFFIX, replace_file
from services.chassis.log import get_logger

log = get_logger(__name__)

COUNTS_FILE = "counts"
RESERVE_FILE = "reserve"

_sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class WriterSpool:
    """One writer's records. One thread alone changes them; `sync`, and whatever only looks, may run in any other."""

    def __init__(self, folder: Path, *, space: Space, segment_bytes_max: int, begun: bool = False) -> None:
        """Open the spool in `folder`, or begin one. Raises OSError where the disk does not let it.

        `begun`: it was opened before, so that an empty folder is one that has lost everything.
        """
        self._folder = folder
        self._space = space
        self._segment_bytes_max = segment_bytes_max
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob("*" + DRAFT_SUFFIX):
            draft.unlink()
        self._noted = CountsFile(folder / COUNTS_FILE)
        noted = self._noted.read()
        inventory = take_inventory(folder, noted, counted=begun)
        counts = inventory.counts
        self._boot = this_boot()
        self._numbers_uncertain = noted is not None and noted.boot != self._boot
        self._next = counts.next_sequence
        self.rows = counts.rows
        self.rows_dropped = counts.rows_dropped
        self.stored = counts.stored
        """Everything up to this sequence number is known to be stored elsewhere."""
        self._segments: Sequence[Segment] = inventory.segments
        self._rows_kept = counts.rows_kept
        self._file = -1
        self._continues = inventory.appendable
        """Whether the newest segment may be appended to."""
        self._unsynced: set[Path] = set()
        self._lock = threading.Lock()
        self._size_bytes = 0
        self._resize(sum(segment.size_bytes for segment in inventory.segments))
        self._reserved_bytes = 0
        with contextlib.suppress(FileNotFoundError):  # an earlier agent's; on a full disk it could not be made again
            self._take_reserve((folder / RESERVE_FILE).stat().st_size)
        self.note()

    def next_numbers(self) -> tuple[int, int]:
        """The sequence number of the next record and the number of its first row; for the thread that appends it.

        After a loss of power the newest numbers may be lost here and stored elsewhere: these lie far behind them.
        """
        if self._numbers_uncertain:
            self._numbers_uncertain = False
            if self._next > 1:
                self._next += SEQUENCES_SKIPPED
                self.rows += ROWS_SKIPPED
                self._continues = False
        return self._next, self.rows + 1

    @property
    def last_sequence(self) -> int:
        """The number of the last record; 0 where there was none. At least what is known to be stored."""
        return max(self._next - 1, self.stored)

    @property
    def size_bytes(self) -> int:
        """What the spool takes on disk."""
        return self._size_bytes

    def first_after(self, stored: int) -> int:
        """The lowest number above `stored` that is still here; else the next one."""
        segment = self.segment_after(stored)
        if segment is not None:
            return max(segment.first, stored + 1)
        return max(self._next, stored + 1)

    def segment_after(self, sequence: int) -> Segment | None:
        """The segment of the lowest record above `sequence` that is here."""
        return next((segment for segment in self._segments if segment.last > sequence), None)

    def append(self, body: bytes, *, rows: int, urgent: bool = False) -> int:
        """Append one record and return its sequence number.

        Raises SpoolFull where the spools' space does not allow it (see Space for `urgent`) or the disk does not take
        it: then nothing was appended. The caller counts what it drops with `drop`.
        """
        assert len(body) <= RECORD_BYTES_MAX, "records are bounded by their writer"
        size_bytes = RECORD.size + len(body)
        try:
            self._space.require(self._folder, own_bytes=self.size_bytes, more_bytes=size_bytes, urgent=urgent)
            self.next_numbers()
            self._open_segment(size_bytes)
            self._write(framed(Record(self._next, rows, body)))
        except OSError as error:
            raise SpoolFull(f"{self._folder.name} cannot be written: {error.strerror}") from error
        return self._appended(size_bytes, rows)

    def reserve(self, size_bytes: int) -> bool:
        """Set space aside for one record of at most `size_bytes`, also on a disk that is full later."""
        path = self._folder / RESERVE_FILE
        wanted = HEAD.size + RECORD.size + size_bytes
        if self._reserved_bytes >= wanted:
            return True
        self._take_reserve(0)
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, wanted)
        except OSError as error:
            log.warning("spool_reserve_missing", folder=str(self._folder), problem=error.strerror)
            path.unlink(missing_ok=True)
            return False
        self._take_reserve(wanted)
        return True

    def append_reserved(self, body: bytes, *, rows: int) -> int:
        """Append one record in the space that was set aside: the file becomes a segment. Raises SpoolFull."""
        path, wanted = self._folder / RESERVE_FILE, HEAD.size + RECORD.size + len(body)
        if wanted > self._reserved_bytes:
            raise SpoolFull(f"{self._reserved_bytes} bytes were set aside, but {wanted} are wanted")
        self.next_numbers()
        target = segment_path(self._folder, self._next)
        try:
            file = os.open(path, os.O_WRONLY)
            try:
                head = packed_head(Head(self._next, self.rows, self.rows_dropped))
                os.pwrite(file, head + framed(Record(self._next, rows, body)), 0)
                os.ftruncate(file, wanted)
            finally:
                os.close(file)
            path.replace(target)
        except OSError as error:
            raise SpoolFull(f"{path.name} cannot be written: {error.strerror}") from error
        self._take_reserve(0)
        self._add_segment(Segment(path=target, first=self._next, last=self._next - 1, size_bytes=HEAD.size))
        self._close_file()
        return self._appended(RECORD.size + len(body), rows)

    def drop(self, rows: int) -> None:
        """Count rows that were not appended; fewer than none where some were kept after all."""
        self.rows_dropped += rows
        self.note()

    def release(self, stored: int) -> None:
        """Everything up to `stored` is stored elsewhere: let go the segments that hold nothing else."""
        self.stored = max(self.stored, stored)
        gone = [segment for segment in self._segments[:-1] if segment.last <= self.stored]
        self._rows_kept -= sum(segment.rows for segment in gone)
        self.note()  # before they go: an agent that dies in between must not take them for lost
        for segment in gone:
            with contextlib.suppress(OSError):
                segment.path.unlink()
        self._segments = self._segments[len(gone) :]
        self._resize(-sum(segment.size_bytes for segment in gone))

    def skip(self, sequence: int, rows: int) -> None:
        """A record is wanted by nobody, and everything before it is stored: count it as dropped and go on behind it."""
        self.rows_dropped += rows
        self.release(sequence)

    def cut_damage(self, segment: Segment) -> int:
        """What cannot be read any more of a segment is lost: counted, and never looked for again. The rows lost."""
        try:
            records = whole_records(segment.path.read_bytes()[HEAD.size : segment.size_bytes])
        except OSError:
            records = []
        whole = [record for number, record in enumerate(records) if record.sequence == segment.first + number]
        rows_lost = segment.rows - sum(record.rows for record in whole)
        if segment.last - segment.first + 1 == len(whole):
            return 0
        if segment is self._segments[-1]:
            self._close_file()
        segment.last = segment.first + len(whole) - 1
        segment.rows -= rows_lost
        self._rows_kept -= rows_lost
        self.drop(rows_lost)
        log.warning("spool_rows_lost", path=str(segment.path), rows=rows_lost)
        return rows_lost

    def note(self) -> None:
        """Put the counts on disk."""
        self._noted.write(
            Counts(
                next_sequence=self._next,
                rows=self.rows,
                rows_kept=self._rows_kept,
                rows_dropped=self.rows_dropped,
                stored=self.stored,
                boot=self._boot,
            )
        )

    def sync(self) -> None:
        """Make what was appended before the call survive a loss of power, as far as the disk can."""
        with self._lock:
            paths, self._unsynced = self._unsynced, set()
        if not paths:
            return
        for path in (*paths, self._folder / COUNTS_FILE, self._folder):
            try:
                _sync(path)
            except FileNotFoundError:
                continue  # let go meanwhile
            except OSError as error:
                log.warning("spool_sync_failed", path=str(path), problem=error.strerror)

    def close(self) -> None:
        """Nothing is appended any more for now. Reading goes on."""
        self._close_file()
        if self._reserved_bytes:
            with contextlib.suppress(OSError):
                (self._folder / RESERVE_FILE).unlink()
            self._take_reserve(0)
        self.note()
        self.sync()

    def forget(self) -> None:
        """The folder is about to be deleted: let go of its files and of its space."""
        self._close_file()
        self._noted.close()
        self._segments = ()
        self._resize(-self._size_bytes)
        self._take_reserve(0)

    def _open_segment(self, more_bytes: int) -> None:
        """Make `_file` the newest segment, with room in it."""
        newest = self._segments[-1] if self._segments else None
        full = newest is not None and newest.size_bytes + more_bytes > self._segment_bytes_max
        if newest is None or full or not self._continues:
            segment = self._new_segment()
            file = os.open(segment.path, os.O_WRONLY | os.O_APPEND)  # the old one stays open where this fails
            self._close_file()
            self._file = file
            self._add_segment(segment)
            self._continues = True
        elif self._file < 0:
            self._file = os.open(newest.path, os.O_WRONLY | os.O_APPEND)

    def _new_segment(self) -> Segment:
        path = segment_path(self._folder, self._next)
        replace_file(path, packed_head(Head(self._next, self.rows, self.rows_dropped)), synced=False)
        return Segment(path=path, first=self._next, last=self._next - 1, size_bytes=HEAD.size)

    def _add_segment(self, segment: Segment) -> None:
        self._segments = (*self._segments, segment)
        self._resize(segment.size_bytes)
        self.release(self.stored)

    def _write(self, record: bytes) -> None:
        size_bytes = self._segments[-1].size_bytes
        try:
            if os.write(self._file, record) < len(record):
                raise OSError(28, "the disk is full")
        except OSError:
            try:
                os.ftruncate(self._file, size_bytes)
            except OSError:
                self._close_file()  # what is torn stays at its end: the next record begins a new segment
            raise

    def _appended(self, size_bytes: int, rows: int) -> int:
        segment, sequence = self._segments[-1], self._next
        segment.size_bytes += size_bytes
        segment.rows += rows
        self._next += 1
        self.rows += rows
        self._rows_kept += rows
        self._resize(size_bytes)
        self.note()
        with self._lock:
            self._unsynced.add(segment.path)
        segment.last = sequence  # last: from now on it is read
        return sequence

    def _close_file(self) -> None:
        """Nothing is added to the newest segment any more."""
        self._continues = False
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _resize(self, more_bytes: int) -> None:
        self._size_bytes += more_bytes
        self._space.used_bytes += more_bytes

    def _take_reserve(self, size_bytes: int) -> None:
        self._space.used_bytes += size_bytes - self._reserved_bytes
        self._reserved_bytes = size_bytes


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (os.fsync if path.is_dir() else _sync_data)(descriptor)
    finally:
        os.close(descriptor)
