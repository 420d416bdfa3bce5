"""Reads a writer's spool from a place on, in order, and goes on when more is appended."""

from __future__ import annotations

from typing import BinaryIO

from runner.agent.telemetry.spool.segment import HEAD, RECORD, Record, Segment, records_from
from runner.agent.telemetry.spool.writer_spool import WriterSpool


class SpoolReader:
    """One reader; it waits for the disk, so it belongs into a thread. Not safe for several at once."""

    def __init__(self, spool: WriterSpool, *, after: int) -> None:
        self._spool = spool
        self._after = after
        self._segment: Segment | None = None
        self._offset = 0
        self._file: BinaryIO | None = None
        self.damaged: list[Segment] = []
        """Segments of which records could not be read; they were left out."""

    def read(self, *, records_max: int = 1, bytes_max: int = 1) -> list[Record]:
        """The next records, at least one where there is one, until one of the limits is reached."""
        records: list[Record] = []
        size_bytes = 0
        while len(records) < records_max and size_bytes < bytes_max:
            record = self._next()
            if record is None:
                break
            records.append(record)
            size_bytes += len(record.body)
        return records

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = self._segment = None

    def _next(self) -> Record | None:
        while True:
            if self._segment is None:
                self._segment = self._spool.segment_after(self._after)
                if self._segment is None:
                    return None
                self._offset = HEAD.size
            segment = self._segment
            last = segment.last  # before the size: what is appended meanwhile is not missed
            record = self._record_of(segment)
            if record is not None:
                self._offset += RECORD.size + len(record.body)
                if record.sequence > self._after:
                    self._after = record.sequence
                    return record
            elif self._after >= last and self._spool.segment_after(self._after) is None:
                return None
            else:
                if self._after < last:  # damage hides what follows in its segment
                    self.damaged.append(segment)
                    self._after = last
                self.close()

    def _record_of(self, segment: Segment) -> Record | None:
        """The record at the offset; None where there is none, or none that can be read."""
        try:
            if self._file is None:
                self._file = segment.path.open("rb")
            self._file.seek(self._offset)
            return next(records_from(self._file.read, segment.size_bytes - self._offset), None)
        except OSError:
            return None
