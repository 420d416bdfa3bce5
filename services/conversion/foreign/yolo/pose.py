"""YOLO pose: a text file an image, a line an object: class, box, then x, y and perhaps visibility of each point.

data.yaml says how many points with how many numbers there are (`kpt_shape`), which of them a mirror exchanges
(`flip_idx`: for each point the one that takes its place), and, in newer files, what they are called (`kpt_names`).
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from services.conversion.conveyor.sink import Fragment
from services.conversion.file import document
from services.conversion.file.document import List, shown
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_box
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    Unannotated,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.keypoint_names import keypoints_of
from services.conversion.foreign.yolo.layout import YoloLayout, read_layout
from services.conversion.foreign.yolo.lines import DIGITS, category_of, check_shares, read_lines, share
from services.conversion.foreign.yolo.sink import YoloSink
from services.conversion.foreign.yolo.sniff import LOOKS_FOR, columns_of
from services.conversion.formats.bounding_box import Bbox, bounds, clipped, has_area
from services.conversion.formats.format import MapFile
from services.conversion.formats.keypoint_detection import Instance, Instances, Keypoints
from services.conversion.formats.names import NAMES_MAX, RESERVED_NAMES, is_name
from services.conversion.formats.number import Point
from services.conversion.index import ImageSize
from services.conversion.task import Task

KEYS = ("kpt_shape", "flip_idx", "kpt_names")
CLASS = "person"
"""What all objects are called, as natively they have no category."""
NOT_THERE, VISIBLE = 0, 2
LOST = {
    "crowd": "crowds are written as single objects: YOLO has none",
    "ignore": "regions to ignore are left out: YOLO has none",
    "clipped": "boxes are clipped to their images: YOLO has nothing outside",
    "outside": "points outside their images are left out: YOLO has nothing outside",
    "boxed": "objects get the box around their points: YOLO wants one",
    "placeless": "objects without a box that has an area are left out: YOLO wants one",
    "area": "areas of objects are left out: YOLO has none",
    "sigmas": "sigmas of points are left out: YOLO has none",
}


class YoloPose:
    """Objects with points."""

    name = "YOLO pose"
    tasks: Sequence[Task] = (Task.KEYPOINT_DETECTION,)
    copies_images = False
    looks_for = f"{LOOKS_FOR}, and `kpt_shape` in data.yaml"

    async def recognises(self, files: Files) -> bool:
        return (await columns_of(files)).points

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        layout = await read_layout(files, request, report, known=KEYS)
        points, numbers = _read_shape(layout)
        if len(layout.names.names) > 1:
            message = f"{len(layout.names.names)} classes become one: natively objects with points have no category"
            report.warn("not_kept", message, layout.place, value=", ".join(layout.names.names)[:200])
        null = request.unannotated is Unannotated.NULL
        return layout.dataset(
            task=Task.KEYPOINT_DETECTION,
            vocabulary=keypoints_of(points, _read_flips(layout, points)),
            codec=YoloPoints(classes=layout.names.names, numbers=numbers, empty_is_null=null),
            missing_is_null=null,
        )

    def write(self, request: WriteRequest) -> Writing:
        vocabulary: Keypoints = request.vocabulary
        names = vocabulary.names.names
        (name,) = request.category_ids if len(request.category_ids) == 1 else (CLASS,)
        mirrored = {**dict(vocabulary.flip_pairs), **{right: left for left, right in vocabulary.flip_pairs}}
        flips = [names.index(mirrored.get(point, point)) for point in names]
        more = [
            f"kpt_shape: [{len(names)}, 3]",
            f"flip_idx: {flips}",
            f"kpt_names:\n  0: {json.dumps(list(names), ensure_ascii=False)}",
        ]
        sink = YoloSink(request, lost=LOST, names=(name,), more=more)
        if vocabulary.sigmas != keypoints_of(names).sigmas:
            sink.losses.add({"sigmas": len(names)})
        return Writing(codec=YoloPoints(classes=(name,), numbers=3), sink=sink)


@dataclass(frozen=True, kw_only=True)
class YoloPoints:
    """Objects of one image. `numbers` of each point: x, y and, where it is 3, visibility."""

    classes: tuple[str, ...]
    numbers: int
    empty_is_null: bool = False

    def read(
        self, value: MapFile | tuple[()], size: ImageSize, place: Place, vocabulary: Keypoints, report: Report
    ) -> Instances | None:
        if isinstance(value, tuple):
            return ()
        names = vocabulary.names.names
        wanted = 4 + self.numbers * len(names)

        def read(thing: RawThing, number: str, shares: list[float]) -> Instance | None:
            category_of(thing, number, self.classes)
            if len(shares) != wanted:
                message = f"the line has {len(shares)} numbers, but `kpt_shape` asks for {wanted}: a box and the points"
                thing.error("wrong_coordinate_count", message, value=str(shares[:16]))
                return None
            x, y, width, height = shares[:4]
            flat = shares[4:]
            there = [
                (name, flat[at], flat[at + 1])
                for name, at in zip(names, range(0, len(flat), self.numbers), strict=True)
                if (flat[at + 2] != NOT_THERE if self.numbers > 2 else (flat[at], flat[at + 1]) != (0, 0))
            ]
            inside = [*shares[:4], *(number for _, *point in there for number in point)]
            if thing.bad or not check_shares(thing, inside):
                return None
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            sides = (size.width, size.height) * 2
            xmin, ymin, xmax, ymax = (round(c * side, DIGITS) for c, side in zip(corners, sides, strict=True))
            box = check_box(thing, (xmin, ymin, xmax, ymax), size, shares[:4])
            points: dict[str, Point | None] = {
                name: (round(across * size.width, DIGITS), round(down * size.height, DIGITS))
                for name, across, down in there
            }
            return None if box is None else Instance(points=points, bbox=box)

        found = read_lines(value, place, report, read)
        return None if found is None or (not found and self.empty_is_null) else tuple(found)

    def write(self, annotation: Instances, size: ImageSize, vocabulary: Keypoints) -> Fragment:
        lines = []
        lost = dict.fromkeys(LOST, 0)
        for each in annotation:
            if each.ignore:
                lost["ignore"] += 1
                continue
            found = each.bbox or (bounds(each.places) if each.places else (0.0, 0.0, 0.0, 0.0))
            box = clipped(found, size)
            if not has_area(box):
                lost["placeless"] += 1
                continue
            lost["crowd"] += each.crowd
            lost["area"] += each.area is not None
            lost["boxed"] += each.bbox is None
            lost["clipped"] += box != found
            points = []
            for name in vocabulary.names.names:
                point = each.points.get(name)
                if point is not None and not (0 <= point[0] <= size.width and 0 <= point[1] <= size.height):
                    lost["outside"] += 1
                    point = None
                points.append(_written(point, size))
            lines.append(f"0 {_written_box(box, size)} {' '.join(points)}\n".encode())
        return Fragment(pieces=tuple(lines), lost={kind: count for kind, count in lost.items() if count})


def _written(point: Point | None, size: ImageSize) -> str:
    if point is None:
        return f"0 0 {NOT_THERE}"
    return f"{share(point[0], size.width)} {share(point[1], size.height)} {VISIBLE}"


def _written_box(box: Bbox, size: ImageSize) -> str:
    xmin, ymin, xmax, ymax = box
    across, down = size.width, size.height
    middle = f"{share((xmin + xmax) / 2, across)} {share((ymin + ymax) / 2, down)}"
    return f"{middle} {share(xmax - xmin, across)} {share(ymax - ymin, down)}"


def _read_shape(layout: YoloLayout) -> tuple[tuple[str, ...], int]:
    """The names of the points, and how many numbers each has. Raises ForeignError."""
    description, place = layout.description, layout.place
    shape = description.get("kpt_shape")
    numbers = [int(each) for each in shape if _is_whole(each)] if isinstance(shape, List) else []
    if len(numbers) != 2 or not 0 < numbers[0] <= NAMES_MAX or numbers[1] not in (2, 3):
        message = "`kpt_shape` must be [points, 2 or 3], such as [17, 3]"
        raise ForeignError("missing_key", message, place, value=shown(shape))
    count = numbers[0]
    found = description.get("kpt_names")
    listed: Any = next(iter(found.values()), None) if isinstance(found, document.Mapping) else found
    names = tuple(each for each in listed if isinstance(each, str)) if isinstance(listed, List) else ()
    if not names:
        names = tuple(f"point {number}" for number in range(count))
    bad = [name for name in names if not is_name(name) or name in RESERVED_NAMES]
    if len(names) != count or len(set(names)) != count or bad:
        message = f"`kpt_names` must be {count} different names, one a point"
        raise ForeignError("bad_name", message, replace(place, line=description.lines["kpt_names"]))
    return names, numbers[1]


def _read_flips(layout: YoloLayout, points: Sequence[str]) -> tuple[tuple[str, str], ...] | None:
    """Pairs of points that a mirror exchanges; None where nothing is said. Raises ForeignError."""
    flips = layout.description.get("flip_idx")
    if flips is None:
        return None
    numbers = [int(each) for each in flips if _is_whole(each)] if isinstance(flips, List) else []
    if sorted(numbers) != list(range(len(points))) or any(numbers[numbers[k]] != k for k in range(len(points))):
        message = f"`flip_idx` must exchange the {len(points)} points in pairs: for each the number of the other"
        place = replace(layout.place, line=layout.description.lines["flip_idx"])
        raise ForeignError("bad_value", message, place, value=shown(flips))
    return tuple((points[k], points[other]) for k, other in enumerate(numbers) if k < other)


def _is_whole(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 7
