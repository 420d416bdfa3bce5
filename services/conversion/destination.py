"""Where users want a dataset to be written: a folder or a prefix that is empty or does not exist, and nothing else.

A dataset is there whole or not at all: a folder is renamed into its place, and of what is uploaded the file that makes
it a dataset comes last; what was uploaded is removed where the rest fails. Nothing that was there before is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason, SihlaiError
from services.chassis.object_uri import uri_parts
from services.chassis.objects import ObjectFolder, ObjectNotFound
from services.conversion.sink import METADATA
from services.conversion.source import Access, DatasetSource, local_path
from services.conversion.store import REPORT, files_in, sync_folder, upload
from services.conversion.work import in_thread, some_at_a_time

LAST = (REPORT, METADATA)
"""The last files of a native dataset, in this order."""


class Destinations:
    """Opens destinations. `access` knows the roots and hosts that may be written to; the store itself never may."""

    def __init__(self, *, access: Access, store_uri: str, requests_max: int, executor: Executor) -> None:
        self._access = access
        self._store_uri = store_uri
        self._requests_max = requests_max
        self._executor = executor

    def open(self, source: DatasetSource, field_name: str = "destination") -> Destination:
        """A destination; nothing is read yet. Raises InvalidArgument for what is no uri, PermissionDenied."""
        folder = self._access.open(source, field_name)
        here, store = _parts(folder.uri), _parts(self._store_uri)
        if here[: len(store)] == store or store[: len(here)] == here:
            message = f"{folder.uri} is the system's own store: choose another destination, or none"
            raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": folder.uri})
        return Destination(
            folder, endpoint_url=source.endpoint_url, requests_max=self._requests_max, executor=self._executor
        )


class Destination:
    """One folder or prefix to write a dataset to."""

    def __init__(self, folder: ObjectFolder, *, endpoint_url: str, requests_max: int, executor: Executor) -> None:
        self.uri = folder.uri
        self.endpoint_url = endpoint_url
        self._folder = folder
        self._local = local_path(folder.uri)
        self._requests_max = requests_max
        self._executor = executor

    async def find(self, digest: str, *, last: Sequence[str] = LAST) -> Mapping[str, Any] | None:
        """The report.json of what is there, if it names this digest and is whole; None where nothing is there.

        Raises FailedPrecondition (OBJECT_ALREADY_EXISTS) where anything else is there.
        """
        found = await self._first_name()
        if found is None:
            return None
        with contextlib.suppress(ObjectNotFound, ValueError):
            report = json.loads(await self._folder.read(REPORT))
            if isinstance(report, dict) and report.get("digest") == digest and await self._folder.exists(last[-1]):
                return report
        raise self._not_empty(found)

    async def publish(self, draft: Path, *, last: Sequence[str] = LAST) -> None:
        """Make the files of a draft's folder visible, all of them or none; `last`: what is uploaded after the rest.

        Raises FailedPrecondition (OBJECT_ALREADY_EXISTS) where somebody else wrote there meanwhile.
        """
        found = await self._first_name()
        if found is not None:
            raise self._not_empty(found)
        if self._local is not None:
            await in_thread(self._executor, self._rename, draft, self._local)
            return
        try:
            await upload(draft, self._folder, last=last, at_once_max=self._requests_max)
        except BaseException:
            await self._remove(draft, last)
            raise

    async def _first_name(self) -> str | None:
        """The name of anything that is there."""
        if self._local is not None:
            return await asyncio.to_thread(_first_entry, self._local)
        async for each in self._folder.list():
            return each.path
        return None

    def _rename(self, draft: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{target.name}.part-{secrets.token_hex(8)}"
        try:
            _move(draft, part)
            sync_folder(part)
            part.rename(target)  # an empty folder gives way, anything else does not
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise self._not_empty(_first_entry(target) or "") from error
            message = f"{self.uri} cannot be written: {error.strerror}"
            raise FailedPrecondition(Reason.OBJECT_STORE_DENIED, message, {"uri": self.uri}) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    async def _remove(self, draft: Path, last: Sequence[str]) -> None:
        """Take back what was uploaded, the last files first; a cancelled call waits for it."""

        async def remove() -> None:
            for path in reversed(last):
                await self._folder.delete(path)
            paths = await asyncio.to_thread(files_in, draft)
            await some_at_a_time((self._folder.delete(path) for path in paths), self._requests_max)

        task = asyncio.create_task(remove())
        with contextlib.suppress(SihlaiError):  # what failed may be the store itself: the first error says so
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait({task})
                raise

    def _not_empty(self, found: str) -> FailedPrecondition:
        message = f"{self.uri} is not empty, it holds {found!r}: name an empty place, or one that does not exist"
        return FailedPrecondition(Reason.OBJECT_ALREADY_EXISTS, message, {"uri": self.uri, "found": found})


def _parts(uri: str) -> tuple[str, ...]:
    """What a uri names, part by part: a folder may have many names, and links lead to it."""
    local = local_path(uri)
    return uri_parts(uri) if local is None else ("file", "", *local.resolve().parts[1:])


def _move(draft: Path, part: Path) -> None:
    """By a rename, which costs nothing however much there is, or, into another file system, by a copy."""
    try:
        draft.rename(part)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(draft, part)


def _first_entry(folder: Path) -> str | None:
    """The name of anything in a folder; the folder's own where it is a file."""
    try:
        with os.scandir(folder) as entries:
            return min((entry.name for entry in entries), default=None)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return folder.name
