"""Indices of images and of maps: each is built once, whoever asks, and kept in the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor

from services.chassis.objects.store import ObjectFolder
from services.conversion.conveyor.work import Meter, Tell, Works, in_thread
from services.conversion.index import ImageEntry, Index
from services.conversion.source.place import DatasetSource, ImageFile, Listing
from services.conversion.source.survey import IndexLimits, build_index, index_key
from services.conversion.store.store import ResultStore


class Indexer:
    """Builds what is not in the store. What a cancelled call has read is kept for the next one, for a few indices."""

    def __init__(
        self,
        *,
        store: ResultStore,
        limits: IndexLimits,
        partial_indices_max: int,
        progress_seconds: float,
        executor: Executor,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._limits = limits
        self._partial_indices_max = partial_indices_max
        self._executor = executor
        self._clock = clock
        self._works: Works[Index] = Works(progress_seconds=progress_seconds)
        self._partial: OrderedDict[str, dict[ImageFile, ImageEntry]] = OrderedDict()

    @property
    def requests_max(self) -> int:
        """Files of a dataset that are read at once."""
        return self._limits.requests_max

    async def index(
        self, folder: ObjectFolder, listing: Listing, source: DatasetSource, tell: Tell, *, phase: str = "index"
    ) -> Index:
        """The index of the files in a listing of the folder, read with the rights of the source."""
        key = await in_thread(self._executor, index_key, folder.uri, listing, self._limits)

        async def build(tell: Tell) -> Index:
            kept = await self._store.read_index(key)
            if kept is not None:
                return kept
            meter = Meter(self._clock)
            total = len(listing.files)
            index = await build_index(
                folder,
                listing,
                limits=self._limits,
                executor=self._executor,
                known=self._partial_index(key),
                progress=lambda done: tell(meter.measure(phase, done, total)),
            )
            await self._store.write_index(key, index)
            self._partial.pop(key, None)
            return index

        # The same files with other rights are other work: one caller must not get what another may read.
        return await self._works.result(f"{key} {source.key()}", build, tell)

    def _partial_index(self, key: str) -> dict[ImageFile, ImageEntry]:
        """What earlier, cancelled calls have read already."""
        partial = self._partial.pop(key, {})
        self._partial[key] = partial
        while len(self._partial) > max(1, self._partial_indices_max):
            self._partial.popitem(last=False)
        return partial
