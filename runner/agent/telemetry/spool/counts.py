"""How far a writer's spool is, in a small file beside its segments.

The file has its full size from the start and is written in place, so a full disk does not keep it from telling how much
was dropped. Two slots take turns: one that is torn leaves the other.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from services.chassis.log import get_logger

log = get_logger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAGIC = b"SIHLCNT1"
SLOT = struct.Struct("<8sqqqqqqQ")
"""Magic, generation, the counts, the boot."""
CHECKSUM = struct.Struct("<I")
SLOT_BYTES = 128
SLOTS = 2


@dataclass(frozen=True, kw_only=True)
class Counts:
    """`rows` were ever appended, `rows_kept` of them lie in segments; `stored`: everything up to it is elsewhere.

    `boot` names the run of the operating system in which this was noted; 0 where it has no name.
    """

    next_sequence: int = 1
    rows: int = 0
    rows_kept: int = 0
    rows_dropped: int = 0
    stored: int = 0
    boot: int = 0


class CountsFile:
    """The file. Writing never fails: what it could not take is told again by the next."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises OSError."""
        self._path = path
        self._generation = 0
        self._failing = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        missing = SLOTS * SLOT_BYTES - os.fstat(self._file).st_size
        if missing > 0:
            os.pwrite(self._file, bytes(missing), SLOTS * SLOT_BYTES - missing)

    def read(self) -> Counts | None:
        """The newest whole slot; None where there is none."""
        newest: Counts | None = None
        for slot in range(SLOTS):
            with contextlib.suppress(OSError):
                data = os.pread(self._file, SLOT.size + CHECKSUM.size, slot * SLOT_BYTES)
                if (
                    len(data) < SLOT.size + CHECKSUM.size
                    or zlib.crc32(data[: SLOT.size]) != CHECKSUM.unpack_from(data, SLOT.size)[0]
                ):
                    continue
                magic, generation, next_sequence, rows, kept, dropped, stored, boot = SLOT.unpack_from(data)
                if magic == MAGIC and generation > self._generation:
                    self._generation = generation
                    newest = Counts(
                        next_sequence=next_sequence,
                        rows=rows,
                        rows_kept=kept,
                        rows_dropped=dropped,
                        stored=stored,
                        boot=boot,
                    )
        return newest

    def write(self, counts: Counts) -> None:
        """Put the counts into the older slot."""
        self._generation += 1
        data = SLOT.pack(
            MAGIC,
            self._generation,
            counts.next_sequence,
            counts.rows,
            counts.rows_kept,
            counts.rows_dropped,
            counts.stored,
            counts.boot,
        )
        try:
            os.pwrite(self._file, data + CHECKSUM.pack(zlib.crc32(data)), self._generation % SLOTS * SLOT_BYTES)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("spool_counts_not_noted", path=str(self._path), problem=error.strerror)
            self._failing = True

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def this_boot() -> int:
    """A number for this run of the operating system; 0 where it has no name."""
    try:
        return zlib.crc32(BOOT_ID.read_bytes())
    except OSError:
        return 0
