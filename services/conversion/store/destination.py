"""Where users want a dataset to be written: a folder or a prefix that is empty or does not exist, and nothing else.

A dataset is there whole or not at all: a folder is made beside its place and renamed into it, and of what is uploaded
the file that makes it a dataset comes last; what was uploaded is removed where the rest fails. What an interrupted call
or a killed process has left is removed, or gone on with, by the next call to the same place. Nothing that was there
before is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason
from services.chassis.objects.local import listed
from services.chassis.objects.store import ObjectFolder, ObjectNotFound
from services.chassis.objects.uri import local_path, uri_parts
from services.conversion.conveyor.sink import METADATA
from services.conversion.conveyor.work import in_thread
from services.conversion.source.place import Access, DatasetSource
from services.conversion.store.draft import (
    BOOT,
    COPIES,
    DATASET,
    JOURNAL,
    LOCK,
    Draft,
    Drafts,
    lock_folder,
    problem_of,
    release_folder,
)
from services.conversion.store.pinned import beside, opened_folder, pinned
from services.conversion.store.store import REPORT, ResultStore, sync_folder
from services.conversion.store.uploading import Uploading

PARTS = frozenset({LOCK, BOOT, DATASET, JOURNAL, COPIES})
"""What lies in a folder that is to become a destination."""
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
        free_bytes_min: int,
        executor: Executor,
    ) -> None:
        """`closed_roots`: folders that are the system's own as the store is. `free_bytes_min`: room beside images."""
        self._access = access
        self._store_uri = store_uri
        self._closed_roots = closed_roots
        self._upload_seconds_max = upload_seconds_max
        self._free_bytes_min = free_bytes_min
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
            free_bytes_min=self._free_bytes_min,
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
        free_bytes_min: int = 0,
        executor: Executor,
    ) -> None:
        """`upload_seconds_max`: an upload that has stood still for so long is nobody's any more.

        `free_bytes_min`: so much must be free beside what images take.
        """
        self.uri = folder.uri
        self.endpoint_url = endpoint_url
        self._folder = folder
        self._local = local_path(folder.uri)
        self._uploading = Uploading(folder, requests_max=requests_max, seconds_max=upload_seconds_max)
        self._free_bytes_min = free_bytes_min
        self._executor = executor

    async def try_out(self) -> None:
        """Before any work: raise FailedPrecondition where something else is there, or where nothing can be written.

        In a bucket PermissionDenied. What may be the result that is wanted is left for `find` to look at.
        """
        found = await self._first_name()
        if found is None and self._local is not None:
            if problem := await in_thread(self._executor, _tried, self._local):
                raise self._denied(problem)
        elif found is None:
            await self._uploading.try_out()
        elif self._local is not None and not (self._local / REPORT).is_file():
            raise self._not_empty(found)

    async def require_room(self, digest: str, images_bytes: int, drafts: Path) -> None:
        """Raise FailedPrecondition where images of so many bytes, and a little more, do not fit, with the numbers.

        `drafts`: where a dataset for a bucket is made first. What an interrupted call has copied counts as free.
        """
        await in_thread(self._executor, self._require_room, digest, images_bytes, drafts)

    @contextlib.asynccontextmanager
    async def draft(self, digest: str, store: ResultStore) -> AsyncIterator[Draft]:
        """A folder to make the dataset in, and what an interrupted call has left for it.

        It lies beside the destination, so that nothing is copied in the end; of a bucket's among those of the store.
        """
        if self._local is None:
            async with store.draft(digest, self._executor) as draft:
                yield draft
            return
        with contextlib.ExitStack() as stack:
            try:
                place = stack.enter_context(beside(self._local, make=True))
            except OSError as error:
                raise self._denied(problem_of(error)) from error
            drafts = Drafts(place.parent, hours_max=0, prefix=_part_prefix(self._local), uri=self.uri)
            async with drafts.taken(_part_key(digest), self._executor) as draft:
                yield draft

    async def find(self, digest: str, *, last: Sequence[str] = LAST) -> Mapping[str, Any] | None:
        """The report.json of what is there, if it names this digest and is whole; None where nothing is there.

        What an interrupted call has left is removed, or taken for nothing where it is of this dataset.
        Raises FailedPrecondition (OBJECT_ALREADY_EXISTS) where anything else is there.
        """
        if self._local is not None:
            await in_thread(self._executor, self._tidy, self._local, digest)
        found = await self._first_name()
        if found is None:
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
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), beside(target) as place:
            return _first_entry(place)
        return None

    def _tidy(self, target: Path, digest: str) -> None:
        with contextlib.suppress(OSError), beside(target) as place:
            _tidy(place, _part_prefix(target), digest)

    def _require_room(self, digest: str, images_bytes: int, drafts: Path) -> None:
        local, there = self._local, 0
        if local is not None:
            copies = local.parent / f"{_part_prefix(local)}{_part_key(digest)}" / COPIES
            there = sum(path.stat().st_size for path in copies.rglob("*") if path.is_file())
        place = _existing(local.parent if local is not None else drafts)
        about = os.statvfs(place)
        free, wanted = about.f_bavail * about.f_frsize, max(images_bytes - there, 0) + self._free_bytes_min
        if free < wanted:
            what = f"the images take {_size(images_bytes)}, and " if images_bytes else ""
            message = (
                f"there is too little room for {self.uri}: {what}{_size(wanted)} must be free in {place}, but "
                f"{_size(free)} are: make room, or name another place"
            )
            metadata = {"uri": self.uri, "wanted_bytes": str(wanted), "free_bytes": str(free)}
            raise FailedPrecondition(Reason.OBJECT_STORE_DENIED, message, metadata)

    def _rename(self, draft: Path, target: Path) -> None:
        try:
            with beside(target, make=True) as place:
                self._rename_pinned(draft, place)
        except OSError as error:
            raise self._denied(problem_of(error)) from error

    def _rename_pinned(self, draft: Path, target: Path) -> None:
        """Into a folder beside the target first: what is copied from another file system takes its time."""
        part = target.parent / f"{_part_prefix(target)}{secrets.token_hex(8)}"
        descriptor = lock_folder(part)
        assert descriptor is not None, "nobody else knows the folder"
        with pinned(part) as inside:
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
                release_folder(descriptor, part)

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


