"""Pascal VOC: an XML file an image with boxes that count from one and include their last pixel.

Pixel 1 of VOC is our first one, which reaches from 0 to 1: so 1 is taken off the minima only, and the maxima stay.

    JPEGImages/         or images/, or beside the XML
    Annotations/        <stem>.xml
    ImageSets/Main/     <split>.txt: a stem a line
    labelmap.txt        the categories in order, `name:::` a line; optional, without it they are sorted by name
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.sax.saxutils import escape

from services.chassis.errors import InvalidArgument, Violation
from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_box, check_size
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    Unannotated,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import (
    is_image,
    missing_image_message,
    native_images,
    report_passed_over,
)
from services.conversion.foreign.voc.sink import LABEL_MAP, VocSink
from services.conversion.foreign.voc.xml import VocFile, VocObject, read_voc
from services.conversion.formats.names import RESERVED_NAMES, Names, is_name
from services.conversion.formats.number import NumberError, read_number, written
from services.conversion.formats.object_detection import Box, Boxes
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task

FILES_MAX = 8
"""Files that are looked into to know what they are."""
SETS = "ImageSets/Main/"
NOT_IN_SET = "-1"
FLAGS = ("1", "0", NOT_IN_SET)
NOT_SETS = "_"
"""Files such as `cat_train.txt` list images of one category with 1 and -1: they are no split."""


class PascalVoc:
    """Boxes."""

    name = "Pascal VOC"
    tasks: Sequence[Task] = (Task.OBJECT_DETECTION,)
    copies_images = False
    looks_for = "XML files that begin with <annotation>"

    async def recognises(self, files: Files) -> bool:
        xml = [path for path in files.paths if path.lower().endswith(".xml")][:FILES_MAX]
        return any([b"<annotation>" in await files.head(path) for path in xml])

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        xml = sorted(path for path in files.paths if path.lower().endswith(".xml"))
        if not xml:
            message = "there is no XML file: annotations lie in Annotations/"
            raise ForeignError("missing_file", message, Place(file="Annotations/"))
        report_passed_over(files.paths, report)
        all_by_stem = _by_stem(xml, report)
        known = {*all_by_stem, *(PurePosixPath(path).stem for path in files.paths if is_image(path))}
        stems = await _split_stems(files, request.split, known)
        by_stem = {stem: path for stem, path in all_by_stem.items() if stems is None or stem in stems}
        read = _Read(report=report)
        await files.read_each([by_stem[stem] for stem in sorted(by_stem)], read.take)
        if LABEL_MAP not in files.paths:  # all parts of a dataset have one vocabulary
            others = [path for stem, path in sorted(all_by_stem.items()) if stem not in by_stem]
            await files.read_each(others, read.take_names)
        names = await _categories(files, read, report)
        return await files.in_thread(_dataset, files.paths, by_stem, stems, read, names, request, report)

    def write(self, request: WriteRequest) -> Writing:
        return Writing(codec=VocBoxes(), sink=VocSink(request))


@dataclass(kw_only=True)
class _Read:
    """XML files as they are read: compact, as all are needed before the first image, for the categories."""

    report: Report
    found: dict[str, VocFile] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    """Of all files, also those of other splits."""
    dropped: Counter[str] = field(default_factory=Counter)

    def take(self, path: str, content: bytes) -> None:
        try:
            file = read_voc(content)
        except ForeignError as error:
            place = Place(file=path, line=error.place.line, image=PurePosixPath(path).stem)
            self.report.error(error.rule, f"the file {error}", place, value=error.value)
            return
        self.found[path] = file
        for each in file.objects:
            self.names[each.name] += 1
            self.dropped.update(each.dropped)

    def take_names(self, path: str, content: bytes) -> None:
        """Of a file of another split: what is wrong with it is that split's."""
        with contextlib.suppress(ForeignError):
            self.names.update(each.name for each in read_voc(content).objects)


