"""Quadrilateral detection: four corners with a category; their order is the annotator's, text reads along it."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from services.conversion.file.document import List, Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.bounding_box import bounds, check_fractions, check_overhang, clipped, has_area
from services.conversion.formats.format import Json
from services.conversion.formats.names import RESERVED_NAMES, Names, read_names
from services.conversion.formats.number import NumberError, Point, read_point, shown_numbers
from services.conversion.formats.object_list import RawObject, read_objects, written_object
from services.conversion.index import ImageSize
from services.conversion.task import Task

KEYS = frozenset({"category", "quad", "crowd", "ignore"})

Corners: TypeAlias = tuple[Point, Point, Point, Point]


class Quad(msgspec.Struct, frozen=True, kw_only=True, gc=False):  # a frozen dataclass takes six times as long to make
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
        known = vocabulary.known

        def quick(item: Mapping) -> Quad | None:
            try:
                made = msgspec.convert(item, Quad, strict=False)  # numbers and flags are texts
            except msgspec.ValidationError:
                return None
            # Two keys: it has no flags, of which msgspec takes more spellings than there are.
            return made if len(item) == 2 and made.category in known and _is_sound(made.quad, size) else None

        return read_objects(value, size, place, report, lambda each: _read_quad(each, vocabulary), quick)

    def write(self, annotation: Quads, size: ImageSize, vocabulary: Names) -> Json:
        found = []
        for each in annotation:
            # As `written` does, without its call: these are most of what a conversion to quadrilaterals does.
            corners = [[x if x % 1 else int(x), y if y % 1 else int(y)] for x, y in each.quad]
            found.append(written_object(each.category, "quad", corners, crowd=each.crowd, ignore=each.ignore))
        return found

    def count(self, annotation: Quads) -> int:
        return len(annotation)

    def categories(self, annotation: Quads) -> Sequence[str]:
        return [each.category for each in annotation]


def _read_quad(each: RawObject, vocabulary: Names) -> Quad | None:
    each.check_keys(KEYS)
    category = each.category(vocabulary)
    corners = _read_corners(each)
    crowd, ignore = each.flags()
    if each.bad or corners is None:
        return None
    return Quad(category=category, quad=corners, crowd=crowd, ignore=ignore)


def _is_sound(corners: Corners, size: ImageSize) -> bool:
    """Whether it is convex and inside its image, as 999 of a thousand are."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    width, height = size.width, size.height
    if not (  # NaN is on no side of a comparison
        (0 <= ax <= width and 0 <= bx <= width and 0 <= cx <= width and 0 <= dx <= width)
        and (0 <= ay <= height and 0 <= by <= height and 0 <= cy <= height and 0 <= dy <= height)
        and (ax > 1 or bx > 1 or cx > 1 or dx > 1 or ay > 1 or by > 1 or cy > 1 or dy > 1)
    ):
        return False
    # The turns at its corners, as `_turns` has them: of most it takes longer to call it. All go one way, none straight.
    abx, aby, bcx, bcy, cdx, cdy, dax, day = bx - ax, by - ay, cx - bx, cy - by, dx - cx, dy - cy, ax - dx, ay - dy
    if dax * aby > day * abx:
        return abx * bcy > aby * bcx and bcx * cdy > bcy * cdx and cdx * day > cdy * dax
    return dax * aby < day * abx and abx * bcy < aby * bcx and bcx * cdy < bcy * cdx and cdx * day < cdy * dax


def _read_corners(each: RawObject) -> Corners | None:
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
    abx, aby, bcx, bcy, cdx, cdy, dax, day = bx - ax, by - ay, cx - bx, cy - by, dx - cx, dy - cy, ax - dx, ay - dy
    return dax * aby - day * abx, abx * bcy - aby * bcx, bcx * cdy - bcy * cdx, cdx * day - cdy * dax
