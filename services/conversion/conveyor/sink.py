"""Where the records of a conversion end: files in a draft's folder, written in the service's own process.

NormalisedSink writes the native form, with the images left where they are: `annotations.json` (every usable image is a
key, for a map with its path), the maps in annotations/ with their sidecars, `metadata.json` and `index.json`. Who shows
the folder to the world is the store, or the destination.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import msgspec

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Format, MapFile
from services.conversion.index import ImageEntry, ImageSize, Index

ANNOTATIONS = "annotations.json"
METADATA = "metadata.json"
INDEX = "index.json"
MAPS = "annotations/"


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonText:
    """A value that is JSON text already. A chunk of texts costs the garbage collector nothing, one of lists a lot."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """One image in a foreign format: pieces of text or of a file, and how often it lost something, by kind."""

    pieces: tuple[bytes, ...]
    lost: Mapping[str, int] = field(default_factory=dict)


class NormalisedWriter:
    """A format's annotations as NormalisedSink takes them: JsonText, or MapFile where they are maps."""

    def __init__(self, task_format: Format[Any, Any]) -> None:
        self._format = task_format

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: Any, report: Report) -> Any:
        """As the format does."""
        return self._format.read(value, size, place, vocabulary, report)

    def write(self, annotation: Any, size: ImageSize, vocabulary: Any) -> JsonText | MapFile:
        """The annotation in the normalised form."""
        written = self._format.write(annotation, size, vocabulary)
        return written if isinstance(written, MapFile) else JsonText(text=json_text(written))


class Sink(Protocol):
    """Writes one dataset. `begin` comes first, `end` last; all are called in a thread, never two at once."""

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Start in an empty folder; `vocabulary` is that of what is written."""
        ...

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image with what the codec wrote for it; None is null."""
        ...

    def end(self) -> None:
        """Write what is left. Not called where the conversion failed."""
        ...


class NormalisedSink:
    """The native form of a task. `index` and `fingerprint` are those of the source.

    `images_uri`: where the images are; empty where they will lie in the folder's own images/. `metadata`: keys beside
    those of the vocabulary.
    """

    def __init__(
        self,
        task_format: Format[Any, Any],
        *,
        images_uri: str,
        index: Index,
        fingerprint: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._format = task_format
        self._images_uri = images_uri
        self._index = index
        self._fingerprint = fingerprint
        self._metadata = metadata or {}
        self._vocabulary: Any = None
        self._folder = Path()
        self._file: IO[str] | None = None
        self._before = "\n"
        self._stems: set[str] = set()
        """Of images with a map."""

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Open the file of annotations."""
        self._folder = folder
        self._vocabulary = vocabulary
        self._file = (folder / ANNOTATIONS).open("w", encoding="utf-8")
        self._file.write("{")

    def add(self, image: ImageEntry, written: Any) -> None:
        """Write one line, and the map where the annotation is one. What a format has written as a value is one too."""
        assert self._file is not None, "begin comes first"
        if isinstance(written, JsonText):
            text = written.text
        else:
            text = json_text(self._write_map(image.name, written) if isinstance(written, MapFile) else written)
        self._file.write(f"{self._before}{json_text(image.name)}: {text}")
        self._before = ",\n"

    def end(self) -> None:
        """Close the file of annotations; write metadata and index."""
        assert self._file is not None, "begin comes first"
        self._file.write("\n}\n")
        self._file.close()
        metadata = {
            "task": str(self._format.task),
            **self._format.write_vocabulary(self._vocabulary),
            **self._metadata,
            **({"images": self._images_uri} if self._images_uri else {}),
            # A folder without a map would be no folder in a bucket; where no image has one the file says it all.
            "annotations": MAPS if self._stems else ANNOTATIONS,
        }
        write_json(self._folder / METADATA, metadata)
        _write_index(self._folder / INDEX, self._index, self._fingerprint)

    def _write_map(self, image: str, written: MapFile) -> Mapping[str, Any]:
        stem = PurePosixPath(image).stem
        if stem in self._stems:
            message = (
                f"two images with a map have the stem {stem!r}, so that their maps would have one name: rename one"
            )
            raise FailedPrecondition(Reason.DATASET_INVALID, message, {"stem": stem})
        if not self._stems:
            (self._folder / MAPS).mkdir()
        self._stems.add(stem)
        path = f"{MAPS}{stem}{written.suffix}"
        (self._folder / path).write_bytes(written.content)
        about: Mapping[str, Any] = written.about or {}
        if about:
            write_json(self._folder / f"{MAPS}{stem}.json", about)
        digest = hashlib.sha256(written.content).hexdigest()
        categories = {} if written.categories is None else {"categories": written.categories}
        return {"map": path, "bytes": len(written.content), "sha256": digest, **categories, **about}


def _write_index(path: Path, index: Index, fingerprint: str) -> None:
    """The usable images by name, as a converted dataset holds them. A line at a time: there may be a million."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images":[')
        before = "\n"
        for entry in index.images:
            file.write(before + json_text(_entry_json(entry)))
            before = ",\n"
        file.write(f'\n],"fingerprint":{json_text(fingerprint)}}}\n')


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One JSON value, and a line's end."""
    path.write_text(json_text(content) + "\n", encoding="utf-8")


def json_text(value: Any) -> str:
    """JSON with the characters as they are. (The json module takes three times as long for lists of numbers.)"""
    return msgspec.json.encode(value).decode()


def _entry_json(entry: ImageEntry) -> Mapping[str, Any]:
    return {
        "name": entry.name,
        "bytes": entry.size_bytes,
        "etag": entry.etag,
        "width": entry.width,
        "height": entry.height,
        "orientation": entry.orientation,
    }
