"""Instance segmentation: a mask for each instance."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.document import Mapping, Value
from services.conversion.finding import Action, Place, Report
from services.conversion.formats.colors import Colors, classes_of_colors, hexadecimal, read_colors, write_colors
from services.conversion.formats.format import Json, MapFile
from services.conversion.formats.object_list import OBJECTS_MAX
from services.conversion.formats.raw_map import RawMap, open_map
from services.conversion.formats.sidecar import Sidecar, SidecarError, read_sidecar, write_sidecar
from services.conversion.index import ImageSize
from services.conversion.raster.runs import Runs, runs_of_window
from services.conversion.raster.tiff import Page, write_instances
from services.conversion.task import Task

PAINTED_PIXELS_MAX = 2**34
"""Pixels of all pages of one file together, without rows that are black: more would take a core minutes to read."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One instance. Its mask is not empty, and may overlap others'."""

    category: str
    mask: Runs
    crowd: bool = False
    ignore: bool = False


@dataclass(frozen=True, kw_only=True)
class InstanceMap:
    """The instances of one image, in order; none says that nothing is there.

    `width` and `height` are those of the masks, which may be smaller than the image.
    """

    width: int
    height: int
    instances: tuple[Instance, ...]


class InstanceSegmentation:
    """An annotation is an InstanceMap. A sidecar names instances by their pages, from 1."""

    task = Task.INSTANCE_SEGMENTATION
    annotated = True
    optional = False
    keys = ("categories", "colors")
    map_suffixes = (".tif", ".tiff")

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Colors:
        return read_colors(metadata, place, report)

    def write_vocabulary(self, vocabulary: Colors) -> AnyMapping[str, Json]:
        return write_colors(vocabulary)

    def names(self, vocabulary: Colors) -> Sequence[str]:
        return vocabulary.names

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: Colors, report: Report) -> InstanceMap | None:
        raw = open_map(value, size, place, report)
        return None if raw is None else _read_instances(raw, vocabulary)

    def write(self, annotation: InstanceMap, size: ImageSize, vocabulary: Colors) -> MapFile:
        assert len(annotation.instances) <= OBJECTS_MAX, "whoever makes instances keeps to what can be read"
        masks = [(each.mask, vocabulary.colors[each.category]) for each in annotation.instances]
        numbered = list(enumerate(annotation.instances, start=1))
        return MapFile(
            suffix=".tiff",
            content=write_instances(annotation.height, annotation.width, masks),
            about=write_sidecar(
                crowd=[number for number, each in numbered if each.crowd],
                ignore=[number for number, each in numbered if each.ignore],
            ),
        )

    def count(self, annotation: InstanceMap) -> int:
        return len(annotation.instances)

    def categories(self, annotation: InstanceMap) -> Sequence[str]:
        return [each.category for each in annotation.instances]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What the pages of one instance show. `mask` is None where they are all black, or bad.

    `painted`: how many pixels were looked at.
    """

    category: str = ""
    mask: Runs | None = None
    bad: bool = False
    painted: int = 0


def _read_instances(raw: RawMap, vocabulary: Colors) -> InstanceMap | None:
    pages = raw.pages(pages_max=3 * OBJECTS_MAX)
    if pages is None:
        return None
    grouped = _group(raw, pages)
    drawn = None if grouped is None else _draw_all(raw, grouped, vocabulary)
    if drawn is None:
        return None
    shown = {number for number, each in enumerate(drawn, start=1) if each.mask is not None or each.bad}
    sidecar = read_sidecar(
        raw.file.about,
        raw.about_place,
        raw.report,
        read_item=_read_page_number,
        known=shown,
        annotations=sum(each.mask is not None for each in drawn),
    )
    if sidecar is None:
        return None
    instances = tuple(_instances(drawn, sidecar))
    if not instances and any(each.bad for each in drawn):
        return None
    if len(drawn) > 1:
        _warn_of_empty(raw, drawn)
    return InstanceMap(width=pages[0].width, height=pages[0].height, instances=instances)


def _group(raw: RawMap, pages: Sequence[Page]) -> list[Sequence[Page]] | None:
    """The pages of each instance: one of three samples, or three gray ones."""
    grouped: list[Sequence[Page]] = []
    position = 0
    while position < len(pages):
        gray = pages[position].samples == 1
        group = pages[position : position + (3 if gray else 1)]
        if gray and [each.samples for each in group] != [1, 1, 1]:
            message = (
                f"page {position + 1} is gray, and the next two are not, but an instance is one page of red, green and "
                "blue, or three gray pages in a row"
            )
            raw.error("wrong_pages", message, index=position)
            return None
        grouped.append(group)
        position += len(group)
    if len(grouped) > OBJECTS_MAX:
        message = f"there are {len(grouped)} instances, but at most {OBJECTS_MAX} may be"
        raw.error("too_many_objects", message, value=str(len(grouped)), annotations=len(grouped))
        return None
    return grouped


def _draw_all(raw: RawMap, grouped: Sequence[Sequence[Page]], vocabulary: Colors) -> list[_Drawn] | None:
    """What the pages of each instance show; None where it would take too long to see."""
    drawn: list[_Drawn] = []
    painted = 0
    for number, pages in enumerate(grouped):
        drawn.append(_draw(raw, number, pages, grouped[0][0], vocabulary))
        painted += drawn[-1].painted
        if painted > PAINTED_PIXELS_MAX:
            left = len(grouped) - sum(each.bad for each in drawn)
            message = (
                f"the first {number + 1} of {len(grouped)} instances have {painted} pixels, but all together may have "
                f"at most {PAINTED_PIXELS_MAX}, without rows that are black: make the map smaller than the image"
            )
            raw.error("too_many_pixels", message, value=str(painted), annotations=left)
            return None
    return drawn


def _draw(raw: RawMap, number: int, pages: Sequence[Page], first: Page, vocabulary: Colors) -> _Drawn:
    """What one instance's pages show; the number counts from 0."""
    if any((each.width, each.height) != (first.width, first.height) for each in pages):
        sizes = " and ".join(sorted({f"{each.width} x {each.height}" for each in (first, *pages)}))
        message = f"the pages of instance {number + 1} have another size than the first one: {sizes}"
        raw.error("page_size", message, index=number)
        return _Drawn(bad=True)
    found = _band(raw, number, pages)
    if found is None:
        return _Drawn(bad=True)
    top, colors = found
    painted = colors.shape[0] * colors.shape[1]
    classes, unknown = classes_of_colors(colors, vocabulary)
    if unknown:
        each, others = unknown[0], len(unknown) - 1
        name = hexadecimal(each.color)
        message = (
            f"the page of instance {number + 1} has the colour {name}, first at x {each.x}, y {top + each.y}, "
            f"{f'and {others} other colours, which are' if others else 'which is'} no category's: declare it in "
            "`colors`, or paint the page with its category's colour, without smoothing"
        )
        raw.error("unknown_color", message, index=number, value=name)
        return _Drawn(bad=True, painted=painted)
    mask = classes != 0
    used = np.flatnonzero(np.bincount(classes[mask]))
    if len(used) > 1:
        names = " and ".join(repr(vocabulary.names[each - 1]) for each in used[:2])
        message = f"the page of instance {number + 1} has colours of {names}: an instance has one category and one page"
        raw.error("mixed_colors", message, index=number)
        return _Drawn(bad=True, painted=painted)
    if not len(used):
        return _Drawn()
    runs = runs_of_window(mask, left=0, top=top, height=first.height)
    return _Drawn(category=vocabulary.names[used[0] - 1], mask=runs, painted=painted)


