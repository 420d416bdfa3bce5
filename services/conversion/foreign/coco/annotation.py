"""Single annotations of COCO: the values that were left as text when the document was read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_box, check_size
from services.conversion.foreign.coco.document import NOT_FINITE, CocoAnnotation, CocoContents, CocoImage
from services.conversion.foreign.format import ForeignAnnotation, Unannotated
from services.conversion.formats.bounding_box import Bbox
from services.conversion.formats.number import NUMBER_MAX
from services.conversion.index import ImageEntry, ImageSize

SHOWN_CHARACTERS_MAX = 120
_NOTHING = re.compile(rb'\s*(?:null|""|\{\s*\}|\[(?:\s*\[\s*\]\s*,?)*\s*\])?\s*')
OBJECTS_MAX = 100_000
"""Of one image."""

Polygons: TypeAlias = list[list[float]]

_POLYGONS: msgspec.json.Decoder[Polygons] = msgspec.json.Decoder(list[list[float]])
_NUMBERS: msgspec.json.Decoder[list[float]] = msgspec.json.Decoder(list[float])
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What a decoder raises: text inside a Raw is looked at only when that is decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnnotation:
    """One annotation on its way into a worker: what is bytes is JSON, empty where the file has none."""

    category_id: int
    segmentation: bytes
    bbox: bytes
    keypoints: bytes
    area: Any
    iscrowd: Any
    ignore: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RawImage:
    """What the document says of one image. Width or height may be 0: then it says nothing of the size."""

    width: int
    height: int
    annotations: tuple[RawAnnotation, ...]


def annotations_of(
    contents: CocoContents[CocoAnnotation], unannotated: Unannotated
) -> Callable[[ImageEntry], ForeignAnnotation | None]:
    """What a document says of each image; of one that is listed without annotations, that nothing is there."""

    def annotation(image: ImageEntry) -> ForeignAnnotation | None:
        about, annotations, place = contents.of(image)
        if not annotations and unannotated is Unannotated.NULL:
            return None
        return ForeignAnnotation(value=raw_image(about, annotations), place=place)

    return annotation


def raw_image(image: CocoImage, annotations: Sequence[CocoAnnotation]) -> RawImage:
    """Copies out of the document: what a worker gets must not carry the rest of it along."""
    return RawImage(
        width=image.width,
        height=image.height,
        annotations=tuple(
            RawAnnotation(
                category_id=each.category_id,
                segmentation=bytes(each.segmentation),
                bbox=bytes(each.bbox),
                keypoints=bytes(each.keypoints),
                area=each.area,
                iscrowd=each.iscrowd,
                ignore=each.ignore,
            )
            for each in annotations
        ),
    )


def check_image(raw: RawImage, size: ImageSize, place: Place, report: Report) -> bool:
    """Whether the coordinates belong to this image, and are not too many."""
    count = len(raw.annotations)
    if count > OBJECTS_MAX:
        message = f"the image has {count} objects, but at most {OBJECTS_MAX} may be"
        report.error("too_many_objects", message, place, value=str(count), annotations=count)
        return False
    if not raw.width and not raw.height:
        return True
    return check_size(place, size, raw.width, raw.height, report, annotations=count)


def read_category(thing: RawThing, raw: RawAnnotation, names: Mapping[int, str]) -> str:
    """The category's name; empty where it is bad."""
    name = names.get(raw.category_id)
    if name is None:
        message = f"the category_id {raw.category_id} is none of `categories`: declare it, or mend it"
        thing.error("undeclared_category", message, value=str(raw.category_id))
    return name or ""


def read_flag(thing: RawThing, value: Any, key: str) -> bool:
    """`iscrowd` or `ignore`: 0 or 1, or left out."""
    if value is None or value == 0:
        return False
    if value != 1:
        thing.error("bad_value", f"{key!r} must be 0 or 1, or be left out", value=str(value))
    return True


def read_box(thing: RawThing, raw: RawAnnotation, size: ImageSize) -> Bbox | None:
    """The half-open box of `[x, y, width, height]`; None where it is bad."""
    if is_absent(raw.bbox):
        thing.error("missing_key", "the annotation has no 'bbox': give it, or leave the annotation out")
        return None
    try:
        numbers = _NUMBERS.decode(raw.bbox)
    except UNREADABLE:
        if holds_no_number(raw.bbox):
            thing.error("not_finite", "'bbox' holds what is no number: mend it", value=shown(raw.bbox))
        else:
            thing.error("bad_value", "'bbox' is no list of numbers", value=shown(raw.bbox))
        return None
    if len(numbers) != 4:
        message = f"'bbox' has {len(numbers)} values, but must be [x, y, width, height]"
        thing.error("wrong_coordinate_count", message, value=shown(raw.bbox))
        return None
    if not all(-NUMBER_MAX <= number <= NUMBER_MAX for number in numbers):
        thing.error("number_too_large", f"'bbox' has a number beyond {NUMBER_MAX:g}", value=shown(raw.bbox))
        return None
    x, y, width, height = numbers
    return check_box(thing, (x, y, x + width, y + height), size, numbers)


def read_area(thing: RawThing, raw: RawAnnotation) -> float | None:
    """The area in pixels where it is given."""
    if raw.area is None:
        return None
    if raw.area in NOT_FINITE:
        thing.error("not_finite", "'area' is no number that can be used: mend it, or leave it out", value=str(raw.area))
        return None
    if not isinstance(raw.area, int | float):
        thing.error("bad_value", "'area' is no number", value=str(raw.area))
        return None
    if not 0 < raw.area <= NUMBER_MAX:
        thing.warn("no_area", "'area' is not a number above 0 that can be used: it is left out", value=str(raw.area))
        return None
    return float(raw.area)


def read_polygons(text: bytes | msgspec.Raw) -> Polygons | None:
    """The polygons of a segmentation; None where it is something else."""
    try:
        return _POLYGONS.decode(text)
    except UNREADABLE:
        return None


def read_numbers(text: bytes) -> list[float] | None:
    """A list of numbers; None where it is something else."""
    try:
        return _NUMBERS.decode(text)
    except UNREADABLE:
        return None


def is_absent(text: bytes | msgspec.Raw) -> bool:
    """Whether a key was left out, or holds nothing, however that is spelled: null, `[ ]`, `[[]]`, `{}`, `""`."""
    return _NOTHING.fullmatch(bytes(text)) is not None


def holds_no_number(text: bytes) -> bool:
    """Whether NaN or Infinity stands in a JSON text, where numbers were wanted."""
    return any(f'"{word}"'.encode() in text for word in NOT_FINITE)


def shown(text: bytes) -> str:
    """A JSON text for a finding."""
    return text[:SHOWN_CHARACTERS_MAX].decode("utf-8", "replace")


def json_bytes(value: Any) -> bytes:
    """JSON as the writers write it."""
    return _ENCODER.encode(value)


_ENCODER = msgspec.json.Encoder()
