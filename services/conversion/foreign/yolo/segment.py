"""YOLO segment: a text file an image, a line a polygon: class, then x and y of each corner as shares of the image.

A mask of several parts, or with holes, is one polygon all the same: its rings are joined by a line there and back,
which has no width. Filled by even and odd it is exactly the mask again, here and wherever the fill is exact.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing
from services.conversion.foreign.category_colors import category_colors
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ReadRequest,
    Unannotated,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.yolo.layout import read_layout
from services.conversion.foreign.yolo.lines import category_of, check_shares, pixels, read_lines, share
from services.conversion.foreign.yolo.sink import YoloSink
from services.conversion.foreign.yolo.sniff import BOX, LOOKS_FOR, columns_of
from services.conversion.formats.colors import Colors
from services.conversion.formats.format import MapFile
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError
from services.conversion.raster.polygon import polygons_of_runs, rle_of_polygons
from services.conversion.raster.rle import decode_rles
from services.conversion.task import Task

JOINED = "whose outlines are joined by lines of no width: YOLO has one polygon an object; some tools draw those lines"
LOST = {
    "crowd": "crowds are written as single objects: YOLO has none",
    "ignore": "regions to ignore are left out: YOLO has none",
    "holes": f"masks have holes, {JOINED}",
    "parts": f"masks have several parts, {JOINED}",
}


class YoloSegment:
    """Masks."""

    name = "YOLO segment"
    tasks: Sequence[Task] = (Task.INSTANCE_SEGMENTATION,)
    copies_images = False
    looks_for = f"{LOOKS_FOR} of a class and more than 4 numbers, not all of them 8"

    async def recognises(self, files: Files) -> bool:
        found = await columns_of(files)
        return (
            found.has_description
            and not found.points
            and len(found.columns) > 0
            and min(found.columns) > BOX
            and found.columns != {9}
        )

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        layout = await read_layout(files, request, report)
        null = request.unannotated is Unannotated.NULL
        names = layout.names.names
        return layout.dataset(
            task=Task.INSTANCE_SEGMENTATION,
            vocabulary=Colors(names=names, colors=category_colors(names)),
            codec=YoloMasks(empty_is_null=null),
            missing_is_null=null,
        )

    def write(self, request: WriteRequest) -> Writing:
        return Writing(codec=YoloMasks(), sink=YoloSink(request, lost=LOST))


@dataclass(frozen=True, kw_only=True)
class YoloMasks:
    """Masks of one image. `empty_is_null`: a file without a line says nothing."""

    empty_is_null: bool = False

    def read(
        self, value: MapFile | tuple[()], size: ImageSize, place: Place, vocabulary: Colors, report: Report
    ) -> InstanceMap | None:
        if isinstance(value, tuple):
            return InstanceMap(width=size.width, height=size.height, instances=())

        def read(thing: RawThing, number: str, shares: list[float]) -> _Drawn | None:
            category = category_of(thing, number, vocabulary.names)
            if len(shares) < 6 or len(shares) % 2:
                hint = ", a box as YOLO detect has it" if len(shares) == 4 else ""
                message = f"the line has {len(shares)} coordinates{hint}: a polygon has x and y of 3 corners or more"
                thing.error("wrong_coordinate_count", message, value=str(shares[:16]))
                return None
            if thing.bad or not check_shares(thing, shares):
                return None
            polygon = [0.0] * len(shares)
            polygon[::2], polygon[1::2] = pixels(shares[::2], size.width), pixels(shares[1::2], size.height)
            try:
                text = rle_of_polygons([polygon], height=size.height, width=size.width)
            except RasterError as error:
                thing.error(error.rule, f"the polygon {error}", value=str(shares[:16]))
                return None
            return _Drawn(thing=thing, category=category, text=text, shares=shares)

        drawn = read_lines(value, place, report, read)
        if drawn is None or (not drawn and self.empty_is_null):
            return None
        found = []
        masks = decode_rles([each.text for each in drawn], height=size.height, width=size.width)
        for each, mask in zip(drawn, masks, strict=True):
            if mask.starts.size:
                found.append(Instance(category=each.category, mask=mask))
            else:
                message = "the polygon covers no pixel: leave it out"
                each.thing.error("no_area", message, value=str(each.shares[:16]))
        if drawn and not found:
            return None
        return InstanceMap(width=size.width, height=size.height, instances=tuple(found))

    def write(self, annotation: InstanceMap, size: ImageSize, vocabulary: Colors) -> Fragment:
        lines = []
        numbers = {name: number for number, name in enumerate(vocabulary.names)}
        lost = {"crowd": 0, "ignore": 0, "holes": 0, "parts": 0}
        across, down = annotation.width, annotation.height  # shares are the same at any size
        for each in annotation.instances:
            if each.ignore:
                lost["ignore"] += 1
                continue
            lost["crowd"] += each.crowd
            rings = polygons_of_runs(each.mask, height=down, width=across)
            holes = sum(map(_is_hole, rings))
            lost["holes"] += holes > 0
            lost["parts"] += len(rings) - holes > 1
            coordinates = " ".join(f"{share(x, across)} {share(y, down)}" for x, y in _joined(rings))
            lines.append(f"{numbers[each.category]} {coordinates}\n".encode())
        return Fragment(pieces=tuple(lines), lost={kind: count for kind, count in lost.items() if count})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """A line's polygon, whose mask is still an RLE's text."""

    thing: RawThing
    category: str
    text: bytes
    shares: list[float]


def _is_hole(ring: Sequence[int]) -> bool:
    """Outlines go clockwise, holes the other way round."""
    xs, ys = ring[::2], ring[1::2]
    area = sum(x * (after - before) for x, after, before in zip(xs, [*ys[1:], ys[0]], [ys[-1], *ys[:-1]], strict=True))
    return area < 0


def _joined(rings: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """One polygon of several rings: from the first corner of the first one to each other ring and back."""
    corners: list[tuple[int, int]] = []
    for ring in rings:
        points = list(zip(ring[::2], ring[1::2], strict=True))
        corners += [corners[0], *points, points[0]] if corners else points
    return corners
