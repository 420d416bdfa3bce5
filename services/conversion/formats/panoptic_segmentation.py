"""Panoptic segmentation: a map of segments."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.document import List, Mapping, Value, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.colors import Colors, colors_of_classes, paint, read_colors, write_colors
from services.conversion.formats.format import Json, MapFile
from services.conversion.formats.names import Names, read_names
from services.conversion.formats.raw_map import RawMap, open_map
from services.conversion.formats.sidecar import SidecarError, read_sidecar, write_sidecar
from services.conversion.index import ImageSize
from services.conversion.raster.png import Pixels
from services.conversion.raster.tiff import write_panoptic
from services.conversion.task import Task

SEGMENTS_MAX = 65_535
"""Segments of one image: a map in memory has 16 bits a pixel, and 0 is void."""
ID_MAX = 65_535
"""The page of ids has at most 16 bits."""


@dataclass(frozen=True, kw_only=True)
class PanopticColors(Colors):
    """`things`: the categories whose segments are instances; None where the metadata do not say."""

    things: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment: all pixels of one pair of category and id, of which there is at least one."""

    category: str
    id: int
    crowd: bool = False
    ignore: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PanopticMap:
    """One map with at least one segment, else the image's annotation is null.

    `labels`: uint16, (height, width) of the map, which may be smaller than the image: 0 is void, n is `segments[n-1]`.
    """

    labels: NDArray[np.uint16]
    segments: tuple[Segment, ...]


class PanopticSegmentation:
    """An annotation is a PanopticMap. A sidecar names segments by their pairs of category and id."""

    task = Task.PANOPTIC_SEGMENTATION
    annotated = True
    optional = False
    keys = ("categories", "colors", "things")
    map_suffixes = (".tif", ".tiff")

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> PanopticColors:
        colors = read_colors(metadata, place, report)
        things = _read_things(metadata, Names(names=colors.names), place, report)
        return PanopticColors(names=colors.names, colors=colors.colors, things=things)

    def write_vocabulary(self, vocabulary: PanopticColors) -> AnyMapping[str, Json]:
        found = write_colors(vocabulary)
        if vocabulary.things is not None:
            found["things"] = [name for name in vocabulary.names if name in vocabulary.things]
        return found

    def names(self, vocabulary: PanopticColors) -> Sequence[str]:
        return vocabulary.names

    def read(
        self, value: Any, size: ImageSize, place: Place, vocabulary: PanopticColors, report: Report
    ) -> PanopticMap | None:
        raw = open_map(value, size, place, report)
        return None if raw is None else _read_map(raw, vocabulary)

    def write(self, annotation: PanopticMap, size: ImageSize, vocabulary: PanopticColors) -> MapFile:
        segments = annotation.segments
        assert all(each.category in vocabulary.colors for each in segments), "a map uses a category without a colour"
        numbers = {name: number for number, name in enumerate(vocabulary.names, start=1)}
        classes = np.array([0, *(numbers[each.category] for each in segments)], np.intp)
        ids = np.array([0, *(each.id for each in segments)], np.uint16)
        colors = paint(annotation.labels, colors_of_classes(vocabulary)[classes])
        small = ids.max() <= np.iinfo(np.uint8).max
        return MapFile(
            suffix=".tiff",
            content=write_panoptic(colors, (ids.astype(np.uint8) if small else ids)[annotation.labels]),
            about=write_sidecar(
                crowd=[[each.category, each.id] for each in segments if each.crowd],
                ignore=[[each.category, each.id] for each in segments if each.ignore],
            ),
        )

    def count(self, annotation: PanopticMap) -> int:
        return len(annotation.segments)

    def categories(self, annotation: PanopticMap) -> Sequence[str]:
        return [each.category for each in annotation.segments]


