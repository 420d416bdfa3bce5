"""The system's own place for results: converted datasets by digest, and indices of images by their listing.

A converted dataset is there whole or not at all: it is written to a draft on this machine; then, in a local store, the
draft's folder is renamed, and in a bucket its files are uploaded, `report.json` last, without which nobody takes it for
one. What is there is never changed. Users' credentials and users' datasets never come through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from services.chassis.objects import ObjectNotFound, open_store
from services.conversion.index import Index, index_from_json, index_to_json
from services.conversion.source import local_path
from services.conversion.work import in_thread

DATASETS = "datasets"
INDICES = "indices"
REPORT = "report.json"
"""The last file of a dataset: with it the dataset is whole."""
DRAFT_PREFIX = ".draft-"
DRAFT_HOURS_MAX = 48.0
"""A draft that is older was left behind by a process that died."""


class ResultStore:
    """Raises Unavailable (OBJECT_STORE_UNAVAILABLE) where the store does not answer."""

    def __init__(self, uri: str, *, endpoint_url: str = "") -> None:
        self.endpoint_url = endpoint_url
        self._objects = open_store(uri, endpoint_url=endpoint_url or None)
        self._local = local_path(self._objects.uri)

    @property
    def local(self) -> Path | None:
        """The store's folder where it is on this machine."""
        return self._local

    def dataset_uri(self, digest: str) -> str:
        """Where a converted dataset is, once it is there."""
        return f"{self._objects.uri}/{DATASETS}/{digest}"

    async def find(self, digest: str) -> Mapping[str, Any] | None:
        """The report of a converted dataset that is whole, or None."""
        try:
            content = await self._objects.read(f"{DATASETS}/{digest}/{REPORT}")
        except ObjectNotFound:
            return None
        report: Mapping[str, Any] = json.loads(content)
        return report

    @contextlib.asynccontextmanager
    async def draft(self) -> AsyncIterator[Path]:
        """An empty folder of this machine to write a dataset into; it is gone afterwards, however that ends."""
        folder = self._make_draft()
        try:
            yield folder
        finally:
            # Not in a thread: a cancelled call must leave nothing either.
            shutil.rmtree(folder, ignore_errors=True)

    async def publish(self, draft: Path, digest: str, executor: Executor) -> bool:
        """Make a draft that holds a report visible. False where another was first: then that one counts."""
        if self._local is not None:
            return await in_thread(executor, _rename_into_place, draft, self._local / DATASETS / digest)
        for path in sorted(draft.iterdir(), key=lambda path: path.name == REPORT):
            await self._objects.write(f"{DATASETS}/{digest}/{path.name}", path)
        return True

    async def read_index(self, key: str) -> Index | None:
        """An index that was kept, or None."""
        try:
            content = await self._objects.read(f"{INDICES}/{key}.json")
        except ObjectNotFound:
            return None
        return await asyncio.to_thread(index_from_json, content)

    async def write_index(self, key: str, index: Index) -> None:
        """Keep an index."""
        content = await asyncio.to_thread(index_to_json, index)
        await self._objects.write(f"{INDICES}/{key}.json", content)

    def sweep(self) -> int:
        """Remove drafts that died with their process; return how many."""
        if self._local is None:
            return 0
        oldest = time.time() - DRAFT_HOURS_MAX * 3600
        stale = [path for path in self._local.glob(f"{DRAFT_PREFIX}*") if path.stat().st_mtime < oldest]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)

    def _make_draft(self) -> Path:
        if self._local is None:
            return Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX))
        # In the store itself: a rename works within one file system only.
        folder = self._local / f"{DRAFT_PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        return folder


def _rename_into_place(draft: Path, target: Path) -> bool:
    for path in draft.iterdir():
        _sync(path)
    _sync(draft)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.rename(target)
    except OSError:
        if not (target / REPORT).exists():
            raise
        return False
    _sync(target.parent)
    return True


def _sync(path: Path) -> None:
    """To the disk: files before the rename that shows them, folders for their entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
