"""Shapes to the annotation of a task, by the rules of the native format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_box, check_quad
from services.conversion.foreign.shapes.shape import Shape, ShapeKind
from services.conversion.foreign.shapes.tally import OBJECTS, TAKEN
from services.conversion.formats.bounding_box import bounds
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.keypoint_detection import Instance as PointsInstance
from services.conversion.formats.number import NUMBER_MAX
from services.conversion.formats.object_detection import Box
from services.conversion.formats.quadrilateral_detection import Corners, Quad
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError
from services.conversion.raster.polygon import runs_of_polygons
from services.conversion.raster.runs import Runs, bounds_of_runs, runs_of_bounds
from services.conversion.task import Task

OBJECTS_MAX = 100_000
"""Shapes of one image."""
K = ShapeKind


@dataclass(frozen=True, kw_only=True)
class ShapeReader:
    """Reads the shapes of images of one task. `known` are the names of its vocabulary."""

    task: Task
    known: frozenset[str]

    def read(self, shapes: Sequence[Shape], size: ImageSize, place: Place, report: Report) -> Any:
        """The annotation; None where nothing is known, or all was bad, which is in the report."""
        if len(shapes) > OBJECTS_MAX:
            message = f"the image has {len(shapes)} shapes, but at most {OBJECTS_MAX} may be"
            report.error("too_many_objects", message, place, value=str(len(shapes)), annotations=len(shapes))
            return None
        things = [
            (
                RawThing(place=Place(file=place.file, line=each.line, image=place.image), index=index, report=report),
                each,
            )
            for index, each in enumerate(shapes)
        ]
        if self.task in (Task.MULTICLASS_CLASSIFICATION, Task.MULTILABEL_CLASSIFICATION):
            return self._tags([(thing, each) for thing, each in things if each.kind is K.TAG])
        taken = [(thing, each) for thing, each in things if self._is_taken(thing, each)]
        if self.task is Task.INSTANCE_SEGMENTATION:
            found: Any = self._instances(taken, size)
        elif self.task is Task.KEYPOINT_DETECTION:
            found = self._points(taken, size)
        elif self.task is Task.QUADRILATERAL_DETECTION:
            found = self._quads(taken, size)
        else:
            found = self._boxes(taken, size)
        wanted = any(each.kind in OBJECTS or each.kind is K.POINTS for each in shapes)
        if wanted and not found and any(thing.bad for thing, _ in things):
            return None
        if self.task is Task.INSTANCE_SEGMENTATION:
            return InstanceMap(width=size.width, height=size.height, instances=tuple(found))
        return tuple(found)

    def _is_taken(self, thing: RawThing, each: Shape) -> bool:
        """Whether a shape is one of the task's, and sound so far. What is an object and none of its is an error."""
        if each.problem is not None:
            thing.error(*each.problem)
        elif each.kind not in TAKEN[self.task]:
            if each.kind in OBJECTS and self.task is not Task.KEYPOINT_DETECTION:
                wanted = " or ".join(sorted(TAKEN[self.task]))
                message = (
                    f"the {each.label!r} is a {each.kind}, where others are a {wanted}: draw it so, leave it out, or "
                    "import what all of them are (task: object detection)"
                )
                thing.error("missing_key", message, value=str(each.kind))
            return False
        elif self.task is not Task.KEYPOINT_DETECTION and each.label not in self.known:
            thing.error(
                "undeclared_category", f"the label {each.label!r} can be no category: mend it", value=each.label
            )
        elif not all(-NUMBER_MAX <= number <= NUMBER_MAX for number in each.numbers):
            rule = "not_finite" if any(number != number for number in each.numbers) else "number_too_large"
            thing.error(rule, "a coordinate is none that can be used: mend it", value=str(each.numbers[:8]))
        return not thing.bad

    def _tags(self, tags: Sequence[tuple[RawThing, Shape]]) -> Any:
        names: dict[str, None] = {}
        for thing, each in tags:
            if each.label not in self.known:
                thing.error("undeclared_category", f"the label {each.label!r} can be no category", value=each.label)
            else:
                names[each.label] = None
        if self.task is Task.MULTILABEL_CLASSIFICATION:
            return None if tags and not names else tuple(names)
        if len(names) > 1:
            first = tags[0][0]
            message = f"the image has {len(names)} labels, but may have one: import as multilabel classification"
            first.error("repeated_label", message, value=", ".join(names))
            return None
        return next(iter(names), None)

    def _boxes(self, taken: Sequence[tuple[RawThing, Shape]], size: ImageSize) -> list[Box]:
        found = []
        for thing, each in taken:
            if each.kind is K.MASK:
                mask = _drawn(thing, [each], size)
                box = None if mask is None else tuple(map(float, bounds_of_runs(mask, height=size.height)))
            elif each.kind is K.BOX:
                box = each.numbers
            else:
                box = bounds(_corners(each.numbers)) if len(each.numbers) >= 6 else ()
            if box is None or thing.bad:
                continue
            if len(box) != 4:
                thing.error("wrong_coordinate_count", f"the {each.kind} has too few corners", value=str(each.numbers))
                continue
            checked = check_box(thing, (box[0], box[1], box[2], box[3]), size, each.numbers or box)
            if checked is not None:
                found.append(Box(category=each.label, bbox=checked, crowd=each.crowd, ignore=each.ignore))
        return found

    def _quads(self, taken: Sequence[tuple[RawThing, Shape]], size: ImageSize) -> list[Quad]:
        found = []
        for thing, each in taken:
            numbers = each.numbers
            if each.kind is K.BOX and len(numbers) == 4:
                left, top, right, bottom = numbers
                numbers = (left, top, right, top, right, bottom, left, bottom)
            quad = check_quad(thing, numbers, size)
            if quad is not None:
                found.append(Quad(category=each.label, quad=quad, crowd=each.crowd, ignore=each.ignore))
        return found

    def _points(self, taken: Sequence[tuple[RawThing, Shape]], size: ImageSize) -> list[PointsInstance]:
        """Objects with points; a box of the same group is the object's."""
        boxes: dict[str, Shape] = {each.group: each for _, each in taken if each.kind is K.BOX and each.group}
        found = []
        for thing, each in taken:
            if each.kind is K.BOX:
                if not each.group or each.group not in {o.group for _, o in taken if o.kind is K.POINTS}:
                    box = check_box(thing, _four(each.numbers), size, each.numbers)
                    if box is not None:
                        found.append(PointsInstance(points={}, bbox=box, crowd=each.crowd, ignore=each.ignore))
                continue
            bad = next(
                (name for name, point in each.points.items() if not all(abs(c) <= NUMBER_MAX for c in point)), ""
            )
            unknown = next((name for name in each.points if name not in self.known), "")
            if bad or unknown:
                message = f"the point {bad or unknown!r} has no place or no name that can be used: mend it"
                thing.error("bad_value", message, value=bad or unknown)
                continue
            box = None
            if each.group in boxes and each.group:
                box = check_box(thing, _four(boxes[each.group].numbers), size, boxes[each.group].numbers)
            if not thing.bad:
                points: dict[str, Any] = dict(each.points)
                found.append(PointsInstance(points=points, bbox=box, crowd=each.crowd, ignore=each.ignore))
        return found

    def _instances(self, taken: Sequence[tuple[RawThing, Shape]], size: ImageSize) -> list[Instance]:
        """Masks; shapes of one group and label are one object."""
        objects: dict[tuple[str, str, int], list[tuple[RawThing, Shape]]] = {}
        for thing, each in taken:
            key = (each.group, each.label, -1) if each.group else ("", "", thing.index)
            objects.setdefault(key, []).append((thing, each))
        found = []
        for parts in objects.values():
            thing, first = parts[0]
            mask = _drawn(thing, [each for _, each in parts], size)
            if mask is not None:
                found.append(Instance(category=first.label, mask=mask, crowd=first.crowd, ignore=first.ignore))
        return found


