"""The system's own place for results: converted datasets by digest, and indices of images by their listing.

A converted dataset is there whole or not at all: it is written to a draft on this machine; then, in a local store, the
draft's folder is renamed, and in a bucket its files are uploaded, `report.json` last, without which nobody takes it for
one. What is there is never changed; what nobody has used for long is removed, never while a call uses it. Users'
credentials and users' datasets never come through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from services.chassis.errors import InvalidArgument
from services.chassis.files import sync
from services.chassis.log import get_logger
from services.chassis.objects.access import ObjectLimits
from services.chassis.objects.store import ObjectFolder, ObjectNotFound, open_store
from services.chassis.objects.uri import local_path, uri_parts
from services.conversion.conveyor.work import in_thread, some_at_a_time
from services.conversion.index import Index, index_from_json, index_to_json
from services.conversion.store.draft import PREFIX, Draft, Drafts

log = get_logger(__name__)

DATASETS = "datasets"
INDICES = "indices"
USED = "used"
"""In a bucket: an empty object for each dataset and each index, as old as its last use."""
REPORT = "report.json"
"""The last file of a dataset: with it the dataset is whole."""
TOUCH_HOURS = 1.0
"""In a bucket a use is noted at most this often."""
SYNC_FILES_MAX = 64
"""Files that are brought to the disk one by one."""


class ResultStore:
    """Raises Unavailable (OBJECT_STORE_UNAVAILABLE) where the store does not answer. `now`: the time, with its zone."""

    def __init__(
        self,
        uri: str,
        *,
        endpoint_url: str = "",
        limits: ObjectLimits | None = None,
        draft_hours_max: float,
        requests_max: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.endpoint_url = endpoint_url
        self._objects = open_store(uri, endpoint_url=endpoint_url or None, limits=limits)
        self._local = local_path(self._objects.uri)
        self._requests_max = requests_max
        self._now = now
        # In the store itself where that is a folder: a rename works within one file system only.
        self._drafts_folder = self._local or _own_folder()
        self._drafts = Drafts(self._drafts_folder, hours_max=draft_hours_max)
        self._in_use: Counter[str] = Counter()
        self._touched: dict[str, datetime] = {}

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self._objects.uri

    @property
    def local(self) -> Path | None:
        """The store's folder where it is on this machine."""
        return self._local

    @property
    def drafts_folder(self) -> Path:
        """The folder of this machine that drafts lie in."""
        return self._drafts_folder

    def dataset_uri(self, digest: str) -> str:
        """Where a converted dataset is, once it is there."""
        return f"{self._objects.uri}/{DATASETS}/{digest}"

    async def find(self, digest: str) -> Mapping[str, Any] | None:
        """The report of a converted dataset that is whole, or None. Counts as a use.

        A dataset whose report cannot be read is removed: it is made again.
        """
        try:
            content = await self._objects.read(f"{DATASETS}/{digest}/{REPORT}")
        except ObjectNotFound:
            return None
        try:
            report: Mapping[str, Any] = json.loads(content)
        except ValueError as error:
            log.error("dataset_damaged", digest=digest, problem=str(error))
            await self._remove(digest)
            return None
        await self._touch(f"{DATASETS}/{digest}")
        return report

    @contextlib.asynccontextmanager
    async def using(self, uri: str) -> AsyncIterator[None]:
        """While a dataset of the store is read or made it is not removed. Any other uri is none of the store's."""
        digest = self._digest_of(uri)
        if digest is None:
            yield
            return
        self._in_use[digest] += 1
        try:
            with contextlib.suppress(ObjectNotFound):
                await self._objects.info(f"{DATASETS}/{digest}/{REPORT}")
                await self._touch(f"{DATASETS}/{digest}")
            yield
        finally:
            self._in_use[digest] -= 1
            self._in_use += Counter()  # drops what is 0

    def draft(self, key: str, executor: Executor) -> contextlib.AbstractAsyncContextManager[Draft]:
        """A folder of this machine to write a dataset into, and what an interrupted call has left for it."""
        return self._drafts.taken(key, executor)

    async def publish(self, draft: Draft, digest: str, executor: Executor) -> bool:
        """Make a draft that holds a report visible. False where another was first: then that one counts."""
        if self._local is not None:
            return await in_thread(executor, _rename_into_place, draft.dataset, self._local / DATASETS / digest)
        target = self._objects.folder(f"{DATASETS}/{digest}")
        await upload(draft.dataset, target, last=(REPORT,), at_once_max=self._requests_max)
        return True

    async def read_index(self, key: str) -> Index | None:
        """An index that was kept, or None, also where it cannot be read."""
        try:
            content = await self._objects.read(f"{INDICES}/{key}.json")
            index = await asyncio.to_thread(index_from_json, content)
        except ObjectNotFound:
            return None
        except ValueError as error:
            log.error("index_damaged", key=key, problem=str(error))
            return None
        await self._touch(f"{INDICES}/{key}.json")
        return index

    async def write_index(self, key: str, index: Index) -> None:
        """Keep an index."""
        content = await asyncio.to_thread(index_to_json, index)
        await self._objects.write(f"{INDICES}/{key}.json", content)

    def sweep(self) -> int:
        """Remove drafts that nobody has taken up; return how many."""
        return self._drafts.sweep()

    async def expire(self, days_max: float) -> int:
        """Remove converted datasets that nobody has used for so long; return how many."""
        oldest = self._now() - timedelta(days=days_max)
        removed = 0
        for digest, used in (await self._last_used(DATASETS)).items():
            if used < oldest and not self._in_use[digest]:
                await self._remove(digest)
                removed += 1
        return removed

    async def expire_indices(self, days_max: float) -> int:
        """Remove indices that nobody has used for so long; return how many. Who needs one again makes it again."""
        oldest = self._now() - timedelta(days=days_max)
        old = [name for name, used in (await self._last_used(INDICES)).items() if used < oldest]
        for name in old:
            if self._local is not None:  # also what a crash has left of a write, which is no object
                await asyncio.to_thread((self._local / INDICES / name).unlink, missing_ok=True)
                continue
            await self._objects.delete(f"{INDICES}/{name}")
            await self._objects.delete(f"{USED}/{INDICES}/{name}")
            self._touched.pop(f"{INDICES}/{name}", None)
        return len(old)

    def _digest_of(self, uri: str) -> str | None:
        """The digest in the uri of one of the store's datasets."""
        try:
            *folder, digest = uri_parts(uri)
        except InvalidArgument:  # whoever opens it says so
            return None
        return digest if tuple(folder) == uri_parts(f"{self._objects.uri}/{DATASETS}") else None

    async def _touch(self, path: str) -> None:
        """Note a use of a dataset or of an index."""
        now = self._now()
        if self._local is not None:
            with contextlib.suppress(FileNotFoundError):  # removed since
                os.utime(self._local / path, (now.timestamp(), now.timestamp()))
            return
        recent = now - timedelta(hours=TOUCH_HOURS)
        self._touched = {key: noted for key, noted in self._touched.items() if noted > recent}
        if path not in self._touched:
            await self._objects.write(f"{USED}/{path}", b"")
            self._touched[path] = now

    async def _last_used(self, what: str) -> dict[str, datetime]:
        """Of all datasets or indices by name: of what was left by an upload that died, when it was written."""
        if self._local is not None:
            return await asyncio.to_thread(_last_changed, self._local / what)
        found: dict[str, datetime] = {}
        async for each in self._objects.list(what):
            name = each.path.split("/")[1]
            found[name] = max(found.get(name, each.last_modified), each.last_modified)
        async for each in self._objects.list(f"{USED}/{what}"):
            name = each.path.split("/")[2]
            if name in found:
                found[name] = max(found[name], each.last_modified)
            else:  # of what was removed by another service
                await self._objects.delete(each.path)
        return found

    async def _remove(self, digest: str) -> None:
        if self._local is not None:
            gone = self._local / f"{PREFIX}gone-{secrets.token_hex(8)}"
            # Out of sight at once; what a crash leaves here is swept as a draft.
            with contextlib.suppress(FileNotFoundError):
                (self._local / DATASETS / digest).rename(gone)
            await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)
            return
        folder = self._objects.folder(f"{DATASETS}/{digest}")
        await folder.delete(REPORT)
        paths = [each.path async for each in folder.list()]
        await some_at_a_time((folder.delete(path) for path in paths), self._requests_max)
        await self._objects.delete(f"{USED}/{DATASETS}/{digest}")
        self._touched.pop(f"{DATASETS}/{digest}", None)


