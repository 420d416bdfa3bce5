"""Folders for datasets in the making, by key: what an interrupted conversion leaves there is taken up by the next one.

A draft belongs to one process, and there to one call, at a time: it is locked, and whoever finds it locked gets one of
its own, which nobody takes up. The lock is the kernel's, so that it ends with its process. Nobody else may have made a
draft's folder: whoever did could put results of his own in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from services.chassis.errors import Reason, RetryableError, Unavailable
from services.conversion.conveyor.work import in_thread
from services.conversion.store.pinned import opened_folder, pinned

PREFIX = ".draft-"
LOCK = "lock"
DATASET = "dataset"
JOURNAL = "journal"
COPIES = "copies"
BOOT = "boot"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A folder in work. `dataset` is empty at first, the rest holds what an interrupted call has done.

    `place`: the folder by a path that leads to it whatever is put in its place.
    """

    folder: Path
    place: Path

    @property
    def dataset(self) -> Path:
        """What is published."""
        return self.place / DATASET

    @property
    def journal(self) -> Path:
        """What is not."""
        return self.place / JOURNAL

    @property
    def copies(self) -> Path:
        """Copies of files on their way to the dataset. One that has its source's size is whole."""
        return self.place / COPIES


class Drafts:
    """The drafts in one folder."""

    def __init__(self, folder: Path, *, hours_max: float, prefix: str = PREFIX, uri: str = "") -> None:
        """`prefix`: of their folders' names. `uri`: how people know the place, if not by its path."""
        self._folder = folder
        self._hours_max = hours_max
        self._prefix = prefix
        self._uri = uri or folder.as_uri()

    @contextlib.asynccontextmanager
    async def taken(self, key: str, executor: Executor) -> AsyncIterator[Draft]:
        """The draft of a key, locked. It stays where the call is interrupted or may be repeated; else it is gone.

        Raises Unavailable where this machine cannot be written to, and leaves nothing there.
        """
        try:
            folder, descriptor = await in_thread(executor, self._take, key)
        except OSError as error:
            raise self._not_written(error) from error
        shared = folder.name == f"{self._prefix}{key}"
        kept = False
        with contextlib.ExitStack() as stack:
            try:
                draft = Draft(folder=folder, place=stack.enter_context(pinned(folder)))
                await in_thread(executor, _prepare, draft)
                yield draft
            except OSError as error:
                raise self._not_written(error) from error
            except RetryableError:
                kept = shared
                raise
            except BaseException as error:
                # What is no Exception is the end of the call, or of the process.
                kept = shared and not isinstance(error, Exception)
                raise
            finally:
                await in_thread(executor, release_folder, descriptor, draft.dataset if kept else folder)

    def _not_written(self, error: OSError) -> Unavailable:
        message = f"{self._uri} cannot be written: {problem_of(error)}"
        return Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, {"uri": self._uri})

    def _take(self, key: str) -> tuple[Path, int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / f"{self._prefix}{key}"
        descriptor = lock_folder(folder)
        if descriptor is None:
            folder = self._folder / f"{self._prefix}{key}-{secrets.token_hex(8)}"
            descriptor = lock_folder(folder)
        assert descriptor is not None, "nobody else knows the folder"
        return folder, descriptor

    def sweep(self) -> int:
        """Remove drafts that nobody has taken up for too long; return how many."""
        oldest = time.time() - self._hours_max * 3600
        swept = 0
        for folder in self._folder.glob(f"{self._prefix}*"):
            if _last_used(folder) >= oldest:
                continue
            descriptor = lock_folder(folder)
            if descriptor is None:
                continue
            release_folder(descriptor, folder)
            swept += 1
        return swept


def lock_folder(folder: Path) -> int | None:
    """Make the folder where it is missing, and lock it for this process. None where another has it, or made it."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            with opened_folder(folder) as place:
                about = os.fstat(place)
                if about.st_uid != os.geteuid() or about.st_mode & 0o022:
                    return None
                descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place)
        except FileNotFoundError:  # its last owner has just removed it
            continue
        except NotADirectoryError:  # a link, or no folder at all
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat()):
                return descriptor
        os.close(descriptor)  # its last owner has removed it since


def release_folder(descriptor: int, removed: Path) -> None:
    """Unlock a folder, and remove it first, or only that part of it which nobody goes on with."""
    shutil.rmtree(removed, ignore_errors=True)
    os.close(descriptor)


def problem_of(error: OSError) -> str:
    """What the system says; of a copy of many files what it says of the first that failed."""
    if error.strerror:
        return error.strerror
    parts = error.args[0] if error.args and isinstance(error.args[0], list) and error.args[0] else [[str(error)]]
    return str(parts[0][-1])


def _prepare(draft: Draft) -> None:
    """What is in the dataset is not whole: it is made again, from the journal and the copies.

    After the machine was switched off a copy may have its size and not its content.
    """
    shutil.rmtree(draft.dataset, ignore_errors=True)
    boot, now = draft.place / BOOT, _boot()
    if not boot.exists() or boot.read_text() != now:
        shutil.rmtree(draft.copies, ignore_errors=True)
        boot.write_text(now)
    for folder in (draft.dataset, draft.journal, draft.copies):
        folder.mkdir(exist_ok=True)


def _boot() -> str:
    """Which start of the machine this is; where the system does not say, each process is another."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text()
    return secrets.token_hex(8)


def _last_used(folder: Path) -> float:
    """When something was last written there, in seconds since 1970."""
    newest = 0.0
    for path in (folder, folder / JOURNAL):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