def _drawn(thing: RawThing, parts: Sequence[Shape], size: ImageSize) -> Runs | None:
    """The mask of an object's parts together; None where it is bad, or covers no pixel."""
    polygons = [each.numbers for each in parts if each.draw is None]
    for numbers in polygons:
        if len(numbers) < 6 or len(numbers) % 2:
            message = f"a polygon has {len(numbers)} numbers, but must have x and y of at least three corners"
            thing.error("wrong_coordinate_count", message, value=str(numbers[:8]))
            return None
    try:
        masks = [runs_of_polygons(polygons, height=size.height, width=size.width)] if polygons else []
        masks += [each.draw(size) for each in parts if each.draw is not None]
    except RasterError as error:
        thing.error(error.rule, f"the shape {error}")
        return None
    mask = masks[0] if len(masks) == 1 else _union(masks)
    if not mask.starts.size:
        thing.error("no_area", f"the {parts[0].kind} covers no pixel: leave it out", value=str(parts[0].numbers[:8]))
        return None
    return mask


def _union(masks: Sequence[Runs]) -> Runs:
    """All pixels of any of the masks."""
    starts = np.concatenate([mask.starts for mask in masks])
    ends = starts + np.concatenate([mask.lengths for mask in masks])
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.ones(starts.size, np.bool_)
    first[1:] = starts[1:] > ends[:-1]
    last = np.append(first[1:], True)
    return runs_of_bounds(starts[first], ends[last])


def _corners(numbers: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _four(numbers: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = numbers
    return left, top, right, bottom


def quad_numbers(quad: Corners) -> tuple[float, ...]:
    """x and y of each corner."""
    return tuple(number for point in quad for number in point)
