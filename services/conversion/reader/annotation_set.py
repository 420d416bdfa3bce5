"""Reads the annotation files of one annotation set: a file, a folder of files, or a folder of maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from services.chassis.errors import FailedPrecondition
from services.chassis.objects.local import require_file, through
from services.chassis.objects.store import ObjectFolder, ObjectNotFound
from services.chassis.objects.uri import local_path
from services.conversion.conveyor.work import Tell, in_thread, some_at_a_time
from services.conversion.dataset.map_folder import MapFolder
from services.conversion.dataset.metadata import AnnotationSet
from services.conversion.dataset.record import RawRecord
from services.conversion.dataset.snapshot import SetContents
from services.conversion.file.document import SUFFIXES
from services.conversion.formats import FORMATS
from services.conversion.reader.indexer import Indexer
from services.conversion.source.place import Access, DatasetSource, Listing, dataset_changed, leads_outside, still_there


class SetReader:
    """`annotation_bytes_max` bounds what is kept in memory of one set; maps are not."""

    def __init__(self, *, access: Access, indexer: Indexer, annotation_bytes_max: int, executor: Executor) -> None:
        self._access = access
        self._indexer = indexer
        self._annotation_bytes_max = annotation_bytes_max
        self._executor = executor

    async def read(
        self, folder: ObjectFolder, chosen: AnnotationSet, source: DatasetSource, tell: Tell, *, kept: bool
    ) -> SetContents:
        """The files of a set of the dataset in `folder`; where it is not `kept` the hashes alone."""
        path = chosen.annotations
        if not path:
            return SetContents()
        if leads_outside(folder, path):
            return _problem(path, "leads_outside", f"{path} is a link out of the dataset: put the file there")
        if path.endswith("/"):
            task_format = FORMATS.get(chosen.task)
            suffixes = task_format.map_suffixes if task_format is not None else ()
            if suffixes:
                return await self._read_maps(folder, path, suffixes, source, tell)
            return await self._read_folder(folder, path, kept=kept)
        try:
            size_bytes = (await folder.info(path)).size_bytes
            if size_bytes > self._annotation_bytes_max:
                return _problem(path, "file_too_large", self._too_large(path, size_bytes))
            content = await folder.read(path)
        except ObjectNotFound:
            return _problem(path, "missing_file", f"{path} does not exist: mend `annotations`, or add the file")
        digest = await in_thread(self._executor, _digest, content)
        return SetContents(parts={path: digest}, file=content if kept else None)

    async def _read_maps(
        self, folder: ObjectFolder, path: str, suffixes: Iterable[str], source: DatasetSource, tell: Tell
    ) -> SetContents:
        maps = folder.folder(path)
        try:
            listing = await self._access.list_maps(maps, path, tuple(suffixes))
        except ObjectNotFound:
            listing = Listing(files=())
        if not listing.files and not listing.refused:
            return await _nothing(folder, path, "maps", suffixes)
        beside = tuple(file for file in listing.files if PurePosixPath(file.name).suffix.lower() in SUFFIXES)
        size_bytes = sum(file.size_bytes for file in beside)
        if size_bytes > self._annotation_bytes_max:
            return _problem(path, "file_too_large", self._too_large(path, size_bytes))
        names = {file.name for file in beside}
        listed = replace(listing, files=tuple(file for file in listing.files if file.name not in names))
        index = await self._indexer.index(maps, listed, source, tell, phase="index of maps")
        sidecars = await self._read_all(maps, sorted(names))
        found = MapFolder(path=path, index=index, sidecars=sidecars, refused=listing.refused, findings=listing.findings)
        digests = await in_thread(self._executor, _digests, sidecars)
        parts = {f"{path}{name}": digest for name, digest in digests.items()}
        parts[path] = await in_thread(self._executor, found.fingerprint)
        return SetContents(parts=parts, maps=found)

    async def _read_folder(self, folder: ObjectFolder, path: str, *, kept: bool) -> SetContents:
        found = {
            each.path: each.size_bytes
            async for each in folder.list(path)
            if "/" not in each.path.removeprefix(path) and not each.path.removeprefix(path).startswith(".")
        }
        outside = tuple(sorted(each for each in found if leads_outside(folder, each)))
        for each in outside:
            del found[each]
        if not found and not outside:
            return await _nothing(folder, path, "files", SUFFIXES)
        if kept and sum(found.values()) > self._annotation_bytes_max:
            return _problem(path, "file_too_large", self._too_large(path, sum(found.values())))
        parts = dict.fromkeys(outside, "leads_outside")
        if kept:
            files = await self._read_all(folder, sorted(found))
            parts |= await in_thread(self._executor, _digests, files)
            return SetContents(parts=parts, files=files, outside=outside)

        async def hash_one(each: str) -> None:
            with still_there():
                parts[each] = await _hash(folder, each)

        await some_at_a_time((hash_one(each) for each in sorted(found)), self._indexer.requests_max)
        return SetContents(parts=parts)

    async def _read_all(self, folder: ObjectFolder, paths: Iterable[str]) -> dict[str, bytes]:
        files: dict[str, bytes] = {}

        async def read_one(path: str) -> None:
            with still_there():
                files[path] = await folder.read(path)

        await some_at_a_time((read_one(path) for path in paths), self._indexer.requests_max)
        return files

    def _too_large(self, path: str, size_bytes: int) -> str:
        return f"{path} has {size_bytes} bytes, but annotations may have at most {self._annotation_bytes_max}"


class MapLoader:
    """Reads the maps of an annotation set, and sees to it that they are those of its index."""

    def __init__(self, folder: ObjectFolder, maps: MapFolder, executor: Executor) -> None:
        self._folder = folder
        self._is_local = local_path(folder.uri) is not None
        self._entries = {f"{maps.path}{entry.name}": entry for entry in maps.index.images}
        self._executor = executor

    async def load(self, record: RawRecord) -> bytes:
        """The map. Raises FailedPrecondition (DATASET_CHANGED) where it is not what was indexed any more."""
        entry = self._entries[record.path]
        try:
            if not self._is_local:
                return await self._folder.read(record.path, etag=entry.etag)
            content, etag = await in_thread(self._executor, _read_hashed, self._folder, record.path, entry.size_bytes)
        except ObjectNotFound as error:
            raise self._changed(record.path, gone=True) from error
        except (OSError, FailedPrecondition) as error:
            raise self._changed(record.path, gone=False) from error
        if etag != entry.etag:
            raise self._changed(record.path, gone=False)
        return content

    def _changed(self, path: str, *, gone: bool) -> FailedPrecondition:
        return dataset_changed(f"{self._folder.uri}/{path}", "was deleted" if gone else "was replaced")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: _digest(content) for name, content in files.items()}


async def _hash(folder: ObjectFolder, path: str) -> str:
    digest = hashlib.sha256()
    async for chunk in folder.stream(path):
        digest.update(chunk)
    return digest.hexdigest()


def _read_hashed(folder: ObjectFolder, path: str, size_bytes: int) -> tuple[bytes, str]:
    """A file of this machine with its ETag. Nothing is learned of a file that was put in its place: the two differ.

    It may have become anything since it was indexed: a pipe must not be waited for, nor an endless file be read.
    """
    with folder.opened(path) as descriptor:
        require_file(descriptor, f"{folder.uri}/{path}")
        with Path(through(descriptor)).open("rb") as file:
            content = file.read(size_bytes + 1)
    return content, f"sha256-{hashlib.sha256(content).hexdigest()}"


async def _nothing(folder: ObjectFolder, path: str, what: str, suffixes: Iterable[str]) -> SetContents:
    """No file lies in what should be a folder; perhaps because it is none."""
    file = path.rstrip("/")
    if not await folder.exists(file):
        return _problem(path, "missing_file", f"{path} holds no file: mend `annotations`, or add the {what}")
    message = f"{file} is a file, where a folder of {what} in {', '.join(suffixes)} was wanted: mend `annotations`"
    if tuple(suffixes) == SUFFIXES:
        message = f"{file} is a file that ends in none of {', '.join(SUFFIXES)}: write the annotations in one of these"
    return _problem(path, "wrong_extension", message)


def _problem(path: str, rule: str, message: str) -> SetContents:
    """The fingerprint of a dataset whose annotations cannot be read still says which ones."""
    return SetContents(parts={path: rule}, problem=(rule, message))
