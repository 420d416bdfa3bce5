"""Folders for datasets in the making, by key: what an interrupted conversion leaves there is taken up by the next one.

A draft belongs to one process, and there to one call, at a time: it is locked, and whoever finds it locked gets one of
its own, which nobody takes up. The lock is the kernel's, so that it ends with its process.
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

PREFIX = ".draft-"
LOCK = "lock"
DATASET = "dataset"
JOURNAL = "journal"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A folder in work. `dataset` is empty at first, `journal` holds what an interrupted call has done."""

    folder: Path

    @property
    def dataset(self) -> Path:
        """What is published."""
        return self.folder / DATASET

    @property
    def journal(self) -> Path:
        """What is not."""
        return self.folder / JOURNAL


class Drafts:
    """The drafts in one folder."""

    def __init__(self, folder: Path, *, hours_max: float) -> None:
        self._folder = folder
        self._hours_max = hours_max

    @contextlib.asynccontextmanager
    async def taken(self, key: str, executor: Executor) -> AsyncIterator[Draft]:
        """The draft of a key, locked. It stays where the call is interrupted or may be repeated; else it is gone.

        Raises Unavailable where this machine cannot be written to, and leaves nothing there.
        """
        try:
            folder, descriptor = await in_thread(executor, self._take, key)
        except OSError as error:
            raise self._not_written(error) from error
        shared = folder.name == f"{PREFIX}{key}"
        kept = False
        try:
            yield Draft(folder=folder)
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
            await in_thread(executor, release_folder, folder, descriptor, kept)

    def _not_written(self, error: OSError) -> Unavailable:
        message = f"the drafts in {self._folder} cannot be written: {error.strerror}"
        return Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, {"uri": self._folder.as_uri()})

    def _take(self, key: str) -> tuple[Path, int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / f"{PREFIX}{key}"
        descriptor = lock_folder(folder)
        if descriptor is None:
            folder = self._folder / f"{PREFIX}{key}-{secrets.token_hex(8)}"
            descriptor = lock_folder(folder)
        assert descriptor is not None, "nobody else knows the folder"
        draft = Draft(folder=folder)
        # What is there is not whole: it is made again from the journal.
        shutil.rmtree(draft.dataset, ignore_errors=True)
        draft.dataset.mkdir()
        draft.journal.mkdir(exist_ok=True)
        return folder, descriptor

    def sweep(self) -> int:
        """Remove drafts that nobody has taken up for too long; return how many."""
        oldest = time.time() - self._hours_max * 3600
        swept = 0
        for folder in self._folder.glob(f"{PREFIX}*"):
            if _last_used(folder) >= oldest:
                continue
            descriptor = lock_folder(folder)
            if descriptor is None:
                continue
            release_folder(folder, descriptor, kept=False)
            swept += 1
        return swept


def lock_folder(folder: Path) -> int | None:
    """Make the folder where it is missing, and lock it for this process. None where somebody has it."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # its last owner has just removed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat()):
                return descriptor
        os.close(descriptor)  # its last owner has removed it since


def release_folder(folder: Path, descriptor: int, kept: bool) -> None:
    """Unlock a folder, and remove it first; where it is to be kept, only the dataset, which nobody goes on with."""
    shutil.rmtree(folder / DATASET if kept else folder, ignore_errors=True)
    os.close(descriptor)


def _last_used(folder: Path) -> float:
    """When something was last written there, in seconds since 1970."""
    newest = 0.0
    for path in (folder, folder / JOURNAL):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
