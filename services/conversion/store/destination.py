"""Where users want a dataset to be written: a folder or a prefix that is empty or does not exist, and nothing else.

A dataset is there whole or not at all: a folder is renamed into its place, and of what is uploaded the file that makes
it a dataset comes last; what was uploaded is removed where the rest fails. What a killed process has left is removed,
or gone on with, by the next call to the same place. Nothing that was there before is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason
from services.chassis.objects.local import listed, through
from services.chassis.objects.store import ObjectFolder, ObjectNotFound
from services.chassis.objects.uri import local_path, uri_parts
from services.conversion.conveyor.sink import METADATA
from services.conversion.conveyor.work import in_thread
from services.conversion.source.place import Access, DatasetSource
from services.conversion.store.draft import DATASET, LOCK, lock_folder, release_folder
from services.conversion.store.store import REPORT, sync_folder
from services.conversion.store.uploading import Uploading

LAST = (REPORT, METADATA)
"""The last files of a native dataset, in this order."""


class Destinations:
    """Opens destinations. `access` knows the roots and hosts that may be written to; the store itself never may."""

    def __init__(
        self,
        *,
        access: Access,
        store_uri: str,
        closed_roots: Sequence[Path] = (),
        requests_max: int,
        upload_seconds_max: float,
        executor: Executor,
    ) -> None:
        """`closed_roots`: folders that are the system's own as the store is."""
        self._access = access
        self._store_uri = store_uri
        self._closed_roots = closed_roots
        self._upload_seconds_max = upload_seconds_max
        self._requests_max = requests_max
        self._executor = executor

    def open(self, source: DatasetSource, field_name: str = "destination") -> Destination:
        """A destination; nothing is read yet. Raises InvalidArgument for what is no uri, PermissionDenied."""
        self._access.open(source, field_name)
        local = local_path(source.uri)
        place = local.resolve() if local is not None else None
        if place is not None:  # from here on no link is followed, so what is allowed now is what is written
            source = replace(source, uri=place.as_uri())
        folder = self._access.open(source, field_name)
        here, store = _parts(folder.uri), _parts(self._store_uri)
        if here[: len(store)] == store or store[: len(here)] == here:
            message = f"{folder.uri} is the system's own store: choose another destination, or none"
            raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": folder.uri})
        for root in map(Path.resolve, self._closed_roots):
            if here[: len(root.parts) + 1] == ("file", "", *root.parts[1:]):
                message = f"{folder.uri} lies in {root}, where the system keeps its own data: choose another place"
                raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": folder.uri})
        return Destination(
            folder,
            endpoint_url=source.endpoint_url,
            requests_max=self._requests_max,
            upload_seconds_max=self._upload_seconds_max,
            executor=self._executor,
        )


class Destination:
    """One folder or prefix to write a dataset to."""

    def __init__(
        self,
        folder: ObjectFolder,
        *,
        endpoint_url: str,
        requests_max: int,
        upload_seconds_max: float,
        executor: Executor,
    ) -> None:
        """`upload_seconds_max`: an upload that has stood still for so long is nobody's any more."""
        self.uri = folder.uri
        self.endpoint_url = endpoint_url
        self._folder = folder
        self._local = local_path(folder.uri)
        self._uploading = Uploading(folder, requests_max=requests_max, seconds_max=upload_seconds_max)
        self._executor = executor

    async def find(self, digest: str, *, last: Sequence[str] = LAST) -> Mapping[str, Any] | None:
        """The report.json of what is there, if it names this digest and is whole; None where nothing is there.

        What an interrupted call has left is removed, or, in a bucket, taken for nothing where it is of this dataset.
        Raises FailedPrecondition (OBJECT_ALREADY_EXISTS) where anything else is there.
        """
        if self._local is not None:
            await in_thread(self._executor, self._tidy, self._local)
        found = await self._first_name()
        if found is None:
            if self._local is not None and (problem := await asyncio.to_thread(_unwritable, self._local)):
                raise self._denied(problem)  # now, and not after all the work
            return None
        with contextlib.suppress(ObjectNotFound, ValueError):
            report = json.loads(await self._folder.read(REPORT))
            if isinstance(report, dict) and report.get("digest") == digest and await self._folder.exists(last[-1]):
                if self._local is None:
                    await self._uploading.end()
                return report
        if self._local is None and await self._uploading.take_over(digest):
            return None
        raise self._not_empty(found)

    async def publish(self, draft: Path, digest: str, *, last: Sequence[str] = LAST) -> bool:
        """Make the files of a draft's folder visible, all of them or none; `last`: what is uploaded after the rest.

        False where another call was first with the same. Raises FailedPrecondition (OBJECT_ALREADY_EXISTS) where
        somebody else wrote there meanwhile.
        """
        if await self.find(digest, last=last) is not None:
            return False
        if self._local is None:
            await self._uploading.upload(draft, digest, last)
            return True
        try:
            await in_thread(self._executor, self._rename, draft, self._local)
        except FailedPrecondition as error:
            if error.reason is not Reason.OBJECT_ALREADY_EXISTS or await self.find(digest, last=last) is None:
                raise
            return False
        return True

    async def _first_name(self) -> str | None:
        """The name of anything that is there."""
        if self._local is not None:
            return await asyncio.to_thread(self._first_entry, self._local)
        async for each in self._folder.list():
            return each.path
        return None

    def _first_entry(self, target: Path) -> str | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), beside(target) as pinned:
            return _first_entry(pinned)
        return None

    def _tidy(self, target: Path) -> None:
        with contextlib.suppress(OSError), beside(target) as pinned:
            _tidy(pinned)

    def _rename(self, draft: Path, target: Path) -> None:
        try:
            with beside(target, make=True) as pinned:
                self._rename_pinned(draft, pinned)
        except OSError as error:
            raise self._denied(_problem(error)) from error

    def _rename_pinned(self, draft: Path, target: Path) -> None:
        """Into a folder beside the target first: what is copied from another file system takes its time."""
        part = target.parent / f".{target.name}.part-{secrets.token_hex(8)}"
        part.mkdir(mode=0o700)
        with _pinned(part) as inside:
            descriptor = lock_folder(inside)
            assert descriptor is not None, "nobody else knows the folder"
            try:
                _move(draft, inside / DATASET)
                sync_folder(inside / DATASET)
                _take_rights(inside / DATASET, target)
                (inside / DATASET).rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise self._not_empty(_first_entry(target) or "") from error
            finally:
                release_folder(part, descriptor, kept=False)

    def _denied(self, problem: str) -> FailedPrecondition:
        message = f"{self.uri} cannot be written: {problem}"
        return FailedPrecondition(Reason.OBJECT_STORE_DENIED, message, {"uri": self.uri})

    def _not_empty(self, found: str) -> FailedPrecondition:
        message = f"{self.uri} is not empty, it holds {found!r}: name an empty place, or one that does not exist"
        return FailedPrecondition(Reason.OBJECT_ALREADY_EXISTS, message, {"uri": self.uri, "found": found})


