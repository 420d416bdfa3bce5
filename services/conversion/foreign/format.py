"""What a foreign format must do: say what a folder of files holds, read it image by image, and write such a folder.

A format is pure but for reading files through `Files`. It never looks outside them, and takes no name for a path that
is not listed there. What it cannot read at all it raises as ForeignError; everything else is in the report.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from services.conversion.conveyor.sink import Sink
from services.conversion.finding import Place, Report
from services.conversion.foreign.losses import Losses
from services.conversion.formats.format import Codec, Json
from services.conversion.index import ImageEntry
from services.conversion.raster.error import RasterLimits
from services.conversion.task import Task

Result = TypeVar("Result")


class Unannotated(enum.StrEnum):
    """What an image without an annotation means: nothing is known of it, or nothing is there."""

    DEFAULT = "default"
    NULL = "null"
    EMPTY = "empty"


class ForeignError(Exception):
    """The files cannot be taken for a dataset of the format. `rule` is a finding's."""

    def __init__(self, rule: str, problem: str, place: Place, *, value: str = "") -> None:
        super().__init__(problem)
        self.rule = rule
        self.place = place
        self.value = value


class Files(Protocol):
    """The files of a foreign dataset."""

    @property
    def paths(self) -> Mapping[str, int]:
        """Every file, relative to the source, with its size in bytes."""
        ...

    async def read(self, path: str) -> bytes:
        """One document. Raises ForeignError where it is too large."""
        ...

    async def head(self, path: str) -> bytes:
        """How a document begins: enough to know what it is."""
        ...

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes long."""
        ...

    async def read_each(self, paths: Sequence[str], take: Callable[[str, bytes], None], *, kept: bool = True) -> None:
        """Many small documents, some at a time; `take` gets each in a thread, one after the other.

        `kept`: what they hold stays in memory, so that together they may be as large as one document.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """How a source is to be read. `split` is empty where none was named."""

    split: str
    unannotated: Unannotated
    raster_limits: RasterLimits
    task: Task | None = None
    """What is wanted of a source that says several things, such as boxes and masks; None is the most that it says."""


@dataclass(frozen=True, kw_only=True)
class ForeignImage:
    """An image of a foreign dataset: its path there, and the name that it gets in the native format."""

    path: str
    name: str


@dataclass(frozen=True, kw_only=True)
class ForeignAnnotation:
    """The annotation of one image as it is written: a value, or a file to be read with what is said of it."""

    value: Any
    place: Place
    path: str = ""
    suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class ForeignDataset:
    """A foreign dataset that can be read image by image.

    `annotation` gives None where nothing is known of an image. `metadata` are native metadata keys beside those of the
    vocabulary.
    """

    task: Task
    vocabulary: Any
    codec: Codec[Any, Any]
    images: tuple[ForeignImage, ...]
    annotation: Callable[[ImageEntry], ForeignAnnotation | None]
    metadata: Mapping[str, Json] = field(default_factory=dict)
    file_an_image: bool = False
    """Annotations are files of their own, one an image."""


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """What is to be written. `category_ids`: the numbers that categories had in the place they came from, if any."""

    task: Task
    vocabulary: Any
    category_ids: Mapping[str, int]
    images: Sequence[ImageEntry]


class ForeignSink(Sink, Protocol):
    """Writes one dataset. Images without an annotation are left out of it."""

    @property
    def losses(self) -> Losses:
        """What the format could not say, complete after `end`."""
        ...

    def image_path(self, image: ImageEntry) -> str:
        """Where a copy of an image belongs, relative to the folder; empty where it was left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How one dataset is written: `codec` makes a Fragment of each image, in a worker process, `sink` takes it."""

    codec: Codec[Any, Any]
    sink: ForeignSink


class ForeignFormat(Protocol):
    """One foreign format, both ways."""

    @property
    def name(self) -> str:
        """As people write it, such as `COCO instances`."""
        ...

    @property
    def tasks(self) -> Sequence[Task]:
        """What it can be written from, the best first."""
        ...

    @property
    def copies_images(self) -> bool:
        """Whether a dataset cannot be written without its images."""
        ...

    @property
    def looks_for(self) -> str:
        """What tells the format apart, in words."""
        ...

    async def recognises(self, files: Files) -> bool:
        """Whether the files are of this format, by what it looks for. Reads little."""
        ...

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        """What the files hold. Raises ForeignError, and InvalidArgument for a `split` that is not there."""
        ...

    def write(self, request: WriteRequest) -> Writing:
        """How a dataset is written. Raises FailedPrecondition where the format cannot hold it."""
        ...