@dataclass(frozen=True, kw_only=True)
class VocBoxes:
    """Boxes of one image."""

    def read(self, value: VocFile, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Boxes | None:
        if value.width and value.height:  # some tools write 0 where they do not know
            count = len(value.objects)
            if not check_size(place, size, value.width, value.height, report, annotations=count):
                return None
        found: list[Box] = []
        for index, each in enumerate(value.objects):
            thing = RawThing(
                place=Place(file=place.file, line=each.line, image=place.image), index=index, report=report
            )
            if each.name and each.name not in vocabulary.known:
                message = f"the name {each.name!r} is no category: mend it"
                thing.error("undeclared_category", message, value=each.name)
            box = _read_box(thing, each, size)
            if box is not None:
                found.append(Box(category=each.name, bbox=box, ignore=each.difficult))
        return None if value.objects and not found else tuple(found)

    def write(self, annotation: Boxes, size: ImageSize, vocabulary: Names) -> Fragment:
        lines = []
        for each in annotation:
            xmin, ymin, xmax, ymax = each.bbox
            corners = (("xmin", xmin + 1), ("ymin", ymin + 1), ("xmax", xmax), ("ymax", ymax))
            box = "".join(f"<{key}>{written(number)}</{key}>" for key, number in corners)
            lines.append(
                f"\t<object>\n\t\t<name>{escape(each.category)}</name>\n\t\t<difficult>{int(each.ignore)}</difficult>\n"
                f"\t\t<bndbox>{box}</bndbox>\n\t</object>\n".encode()
            )
        crowds = sum(each.crowd for each in annotation)
        fractions = sum(any(number != int(number) for number in each.bbox) for each in annotation)
        lost = {"crowd": crowds, "fraction": fractions}
        return Fragment(pieces=tuple(lines), lost={kind: count for kind, count in lost.items() if count})


def _read_box(thing: RawThing, each: VocObject, size: ImageSize) -> tuple[float, float, float, float] | None:
    if each.problem:
        thing.error("missing_key", each.problem)
        return None
    numbers = []
    for key, text in zip(("xmin", "ymin", "xmax", "ymax"), each.corners, strict=True):
        try:
            numbers.append(read_number(text.strip()))
        except NumberError as error:
            thing.error(error.rule, f"in <{key}> {error}", value=text)
            return None
    xmin, ymin, xmax, ymax = numbers
    if (xmin == xmax or ymin == ymax) and xmin <= xmax and ymin <= ymax:
        message = "the box is one pixel wide or high, as its last pixel is its first: it is kept so"
        thing.warn("one_pixel_box", message, value=str(each.corners))
    return check_box(thing, (xmin - 1, ymin - 1, xmax, ymax), size, numbers) if not thing.bad else None


async def _split_stems(files: Files, split: str, known: Container[str]) -> set[str] | None:
    """The stems of a split, of which some are `known`; None where all images are meant."""
    if not split:
        return None
    sets = {
        PurePosixPath(path).stem: path
        for path in files.paths
        if f"/{path}".rpartition("/")[0].endswith("/" + SETS.rstrip("/")) and path.endswith(".txt")
    }
    if split not in sets:
        names = ", ".join(sorted(name for name in sets if NOT_SETS not in name)) or "none"
        description = f"is {split!r}, but {SETS} has {names}"
        raise InvalidArgument([Violation(field="split", description=description)])
    try:
        text = (await files.read(sets[split])).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignError("syntax", "the file is not UTF-8: save it as UTF-8", Place(file=sets[split])) from error
    found = (_split_stem(line.strip(), known) for line in text.splitlines())
    return {stem for stem in found if stem}


def _split_stem(line: str, known: Container[str]) -> str:
    """The stem that a line names, empty where it says that it is not in the split.

    The files of single categories have 1, 0 or -1 behind the stem; -1 is in the list, and not in the set. A stem may
    hold spaces, and end in a number itself: then there is such an image.
    """
    stem, _, flag = line.rpartition(" ")
    if line in known or flag not in FLAGS or not stem:
        return line
    return "" if flag == NOT_IN_SET else stem.strip()


def _by_stem(paths: Sequence[str], report: Report) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        stem = PurePosixPath(path).stem
        if stem in found:
            message = f"{found[stem]} has the same stem, so that it is not sure which belongs to the image: keep one"
            report.error("repeated_stem", message, Place(file=path, image=stem), value=stem)
        else:
            found[stem] = path
    return found


async def _categories(files: Files, read: _Read, report: Report) -> Names:
    """Those of the label map in its order, then others that are used, by name."""
    ordered: list[str] = []
    if LABEL_MAP in files.paths:
        text = (await files.read(LABEL_MAP)).decode("utf-8-sig", "replace")
        rows = [line.rsplit(":", 3)[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
        ordered = [name for name in dict.fromkeys(rows) if name != "background" or read.names[name]]
    names = [*ordered, *sorted(name for name in read.names if name not in ordered)]
    good = tuple(name for name in names if is_name(name) and name not in RESERVED_NAMES)
    if not good:
        message = "no object has a name that can be a category's, so that there is none"
        raise ForeignError("empty_vocabulary", message, Place(file="Annotations/"))
    for what, count in sorted(read.dropped.items()):
        message = f"<{what}> of {count} objects is left out: the native format does not say it"
        report.warn("not_kept", message, Place(file="Annotations/"), value=what)
    return Names(names=good)


def _dataset(
    paths: Mapping[str, int],
    by_stem: Mapping[str, str],
    stems: set[str] | None,
    read: _Read,
    names: Names,
    request: ReadRequest,
    report: Report,
) -> ForeignDataset:
    images: dict[str, str] = {}
    for path in sorted(path for path in paths if is_image(path) and not _is_mask(path)):
        stem = PurePosixPath(path).stem
        if stem in images:
            message = f"{images[stem]} has the same stem, so that it is not sure which the annotations belong to"
            report.error("repeated_stem", message, Place(file=path, image=PurePosixPath(path).name), value=stem)
        else:
            images[stem] = path
    wanted = images.keys() if stems is None else stems
    for stem in sorted((by_stem.keys() | set(wanted)) - images.keys()):
        file = by_stem.get(stem, SETS)
        count = len(read.found[file].objects) if file in read.found else 0
        message = missing_image_message(stem, paths)
        report.error("missing_image", message, Place(file=file, image=stem), value=stem, annotations=count)
    chosen = native_images(path for stem, path in images.items() if stem in wanted)
    files = {image.name: by_stem.get(PurePosixPath(image.path).stem, "") for image in chosen}

    def annotation(image: ImageEntry) -> ForeignAnnotation | None:
        path = files[image.name]
        if path and path not in read.found:  # it could not be read, which is in the report
            return None
        file = read.found[path] if path else VocFile()
        default = Unannotated.EMPTY if path else Unannotated.NULL
        meaning = default if request.unannotated is Unannotated.DEFAULT else request.unannotated
        if not file.objects and meaning is Unannotated.NULL:
            return None
        return ForeignAnnotation(value=file, place=Place(file=path or "Annotations/", image=image.name))

    return ForeignDataset(
        task=Task.OBJECT_DETECTION,
        vocabulary=names,
        codec=VocBoxes(),
        images=chosen,
        annotation=annotation,
    )


def _is_mask(path: str) -> bool:
    """VOC has maps in SegmentationClass/ and SegmentationObject/, with the stems of the images."""
    return any(part.startswith("Segmentation") for part in PurePosixPath(path).parts[:-1])