def _parts(uri: str) -> tuple[str, ...]:
    """What a uri names, part by part: a folder may have many names, and links lead to it."""
    local = local_path(uri)
    return uri_parts(uri) if local is None else ("file", "", *local.resolve().parts[1:])


@contextlib.contextmanager
def beside(target: Path, *, make: bool = False) -> Iterator[Path]:
    """The target, whose path has no links, by a path that leads to the folder it was in, whatever is put there since.

    `make`: folders that are missing are made. Raises FileNotFoundError where they are not, NotADirectoryError where one
    has become a link, OSError.
    """
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(_opened_folder(target.anchor))
        for name in target.parts[1:-1]:
            try:
                below = stack.enter_context(_opened_folder(name, here))
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=here)
                below = stack.enter_context(_opened_folder(name, here))
            here = below
        yield Path(through(here)) / target.name


@contextlib.contextmanager
def _pinned(folder: Path) -> Iterator[Path]:
    """A folder, no link, by a path that leads to it, whatever is put in its place."""
    with _opened_folder(folder) as descriptor:
        yield Path(through(descriptor))


@contextlib.contextmanager
def _opened_folder(path: str | Path, below: int | None = None) -> Iterator[int]:
    """Raises NotADirectoryError for a link."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=below)
    except NotADirectoryError as error:
        problem = f"{path} is no folder, or has become a link"
        raise NotADirectoryError(error.errno, problem) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take_rights(dataset: Path, target: Path) -> None:
    """An empty folder gives way, anything else does not; its rights stay, so it must be one of this service's own."""
    with contextlib.suppress(FileNotFoundError):
        about = target.lstat()
        if not stat.S_ISDIR(about.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
        if about.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the folder is another user's: name one that does not exist")
        if about.st_gid != dataset.stat().st_gid:
            os.chown(dataset, -1, about.st_gid)
        dataset.chmod(stat.S_IMODE(about.st_mode))


def _move(draft: Path, part: Path) -> None:
    """By a rename, which costs nothing however much there is, or, into another file system, by a copy."""
    try:
        draft.rename(part)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(draft, part)


def _unwritable(target: Path) -> str:
    """Why nothing can be written to a folder that is empty or not there yet; empty where it can."""
    here = next(folder for folder in target.parents if folder.exists())
    if not here.is_dir():
        return f"{here} is no folder"
    return "" if os.access(here, os.W_OK | os.X_OK) else f"this service may not write to {here}, or it is read-only"


def _problem(error: OSError) -> str:
    """What the system says; of a copy of many files what it says of the first that failed."""
    if error.strerror:
        return error.strerror
    parts = error.args[0] if error.args and isinstance(error.args[0], list) and error.args[0] else [[str(error)]]
    return str(parts[0][-1])


def _tidy(target: Path) -> None:
    """Remove what killed processes have left beside a target: folders of ours by name and content, locked by nobody."""
    name = re.compile(rf"\.{re.escape(target.name)}\.part-[0-9a-f]{{16}}")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(target.parent) as entries:
        parts = [
            Path(each.path) for each in entries if name.fullmatch(each.name) and each.is_dir(follow_symlinks=False)
        ]
        for part in parts:
            if {each.name for each in part.iterdir()} <= {LOCK, DATASET} and (
                descriptor := lock_folder(part)
            ) is not None:
                release_folder(part, descriptor, kept=False)


def _first_entry(folder: Path) -> str | None:
    """The name of anything in a folder; its own where it is a file or a link."""
    try:
        with _opened_folder(folder) as descriptor, listed(descriptor) as entries:
            return min((entry.name for entry in entries), default=None)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return folder.name if os.path.lexists(folder) else None
