"""Text files of quadrilaterals, one an image: which files belong to which images, and what their lines become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_quad
from services.conversion.foreign.format import ForeignAnnotation, ForeignDataset, ForeignError, ReadRequest, Unannotated
from services.conversion.foreign.image_names import is_image, native_images, report_passed_over
from services.conversion.foreign.turning import corners_of_box
from services.conversion.formats.format import Codec, MapFile
from services.conversion.formats.names import Names
from services.conversion.formats.quadrilateral_detection import Quad, Quads
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task

LINES_MAX = 100_000
"""Of one image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuadLine:
    """What a line says: four numbers of a box, or eight of corners. `problem`: why it says nothing."""

    numbers: tuple[float, ...] = ()
    category: str = ""
    ignore: bool = False
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class TextQuads:
    """Reads the files. `parse` makes a QuadLine of a line, None of one that is none; `null`: no line says nothing."""

    parse: Callable[[str], QuadLine | None]
    null: bool = False

    def read(self, value: MapFile, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Quads | None:
        """The quadrilaterals; None where there were lines and all were bad."""
        text = decoded(value.content, place, report)
        if text is None:
            return None
        lines = [(number, self.parse(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows = [(number, line) for number, line in lines if line is not None]
        if len(rows) > LINES_MAX:
            message = f"the file has {len(rows)} lines, but at most {LINES_MAX} may be"
            report.error("too_many_objects", message, place, value=str(len(rows)), annotations=len(rows))
            return None
        found: list[Quad] = []
        for index, (number, line) in enumerate(rows):
            thing = RawThing(place=Place(file=place.file, line=number, image=place.image), index=index, report=report)
            if line.problem is not None:
                thing.error(*line.problem)
                continue
            if line.category not in vocabulary.known:
                message = f"the category {line.category!r} cannot be one: rename it"
                thing.error("undeclared_category", message, value=line.category)
            numbers = corners_of_box(line.numbers) if len(line.numbers) == 4 else line.numbers
            quad = check_quad(thing, numbers, size)
            if quad is not None:
                found.append(Quad(category=line.category, quad=quad, ignore=line.ignore))
        return None if (rows and not found) or (not rows and self.null) else tuple(found)

    def write(self, annotation: Quads, size: ImageSize, vocabulary: Names) -> MapFile:
        """A reader alone."""
        raise AssertionError("a codec that reads does not write")


def decoded(content: bytes, place: Place, report: Report) -> str | None:
    """The text of a file; None, with an error, where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        report.error("syntax", "the file is not UTF-8: save it as UTF-8", place)
        return None


def quad_dataset(
    paths: Sequence[str],
    texts: Mapping[str, str],
    names: Names,
    codec: Codec[Names, Quads],
    request: ReadRequest,
    report: Report,
    *,
    place: Place,
) -> ForeignDataset:
    """The dataset of images with the text of each, by the stem of the image. Raises ForeignError."""
    report_passed_over(paths, report)
    images = native_images(path for path in paths if is_image(path))
    if not images:
        raise ForeignError("missing_image", "there is no image among the files: put them beside the labels", place)
    own = {image.name: texts.get(PurePosixPath(image.path).stem, "") for image in images}
    stems = {PurePosixPath(image.path).stem for image in images}
    for stem, path in sorted(texts.items()):
        if stem not in stems:
            message = "the labels belong to no image: remove the file, or add the image"
            report.error("annotation_without_image", message, Place(file=path, image=stem), value=stem)

    def annotation(image: ImageEntry) -> ForeignAnnotation | None:
        path = own[image.name]
        if path:
            return ForeignAnnotation(value=None, place=Place(file=path, image=image.name), path=path, suffix=".txt")
        if request.unannotated is Unannotated.EMPTY:
            return ForeignAnnotation(value=MapFile(suffix=".txt", content=b""), place=Place(file="", image=image.name))
        return None

    return ForeignDataset(
        task=Task.QUADRILATERAL_DETECTION,
        vocabulary=names,
        codec=codec,
        images=images,
        annotation=annotation,
        file_an_image=True,
    )
