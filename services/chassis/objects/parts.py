"""A large file on its way into a store, part by part, as it is read from this machine's disk."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from services.chassis.objects.access import ObjectLimits
from services.chassis.objects.local import OWN_FILES

PARTS_MAX = 10_000
"""More a store of S3's kind does not put together."""


class Parts:
    """An open file that is read part by part. `failure`: why it could not be read; the store would not tell.

    A part that the disk does not give within `answer_seconds_max` could not be read.
    """

    def __init__(self, file: BinaryIO, part_bytes: int, *, answer_seconds_max: float) -> None:
        self._file = file
        self._part_bytes = part_bytes
        self._answer_seconds_max = answer_seconds_max
        self.failure: OSError | None = None

    async def read(self, on_progress: Callable[[int], None], *, ahead_max: int) -> AsyncIterator[bytes]:
        """The parts. `ahead_max`: so many are asked for before the first of them has arrived.

        A store that gives up forgets this in the midst; so whoever opened the file closes it, not this.
        """
        parts = 0
        try:
            while part := await OWN_FILES.run(self._read_part, seconds_max=self._answer_seconds_max):
                parts += 1
                if parts > ahead_max:
                    on_progress((parts - ahead_max) * self._part_bytes)
                yield part
        except OSError as error:
            self.failure = error
            raise

    def _read_part(self) -> bytes:
        return self._file.read(self._part_bytes)


async def part_bytes_of(file: Path, limits: ObjectLimits) -> int | None:
    """How large the parts of the file are; None where it is small enough for one request. Raises OSError."""
    size_bytes = (await OWN_FILES.run(file.stat, seconds_max=limits.folder_seconds_max)).st_size
    if size_bytes <= limits.part_bytes:
        return None
    return max(limits.part_bytes, -(-size_bytes // PARTS_MAX))


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """The file, open for reading; OWN_FILES enters it."""
    with file.open("rb") as source:
        yield source
