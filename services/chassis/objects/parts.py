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
    """A file that is read part by part. `failure`: why it could not be read; the store would not tell."""

    def __init__(self, file: Path, part_bytes: int) -> None:
        self._file = file
        self.part_bytes = part_bytes
        self.failure: OSError | None = None

    async def read(self, on_progress: Callable[[int], None], *, ahead_max: int) -> AsyncIterator[bytes]:
        """The parts. `ahead_max`: so many are asked for before the first of them has arrived."""
        parts = 0
        try:
            async with OWN_FILES.entered(_opened(self._file)) as file:
                while part := await OWN_FILES.run(lambda: file.read(self.part_bytes)):
                    parts += 1
                    if parts > ahead_max:
                        on_progress((parts - ahead_max) * self.part_bytes)
                    yield part
        except OSError as error:
            self.failure = error
            raise


async def parts_of(file: Path, limits: ObjectLimits) -> Parts | None:
    """How to send the file in parts; None where it is small enough for one request."""
    size_bytes = (await OWN_FILES.run(file.stat)).st_size
    if size_bytes <= limits.part_bytes:
        return None
    return Parts(file, max(limits.part_bytes, -(-size_bytes // PARTS_MAX)))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    with file.open("rb") as opened:
        yield opened
