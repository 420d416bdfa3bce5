"""COCO keypoints: objects of one category with named points, in and out."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing
from services.conversion.foreign.coco.annotation import (
    RawAnnotation,
    RawImage,
    annotations_of,
    check_image,
    is_absent,
    json_bytes,
    read_area,
    read_box,
    read_category,
    read_flag,
    read_numbers,
    shown,
)
from services.conversion.foreign.coco.document import (
    CocoAnnotation,
    CocoCategory,
    CocoDocument,
    choose_document,
    read_categories,
    read_coco,
    read_contents,
    report_repeated_ids,
)
from services.conversion.foreign.coco.sink import CocoSink
from services.conversion.foreign.coco.sniff import is_coco
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.keypoint_names import keypoints_of
from services.conversion.formats.bounding_box import bounds
from services.conversion.formats.keypoint_detection import Instance, Instances, Keypoints
from services.conversion.formats.names import RESERVED_NAMES, is_name
from services.conversion.formats.number import NUMBER_MAX, Point, written
from services.conversion.index import ImageSize
from services.conversion.task import Task

NOT_THERE, OCCLUDED, VISIBLE = 0, 1, 2
CATEGORY_NAME = "person"
LOST = {
    "ignore": "objects to ignore are written with iscrowd 1 and ignore 1: COCO has no such thing",
    "unplaced": "objects have neither a box nor a point, so that their box is written as [0, 0, 0, 0]",
    "visibility": "points are written as visible: which are occluded is not known",
}


class CocoKeypoints:
    """Points of one category."""

    name = "COCO keypoints"
    tasks: Sequence[Task] = (Task.KEYPOINT_DETECTION,)
    copies_images = False
    looks_for = 'a JSON file with "images", "categories" and "annotations" that have "keypoints"'

    async def recognises(self, files: Files) -> bool:
        return await is_coco(files, "keypoints")

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        path = choose_document(files.paths, "keypoints", request.split)
        content = await files.read(path)
        return await files.in_thread(_read_keypoints, content, path, files.paths, request, report)

    def write(self, request: WriteRequest) -> Writing:
        vocabulary: Keypoints = request.vocabulary
        ((category, number),) = (
            list(request.category_ids.items()) if len(request.category_ids) == 1 else [(CATEGORY_NAME, 1)]
        )
        points = vocabulary.names.names
        categories = [{"id": number, "name": category, "keypoints": points, "skeleton": []}]
        return Writing(
            codec=CocoPoints(names={number: category}, points=points),
            sink=CocoSink(request, kind="keypoints", categories=categories, lost=LOST),
        )


@dataclass(frozen=True, kw_only=True)
class CocoPoints:
    """Objects with points. `names`: the one category by its id; `points` in the order of the file."""

    names: Mapping[int, str]
    points: tuple[str, ...]

    def read(
        self, value: RawImage, size: ImageSize, place: Place, vocabulary: Keypoints, report: Report
    ) -> Instances | None:
        if not check_image(value, size, place, report):
            return None
        found: list[Instance] = []
        occluded = 0
        for index, raw in enumerate(value.annotations):
            thing = RawThing(place=place, index=index, report=report)
            read_category(thing, raw, self.names)
            points, hidden = self._read_points(thing, raw, size)
            box = None if is_absent(raw.bbox) or _is_placeless(thing, raw, points) else read_box(thing, raw, size)
            area = read_area(thing, raw)
            crowd, ignore = read_flag(thing, raw.iscrowd, "iscrowd"), read_flag(thing, raw.ignore, "ignore")
            if not thing.bad:
                occluded += hidden
                found.append(Instance(points=points, bbox=box, area=area, crowd=crowd, ignore=ignore))
        if occluded:
            message = (
                f"of the points {occluded} are there and occluded (v = 1): natively they are there, and no more is said"
            )
            report.warn("not_kept", message, place, value="visibility")
        return None if value.annotations and not found else tuple(found)

    def write(self, annotation: Instances, size: ImageSize, vocabulary: Keypoints) -> Fragment:
        (number,) = self.names
        pieces = []
        lost: dict[str, int] = {}
        for each in annotation:
            points = [_triple(each.points.get(name)) for name in self.points]
            there = sum(1 for *_, v in points if v)
            box = each.bbox or (bounds(each.places) if each.places else None)
            xmin, ymin, xmax, ymax = box or (0.0, 0.0, 0.0, 0.0)
            about: dict[str, Any] = {
                "category_id": number,
                "keypoints": [coordinate for point in points for coordinate in point],
                "num_keypoints": there,
                "bbox": [written(each) for each in (xmin, ymin, xmax - xmin, ymax - ymin)],
                "area": written(each.area if each.area is not None else (xmax - xmin) * (ymax - ymin)),
                "iscrowd": int(each.crowd or each.ignore),
            }
            pieces.append(json_bytes({**about, "ignore": 1} if each.ignore else about))
            for kind, count in (("visibility", there), ("ignore", int(each.ignore)), ("unplaced", int(box is None))):
                if count:
                    lost[kind] = lost.get(kind, 0) + count
        return Fragment(pieces=tuple(pieces), lost=lost)

    def _read_points(self, thing: RawThing, raw: RawAnnotation, size: ImageSize) -> tuple[dict[str, Point | None], int]:
        """The points that are there, and how many of them are occluded."""
        if is_absent(raw.keypoints):
            return {}, 0
        numbers = read_numbers(raw.keypoints)
        if numbers is None or len(numbers) != 3 * len(self.points):
            found = "is no list of numbers" if numbers is None else f"has {len(numbers)} values"
            message = f"'keypoints' {found}, but must be [x, y, v] for each of {len(self.points)} points"
            thing.error("wrong_coordinate_count", message, value=shown(raw.keypoints))
            return {}, 0
        points: dict[str, Point | None] = {}
        occluded = 0
        for name, x, y, v in zip(self.points, numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            if v not in (NOT_THERE, OCCLUDED, VISIBLE):
                thing.error("bad_value", f"the visibility of {name!r} must be 0, 1 or 2", value=str(v))
            elif not (-NUMBER_MAX <= x <= NUMBER_MAX and -NUMBER_MAX <= y <= NUMBER_MAX):
                thing.error("number_too_large", f"{name!r} has a coordinate beyond {NUMBER_MAX:g}", value=f"{x}, {y}")
            elif v != NOT_THERE:
                points[name] = (x, y)
                occluded += v == OCCLUDED
                if not (0 <= x <= size.width and 0 <= y <= size.height):
                    message = f"{name!r} lies outside its image of {size.width} x {size.height}"
                    thing.warn("partly_outside_image", message, value=f"{x}, {y}")
        return points, occluded


def _is_placeless(thing: RawThing, raw: RawAnnotation, points: Mapping[str, Point | None]) -> bool:
    """Whether the box has no area because its points have none: one of them, or some in a row. Natively it has none."""
    places = [point for point in points.values() if point is not None]
    xmin, ymin, xmax, ymax = bounds(places) if places else (0.0, 0.0, 0.0, 0.0)
    placeless = min(xmax - xmin, ymax - ymin) == 0 and read_numbers(raw.bbox) == [xmin, ymin, xmax - xmin, ymax - ymin]
    if placeless:
        thing.warn("no_area", "'bbox' has no area, like its points: it is left out", value=shown(raw.bbox))
    return placeless


def _triple(point: Point | None) -> tuple[int | float, int | float, int]:
    if point is None:
        return 0, 0, NOT_THERE
    return written(point[0]), written(point[1]), VISIBLE


def _read_keypoints(
    content: bytes, path: str, paths: Mapping[str, int], request: ReadRequest, report: Report
) -> ForeignDataset:
    document = read_coco(content, "keypoints", path)
    names = read_categories(document, path, report)
    category = _only_category(document, path, report)
    report_repeated_ids(document.annotations, path, report)
    contents = read_contents(document, path, paths, report)
    points = tuple(category.points)
    return ForeignDataset(
        task=Task.KEYPOINT_DETECTION,
        vocabulary=keypoints_of(points),
        codec=CocoPoints(names=names, points=points),
        images=contents.images,
        annotation=annotations_of(contents, request.unannotated),
        metadata={"category_ids": {category.name: category.id}},
    )


def _only_category(document: CocoDocument[CocoAnnotation], path: str, report: Report) -> CocoCategory:
    """The one category that has points; what is annotated of others is no object with points, and is left out."""
    place = Place(file=path)
    categories = [each for each in document.categories if each.points] or document.categories
    if len(categories) == 1 and len(document.categories) > 1:
        others = [each for each in document.annotations if each.category_id != categories[0].id]
        document.annotations = [each for each in document.annotations if each.category_id == categories[0].id]
        names = ", ".join(each.name for each in document.categories if each is not categories[0])
        message = f"{len(others)} annotations of categories without keypoints ({names[:100]}) are left out"
        report.warn("not_kept", message, place, value=names)
    if len(categories) != 1:
        names = ", ".join(each.name for each in categories[:20])
        message = f"keypoints belong to one category, but there are {len(categories)}: {names}; make a file of each"
        raise ForeignError("bad_value", message, place, value=names)
    category = categories[0]
    points = category.points
    bad = next((each for each in points if not is_name(each) or each in RESERVED_NAMES), None)
    if not points or len(set(points)) < len(points) or bad is not None:
        message = "the category's `keypoints` must be different names, at least one: mend them"
        raise ForeignError("bad_name", message, place, value=bad or ", ".join(points))
    return category