async def upload(
    folder: Path,
    target: ObjectFolder,
    *,
    last: Sequence[str],
    at_once_max: int,
    before_last: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Copy the files of a folder, so many at once, and those that come `last` after all others, in their order."""
    paths = await asyncio.to_thread(files_in, folder)
    await some_at_a_time((target.write(path, folder / path) for path in paths if path not in last), at_once_max)
    if before_last is not None:
        await before_last()
    for path in last:
        if path in paths:
            await target.write(path, folder / path)


def files_in(folder: Path) -> list[str]:
    """Every file in a folder and the folders in it, relative to it, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sync_folder(folder: Path) -> None:
    """To the disk: files before the rename that shows them, folders for their entries."""
    paths = [*folder.rglob("*"), folder]
    if len(paths) > SYNC_FILES_MAX:  # a wait for each of a hundred thousand maps would take minutes
        _sync_file_system(folder)
        return
    for path in paths:
        sync(path)


def _rename_into_place(dataset: Path, target: Path) -> bool:
    sync_folder(dataset)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        dataset.rename(target)
    except OSError:
        if not (target / REPORT).exists():
            raise
        return False
    sync(target.parent)
    return True


def _sync_file_system(folder: Path) -> None:
    """Everything on the folder's file system, where the system can say that; else everything there is."""
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        syncfs(descriptor)
    finally:
        os.close(descriptor)


def _last_changed(folder: Path) -> dict[str, datetime]:
    """What lies in a folder, by name, with its time."""
    found: dict[str, datetime] = {}
    if folder.is_dir():
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # removed since
                found[path.name] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return found


def _own_folder() -> Path:
    """Where drafts for a bucket lie: the same for each process of a user, so that the next one finds them.

    Nobody else may have made it, as whoever did could put a dataset of his own in its place.
    """
    folder = Path(tempfile.gettempdir()) / f"sihlai-conversion-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or folder.is_symlink() or about.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="sihlai-conversion-"))
    return folder
