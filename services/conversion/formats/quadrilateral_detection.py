"""Quadrilateral detection: four corners with a category; their order is the annotator's, text reads along it."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from services.conversion.file.document import List, Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.bounding_box import bounds, check_fractions, check_overhang, clipped, has_area
from services.conversion.formats.format import Json
from services.conversion.formats.names import RESERVED_NAMES, Names, read_names
from services.conversion.formats.number import NumberError, Point, is_plain, read_point, shown_numbers
from services.conversion.formats.object_list import RawObject, read_objects, written_flags
from services.conversion.index import ImageSize
from services.conversion.task import Task

KEYS = frozenset({"category", "quad", "crowd", "ignore"})

Corners: TypeAlias = tuple[Point, Point, Point, Point]


@dataclass(frozen=True, kw_only=True)
class Quad:
    """One object. `crowd`: objects that were not told apart; `ignore`: whatever is there, do not care."""

    category: str
    quad: Corners
    crowd: bool = False
    ignore: bool = False


Quads: TypeAlias = tuple[Quad, ...]
"""Of one image; the empty tuple says that no object is there."""


class QuadrilateralDetection:
    """An annotation is a tuple of quadrilaterals."""

    task = Task.QUADRILATERAL_DETECTION
    annotated = True
    optional = False
    keys = ("categories",)
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Names:
        return read_names(metadata, "categories", place, report, reserved=RESERVED_NAMES)

    def write_vocabulary(self, vocabulary: Names) -> AnyMapping[str, Json]:
        return {"categories": vocabulary.names}

    def names(self, vocabulary: Names) -> Sequence[str]:
        return vocabulary.names

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Quads | None:
        return read_objects(value, size, place, report, lambda each: _read_quad(each, vocabulary))

    def write(self, annotation: Quads, size: ImageSize, vocabulary: Names) -> Json:
        return [
            {
                "category": each.category,
                # As `written` does, without its call: these are most of what a conversion to quadrilaterals does.
                "quad": [
                    [x if (whole := int(x)) != x else whole, y if (whole := int(y)) != y else whole]
                    for x, y in each.quad
                ],
                **written_flags(crowd=each.crowd, ignore=each.ignore),
            }
            for each in annotation
        ]

    def count(self, annotation: Quads) -> int:
        return len(annotation)

    def categories(self, annotation: Quads) -> Sequence[str]:
        return [each.category for each in annotation]


def _read_quad(each: RawObject, vocabulary: Names) -> Quad | None:
    each.check_keys(KEYS)
    category = each.category(vocabulary)
    corners = _read_corners(each)
    crowd, ignore = each.flag("crowd"), each.flag("ignore")
    if each.bad or corners is None:
        return None
    return Quad(category=category, quad=corners, crowd=crowd, ignore=ignore)


def _read_corners(each: RawObject) -> Corners | None:
    value = each.item.get("quad")
    if not isinstance(value, List) or len(value) != 4:
        return _diagnose(each)
    a, b, c, d = value
    if not (isinstance(a, List) and isinstance(b, List) and isinstance(c, List) and isinstance(d, List)):
        return _diagnose(each)
    if not len(a) == len(b) == len(c) == len(d) == 2:
        return _diagnose(each)
    flat: tuple[Any, ...] = (*a, *b, *c, *d)
    try:
        text = "".join(flat)  # anything but texts is a TypeError
        ax, ay, bx, by, cx, cy, dx, dy = map(float, flat)
    except (TypeError, ValueError):
        return _diagnose(each)
    corners = ((ax, ay), (bx, by), (cx, cy), (dx, dy))
    # As for boxes: of a thousand this is all that happens to 999.
    xmax, ymax = max(ax, bx, cx, dx), max(ay, by, cy, dy)
    inside = min(ax, bx, cx, dx, ay, by, cy, dy) >= 0 and xmax <= each.size.width and ymax <= each.size.height
    if inside and (xmax > 1 or ymax > 1) and is_plain(text) and _is_convex(corners):
        return corners
    return _diagnose(each)


def _is_convex(corners: Corners) -> bool:
    """Whether the way turns in one direction at each corner; false where one is straight, repeated or not a number."""
    a, b, c, d = _turns(corners)
    # NaN is on no side of a comparison, but min and max pass it by.
    return (a > 0 and b > 0 and c > 0 and d > 0) or (a < 0 and b < 0 and c < 0 and d < 0)


def _diagnose(each: RawObject) -> Corners | None:
    """Look at everything that can be wrong, one after the other."""
    value = each.get("quad")
    if value is None:
        return None
    if not isinstance(value, List) or len(value) != 4:
        found = f"has {len(value)} values" if isinstance(value, List) else "is no list"
        message = f"'quad' {found}, but must be four corners, [[x, y], [x, y], [x, y], [x, y]]"
        each.error("wrong_coordinate_count", message, "quad", value=shown_numbers(value))
        return None
    try:
        a, b, c, d = map(read_point, value)
    except NumberError as error:
        each.error(error.rule, f"in 'quad' {error}", "quad", value=shown_numbers(value))
        return None
    corners = (a, b, c, d)
    box = bounds(corners)
    check_fractions(each, box, "quad", value)
    _check_shape(each, corners, value)
    if not each.bad:
        check_overhang(each, box, "quad", value, outside=not has_area(clipped(box, each.size)))
    return corners


def _check_shape(each: RawObject, corners: Corners, value: Value) -> None:
    """By the turns at the corners: all one way is convex, one the other way is concave, two and two is a bow-tie."""
    turns = _turns(corners)
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    left, right = sum(turn < 0 for turn in turns), sum(turn > 0 for turn in turns)
    bow_tie = left == right == 2
    if not bow_tie and (cx - ax) * (dy - by) == (dx - bx) * (cy - ay):
        message = "'quad' has no area: its corners lie on a line"
        each.error("no_area", message, "quad", value=shown_numbers(value))
    elif bow_tie:
        message = "'quad' is a bow-tie, two of its sides cross: perhaps two corners are exchanged"
        each.warn("bow_tie_quad", message, "quad", value=shown_numbers(value))
    elif left and right:
        message = "'quad' is concave: perhaps a corner is misplaced"
        each.warn("concave_quad", message, "quad", value=shown_numbers(value))


def _turns(corners: Corners) -> tuple[float, float, float, float]:
    """At each corner, positive where the way turns clockwise as the image is shown."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    return (
        (ax - dx) * (by - ay) - (ay - dy) * (bx - ax),
        (bx - ax) * (cy - by) - (by - ay) * (cx - bx),
        (cx - bx) * (dy - cy) - (cy - by) * (dx - cx),
        (dx - cx) * (ay - dy) - (dy - cy) * (ax - dx),
    )
