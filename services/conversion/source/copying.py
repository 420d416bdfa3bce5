"""Copies of a source's files on this machine. Of files of this machine the system makes them, in one thread.

A copy shares its blocks with the source where the file system can do that, and is never a hard link: whoever changes
one of two links in place changes both, and a source is nobody's to change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from services.chassis.errors import Reason, Unavailable
from services.chassis.objects.local import open_place, through
from services.chassis.objects.store import ObjectFolder
from services.chassis.objects.uri import local_path

PART_BYTES = 8 * 2**20
"""So much is copied in one go."""
NOT_BY_THE_SYSTEM = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""What a system says whose file systems cannot copy, or not from one to the other: it is read and written then."""


async def copy_files(folder: ObjectFolder, files: Sequence[tuple[str, Path]]) -> None:
    """Copy files, each from its path in a source's folder to a new file of this machine. Makes the folders above it.

    Raises ObjectNotFound where one is gone, PermissionDenied where it is a link out of the dataset by now or may not be
    read, Unavailable where this machine's disk does not take it.
    """
    if local_path(folder.uri) is None:
        for path, target in files:
            await folder.copy_to_local(path, target)
        return
    await asyncio.to_thread(_copy_all, folder, files)


def _copy_all(folder: ObjectFolder, files: Sequence[tuple[str, Path]]) -> None:
    """Folders are opened once for the files in them: looking at each file's whole path costs more than its copy."""
    for (above, target_folder), some in groupby(files, key=lambda file: (file[0].rpartition("/")[0], file[1].parent)):
        with folder.opened(above) as here, _made(target_folder) as there:
            for path, target in some:
                with _reading(folder, here, path) as source, _written(target):
                    _copy(source, target.name, there)


@contextlib.contextmanager
def _reading(folder: ObjectFolder, here: int, path: str) -> Iterator[int]:
    """A descriptor that reads the file at a path, which lies in `here`, or is a link there."""
    reader = _opened(here, path.rpartition("/")[2])
    if reader is None:  # where it leads is looked at by the folder, and what is wrong is said
        with folder.reading(path) as found:
            yield found
        return
    try:
        yield reader
    finally:
        os.close(reader)


def _opened(here: int, name: str) -> int | None:
    """A descriptor that reads a file of an open folder; None for all that is no regular file that may be read."""
    with contextlib.suppress(OSError), open_place(name, below=here, follow=False) as place:
        if stat.S_ISREG(os.fstat(place).st_mode):
            return os.open(through(place), os.O_RDONLY | os.O_CLOEXEC)
    return None


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[int]:
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror}"
        raise Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, {"path": str(target)}) from error


def _copy(source: int, name: str, there: int) -> None:
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666, dir_fd=there)
    try:
        try:
            while os.copy_file_range(source, target, PART_BYTES):
                pass
        except OSError as error:
            if error.errno not in NOT_BY_THE_SYSTEM:
                raise
        while part := os.read(source, PART_BYTES):
            while part:
                part = part[os.write(target, part) :]
    finally:
        os.close(target)
