"""What the spools of all attempts of a runner may take on its disk, together.

A writer may take half of what the others leave free. So an attempt that begins while earlier ones still wait for
metrics finds room, and nothing that was recorded has to go for it. The spools' own thread alone uses this.
"""

from __future__ import annotations

import os
from pathlib import Path


class SpoolFull(Exception):  # noqa: N818  # a state of the disk, not a mistake
    """The record was not appended: the spools have reached their limit, or the disk is full."""


class Space:
    """The limit, and what is taken of it."""

    def __init__(self, *, bytes_max: int, disk_free_bytes_min: int) -> None:
        self._bytes_max = bytes_max
        self._disk_free_bytes_min = disk_free_bytes_min
        self.used_bytes = 0

    def require(self, folder: Path, *, own_bytes: int, more_bytes: int, urgent: bool) -> None:
        """Raise SpoolFull where a writer in `folder` that has `own_bytes` may not take `more_bytes`.

        What is `urgent` may take all that is left of the limit and of the disk.
        """
        free_bytes = self._bytes_max - self.used_bytes
        if urgent:
            if more_bytes > free_bytes:
                raise SpoolFull(f"the spools hold {self.used_bytes} of {self._bytes_max} bytes")
            return
        share_bytes = (free_bytes + own_bytes) // 2
        if own_bytes + more_bytes > share_bytes:
            raise SpoolFull(f"{folder.name} holds {own_bytes} of its share of {share_bytes} bytes")
        if self._disk_free_bytes_min:
            disk = os.statvfs(folder)
            if disk.f_bavail * disk.f_frsize - more_bytes < self._disk_free_bytes_min:
                raise SpoolFull(f"the disk has less than {self._disk_free_bytes_min} bytes free")