def _band(raw: RawMap, number: int, pages: Sequence[Page]) -> tuple[int, NDArray[np.uint8]] | None:
    """The number of a row, and the colours of the rows from there, perhaps none: all others are black."""
    bands = []
    for page in pages:
        band = raw.page_band(page, number)
        if band is None:
            return None
        bands.append(band)
    top, rows = bands[0]
    if len(bands) > 1:
        top = min(each for each, _ in bands)
        bottom = max(each + len(channel) for each, channel in bands)
        rows = np.zeros((bottom - top, pages[0].width, len(bands)), np.result_type(*(channel for _, channel in bands)))
        for index, (each, channel) in enumerate(bands):
            rows[each - top : each - top + len(channel), :, index] = channel
    colors = raw.colors(rows, index=number)
    return None if colors is None else (top, colors)


def _instances(drawn: Sequence[_Drawn], sidecar: Sidecar[int]) -> Iterator[Instance]:
    for number, each in enumerate(drawn, start=1):
        if each.mask is not None:
            crowd, ignore = number in sidecar.crowd, number in sidecar.ignore
            yield Instance(category=each.category, mask=each.mask, crowd=crowd, ignore=ignore)


def _warn_of_empty(raw: RawMap, drawn: Sequence[_Drawn]) -> None:
    """A black page among others is nobody's; alone it says that nothing is there."""
    for number, each in enumerate(drawn):
        if each.mask is None and not each.bad:
            message = f"the page of instance {number + 1} is black: it is left out"
            raw.report.warn("empty_page", message, raw.place, index=number, action=Action.DROPPED)
            raw.report.drop("empty_page", raw.place.image, 1)


def _read_page_number(value: Value) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(OBJECTS_MAX)):
        return int(value)
    raise SidecarError("the number of an instance's page is wanted, from 1")