def _take_rights(dataset: Path, target: Path) -> None:
    """An empty folder gives way, anything else does not; its rights stay, so it must be one of this service's own."""
    with contextlib.suppress(FileNotFoundError):
        about = _require_own(target)
        if about.st_gid != dataset.stat().st_gid:
            os.chown(dataset, -1, about.st_gid)
        dataset.chmod(stat.S_IMODE(about.st_mode))


def _require_own(target: Path) -> os.stat_result:
    """Raises FileNotFoundError where nothing is there, which is fine, and OSError for what may not give way."""
    about = target.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
    if about.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the folder is another user's: name one that does not exist")
    return about


def _move(draft: Path, part: Path) -> None:
    """By a rename, which costs nothing however much there is, or, into another file system, by a copy."""
    try:
        draft.rename(part)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(draft, part)


def _tried(target: Path) -> str:
    """Why nothing can be written to a folder that is empty or not there yet; empty where it can: it was tried."""
    here = _existing(target.parent)
    if not here.is_dir():
        return f"{here} is no folder"
    probe = f"{_part_prefix(target)}{secrets.token_hex(8)}"
    try:
        with pinned(here) as inside:
            (inside / probe).mkdir(mode=0o700)
            (inside / probe).rmdir()
        with contextlib.suppress(FileNotFoundError):
            _require_own(target)
    except OSError as error:
        return f"{here}: {problem_of(error)}"
    return ""


def _existing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _part_prefix(target: Path) -> str:
    """Of the names of folders beside a target that are to become it. They are hidden."""
    return f".{target.name}.part-"


def _part_key(digest: str) -> str:
    return hashlib.sha256(digest.encode()).hexdigest()[:16]


def _size(size_bytes: int) -> str:
    """In words of people."""
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def _tidy(target: Path, prefix: str, digest: str) -> None:
    """Remove what was left beside a target for any other dataset: folders of ours by name, content and lock."""
    name = re.compile(rf"{re.escape(prefix)}([0-9a-f]{{16}})(-[0-9a-f]{{16}})?")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(target.parent) as entries:
        parts = [
            Path(each.path)
            for each in entries
            if (found := name.fullmatch(each.name))
            and (found[1] != _part_key(digest) or found[2])
            and each.is_dir(follow_symlinks=False)
        ]
        for part in parts:
            if {each.name for each in part.iterdir()} <= PARTS and (descriptor := lock_folder(part)) is not None:
                release_folder(descriptor, part)


def _first_entry(folder: Path) -> str | None:
    """The name of anything in a folder; its own where it is a file or a link."""
    try:
        with opened_folder(folder) as descriptor, listed(descriptor) as entries:
            return min((entry.name for entry in entries), default=None)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return folder.name if os.path.lexists(folder) else None
