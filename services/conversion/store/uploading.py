"""Uploads into a bucket of a caller's, so that what a killed process leaves there can be told from what is not ours.

A mark comes before the first file and goes after the last one: it names the dataset, the call, and all files that the
call may write. Nothing that a mark does not name is ever deleted. Whoever takes an upload over writes a mark of its
own, and the call before it, should it be alive, does not end what it began.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from services.chassis.errors import Reason, SihlaiError, Unavailable
from services.chassis.objects.store import ObjectAlreadyExists, ObjectFolder, ObjectNotFound
from services.conversion.conveyor.work import some_at_a_time
from services.conversion.store.store import files_in, upload

MARK = ".sihlai-upload.json"
BUSY_RETRY_SECONDS = 30.0


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """An upload under way. `call` is its own, `digest` that of the dataset, `paths` are the files of it."""

    digest: str
    call: str
    paths: list[str]


class Uploading:
    """Uploads to one prefix. One that has stood still for `seconds_max` is nobody's any more."""

    def __init__(self, folder: ObjectFolder, *, requests_max: int, seconds_max: float) -> None:
        self._folder = folder
        self._requests_max = requests_max
        self._seconds_max = seconds_max

    async def try_out(self) -> None:
        """Write a mark of nothing, and delete it. Raises PermissionDenied where nothing may be written."""
        mark = Mark(digest="", call=secrets.token_hex(16), paths=[])
        with contextlib.suppress(ObjectAlreadyExists):  # somebody else may write
            await self._folder.write(MARK, msgspec.json.encode(mark), create_only=True)
            await self.end()

    async def take_over(self, digest: str) -> bool:
        """Whether an upload may begin where something is: only what an interrupted one left may be there.

        Of the same dataset it stays, to be written over; of another one it is removed, once it has stood still for long
        enough. Raises Unavailable before that: it may be under way.
        """
        mark = await self._mark()
        if mark is None:
            return False
        newest = datetime.min.replace(tzinfo=UTC)
        known = {MARK, *mark.paths}
        async for each in self._folder.list():
            if each.path not in known:
                return False
            newest = max(newest, each.last_modified)
        if mark.digest == digest:
            return True
        if (datetime.now(UTC) - newest).total_seconds() < self._seconds_max:
            raise self._busy()
        await self._delete(mark.paths)
        return True

    async def upload(self, draft: Path, digest: str, last: Sequence[str]) -> None:
        """Copy the files of a folder, those that come `last` after all others, all of them or none.

        Raises Unavailable where another call writes there too.
        """
        mark = Mark(digest=digest, call=secrets.token_hex(16), paths=await asyncio.to_thread(files_in, draft))
        taken_over = await self._mark() is not None
        try:
            await self._folder.write(MARK, msgspec.json.encode(mark), create_only=not taken_over)
        except ObjectAlreadyExists as error:
            raise self._busy() from error

        async def check() -> None:
            if await self._mark() != mark:
                raise self._busy()

        try:
            await upload(draft, self._folder, last=last, at_once_max=self._requests_max, before_last=check)
        except BaseException:
            await self._take_back(mark, last)
            raise
        await self.end()

    async def end(self) -> None:
        """Delete the mark of an upload that is whole; where that may not be done it harms nobody."""
        with contextlib.suppress(SihlaiError):
            await self._folder.delete(MARK)

    async def _mark(self) -> Mark | None:
        with contextlib.suppress(ObjectNotFound, ValueError):
            return msgspec.json.decode(await self._folder.read(MARK), type=Mark)
        return None

    async def _take_back(self, mark: Mark, last: Sequence[str]) -> None:
        """Delete what was uploaded, unless another call has taken it over; a cancelled call waits for it."""

        async def take_back() -> None:
            if await self._mark() == mark:
                for path in reversed(last):  # at once it is no dataset any more
                    await self._folder.delete(path)
                await self._delete(mark.paths)

        task = asyncio.create_task(take_back())
        with contextlib.suppress(SihlaiError):  # what failed may be the store itself: the first error says so
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait({task})
                raise

    async def _delete(self, paths: Sequence[str]) -> None:
        """The mark, which says that they are ours, last."""
        await some_at_a_time((self._folder.delete(path) for path in paths), self._requests_max)
        await self._folder.delete(MARK)

    def _busy(self) -> Unavailable:
        message = f"{self._folder.uri} is being written by another call, or was until a moment ago: try later"
        metadata = {"uri": self._folder.uri}
        return Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, message, metadata, retry_after_seconds=BUSY_RETRY_SECONDS)
