"""A dataset whose images have shapes, out of what a tool wrote of each, and the codec that goes with it.

What is written of an image stays text until its turn comes; before that it was read once, for labels and kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import check_size
from services.conversion.foreign.format import ForeignAnnotation, ForeignDataset, ForeignError, ReadRequest, Unannotated
from services.conversion.foreign.image_names import (
    is_image,
    locate,
    missing_image_message,
    native_images,
    report_passed_over,
)
from services.conversion.foreign.shapes.reading import ShapeReader
from services.conversion.foreign.shapes.shape import Shape, ShapedImage, ShapeKind, ShapesError
from services.conversion.foreign.shapes.tally import Tally
from services.conversion.foreign.shapes.writing import shapes_of
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Color
from services.conversion.formats.format import MapFile
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenImage:
    """What a source says of one image: a text, or a file of its own. `name` is the image's, as it is written."""

    name: str
    content: bytes
    place: Place
    path: str = ""
    suffix: str = ""


@dataclass(kw_only=True)
class ShapedSource:
    """What a source says of all images. `parse` makes shapes of what is written of one; it can be pickled."""

    place: Place
    parse: Callable[[bytes], ShapedImage]
    labels: Sequence[str] = ()
    """As they are declared, in order."""
    colors: Mapping[str, Color] = field(default_factory=dict)
    points: Sequence[str] = ()
    """Names of keypoints, as they are declared."""
    images: list[WrittenImage] = field(default_factory=list)
    others: Sequence[str] = ()
    """Paths of images of which nothing is said."""
    tally: Tally = field(default_factory=Tally)
    preferred: str = ""
    """The folder in which images are looked for first, with a slash."""

    def add(self, image: WrittenImage, content: bytes, report: Report) -> None:
        """Take in one image; what cannot be read is reported when its turn comes, unless its name is needed now."""
        try:
            shaped = self.parse(content)
        except ShapesError:
            shaped = ShapedImage(annotated=False)
        self.tally.add(shaped)
        self.images.append(image)

    def dataset(self, paths: Mapping[str, int], request: ReadRequest, report: Report) -> ForeignDataset:
        """Bring images and shapes together. Raises ForeignError."""
        report_passed_over(paths, report)
        task = self.tally.task(request.task, self.place)
        self.tally.report(task, self.place, report)
        vocabulary = self.tally.vocabulary(task, self.labels, self.colors, self.points, self.place)
        by_path = self._located(paths, report)
        images = native_images([*by_path, *(path for path in self.others if path not in by_path)])
        if not images:
            raise ForeignError("missing_image", "none of the images that it lists is among the files", self.place)
        by_name = {image.name: by_path[image.path] for image in images if image.path in by_path}

        def annotation(image: ImageEntry) -> ForeignAnnotation | None:
            written = by_name.get(image.name)
            if written is None:
                return None
            place = Place(file=written.place.file, line=written.place.line, image=image.name)
            value = None if written.path else written.content
            return ForeignAnnotation(value=value, place=place, path=written.path, suffix=written.suffix)

        return ForeignDataset(
            task=task,
            vocabulary=vocabulary,
            codec=ShapeCodec(
                task=task,
                known=frozenset(FORMATS[task].names(vocabulary)),
                parse=self.parse,
                null=request.unannotated is Unannotated.NULL,
            ),
            images=images,
            annotation=annotation,
            file_an_image=any(image.path for image in self.images),
        )

    def _located(self, paths: Mapping[str, int], report: Report) -> dict[str, WrittenImage]:
        files = {path: size for path, size in paths.items() if is_image(path)}
        found = locate([image.name for image in self.images], files, preferred=self.preferred)
        by_path: dict[str, WrittenImage] = {}
        for image in self.images:
            place = Place(file=image.place.file, line=image.place.line, image=image.name)
            path = found.get(image.name)
            if path is None:
                report.error("missing_image", missing_image_message(image.name, paths), place, value=image.name)
            elif path in by_path:
                message = "the image is listed more than once, and the first one counts: list it once"
                report.error("repeated_image", message, place, value=image.name)
            else:
                by_path[path] = image
        return by_path


def _no_shapes(content: bytes) -> ShapedImage:
    raise AssertionError("a codec that writes does not read")


def _no_way(shapes: Sequence[Shape], size: ImageSize) -> Sequence[bytes]:
    raise AssertionError("a codec that reads does not write")


@dataclass(frozen=True, kw_only=True)
class ShapeCodec:
    """Shapes of one image, both ways. `known`: the names of the vocabulary; `null`: no shape says nothing."""

    task: Task
    known: frozenset[str] = frozenset()
    parse: Callable[[bytes], ShapedImage] = _no_shapes
    render: Callable[[Sequence[Shape], ImageSize], Sequence[bytes]] = _no_way
    null: bool = False
    boxed_points: bool = False
    """The tool can say the box of an object with points."""
    box_all: bool = False
    """Only a box says which points are one object's."""
    quads: bool = False
    """The tool has quadrilaterals; otherwise they are polygons."""

    def read(self, value: bytes | MapFile, size: ImageSize, place: Place, vocabulary: Any, report: Report) -> Any:
        """The annotation; None where nothing is known, or it is bad, which is in the report."""
        try:
            image = self.parse(value.content if isinstance(value, MapFile) else value)
        except ShapesError as error:
            report.error(error.rule, f"what is written of the image {error}", place)
            return None
        count = max(len(image.shapes), 1)
        sized = bool(image.width and image.height)
        if sized and not check_size(place, size, image.width, image.height, report, annotations=count):
            return None
        if not image.annotated or (self.null and not image.shapes):
            return None
        return ShapeReader(task=self.task, known=self.known).read(image.shapes, size, place, report)

    def write(self, annotation: Any, size: ImageSize, vocabulary: Any) -> Fragment:
        """The shapes, each as the tool writes it."""
        shapes, lost = shapes_of(self.task, annotation, size, boxed=self.boxed_points, box_all=self.box_all)
        quads = 0 if self.quads else sum(each.kind is ShapeKind.QUAD for each in shapes)
        lost = {**lost, "quads": quads} if quads else lost
        return Fragment(pieces=tuple(self.render(shapes, size)), lost=lost)
