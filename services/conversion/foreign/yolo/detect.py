"""YOLO detect: a text file an image, a line a box: class, middle, width and height as shares of the image."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_box
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ReadRequest,
    Unannotated,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.yolo.layout import read_layout
from services.conversion.foreign.yolo.lines import DIGITS, category_of, check_shares, read_lines, share
from services.conversion.foreign.yolo.sink import YoloSink
from services.conversion.foreign.yolo.sniff import BOX, LOOKS_FOR, columns_of
from services.conversion.formats.bounding_box import clipped
from services.conversion.formats.format import MapFile
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box, Boxes
from services.conversion.index import ImageSize
from services.conversion.task import Task

LOST = {
    "crowd": "crowds are written as single objects: YOLO has none",
    "ignore": "regions to ignore are left out: YOLO has none",
    "clipped": "boxes are clipped to their images: YOLO has nothing outside",
}


class YoloDetect:
    """Boxes."""

    name = "YOLO detect"
    tasks: Sequence[Task] = (Task.OBJECT_DETECTION,)
    copies_images = False
    looks_for = f"{LOOKS_FOR} of a class and 4 numbers, all of them"

    async def recognises(self, files: Files) -> bool:
        found = await columns_of(files)
        return found.has_description and not found.points and found.columns == {BOX}

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        layout = await read_layout(files, request, report)
        null = request.unannotated is Unannotated.NULL
        return layout.dataset(
            task=Task.OBJECT_DETECTION,
            vocabulary=layout.names,
            codec=YoloBoxes(empty_is_null=null),
            missing_is_null=null,
        )

    def write(self, request: WriteRequest) -> Writing:
        return Writing(codec=YoloBoxes(), sink=YoloSink(request, lost=LOST))


@dataclass(frozen=True, kw_only=True)
class YoloBoxes:
    """Boxes of one image. `empty_is_null`: a file without a line says nothing."""

    empty_is_null: bool = False

    def read(
        self, value: MapFile | tuple[()], size: ImageSize, place: Place, vocabulary: Names, report: Report
    ) -> Boxes | None:
        if isinstance(value, tuple):
            return ()

        def read(thing: RawThing, number: str, shares: list[float]) -> Box | None:
            category = category_of(thing, number, vocabulary.names)
            if len(shares) != 4:
                hint = ", a polygon as YOLO segment has it" if len(shares) > 5 else ""
                message = f"the line has {len(shares)} coordinates{hint}, but a box has 4: x, y, width and height"
                thing.error("wrong_coordinate_count", message, value=str(shares[:16]))
                return None
            if thing.bad or not check_shares(thing, shares):
                return None
            x, y, width, height = shares
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            sides = (size.width, size.height) * 2
            xmin, ymin, xmax, ymax = (round(c * side, DIGITS) for c, side in zip(corners, sides, strict=True))
            box = check_box(thing, (xmin, ymin, xmax, ymax), size, shares)
            return None if box is None else Box(category=category, bbox=box)

        found = read_lines(value, place, report, read)
        return None if found is None or (not found and self.empty_is_null) else tuple(found)

    def write(self, annotation: Boxes, size: ImageSize, vocabulary: Names) -> Fragment:
        lines = []
        numbers = {name: number for number, name in enumerate(vocabulary.names)}
        lost = {"crowd": 0, "ignore": 0, "clipped": 0}
        for each in annotation:
            if each.ignore:
                lost["ignore"] += 1
                continue
            lost["crowd"] += each.crowd
            box = clipped(each.bbox, size)
            lost["clipped"] += box != each.bbox
            xmin, ymin, xmax, ymax = box
            across, down = size.width, size.height
            line = (
                share((xmin + xmax) / 2, across), share((ymin + ymax) / 2, down),
                share(xmax - xmin, across), share(ymax - ymin, down),
            )  # fmt: skip
            lines.append(f"{numbers[each.category]} {' '.join(line)}\n".encode())
        return Fragment(pieces=tuple(lines), lost={kind: count for kind, count in lost.items() if count})
