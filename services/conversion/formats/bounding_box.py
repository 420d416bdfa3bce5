"""Boxes: `[xmin, ymin, xmax, ymax]` in pixels of the image, half-open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from services.conversion.file.document import List, Value
from services.conversion.formats.format import Json
from services.conversion.formats.number import NumberError, read_number, shown_numbers
from services.conversion.formats.object_list import RawObject
from services.conversion.index import ImageSize

Bbox: TypeAlias = tuple[float, float, float, float]

OVERHANG_PIXELS_MAX = 0.01
"""So far may a coordinate lie outside its image without a finding: files hold rounded numbers."""


def read_bbox(each: RawObject) -> Bbox | None:
    """The object's `bbox`; None where it is bad, which is in the report: everything that can be wrong is looked at."""
    value = each.get("bbox")
    if value is None:
        return None
    if not isinstance(value, List) or len(value) != 4:
        found = f"has {len(value)} values" if isinstance(value, List) else "is no list"
        message = f"'bbox' {found}, but must be [xmin, ymin, xmax, ymax]"
        each.error("wrong_coordinate_count", message, "bbox", value=shown_numbers(value))
        return None
    try:
        xmin, ymin, xmax, ymax = map(read_number, value)
    except NumberError as error:
        each.error(error.rule, f"in 'bbox' {error}", "bbox", value=shown_numbers(value))
        return None
    box = (xmin, ymin, xmax, ymax)
    fractions = check_fractions(each, box, "bbox", value)
    if xmax < xmin or ymax < ymin:
        message = "'bbox' is reversed, but must be [xmin, ymin, xmax, ymax] with the minima first: mend it"
        each.error("reversed_box", message, "bbox", value=shown_numbers(value))
        if not fractions and _fits_as_xywh(box, each.size):
            message = "'bbox' looks like [x, y, width, height]: the last two are the maxima, x + width and y + height"
            each.warn("looks_like_xywh", message, "bbox", value=shown_numbers(value))
    elif not has_area(box):
        message = "'bbox' has no area: pixel i reaches from i to i + 1, so that a box of one pixel is 1 x 1"
        each.error("no_area", message, "bbox", value=shown_numbers(value))
    else:
        check_overhang(each, box, "bbox", value, outside=not has_area(clipped(box, each.size)))
    return box


def is_sound(box: Bbox, size: ImageSize) -> bool:
    """Whether it has an area inside its image, as 999 of a thousand have."""
    xmin, ymin, xmax, ymax = box
    # NaN is on no side of a comparison.
    return 0 <= xmin < xmax <= size.width and 0 <= ymin < ymax <= size.height and (xmax > 1 or ymax > 1)


def clipped(box: Bbox, size: ImageSize) -> Bbox:
    """The part inside the image; without area where there is none."""
    xmin, ymin, xmax, ymax = box
    if xmin >= 0 and ymin >= 0 and xmax <= size.width and ymax <= size.height:
        return box
    width, height = float(size.width), float(size.height)  # a box is floats, all through
    return (
        min(max(xmin, 0.0), width),
        min(max(ymin, 0.0), height),
        min(max(xmax, 0.0), width),
        min(max(ymax, 0.0), height),
    )


def has_area(box: Bbox) -> bool:
    """Whether anything is in the box."""
    return box[0] < box[2] and box[1] < box[3]


def bounds(points: Sequence[tuple[float, float]]) -> Bbox:
    """The smallest box over all points, of which there is at least one."""
    across, down = [x for x, _ in points], [y for _, y in points]
    return min(across), min(down), max(across), max(down)


def write_bbox(box: Bbox) -> Json:
    """As people write it."""
    return [each if each % 1 else int(each) for each in box]  # as `written` does, without its call


def overhangs(box: Bbox, size: ImageSize) -> bool:
    """Whether any part of it lies outside the image."""
    xmin, ymin, xmax, ymax = box
    return max(-xmin, -ymin, xmax - size.width, ymax - size.height) > OVERHANG_PIXELS_MAX


def check_overhang(each: RawObject, box: Bbox, key: str, value: Value, *, outside: bool) -> None:
    """Report an error where all of it is `outside` the image, a warning where a part is."""
    where = f"outside its image of {each.size.width} x {each.size.height}"
    if outside:
        each.error("outside_image", f"{key!r} lies {where}: mend it", key, value=shown_numbers(value))
    elif overhangs(box, each.size):
        message = f"{key!r} lies in part {where}: it stays, and is clipped where a box is made of it"
        each.warn("partly_outside_image", message, key, value=shown_numbers(value))


def check_fractions(each: RawObject, box: Bbox, key: str, value: Value) -> bool:
    """Warn where all coordinates are between 0 and 1, which are pixels of the very corner; says whether they are."""
    small = max(box) <= 1 and min(box) >= 0 and min(each.size.width, each.size.height) > 1
    fractions = small and any(number != int(number) for number in box)  # whole numbers are a box of one pixel
    if fractions:
        message = f"{key!r} looks like fractions of the image: coordinates are in pixels"
        each.warn("looks_like_fractions", message, key, value=shown_numbers(value))
    return fractions


def _fits_as_xywh(box: Bbox, size: ImageSize) -> bool:
    x, y, width, height = box
    return x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= size.width and y + height <= size.height
