"""The disk that an embedded engine writes to, and how much of it must stay free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from services.chassis.errors import Reason, Unavailable


@dataclass(frozen=True, kw_only=True)
class DiskLimits:
    """What must be free. A merge writes all of its rows once more before any of the old ones go."""

    insert_bytes_min: int = 0
    """With less nothing is inserted."""
    merge_bytes_min: int = 0
    """With less nothing is merged."""
    watch_bytes_min: int = 0
    """With less, every insert is looked at: did all of its writes find room?"""
    look_seconds: float = 1.0
    """Pause between two looks."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The disk under a folder. Safe for threads."""

    folder: Path
    limits: DiskLimits

    @property
    def free_bytes(self) -> int:
        """What this process may still write."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    @property
    def is_low(self) -> bool:
        """Whether it may be full before long."""
        return self.free_bytes < self.limits.watch_bytes_min

    def require_room(self) -> None:
        """Raise Unavailable where nothing may be inserted before somebody has made room."""
        free, wanted = self.free_bytes, self.limits.insert_bytes_min
        if free < wanted:
            message = f"the disk of {self.folder} has {free} bytes free, but disk_free_bytes_min is {wanted}: make room"
            metadata = {"what": "disk_free_bytes_min", "limit": str(wanted), "found": str(free)}
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message, metadata)
