"""Object detection: boxes with categories."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from services.conversion.file.document import Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.bounding_box import Bbox, is_sound, read_bbox, write_bbox
from services.conversion.formats.format import Json
from services.conversion.formats.names import RESERVED_NAMES, Names, read_names
from services.conversion.formats.object_list import RawObject, read_objects, written_object
from services.conversion.index import ImageSize
from services.conversion.task import Task

KEYS = frozenset({"category", "bbox", "crowd", "ignore"})


class Box(msgspec.Struct, frozen=True, kw_only=True, gc=False):  # a frozen dataclass takes six times as long to make
    """One object. `crowd`: objects that were not told apart; `ignore`: whatever is there, do not care."""

    category: str
    bbox: Bbox
    crowd: bool = False
    ignore: bool = False


Boxes: TypeAlias = tuple[Box, ...]
"""Of one image; the empty tuple says that no object is there."""


class ObjectDetection:
    """An annotation is a tuple of boxes."""

    task = Task.OBJECT_DETECTION
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

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Boxes | None:
        known = vocabulary.known

        def quick(item: Mapping) -> Box | None:
            try:
                made = msgspec.convert(item, Box, strict=False)  # numbers and flags are texts
            except msgspec.ValidationError:
                return None
            # Two keys: it has no flags, of which msgspec takes more spellings than there are.
            return made if len(item) == 2 and made.category in known and is_sound(made.bbox, size) else None

        return read_objects(value, size, place, report, lambda each: _read_box(each, vocabulary), quick)

    def write(self, annotation: Boxes, size: ImageSize, vocabulary: Names) -> Json:
        found = []
        for each in annotation:
            bbox = write_bbox(each.bbox)
            found.append(written_object(each.category, "bbox", bbox, crowd=each.crowd, ignore=each.ignore))
        return found

    def count(self, annotation: Boxes) -> int:
        return len(annotation)

    def categories(self, annotation: Boxes) -> Sequence[str]:
        return [each.category for each in annotation]


def _read_box(each: RawObject, vocabulary: Names) -> Box | None:
    each.check_keys(KEYS)
    category = each.category(vocabulary)
    bbox = read_bbox(each)
    crowd, ignore = each.flags()
    if each.bad or bbox is None:
        return None
    return Box(category=category, bbox=bbox, crowd=crowd, ignore=ignore)
