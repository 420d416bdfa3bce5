"""Datumaro's JSON of one subset: categories, and items with annotations, each of a type.

Annotations of one group that is not 0 belong to one object. Masks are COCO's RLE; boxes [x, y, width, height].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

import msgspec

from services.conversion.foreign.shapes.shape import Shape, ShapedImage, ShapeKind, ShapesError
from services.conversion.foreign.turning import turned_around
from services.conversion.formats.colors import Color
from services.conversion.formats.number import Point, written
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError
from services.conversion.raster.rle import decode_rle, encode_rle, runs_of_counts
from services.conversion.raster.runs import Runs

ABSENT = 0
"""The visibility of a point that is not there."""
VISIBLE = 2


class DatumaroItem(msgspec.Struct, gc=False):
    """One item: an image with its annotations."""

    id: str | int
    annotations: list[dict[str, Any]] = []
    image: dict[str, Any] | None = None
    media: dict[str, Any] | None = None


class DatumaroDocument(msgspec.Struct, gc=False):
    """One subset."""

    categories: dict[str, Any]
    items: list[msgspec.Raw]


_DOCUMENT: msgspec.json.Decoder[DatumaroDocument] = msgspec.json.Decoder(DatumaroDocument)
_ITEM: msgspec.json.Decoder[DatumaroItem] = msgspec.json.Decoder(DatumaroItem)


def read_datumaro(content: bytes) -> DatumaroDocument:
    """The document. Raises ShapesError."""
    try:
        return _DOCUMENT.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ShapesError("syntax", f"is none of Datumaro's: {error}") from error


def labels_of(document: DatumaroDocument) -> tuple[str, ...]:
    """The labels in order: annotations name them by their numbers."""
    found = _of(document.categories, "label").get("labels")
    labels = found if isinstance(found, list) else []
    return tuple(str(each.get("name", "")) if isinstance(each, dict) else "" for each in labels)


def colors_of(document: DatumaroDocument) -> dict[str, Color]:
    """The colours of labels."""
    labels = labels_of(document)
    colors: dict[str, Color] = {}
    found = _of(document.categories, "mask").get("colormap")
    for each in found if isinstance(found, list) else []:
        if isinstance(each, dict):
            number, *parts = (each.get(part) for part in ("label_id", "r", "g", "b"))
            rgb = [part for part in parts if isinstance(part, int) and 0 <= part < 256]
            if len(rgb) == 3 and _is_label(number, labels):
                colors[labels[number]] = (rgb[0], rgb[1], rgb[2])
    return colors


def points_of(document: DatumaroDocument) -> dict[int, tuple[str, ...]]:
    """The names of the keypoints of each label, by its number."""
    found = _of(document.categories, "points").get("items")
    points = {}
    for each in found if isinstance(found, list) else []:
        if isinstance(each, dict) and isinstance(each.get("labels"), list) and type(each.get("label_id")) is int:
            points[each["label_id"]] = tuple(map(str, each["labels"]))
    return points


def item_parser(labels: tuple[str, ...], points: Mapping[int, tuple[str, ...]]) -> partial[ShapedImage]:
    """What reads an item, which may be in another process."""
    return partial(read_item, labels=labels, points=dict(points))


def read_item(content: bytes, *, labels: tuple[str, ...], points: Mapping[int, tuple[str, ...]]) -> ShapedImage:
    """The shapes of an item. Raises ShapesError."""
    try:
        item = _ITEM.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ShapesError("syntax", f"is no item of Datumaro's: {error}") from error
    image = item.image or item.media or {}
    size = image.get("size")
    sized = isinstance(size, list) and len(size) == 2 and all(type(each) is int for each in size)
    height, width = (size[0], size[1]) if sized and isinstance(size, list) else (0, 0)
    dropped: Counter[str] = Counter()
    shapes = [_read_shape(each, labels, points, dropped) for each in item.annotations]
    path = image.get("path")
    return ShapedImage(
        name=path if isinstance(path, str) and path else str(item.id),
        width=width,
        height=height,
        shapes=tuple(shapes),
        dropped=dict(dropped),
    )


def write_datumaro_shapes(
    shapes: Sequence[Shape], size: ImageSize, *, labels: Mapping[str, int], points: Sequence[str]
) -> list[bytes]:
    """Each shape as an annotation."""
    return [
        msgspec.json.encode({"id": number, "attributes": {}, **_written(each, size, labels, points)})
        for number, each in enumerate(shapes)
    ]


def _read_shape(
    about: Mapping[str, Any], labels: tuple[str, ...], points: Mapping[int, tuple[str, ...]], dropped: Counter[str]
) -> Shape:
    kind_name, number = str(about.get("type")), about.get("label_id")
    kind = _KINDS.get(kind_name)
    if kind is None:
        return Shape(kind=ShapeKind.OTHER, name=kind_name)
    if not _is_label(number, labels):
        message = f"the label_id {number} is none of the {len(labels)} labels: mend it"
        return Shape(kind=kind, problem=("undeclared_category", message))
    attributes = about.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    crowd = bool(attributes.get("is_crowd"))
    dropped.update({"attributes": 1} if any(key != "is_crowd" for key in attributes) else {})
    group = str(about.get("group") or "")
    label = labels[number]
    try:
        numbers, draw, named = _geometry(kind, kind_name, about, points.get(number, ()))
    except (KeyError, TypeError, ValueError) as error:
        return Shape(kind=kind, label=label, problem=("bad_value", f"the {kind_name} cannot be read: {error!r}"))
    return Shape(kind=kind, label=label, numbers=numbers, draw=draw, points=named, group=group, crowd=crowd)


def _geometry(
    kind: ShapeKind, kind_name: str, about: Mapping[str, Any], names: Sequence[str]
) -> tuple[tuple[float, ...], partial[Runs] | None, dict[str, Point]]:
    if kind is ShapeKind.BOX:
        x, y, width, height = map(float, about["bbox"])
        return (x, y, x + width, y + height), None, {}
    if kind is ShapeKind.MASK:
        return (), partial(_draw, about["rle"]["counts"], tuple(about["rle"]["size"])), {}
    if kind is ShapeKind.QUAD:
        x, y, width, height, angle = map(float, about["points"])
        box = ((x - width / 2, y - height / 2), (x + width / 2, y - height / 2))
        low = ((x + width / 2, y + height / 2), (x - width / 2, y + height / 2))
        return tuple(n for point in turned_around((*box, *low), (x, y), angle) for n in point), None, {}
    if kind is ShapeKind.TAG:
        return (), None, {}
    numbers = tuple(map(float, about["points"]))
    if kind is ShapeKind.POLYGON:
        return numbers, None, {}
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    seen = about.get("visibility") or [VISIBLE] * len(pairs)
    own = names if len(names) == len(pairs) else [str(number) for number in range(1, len(pairs) + 1)]
    return (), None, {name: pair for name, pair, v in zip(own, pairs, seen, strict=True) if v != ABSENT}


def _draw(counts: Any, stated: tuple[Any, ...], size: ImageSize) -> Runs:
    if stated != (size.height, size.width):
        raise RasterError("bad_rle", f"is for a map of {stated}, where ({size.height}, {size.width}) was wanted")
    if isinstance(counts, str):
        return decode_rle(counts.encode(), height=size.height, width=size.width)
    return runs_of_counts(counts, height=size.height, width=size.width)


_KINDS = {
    "label": ShapeKind.TAG,
    "bbox": ShapeKind.BOX,
    "polygon": ShapeKind.POLYGON,
    "mask": ShapeKind.MASK,
    "points": ShapeKind.POINTS,
    "rotated_bbox": ShapeKind.QUAD,
}


def _is_label(number: Any, labels: Sequence[str]) -> TypeGuard[int]:
    return isinstance(number, int) and 0 <= number < len(labels)


def _of(categories: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = categories.get(key)
    return found if isinstance(found, dict) else {}


def _written(shape: Shape, size: ImageSize, labels: Mapping[str, int], points: Sequence[str]) -> Mapping[str, Any]:
    head: dict[str, Any] = {"label_id": labels.get(shape.label, 0), "group": int(shape.group or 0)}
    if shape.kind is ShapeKind.TAG:
        return {"type": "label", **head}
    if shape.kind is ShapeKind.BOX:
        left, top, right, bottom = shape.numbers
        return {
            "type": "bbox",
            **head,
            "z_order": 0,
            "bbox": [written(n) for n in (left, top, right - left, bottom - top)],
        }
    if shape.kind is ShapeKind.MASK:
        assert shape.draw is not None, "a mask can be drawn"
        counts = encode_rle(shape.draw(size), height=size.height, width=size.width).decode()
        return {"type": "mask", **head, "z_order": 0, "rle": {"counts": counts, "size": [size.height, size.width]}}
    if shape.kind is ShapeKind.POINTS:
        places = [shape.points.get(name) for name in points]
        flat = [written(number) for place in places for number in (place or (0.0, 0.0))]
        seen = [ABSENT if place is None else VISIBLE for place in places]
        return {"type": "points", **head, "z_order": 0, "points": flat, "visibility": seen}
    return {"type": "polygon", **head, "z_order": 0, "points": [written(number) for number in shape.numbers]}
