"""The edges between boxes, quadrilaterals, keypoints, and the labels that boxes leave."""

from __future__ import annotations

from dataclasses import replace

from services.conversion.convert.edge import KeypointToDetection, Step, StepOptions
from services.conversion.finding import Action, Place, Report
from services.conversion.formats.bounding_box import Bbox, bounds, clipped, has_area
from services.conversion.formats.keypoint_detection import Instance, Instances, Keypoints
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box, Boxes
from services.conversion.formats.quadrilateral_detection import Corners, Quad, Quads
from services.conversion.index import ImageSize


def quad_to_detection(vocabulary: Names, options: StepOptions | None) -> Step:
    """Minimum and maximum of the corners, clipped to the image; where nothing is left it is dropped."""

    def convert(quads: Quads, size: ImageSize, place: Place, report: Report) -> Boxes | None:
        found = []
        width, height = size.width, size.height
        for index, each in enumerate(quads):
            xmin, ymin, xmax, ymax = bbox = _bounds_of_corners(each.quad)
            # As `clipped` and `has_area` say it: most lie inside, and calls are a large part of so little work.
            if (0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height) or has_area(bbox := clipped(bbox, size)):
                found.append(Box(category=each.category, bbox=bbox, crowd=each.crowd, ignore=each.ignore))
            else:
                _drop("outside_image", "nothing of the quad lies inside the image", index, place, report)
        return _left(found, of=len(quads))

    return Step(vocabulary=vocabulary, convert=convert)


def detection_to_quad(vocabulary: Names, options: StepOptions | None) -> Step:
    """The four corners, clockwise from the top left."""

    def convert(boxes: Boxes, size: ImageSize, place: Place, report: Report) -> Quads:
        found = []
        for each in boxes:
            xmin, ymin, xmax, ymax = each.bbox
            corners = ((xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax))
            found.append(Quad(category=each.category, quad=corners, crowd=each.crowd, ignore=each.ignore))
        return tuple(found)

    return Step(vocabulary=vocabulary, convert=convert)


def keypoint_to_detection(vocabulary: Keypoints, options: StepOptions | None) -> Step:
    """The instance's bbox where it has one, else the bounds of its points, padded as the options say; clipped.

    An instance that gives no box is dropped. Where all of an image's do, nothing is known of its boxes: null.
    """
    assert options is None or isinstance(options, KeypointToDetection), "the plan gives each step its own options"
    chosen = options or KeypointToDetection()

    def convert(instances: Instances, size: ImageSize, place: Place, report: Report) -> Boxes | None:
        found = []
        for index, each in enumerate(instances):
            bbox = each.bbox or _bounds_of_points(each, chosen)
            if bbox is None:
                _drop("no_keypoints", "the object has neither a bbox nor a point", index, place, report)
            elif not has_area(bbox):
                problem = "the points span no area: give a bbox, or `min_size` or `margin`"
                _drop("no_area", problem, index, place, report)
            elif not has_area(bbox := clipped(bbox, size)):
                _drop("outside_image", "nothing of the box lies inside the image", index, place, report)
            else:
                found.append(Box(category=chosen.category_name, bbox=bbox, crowd=each.crowd, ignore=each.ignore))
        return _left(found, of=len(instances))

    return Step(vocabulary=Names(names=(chosen.category_name,)), convert=convert)


def detection_to_multilabel(vocabulary: Names, options: StepOptions | None) -> Step:
    """The set of categories; crowds count, regions to ignore do not."""

    def convert(boxes: Boxes, size: ImageSize, place: Place, report: Report) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.category for each in boxes if not each.ignore))

    return Step(vocabulary=replace(vocabulary, ordered=False), convert=convert)


def _bounds_of_corners(corners: Corners) -> Bbox:
    """As `bounds` has them, in a third of the time."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    xmin, xmax = (ax, bx) if ax < bx else (bx, ax)
    if cx < xmin:
        xmin = cx
    elif cx > xmax:
        xmax = cx
    if dx < xmin:
        xmin = dx
    elif dx > xmax:
        xmax = dx
    ymin, ymax = (ay, by) if ay < by else (by, ay)
    if cy < ymin:
        ymin = cy
    elif cy > ymax:
        ymax = cy
    if dy < ymin:
        ymin = dy
    elif dy > ymax:
        ymax = dy
    return xmin, ymin, xmax, ymax


def _bounds_of_points(instance: Instance, options: KeypointToDetection) -> Bbox | None:
    """Grown by the margin, then to the least size; None where no point is there.

    A margin is a share of the side that it is added to; of a side without length it is a share of the other one, so
    that points on a line are padded too.
    """
    places = instance.places
    if not places:
        return None
    xmin, ymin, xmax, ymax = bounds(places)
    width, height, margin = xmax - xmin, ymax - ymin, options.margin or 0
    across, down = (width or height) * margin, (height or width) * margin
    least = options.min_size or 0
    across = max(across, (least - width) / 2)
    down = max(down, (least - height) / 2)
    return xmin - across, ymin - down, xmax + across, ymax + down


def _drop(rule: str, problem: str, index: int, place: Place, report: Report) -> None:
    """What the source may say and the target cannot: no error of the dataset, so that strict does not refuse it."""
    report.warn(rule, f"{problem}: it is left out", place, index=index, action=Action.DROPPED)
    report.drop(rule, place.image, 1)


def _left(found: list[Box], *, of: int) -> Boxes | None:
    return None if of and not found else tuple(found)
