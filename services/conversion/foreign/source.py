"""The files of a foreign dataset, wherever they lie: listed once, read as they are needed, within named limits."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.chassis.errors import FailedPrecondition, Reason, ResourceExhausted
from services.chassis.objects.store import ObjectFolder, ObjectNotFound
from services.chassis.objects.uri import local_path
from services.conversion.conveyor.work import in_thread, some_at_a_time
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Place, Report
from services.conversion.foreign.format import ForeignError, ForeignImage
from services.conversion.source.place import ImageFile, Listing
from services.conversion.source.walk import walk

Result = TypeVar("Result")

NOTHING = "there are no files"
OWN_REPORT, OWN_KEY = "report.json", b'"digest"'
"""What an export of ours leaves beside the dataset, and no other tool."""
HEAD_BYTES = 4_096
"""Of a document, enough to know what it is."""


@dataclass(frozen=True, kw_only=True)
class ForeignLimits:
    """What of a foreign dataset is taken into memory. `file_bytes_max`: a file of one image's annotations, or a map."""

    files_max: int
    document_bytes_max: int
    file_bytes_max: int
    requests_max: int


class ForeignSource:
    """The files under a folder, hidden ones left out; what leads out of it is refused."""

    def __init__(self, folder: ObjectFolder, limits: ForeignLimits, executor: Executor) -> None:
        self._folder = folder
        self._limits = limits
        self._executor = executor
        self._versions: dict[str, str] = {}
        self.paths: Mapping[str, int] = {}
        self.parts: dict[str, str] = {}
        """Documents that were read, with the hash of their content."""

    @property
    def uri(self) -> str:
        """Where they are."""
        return self._folder.uri

    async def list(self, report: Report) -> None:
        """Fill `paths`. Raises FailedPrecondition where there is nothing, ResourceExhausted where there is too much."""
        found: dict[str, int] = {}
        local = local_path(self.uri)
        if local is not None and local.is_dir():
            found = await in_thread(self._executor, self._walk, report)
        elif local is None:
            async for each in self._folder.list():
                if any(part.startswith((".", "__MACOSX")) for part in each.path.split("/")):
                    continue
                found[each.path] = each.size_bytes
                self._versions[each.path] = each.etag
                self._check_count(len(found))
        if OWN_REPORT in found and OWN_KEY in await self.head(OWN_REPORT):
            del found[OWN_REPORT]
        if not found:
            problem = await in_thread(self._executor, _nothing, local) if local is not None else NOTHING
            message = f"there is no dataset at {self.uri}: {problem}"
            raise FailedPrecondition(Reason.DATASET_NOT_FOUND, message, {"uri": self.uri})
        self.paths = dict(sorted(found.items()))

    def _walk(self, report: Report) -> dict[str, int]:
        found: dict[str, int] = {}
        for each in walk(self._folder, report):
            found[each.path] = each.size_bytes
            self._versions[each.path] = each.version
            self._check_count(len(found))
        return found

    def _check_count(self, count: int) -> None:
        """Raise ResourceExhausted where there are too many files."""
        if count > self._limits.files_max:
            raise ResourceExhausted(
                Reason.LIMIT_REACHED,
                f"{self.uri} holds more than {self._limits.files_max} files",
                {"what": "foreign_files_max", "limit": str(self._limits.files_max), "uri": self.uri},
            )

    async def read(self, path: str) -> bytes:
        """One document, whole; its hash is part of the fingerprint."""
        if self.paths[path] > self._limits.document_bytes_max:
            raise _too_large(path, self.paths[path], self._limits.document_bytes_max)
        try:
            content = await self._folder.read(path)
        except ObjectNotFound as error:
            raise self._changed(path) from error
        self.parts[path] = await in_thread(self._executor, _sha256, content)
        return content

    async def head(self, path: str) -> bytes:
        """How a document begins; empty where it is gone."""
        with contextlib.suppress(ObjectNotFound):
            async for chunk in self._folder.stream(path, HEAD_BYTES):
                return chunk[:HEAD_BYTES]
        return b""

    async def read_each(self, paths: Sequence[str], take: Callable[[str, bytes], None], *, kept: bool = True) -> None:
        """Many small documents in their order, some of them read at once; see Files."""
        size_bytes = sum(self.paths[path] for path in paths)
        if kept and size_bytes > self._limits.document_bytes_max:
            raise _too_large(f"{paths[0]} and others", size_bytes, self._limits.document_bytes_max)
        for path in paths:
            if self.paths[path] > self._limits.file_bytes_max:
                raise _too_large(path, self.paths[path], self._limits.file_bytes_max)
        for start in range(0, len(paths), self._limits.requests_max):
            batch = paths[start : start + self._limits.requests_max]
            contents: dict[str, bytes] = {}

            async def read_one(path: str, contents: dict[str, bytes] = contents) -> None:
                contents[path] = await self.read(path)

            await some_at_a_time((read_one(path) for path in batch), len(batch))
            await in_thread(self._executor, _take_all, batch, contents, take)

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes long."""
        return await in_thread(self._executor, function, *arguments)

    async def load(self, record: RawRecord) -> bytes:
        """The file of one image's annotations. Raises FailedPrecondition (DATASET_CHANGED) where it is gone."""
        try:
            return await self._folder.read(record.path)
        except ObjectNotFound as error:
            raise self._changed(record.path) from error

    def version(self, path: str) -> str:
        """Changes whenever a file may have changed."""
        return f"{self.paths[path]}-{self._versions[path]}"

    def fits(self, path: str) -> bool:
        """Whether a file of one image's annotations may be read."""
        return self.paths[path] <= self._limits.file_bytes_max

    def listing(self, images: Sequence[ForeignImage]) -> Listing:
        """The images by their paths here, for the index."""
        files = (
            ImageFile(name=image.path, size_bytes=self.paths[image.path], version=self._versions[image.path])
            for image in images
        )
        return Listing(files=tuple(sorted(files, key=lambda file: file.name)))

    @property
    def folder(self) -> ObjectFolder:
        """Where the images of a listing are read."""
        return self._folder

    def _changed(self, path: str) -> FailedPrecondition:
        message = f"{self.uri}/{path} was listed, but it is not there any more: the dataset changed meanwhile"
        return FailedPrecondition(Reason.DATASET_CHANGED, message, {"uri": f"{self.uri}/{path}"})


def _nothing(folder: Path) -> str:
    """Why a folder of this machine lists no file."""
    if folder.is_file():
        return "it is a file, name the folder that holds it and the images"
    return NOTHING if folder.exists() else "there is no such folder"


def _take_all(paths: Sequence[str], contents: Mapping[str, bytes], take: Callable[[str, bytes], None]) -> None:
    for path in paths:
        take(path, contents[path])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _too_large(path: str, size_bytes: int, size_bytes_max: int) -> ForeignError:
    message = f"it has {size_bytes} bytes, but at most {size_bytes_max} are read"
    return ForeignError("file_too_large", message, Place(file=path))
