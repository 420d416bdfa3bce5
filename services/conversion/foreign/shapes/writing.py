"""The annotation of a task as shapes, for the writers of annotation tools' files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from services.conversion.foreign.scaling import scaled_runs
from services.conversion.foreign.shapes.reading import quad_numbers
from services.conversion.foreign.shapes.shape import Shape, ShapeKind
from services.conversion.formats.bounding_box import bounds, has_area
from services.conversion.index import ImageSize
from services.conversion.raster.runs import Runs
from services.conversion.task import Task

LOST = {
    "crowd": "crowds are written as single objects: the format has none",
    "ignore": "regions to ignore are left out: the format has none",
    "scaled": "masks are scaled up to their images, as the format wants them",
    "area": "areas of objects are left out: the format has none",
    "boxes": "boxes of objects with points are left out: the format has none",
    "pointless": "objects without any point are left out: the format has none",
    "boxed": "objects get the box around their points: without one the format cannot tell objects apart",
    "quads": "quadrilaterals are written as polygons: to have them back import with the task quadrilateral detection",
    "absent": "points that were said to be nowhere are left out, which says the same",
}
"""What a format may lose of shapes, to follow a number."""
HALF = 0.5
"""Of a pixel: a single point has a box of one pixel."""
INSTANCE = "instance"
"""The label of objects with points, which natively have none."""


def shapes_of(
    task: Task, annotation: Any, size: ImageSize, *, boxed: bool, box_all: bool = False
) -> tuple[list[Shape], dict[str, int]]:
    """The shapes, and what is lost. `boxed`: an object's box can stand beside its points, in one group; `box_all`: it
    must."""
    lost: dict[str, int] = {}
    if task is Task.MULTICLASS_CLASSIFICATION:
        return [Shape(kind=ShapeKind.TAG, label=annotation)], lost
    if task is Task.MULTILABEL_CLASSIFICATION:
        return [Shape(kind=ShapeKind.TAG, label=label) for label in annotation], lost
    objects: Sequence[Any] = annotation.instances if task is Task.INSTANCE_SEGMENTATION else annotation
    kept = [each for each in objects if not each.ignore]
    lost |= {"ignore": len(objects) - len(kept), "crowd": sum(each.crowd for each in kept)}
    shapes: list[Shape] = []
    if task is Task.INSTANCE_SEGMENTATION:
        masks = scaled_runs([each.mask for each in kept], annotation.width, annotation.height, size)
        lost["scaled"] = len(masks) if (annotation.width, annotation.height) != (size.width, size.height) else 0
        shapes = [_mask(each.category, mask) for each, mask in zip(kept, masks, strict=True)]
    elif task is Task.KEYPOINT_DETECTION:
        shapes = _points(kept, lost, boxed=boxed, box_all=box_all)
    elif task is Task.QUADRILATERAL_DETECTION:
        shapes = [Shape(kind=ShapeKind.QUAD, label=each.category, numbers=quad_numbers(each.quad)) for each in kept]
    else:
        shapes = [Shape(kind=ShapeKind.BOX, label=each.category, numbers=each.bbox) for each in kept]
    return shapes, {kind: count for kind, count in lost.items() if count}


def _mask(label: str, mask: Runs) -> Shape:
    return Shape(kind=ShapeKind.MASK, label=label, draw=lambda _: mask)


def _points(objects: Sequence[Any], lost: dict[str, int], *, boxed: bool, box_all: bool) -> list[Shape]:
    shapes = []
    counts: Counter[str] = Counter()
    for number, each in enumerate(objects, start=1):
        points = {name: point for name, point in each.points.items() if point is not None}
        counts["absent"] += len(each.points) - len(points)
        counts["area"] += each.area is not None
        box = each.bbox if boxed else None
        counts["boxes"] += each.bbox is not None and box is None
        if box_all and box is None and points and len(objects) > 1:
            left, top, right, bottom = around = bounds(list(points.values()))
            box = around if has_area(around) else (left - HALF, top - HALF, right + HALF, bottom + HALF)
            counts["boxed"] += 1
        if box is not None:
            shapes.append(Shape(kind=ShapeKind.BOX, label=INSTANCE, numbers=box, group=str(number)))
        if points:
            shapes.append(Shape(kind=ShapeKind.POINTS, label=INSTANCE, points=points, group=str(number)))
        counts["pointless"] += not points and box is None
    lost |= counts
    return shapes