def segments_of_pairs(
    classes: NDArray[np.uint16], ids: NDArray[np.uint8] | NDArray[np.uint16]
) -> tuple[NDArray[np.uint16], NDArray[np.intp], NDArray[np.intp]]:
    """Number the pairs of class and id of two maps of one size, where a class of 0 is void whatever the id.

    Gives the map of numbers from 1, and of each number, in order, the class and the id: they rise by class, then id.
    Raises SegmentsError where there are more than SEGMENTS_MAX.
    """
    # A map has a few thousand runs of equal pixels, and sorting those costs a hundredth of sorting its pixels.
    flat_classes, flat_ids = classes.ravel(), ids.ravel()
    differs = flat_classes[1:] != flat_classes[:-1]
    differs |= flat_ids[1:] != flat_ids[:-1]
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    of_run = flat_classes[starts].astype(np.int64)
    keys = np.where(of_run == 0, 0, (of_run << 16) | flat_ids[starts])
    pairs, numbers = np.unique(keys, return_inverse=True)
    if pairs[0] != 0:
        numbers += 1
    else:
        pairs = pairs[1:]
    if len(pairs) > SEGMENTS_MAX:
        raise SegmentsError(len(pairs))
    lengths = np.diff(starts, append=len(flat_classes))
    labels = np.repeat(numbers.astype(np.uint16), lengths).reshape(classes.shape)
    return labels, pairs >> 16, pairs & ID_MAX


class SegmentsError(Exception):
    """A map has more segments than can be told apart."""

    def __init__(self, found: int) -> None:
        super().__init__(f"there are {found} segments, but at most {SEGMENTS_MAX} may be")
        self.found = found


def _read_things(metadata: Mapping, names: Names, place: Place, report: Report) -> frozenset[str] | None:
    value = metadata.get("things")
    if value is None:
        return None
    if isinstance(value, List) and not value:
        return frozenset()
    things = read_names(metadata, "things", place, report)
    at = replace(place, line=metadata.lines["things"])
    # A thing that is misspelt would turn its instances into stuff: nothing can be understood without it.
    unknown = [name for name in things.names if name not in names.known]
    for name in unknown:
        report.fail(
            "undeclared_category", f"{name!r} in 'things' is no category: declare it, or mend it", at, value=name
        )
    return things.known


def _read_map(raw: RawMap, vocabulary: PanopticColors) -> PanopticMap | None:
    found = _read_pages(raw)
    if found is None:
        return None
    colors, ids = found
    classes = raw.classes(colors, vocabulary)
    if not classes.any():
        return None
    try:
        labels, class_of, id_of = segments_of_pairs(classes, ids)
    except SegmentsError as error:
        raw.error("too_many_objects", str(error), value=str(error.found), annotations=error.found)
        return None
    pairs = [
        (vocabulary.names[number - 1], each) for number, each in zip(class_of.tolist(), id_of.tolist(), strict=True)
    ]
    sidecar = read_sidecar(
        raw.file.about,
        raw.about_place,
        raw.report,
        read_item=_read_pair,
        known=frozenset(pairs),
        annotations=len(pairs),
    )
    if sidecar is None:
        return None
    segments = tuple(
        Segment(category=name, id=each, crowd=(name, each) in sidecar.crowd, ignore=(name, each) in sidecar.ignore)
        for name, each in pairs
    )
    return PanopticMap(labels=labels, segments=segments)


def _read_pages(raw: RawMap) -> tuple[NDArray[np.uint8], Pixels] | None:
    """The colour map and the ids."""
    # One more than may be, so that a file of many pages is told from one that no page can be read of.
    pages = raw.pages(pages_max=2)
    if pages is None:
        return None
    samples = [each.samples for each in pages]
    if samples != [3, 1]:
        wanted = "a panoptic map has two pages, the colours first, with red, green and blue, then the ids, gray"
        found = "they are in the other order" if samples == [1, 3] else f"the pages have {samples} samples a pixel"
        raw.error("wrong_pages", f"{wanted}: {found}", value=str(samples))
        return None
    first, second = pages
    if (first.width, first.height) != (second.width, second.height):
        sizes = f"{first.width} x {first.height} and {second.width} x {second.height}"
        raw.error("page_size", f"the pages of colours and of ids differ in size: {sizes}", index=1, value=sizes)
        return None
    pixels, ids = raw.page_pixels(first, 0), raw.page_pixels(second, 1)
    if pixels is None or ids is None:
        return None
    colors = raw.colors(pixels, index=0)
    return None if colors is None else (colors, ids)


def _read_pair(value: Value) -> tuple[str, int]:
    if isinstance(value, List) and len(value) == 2:
        name, number = value
        if isinstance(name, str) and isinstance(number, str) and number.isascii() and number.isdigit():
            if len(number) > len(str(ID_MAX)) or int(number) > ID_MAX:
                raise SidecarError(f"the id {shown(number)} does not fit: the page of ids has at most 16 bits")
            return name, int(number)
    raise SidecarError("a pair [category, id] is wanted")
