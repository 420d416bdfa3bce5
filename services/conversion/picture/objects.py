"""Boxes, quadrilaterals and keypoints on their image."""

from __future__ import annotations

from collections.abc import Sequence

from services.conversion.formats.bounding_box import Bbox, bounds
from services.conversion.formats.colors import Color
from services.conversion.formats.keypoint_detection import Instance, Instances, Keypoints
from services.conversion.formats.names import Names
from services.conversion.formats.number import Point
from services.conversion.formats.object_detection import Boxes
from services.conversion.formats.quadrilateral_detection import Quads
from services.conversion.picture.canvas import Canvas, Stroke
from services.conversion.picture.color import IGNORED, WHITE
from services.conversion.picture.legend import Entry, Labelled, category_legend, colors_of

OBJECTS_MAX = 400
"""Objects that are drawn on one image; the legend says where there are more."""
TAGGED_MAX = 40
"""Objects that get a word of their own: among more of them no word would find room."""


def draw_boxes(canvas: Canvas, boxes: Boxes, vocabulary: Names) -> Sequence[Entry]:
    """Boxes in the colours of their categories."""
    colors = colors_of(vocabulary.names, (each.category for each in boxes), canvas.colors)
    for each in boxes[:OBJECTS_MAX]:
        canvas.outline(_corners(each.bbox), _color(each, colors), stroke=_stroke(each))
    _tag(canvas, [(each, each.bbox) for each in boxes], colors, vocabulary)
    return [*category_legend(boxes, colors), *_left_out(len(boxes))]


def draw_quads(canvas: Canvas, quads: Quads, vocabulary: Names) -> Sequence[Entry]:
    """Quadrilaterals in the colours of their categories: the first corner is white, the first side has an arrow."""
    colors = colors_of(vocabulary.names, (each.category for each in quads), canvas.colors)
    for each in quads[:OBJECTS_MAX]:
        canvas.outline(each.quad, _color(each, colors), stroke=_stroke(each))
        xmin, ymin, xmax, ymax = bounds(each.quad)
        room = min(xmax - xmin, ymax - ymin)
        canvas.arrow(each.quad[0], each.quad[1], _color(each, colors), size_max=room)
        canvas.dot(each.quad[0], WHITE, size_max=room / 2)
    _tag(canvas, [(each, bounds(each.quad)) for each in quads], colors, vocabulary)
    return [*category_legend(quads, colors), *_left_out(len(quads))]


def draw_keypoints(canvas: Canvas, instances: Instances, vocabulary: Keypoints) -> Sequence[Entry]:
    """Each point in the colour of its name; around each object its box, or that of its points."""
    colors = colors_of(vocabulary.names.names, (name for each in instances for name in each.points), {})
    found = set()
    for each in instances[:OBJECTS_MAX]:
        around = each.bbox or (bounds(each.places) if each.places else None)
        if around is not None:
            color = IGNORED if each.ignore else WHITE
            canvas.outline(_corners(around), color, stroke=_stroke(each))
    for each in instances[:OBJECTS_MAX]:
        for name, point in each.points.items():
            if point is not None:
                found.add(name)
                canvas.dot(point, IGNORED if each.ignore else colors[name])
    ignored = sum(each.ignore for each in instances)
    crowds = sum(each.crowd and not each.ignore for each in instances)
    plain = len(instances) - crowds - ignored
    legend = [Entry(text=f"objects: {plain}", color=WHITE)] if plain else []
    legend += [Entry(text=f"crowd: {crowds}", color=WHITE, striped=True)] if crowds else []
    legend += [Entry(text=f"to ignore: {ignored}", color=IGNORED)] if ignored else []
    legend += [Entry(text=name, color=color) for name, color in colors.items() if name in found]
    return [*legend, *_left_out(len(instances))]


def _corners(box: Bbox) -> tuple[Point, Point, Point, Point]:
    xmin, ymin, xmax, ymax = box
    return (xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax)


def _color(each: Labelled, colors: dict[str, Color]) -> Color:
    return IGNORED if each.ignore else colors[each.category]


def _stroke(each: Labelled | Instance) -> Stroke:
    return Stroke.DASHED if each.crowd else Stroke.SOLID


def _tag(canvas: Canvas, found: Sequence[tuple[Labelled, Bbox]], colors: dict[str, Color], vocabulary: Names) -> None:
    """Words at the objects, the largest first; none where they would all be the same."""
    if len(vocabulary.names) < 2 or len(found) > TAGGED_MAX:
        return
    kept = [(each, box) for each, box in found if not each.ignore]
    for each, box in sorted(kept, key=lambda pair: (pair[1][0] - pair[1][2]) * (pair[1][3] - pair[1][1])):
        canvas.tag((box[0], box[1]), each.category, colors[each.category], box[2] - box[0])


def _left_out(count: int) -> list[Entry]:
    return [Entry(text=f"the first {OBJECTS_MAX} of {count} are drawn")] if count > OBJECTS_MAX else []
