"""A small disk of its own, which can be filled to the last byte and emptied again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FILLER = "filler"
MOUNTED = re.compile(r"sihlai-chaos-(\d+) (\S+) tmpfs ")
"""In /proc/mounts: the process that mounted it, and where."""


@dataclass(frozen=True)
class Disk:
    """A tmpfs."""

    folder: Path

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Take all that is free; whoever writes next is told that there is no room."""
        with (self.folder / FILLER).open("ab") as file:
            size_bytes = file.tell()
            while free_bytes := self.free_bytes:
                try:
                    os.posix_fallocate(file.fileno(), size_bytes, free_bytes)
                except OSError:  # somebody else took some of it
                    continue
                size_bytes += free_bytes

    def empty(self) -> None:
        """Give it back."""
        (self.folder / FILLER).unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """A disk of this size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount(folder, size_bytes)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def why_no_disk() -> str:
    """Why a disk cannot be mounted here; empty where it can."""
    if shutil.which("mount") is None:
        return "there is no mount command"
    folder = Path(tempfile.mkdtemp())
    try:
        _mount(folder, 2**20)
    except subprocess.CalledProcessError as error:
        return f"a tmpfs cannot be mounted: {error.stderr.decode().strip()}"
    else:
        subprocess.run(["umount", str(folder)], check=True)
    finally:
        folder.rmdir()
    return ""


def unmount_left_behind() -> None:
    """Unmount the disks of runs that were killed: nothing else gives their memory back."""
    mounts = Path("/proc/mounts")
    for process_id, folder in MOUNTED.findall(mounts.read_text()) if mounts.exists() else ():
        if not Path(f"/proc/{process_id}").exists():
            subprocess.run(["umount", "--lazy", folder.encode().decode("unicode_escape")], check=False)


def _mount(folder: Path, size_bytes: int) -> None:
    options = f"size={size_bytes},mode=755"
    command = ["mount", "-t", "tmpfs", "-o", options, f"sihlai-chaos-{os.getpid()}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
