"""Folders of class maps: PNGs of numbers, of a palette, or of colours, with a list of labels.

Written are `images/`, `masks/` with gray PNGs of numbers, where 255 (65,535 in 16 bits) is to be ignored, and
`labelmap.txt` with names and colours.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import check_size
from services.conversion.foreign.category_colors import category_colors
from services.conversion.foreign.file_sink import FileSink
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import native_images, report_passed_over
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.masks import labels as lists
from services.conversion.foreign.masks.labels import VOID_NUMBERS, Label
from services.conversion.foreign.masks.pairs import is_map, is_picture, map_key, pair
from services.conversion.foreign.scaling import scaled
from services.conversion.foreign.split import in_split
from services.conversion.formats.colors import Color, Colors
from services.conversion.formats.format import MapFile
from services.conversion.formats.names import RESERVED_NAMES, is_name
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.palette import KeyTable, key_of_color, keys_of_pixels
from services.conversion.raster.png import decode_png, decode_png_numbers, encode_png, png_header
from services.conversion.task import Task

MAPS, IMAGES, LIST = "masks", "images", "labelmap.txt"
SHOWN_MAX = 8
"""Numbers or colours that a finding quotes."""
NUMBERS_MAX = 2**16
LOST = {"scaled": "maps are scaled up to their images, as other tools want them"}


class MaskFolders:
    """Class maps."""

    name = "mask folders"
    tasks: Sequence[Task] = (Task.SEMANTIC_SEGMENTATION,)
    copies_images = False
    looks_for = f"PNGs in a folder such as SegmentationClass, gtFine, annotations or masks, and {lists.known_lists()}"

    async def recognises(self, files: Files) -> bool:
        maps = [path for path in files.paths if is_map(path)]
        known = any(map(lists.is_list, files.paths)) or _default(maps)
        return bool(maps) and bool(known) and any(map(is_picture, files.paths))

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        report_passed_over(files.paths, report)
        paths = await _in_split(files, request.split)
        maps = [path for path in paths if is_map(path)]
        images = [path for path in paths if is_picture(path)]
        if not maps or not images:
            what = "map" if images else "image"
            message = (
                f"there is no {what}: maps lie in a folder such as masks/, or end in _mask, images in one beside it"
            )
            raise ForeignError("missing_file", message, Place(file=f"{MAPS}/"))
        labels, place = await self._labels(files, maps)
        vocabulary, numbers = _vocabulary(labels, place)
        pairs = pair(images, maps)
        _report_lone(images, maps, pairs, report)
        native = native_images(images)
        own = {image.name: pairs.get(image.path, "") for image in native}

        def annotation(image: ImageEntry) -> ForeignAnnotation | None:
            path = own[image.name]
            if not path:
                return None
            return ForeignAnnotation(value=None, place=Place(file=path, image=image.name), path=path, suffix=".png")

        return ForeignDataset(
            task=Task.SEMANTIC_SEGMENTATION,
            vocabulary=vocabulary,
            codec=ClassMaps(
                by_number=numbers,
                by_color={label.color: numbers[label.number] for label in labels if label.color is not None},
                limits=request.raster_limits,
            ),
            images=native,
            annotation=annotation,
            file_an_image=True,
        )

    async def _labels(self, files: Files, maps: Sequence[str]) -> tuple[list[Label], Place]:
        """The labels, and where they stand. Raises ForeignError where there is no list."""
        for path in sorted(filter(lists.is_list, files.paths), key=lambda path: (path.count("/"), path)):
            found = lists.read_labels(path, (await files.read(path)).decode("utf-8-sig", "replace"))
            if found:
                return found, Place(file=path)
        found = _default(maps)
        if not found:
            message = (
                f"there is no list of labels: add one of {lists.known_lists()}, such as classes.txt with a name a line"
            )
            raise ForeignError("missing_file", message, Place(file=LIST))
        return found, Place(file=maps[0])

    def write(self, request: WriteRequest) -> Writing:
        vocabulary: Colors = request.vocabulary
        lines = ["# label:color_rgb:parts:actions"]
        for name in vocabulary.names:
            color = vocabulary.colors.get(name)
            lines.append(f"{name}:{','.join(map(str, color)) if color is not None else ''}::")
        sink = FileSink(
            labels=MAPS,
            images=IMAGES,
            suffix=".png",
            content=_content,
            losses=Losses(sentences=LOST, file=f"{MAPS}/"),
            others={LIST: "\n".join(lines) + "\n"},
        )
        return Writing(
            codec=ClassMaps(by_number={}, by_color={}, limits=RasterLimits(pixels_max=0, pages_max=0)), sink=sink
        )


@dataclass(frozen=True, kw_only=True)
class ClassMaps:
    """Maps of one dataset. `by_number` and `by_color`: the class of each, 0 for what is ignored."""

    by_number: Mapping[int, int]
    by_color: Mapping[Color, int]
    limits: RasterLimits

    def read(
        self, value: MapFile, size: ImageSize, place: Place, vocabulary: Colors, report: Report
    ) -> SemanticMap | None:
        try:
            gray = png_header(value.content, self.limits).kind in (0, 3)
            found = self._numbers(value.content) if gray else self._colors(value.content)
        except RasterError as error:
            report.error(error.rule, f"the map {error}", place)
            return None
        classes, unknown = found
        height, width = classes.shape
        if not check_size(place, size, width, height, report, annotations=1):
            return None
        if unknown:
            pixels = sum(count for _, count in unknown)
            quoted = ", ".join(what for what, _ in unknown[:SHOWN_MAX])
            message = (
                f"the map has {pixels} pixels of {len(unknown)} numbers or colours that no label has ({quoted}): "
                "declare them, as here they are ignored"
            )
            report.error("undeclared_category", message, place, value=quoted)
        return SemanticMap(classes=classes, names=vocabulary.names) if classes.any() else None

    def write(self, annotation: SemanticMap, size: ImageSize, vocabulary: Colors) -> Fragment:
        classes, lost = annotation.classes, {}
        if classes.shape != (size.height, size.width):
            classes = scaled(classes, size)
            lost["scaled"] = 1
        wide = len(vocabulary.names) > 255
        table = np.arange(-1, len(vocabulary.names), dtype=np.int64)
        table[0] = 65_535 if wide else 255
        return Fragment(pieces=(encode_png(table.astype(np.uint16 if wide else np.uint8)[classes]),), lost=lost)

    def _numbers(self, content: bytes) -> tuple[NDArray[np.uint16], list[tuple[str, int]]]:
        """The classes of a map of numbers, and what is unknown, with its pixels.

        A palette's colours say the same as its numbers, where labels have colours and numbers that no label has.
        """
        numbers = decode_png_numbers(content, self.limits)
        counts = np.bincount(numbers.reshape(-1), minlength=1)
        used = np.flatnonzero(counts).tolist()
        unknown = [number for number in used if number not in self.by_number and number not in VOID_NUMBERS]
        if unknown and self.by_color and png_header(content, self.limits).kind == 3:
            return self._colors(content)
        table = np.zeros(NUMBERS_MAX, np.uint16)
        for number in used:
            table[number] = self.by_number.get(number, 0)
        return table[numbers], [(str(number), int(counts[number])) for number in unknown]

    def _colors(self, content: bytes) -> tuple[NDArray[np.uint16], list[tuple[str, int]]]:
        """The classes of a map of colours, or of gray with three channels."""
        pixels = decode_png(content, self.limits)
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            raise RasterError("unreadable_map", "is neither a map of numbers nor of colours of 8 bits")
        if not self.by_color:
            first = pixels[..., 0]
            if not (pixels == first[..., None]).all():
                raise RasterError(
                    "undeclared_category", "has colours, but no label has one: add labelmap.txt with them"
                )
            return self._numbers(encode_png(np.ascontiguousarray(first)))
        # One more than each key: black is a colour like any other here, and 0 stands for nothing in the table.
        keys = KeyTable([key_of_color(color) + 1 for color in self.by_color])
        labels, unknown = keys.indices(keys_of_pixels(pixels) + np.uint32(1))
        table = np.array([0, *self.by_color.values()], np.uint16)
        strange = [(each.key - 1, each.pixels) for each in unknown if each.key != 1]
        return table[labels], [(f"#{k & 255:02x}{k >> 8 & 255:02x}{k >> 16:02x}", pixels) for k, pixels in strange]


def _vocabulary(labels: Sequence[Label], place: Place) -> tuple[Colors, dict[int, int]]:
    """The categories, and the class of each number. What is void, and black where another is, is no category."""
    numbers: dict[int, int] = {}
    names: list[str] = []
    colors: dict[str, Color] = {}
    for label in labels:
        if label.void:
            numbers[label.number] = 0
            continue
        if not is_name(label.name) or label.name in RESERVED_NAMES or label.name in names:
            message = "a label's name is empty, reserved or there twice: rename it"
            raise ForeignError("bad_name", message, place, value=label.name)
        names.append(label.name)
        numbers[label.number] = len(names)
        if label.color is not None:
            colors[label.name] = label.color
    if not names:
        raise ForeignError("empty_vocabulary", "the list has no label that is not to be ignored", place)
    return Colors(names=tuple(names), colors=category_colors(names, colors)), numbers


def _default(maps: Sequence[str]) -> list[Label]:
    """The labels of datasets that have no file of them."""
    if any(PurePosixPath(path).stem.endswith("_labelIds") for path in maps):
        return lists.cityscapes()
    if any("SegmentationClass" in PurePosixPath(path).parts[:-1] for path in maps):
        return lists.pascal_voc()
    return []


async def _in_split(files: Files, split: str) -> list[str]:
    """The files of a split: those that a list in ImageSets/Segmentation names, or those in folders of its name."""
    lists_of_stems = [path for path in files.paths if split and path.endswith(f"ImageSets/Segmentation/{split}.txt")]
    if not lists_of_stems:
        return in_split([path for path in files.paths if "ImageSets" not in path.split("/")], split)
    text = (await files.read(lists_of_stems[0])).decode("utf-8-sig", "replace")
    stems = {line.strip() for line in text.splitlines()}
    return [path for path in files.paths if PurePosixPath(path).stem in stems]


def _report_lone(images: Sequence[str], maps: Sequence[str], pairs: Mapping[str, str], report: Report) -> None:
    paired = set(pairs.values())
    keys = {map_key(path) for path in paired}
    for path in maps:
        if path not in paired and map_key(path) not in keys:
            message = "the map belongs to no image: remove it, or add the image"
            report.error("annotation_without_image", message, Place(file=path, image=PurePosixPath(path).stem))
    if len(pairs) < len(images):
        left = next(path for path in images if path not in pairs)
        message = f"{len(images) - len(pairs)} of {len(images)} images have no map, so that they are unlabelled"
        report.warn("no_labels", message, Place(file=left, image=PurePosixPath(left).name))


def _content(image: ImageEntry, written: Fragment) -> bytes:
    return written.pieces[0]
