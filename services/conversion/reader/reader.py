"""Opens datasets: metadata, index, annotations, fingerprint."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from services.chassis.errors import FailedPrecondition, Reason
from services.chassis.objects.store import ObjectFolder, ObjectNotFound
from services.chassis.objects.uri import local_path
from services.conversion.conveyor.conveyor import Load
from services.conversion.conveyor.work import Tell, in_thread
from services.conversion.dataset.metadata import METADATA_NAMES, AnnotationSet, Metadata, read_metadata
from services.conversion.dataset.snapshot import SetContents, Snapshot, fingerprint
from services.conversion.finding import Place, Report
from services.conversion.reader.annotation_set import MapLoader, SetReader
from services.conversion.reader.indexer import Indexer
from services.conversion.source.place import Access, DatasetSource, leads_outside, still_there

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
        indexer: Indexer,
        set_reader: SetReader,
        executor: Executor,
    ) -> None:
        self._access = access
        self._indexer = indexer
        self._set_reader = set_reader
        self._executor = executor

    async def describe(self, source: DatasetSource, report: Report, field_name: str = "source") -> Described:
        """The metadata alone. Raises FailedPrecondition (DATASET_NOT_FOUND) where there is no dataset."""
        folder = self._access.open(source, field_name)
        found = [name for name in METADATA_NAMES if leads_outside(folder, name) or await folder.exists(name)]
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
        images = self.images(described)
        if not described.metadata.images_uri and leads_outside(described.folder, "images"):
            raise _outside(images.uri)
        try:
            listing = await self._access.list_images(images)
        except ObjectNotFound as error:
            raise _not_found(images.uri, error.message) from error
        if not listing.files and not listing.refused:
            raise _not_found(images.uri, "there are no images")
        index = await self._indexer.index(images, listing, described.source, tell)
        contents = {
            each.name: await self._set_reader.read(described.folder, each, described.source, tell, kept=keep(each))
            for each in described.metadata.sets
        }
        # What is refused is in no index, and yet decides what becomes of the dataset.
        parts = {**described.parts, **{f"images/{name}": rule for name, rule in listing.refused.items()}}
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

    def images(self, described: Described) -> ObjectFolder:
        """The folder of the images, opened with the rights of the dataset's source; links may lead within that."""
        if not described.metadata.images_uri:
            return described.folder.folder("images")
        source = replace(described.source, uri=described.images_uri)
        return self._access.open(source, "images")

    def load(self, described: Described, contents: SetContents) -> Load | None:
        """What reads the maps of an annotation set; None where it has none."""
        if contents.maps is None:
            return None
        return MapLoader(described.folder, contents.maps, self._executor).load

    async def _read_metadata_file(self, folder: ObjectFolder, name: str, report: Report) -> bytes | None:
        if leads_outside(folder, name):
            report.fail("leads_outside", "it is a link out of the dataset: put the file there", Place(file=name))
            return None
        with still_there():
            size_bytes = (await folder.info(name)).size_bytes
            if size_bytes > METADATA_BYTES_MAX:
                message = f"it has {size_bytes} bytes, but metadata may have at most {METADATA_BYTES_MAX}"
                report.fail("file_too_large", message, Place(file=name))
                return None
            return await folder.read(name)

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


def _not_found(uri: str, problem: str) -> FailedPrecondition:
    message = f"there is no dataset at {uri}: {problem}"
    return FailedPrecondition(Reason.DATASET_NOT_FOUND, message, {"uri": uri})


def _outside(uri: str) -> FailedPrecondition:
    message = f"{uri} is a link out of the dataset: put the images there, or name their place with `images: <uri>`"
    return FailedPrecondition(Reason.DATASET_INVALID, message, {"uri": uri})
