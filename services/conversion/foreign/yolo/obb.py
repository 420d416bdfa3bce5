"""YOLO OBB: a text file an image, a line a box that may be turned: class, x and y of four corners as shares."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_quad
from services.conversion.foreign.format import Files, ForeignDataset, ReadRequest, Unannotated, WriteRequest, Writing
from services.conversion.foreign.yolo.layout import read_layout
from services.conversion.foreign.yolo.lines import DIGITS, category_of, check_shares, read_lines, share
from services.conversion.foreign.yolo.sink import YoloSink
from services.conversion.foreign.yolo.sniff import LOOKS_FOR, columns_of
from services.conversion.formats.bounding_box import bounds, has_area
from services.conversion.formats.format import MapFile
from services.conversion.formats.names import Names
from services.conversion.formats.quadrilateral_detection import Quad, Quads
from services.conversion.index import ImageSize
from services.conversion.task import Task

CORNERS = 8
LOST = {
    "crowd": "crowds are written as single objects: YOLO has none",
    "ignore": "regions to ignore are left out: YOLO has none",
    "nowhere": "boxes that lie wholly outside their images are left out: YOLO has nothing outside",
    "outside": "corners outside their images are moved to the edge: YOLO has nothing outside",
}


class YoloObb:
    """Boxes that are turned."""

    name = "YOLO OBB"
    tasks: Sequence[Task] = (Task.QUADRILATERAL_DETECTION,)
    copies_images = False
    looks_for = f"{LOOKS_FOR} of a class and 8 numbers, all of them"

    async def recognises(self, files: Files) -> bool:
        found = await columns_of(files)
        return found.has_description and not found.points and found.columns == {1 + CORNERS}

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        layout = await read_layout(files, request, report)
        null = request.unannotated is Unannotated.NULL
        return layout.dataset(
            task=Task.QUADRILATERAL_DETECTION,
            vocabulary=layout.names,
            codec=YoloQuads(empty_is_null=null),
            missing_is_null=null,
        )

    def write(self, request: WriteRequest) -> Writing:
        return Writing(codec=YoloQuads(), sink=YoloSink(request, lost=LOST))


@dataclass(frozen=True, kw_only=True)
class YoloQuads:
    """Quadrilaterals of one image. `empty_is_null`: a file without a line says nothing."""

    empty_is_null: bool = False

    def read(
        self, value: MapFile | tuple[()], size: ImageSize, place: Place, vocabulary: Names, report: Report
    ) -> Quads | None:
        if isinstance(value, tuple):
            return ()

        def read(thing: RawThing, number: str, shares: list[float]) -> Quad | None:
            category = category_of(thing, number, vocabulary.names)
            if len(shares) != CORNERS:
                message = f"the line has {len(shares)} coordinates, but a turned box has 8: x and y of four corners"
                thing.error("wrong_coordinate_count", message, value=str(shares[:16]))
                return None
            if thing.bad or not check_shares(thing, shares):
                return None
            sides = (size.width, size.height) * 4
            corners = [round(share * side, DIGITS) for share, side in zip(shares, sides, strict=True)]
            quad = check_quad(thing, corners, size)
            return None if quad is None else Quad(category=category, quad=quad)

        found = read_lines(value, place, report, read)
        return None if found is None or (not found and self.empty_is_null) else tuple(found)

    def write(self, annotation: Quads, size: ImageSize, vocabulary: Names) -> Fragment:
        lines = []
        numbers = {name: number for number, name in enumerate(vocabulary.names)}
        lost = dict.fromkeys(LOST, 0)
        for each in annotation:
            if each.ignore:
                lost["ignore"] += 1
                continue
            lost["crowd"] += each.crowd
            inside = [(min(max(x, 0.0), size.width), min(max(y, 0.0), size.height)) for x, y in each.quad]
            if not has_area(bounds(inside)):
                lost["nowhere"] += 1
                continue
            lost["outside"] += tuple(inside) != tuple(each.quad)
            corners = " ".join(f"{share(x, size.width)} {share(y, size.height)}" for x, y in inside)
            lines.append(f"{numbers[each.category]} {corners}\n".encode())
        return Fragment(pieces=tuple(lines), lost={kind: count for kind, count in lost.items() if count})
