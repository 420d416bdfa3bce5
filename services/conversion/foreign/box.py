"""Boxes of foreign formats: what is checked of each, by the rules of the native format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.conversion.finding import Place, Report
from services.conversion.formats.bounding_box import Bbox, bounds, clipped, has_area, overhangs
from services.conversion.formats.quadrilateral_detection import Corners
from services.conversion.index import ImageSize

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(kw_only=True, slots=True)
class RawThing:
    """One foreign annotation: where it stands, for findings. It counts once, however much is wrong with it."""

    place: Place
    index: int
    report: Report
    bad: bool = False

    def error(self, rule: str, message: str, *, value: str = "") -> None:
        """Something for which the annotation is dropped."""
        self.report.error(rule, message, self.place, index=self.index, value=value, annotations=0 if self.bad else 1)
        self.bad = True

    def warn(self, rule: str, message: str, *, value: str = "") -> None:
        """Something that is perhaps not what was meant."""
        self.report.warn(rule, message, self.place, index=self.index, value=value)


def check_box(thing: RawThing, box: Bbox, size: ImageSize, written: Sequence[float]) -> Bbox | None:
    """The half-open box where it is sound; `written` is how the file says it."""
    shown = str(list(written))
    if box[0] > box[2] or box[1] > box[3]:
        thing.error("reversed_box", "the box is reversed: its maxima lie before its minima", value=shown)
    elif not has_area(box):
        thing.error("no_area", "the box has no area: mend it, or leave it out", value=shown)
    elif not has_area(clipped(box, size)):
        where = f"outside its image of {size.width} x {size.height}"
        thing.error("outside_image", f"the box lies {where}: mend it", value=shown)
    elif overhangs(box, size):
        where = f"outside its image of {size.width} x {size.height}"
        message = f"the box lies in part {where}: it stays, and is clipped where a box is made of it"
        thing.warn("partly_outside_image", message, value=shown)
    return None if thing.bad else box


def check_quad(thing: RawThing, numbers: Sequence[float], size: ImageSize) -> Corners | None:
    """The four corners, in the order in which they stand, where they are sound."""
    shown = str(list(numbers[:16]))
    if len(numbers) != 8:
        message = f"there are {len(numbers)} numbers, but a quadrilateral has x and y of four corners"
        thing.error("wrong_coordinate_count", message, value=shown)
        return None
    ax, ay, bx, by, cx, cy, dx, dy = numbers
    corners = ((ax, ay), (bx, by), (cx, cy), (dx, dy))
    box = bounds(corners)
    if not has_area(box):
        thing.error("no_area", "the quadrilateral has no area: mend it, or leave it out", value=shown)
    elif not has_area(clipped(box, size)):
        where = f"outside its image of {size.width} x {size.height}"
        thing.error("outside_image", f"the quadrilateral lies {where}: mend it", value=shown)
    elif overhangs(box, size):
        where = f"outside its image of {size.width} x {size.height}"
        message = f"the quadrilateral lies in part {where}: it stays, and is clipped where a box is made of it"
        thing.warn("partly_outside_image", message, value=shown)
    return None if thing.bad else corners


def check_size(place: Place, size: ImageSize, width: int, height: int, report: Report, *, annotations: int) -> bool:
    """Whether the size that a file claims for an image is that of the image as it is shown."""
    if (width, height) == (size.width, size.height):
        return True
    claimed = f"the image is said to have {width} x {height} pixels, but is shown with {size.width} x {size.height}"
    if (height, width) == (size.width, size.height):
        message = f"{claimed}: it seems to be turned by EXIF; turn the image itself, or mend the annotations"
        report.error("exif_rotation", message, place, value=f"{width} x {height}", annotations=annotations)
    else:
        message = f"{claimed}: its coordinates belong to another picture; mend the size, or the image"
        report.error("size_mismatch", message, place, value=f"{width} x {height}", annotations=annotations)
    return False
