"""Opens datasets: metadata, index, annotations, fingerprint. All that waits for a user's storage stands here."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from services.chassis.errors import FailedPrecondition, Reason, SihlaiError
from services.chassis.objects import ObjectFolder, ObjectNotFound
from services.conversion.dataset import (
    METADATA_NAMES,
    AnnotationSet,
    Metadata,
    fingerprint,
    read_metadata,
)
from services.conversion.finding import Place, Report
from services.conversion.index import ImageEntry, Index
from services.conversion.snapshot import SetContents, Snapshot
from services.conversion.source import Access, DatasetSource, ImageFile, Listing, leads_outside, local_path
from services.conversion.store import ResultStore
from services.conversion.survey import IndexLimits, build_index, index_key
from services.conversion.work import Meter, Tell, Works, in_thread

METADATA_BYTES_MAX = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Described:
    """A dataset whose metadata are read. `report` holds what is wrong with them; `sets` may then be fewer."""

    source: DatasetSource
    folder: ObjectFolder
    metadata: Metadata
    parts: Mapping[str, str]
    """Files that the fingerprint covers, with the hash of their content."""

    @property
    def images_uri(self) -> str:
        """Where the images lie."""
        return self.metadata.images_uri or f"{self.folder.uri}/images"


class Reader:
    """Opens users' datasets within the bounds of the configuration. Indices are built once, whoever asks."""

    def __init__(
        self,
        *,
        access: Access,
        store: ResultStore,
        limits: IndexLimits,
        annotation_bytes_max: int,
        partial_indices_max: int,
        progress_seconds: float,
        executor: Executor,
        clock: Callable[[], float],
    ) -> None:
        self._access = access
        self._store = store
        self._limits = limits
        self._annotation_bytes_max = annotation_bytes_max
        self._partial_indices_max = partial_indices_max
        self._executor = executor
        self._clock = clock
        self._indices: Works[Index] = Works(progress_seconds=progress_seconds)
        self._partial: OrderedDict[str, dict[ImageFile, ImageEntry]] = OrderedDict()

    async def describe(self, source: DatasetSource, report: Report, field_name: str = "source") -> Described:
        """The metadata alone. Raises FailedPrecondition (DATASET_NOT_FOUND) where there is no dataset."""
        folder = self._access.open(source, field_name)
        found = [name for name in METADATA_NAMES if await folder.exists(name)]
        if not found and not await _has_images(folder):
            raise _not_found(folder.uri, f"there is neither {METADATA_NAMES[0]} nor images/")
        if len(found) > 1:
            message = f"there are {' and '.join(found)}: keep one of them"
            report.fail("repeated_metadata", message, Place(file=found[1]))
        name = found[0] if found else ""
        content: bytes | None = None
        if found:
            content = await self._read_metadata_file(folder, name, report)
        parts = {} if content is None else {name: hashlib.sha256(content).hexdigest()}
        metadata = Metadata(sets=())
        if content is not None or not found:
            metadata = await self._in_thread(read_metadata, content, name, report)
        return Described(source=source, folder=folder, metadata=metadata, parts=parts)

    async def open(self, described: Described, keep: Callable[[AnnotationSet], bool], tell: Tell) -> Snapshot:
        """The index, and the annotations of the sets that are to be kept; of the others the hashes alone."""
        images = self._access.open(
            DatasetSource(
                uri=described.images_uri,
                endpoint_url=described.source.endpoint_url,
                region=described.source.region,
                credentials=described.source.credentials,
            ),
            "images",
        )
        root = described.folder if not described.metadata.images_uri else images
        if not described.metadata.images_uri and leads_outside(described.folder, "images"):
            raise _outside(images.uri)
        try:
            listing = await self._access.list_images(images, root)
        except ObjectNotFound as error:
            raise _not_found(images.uri, error.message) from error
        if not listing.files and not listing.refused:
            raise _not_found(images.uri, "there are no images")
        index = await self._index(images, listing, described.source, tell)
        contents = {
            each.name: await self._read_set(described.folder, each, kept=keep(each)) for each in described.metadata.sets
        }
        parts = dict(described.parts)
        for each in contents.values():
            parts |= each.parts
        digest = await self._in_thread(fingerprint, index, parts)
        return Snapshot(
            uri=described.folder.uri,
            endpoint_url=described.source.endpoint_url,
            images_uri=images.uri,
            metadata=described.metadata,
            index=index,
            refused=listing.refused,
            findings=listing.findings,
            contents=contents,
            fingerprint=digest,
        )

    async def _read_metadata_file(self, folder: ObjectFolder, name: str, report: Report) -> bytes | None:
        if leads_outside(folder, name):
            report.fail("leads_outside", "it is a link out of the dataset: put the file there", Place(file=name))
            return None
        size_bytes = (await folder.info(name)).size_bytes
        if size_bytes > METADATA_BYTES_MAX:
            message = f"it has {size_bytes} bytes, but metadata may have at most {METADATA_BYTES_MAX}"
            report.fail("file_too_large", message, Place(file=name))
            return None
        return await folder.read(name)

    async def _index(self, images: ObjectFolder, listing: Listing, source: DatasetSource, tell: Tell) -> Index:
        key = await self._in_thread(index_key, images.uri, listing, self._limits)

        async def build(tell: Tell) -> Index:
            kept = await self._store.read_index(key)
            if kept is not None:
                return kept
            meter = Meter(self._clock)
            total = len(listing.files)
            index = await build_index(
                images,
                listing,
                limits=self._limits,
                executor=self._executor,
                known=self._partial_index(key),
                progress=lambda done: tell(meter.measure("index", done, total)),
            )
            await self._store.write_index(key, index)
            self._partial.pop(key, None)
            return index

        # The same images with other rights are other work: one caller must not get what another may read.
        return await self._indices.result(f"{key} {source.key()}", build, tell)

    def _partial_index(self, key: str) -> dict[ImageFile, ImageEntry]:
        """What earlier, cancelled calls have read already."""
        partial = self._partial.pop(key, {})
        self._partial[key] = partial
        while len(self._partial) > max(1, self._partial_indices_max):
            self._partial.popitem(last=False)
        return partial

    async def _read_set(self, folder: ObjectFolder, chosen: AnnotationSet, *, kept: bool) -> SetContents:
        path = chosen.annotations
        if not path:
            return SetContents()
        if leads_outside(folder, path):
            return _problem(path, "leads_outside", f"{path} is a link out of the dataset: put the file there")
        if path.endswith("/"):
            return await self._read_set_folder(folder, path, kept=kept)
        try:
            size_bytes = (await folder.info(path)).size_bytes
            if size_bytes > self._annotation_bytes_max:
                return _problem(path, "file_too_large", self._too_large(path, size_bytes))
            content = await folder.read(path)
        except ObjectNotFound:
            return _problem(path, "missing_file", f"{path} does not exist: mend `annotations`, or add the file")
        return SetContents(parts={path: hashlib.sha256(content).hexdigest()}, file=content if kept else None)

    async def _read_set_folder(self, folder: ObjectFolder, path: str, *, kept: bool) -> SetContents:
        found = {
            each.path: each.size_bytes
            async for each in folder.list(path)
            if "/" not in each.path.removeprefix(path) and not each.path.removeprefix(path).startswith(".")
        }
        outside = next((each for each in found if leads_outside(folder, each)), None)
        if outside is not None:
            return _problem(path, "leads_outside", f"{outside} is a link out of the dataset: put the file there")
        if not found:
            return _problem(path, "missing_file", f"{path} holds no file: mend `annotations`, or add the files")
        if kept and sum(found.values()) > self._annotation_bytes_max:
            return _problem(path, "file_too_large", self._too_large(path, sum(found.values())))
        parts: dict[str, str] = {}
        files: dict[str, bytes] = {}
        waiting = iter(sorted(found))

        async def work() -> None:
            for each in waiting:
                if kept:
                    files[each] = await folder.read(each)
                    parts[each] = hashlib.sha256(files[each]).hexdigest()
                else:
                    parts[each] = await _hash(folder, each)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._limits.requests_max):
                    group.create_task(work())
        except* SihlaiError as errors:
            raise errors.exceptions[0] from errors
        return SetContents(parts=parts, files=files)

    def _too_large(self, path: str, size_bytes: int) -> str:
        return f"{path} has {size_bytes} bytes, but annotations may have at most {self._annotation_bytes_max}"

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await in_thread(self._executor, function, *arguments)


async def _has_images(folder: ObjectFolder) -> bool:
    """Whether there is an images/ in it: a dataset without metadata is its images."""
    local = local_path(folder.uri)
    if local is not None:
        return await asyncio.to_thread((local / "images").is_dir)
    try:
        async for _ in folder.list("images"):
            return True
    except ObjectNotFound:  # not even the bucket
        return False
    return False


async def _hash(folder: ObjectFolder, path: str) -> str:
    digest = hashlib.sha256()
    async for chunk in folder.stream(path):
        digest.update(chunk)
    return digest.hexdigest()


def _problem(path: str, rule: str, message: str) -> SetContents:
    """The fingerprint of a dataset whose annotations cannot be read still says which ones."""
    return SetContents(parts={path: rule}, problem=(rule, message))


def _not_found(uri: str, problem: str) -> FailedPrecondition:
    message = f"there is no dataset at {uri}: {problem}"
    return FailedPrecondition(Reason.DATASET_NOT_FOUND, message, {"uri": uri})


def _outside(uri: str) -> FailedPrecondition:
    message = f"{uri} is a link out of the dataset: put the images there, or name their place with `images: <uri>`"
    return FailedPrecondition(Reason.DATASET_INVALID, message, {"uri": uri})
