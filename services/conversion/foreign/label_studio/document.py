"""Label Studio's JSON: a list of tasks with annotations, whose regions are in hundredths of the image's sides.

Of several annotations of a task the first that was not cancelled counts. Predictions are nobody's annotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from services.conversion.foreign.label_studio.brush import decode_brush, encode_brush
from services.conversion.foreign.shapes.shape import Shape, ShapedImage, ShapeKind, ShapesError
from services.conversion.foreign.turning import turned_around
from services.conversion.formats.number import Point
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError
from services.conversion.raster.runs import Runs, mask_of_runs, runs_of_mask

HUNDRED = 100.0
LABEL_KEYS = {
    "rectanglelabels": ShapeKind.BOX,
    "polygonlabels": ShapeKind.POLYGON,
    "brushlabels": ShapeKind.MASK,
    "keypointlabels": ShapeKind.POINTS,
    "choices": ShapeKind.TAG,
}
"""What a region's labels are called, by its type."""
ROUND = 10
"""Digits of a hundredth behind the point."""
Region = Mapping[str, Any]


class StudioAnnotation(msgspec.Struct, gc=False):
    """One annotation of a task."""

    result: list[dict[str, Any]] = []
    was_cancelled: bool | None = False


class StudioTask(msgspec.Struct, gc=False):
    """One task: an image with what people said of it."""

    data: dict[str, Any]
    annotations: list[StudioAnnotation] | None = None
    completions: list[StudioAnnotation] | None = None
    """What old versions called annotations."""


_TASKS: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])
_TASK: msgspec.json.Decoder[StudioTask] = msgspec.json.Decoder(StudioTask)


def read_tasks(content: bytes) -> list[bytes]:
    """The text of each task. Raises ShapesError."""
    try:
        return [bytes(each) for each in _TASKS.decode(content.removeprefix(b"\xef\xbb\xbf"))]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ShapesError("syntax", f"is no list of tasks, as Label Studio's JSON is: {error}") from error


def read_task(content: bytes) -> ShapedImage:
    """The shapes of a task. Raises ShapesError."""
    try:
        task = _TASK.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ShapesError("syntax", f"is no task of Label Studio's JSON (not JSON-MIN): {error}") from error
    name = image_name(task.data)
    written = task.annotations if task.annotations is not None else task.completions or []
    kept = [each for each in written if not each.was_cancelled]
    if not kept:
        return ShapedImage(name=name, annotated=False)
    dropped: Counter[str] = Counter({"another annotation": len(kept) - 1} if len(kept) > 1 else {})
    regions = kept[0].result
    sizes = [(each.get("original_width"), each.get("original_height")) for each in regions]
    width, height = next(((w, h) for w, h in sizes if isinstance(w, int) and isinstance(h, int)), (0, 0))
    shapes = _shapes(regions, width, height, dropped)
    return ShapedImage(
        name=name, width=width, height=height, shapes=tuple(shapes), dropped={k: n for k, n in dropped.items() if n}
    )


def image_name(data: Mapping[str, Any]) -> str:
    """The image's file name. Uploads have eight characters and a line before theirs; local files stand in `?d=`."""
    text = next((value for key, value in data.items() if key in ("image", "img", "ocr") and isinstance(value, str)), "")
    text = text or next((value for value in data.values() if isinstance(value, str)), "")
    parts = urlsplit(text)
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path) if parts.scheme or parts.path.startswith("/data/") else text


def without_upload_prefix(name: str) -> str:
    """`3f2a9c1b-cat.jpg` is what became of `cat.jpg` when it was uploaded; other names stay."""
    file = PurePosixPath(name).name
    head, line, rest = file.partition("-")
    return rest if line and len(head) == 8 and all(c in "0123456789abcdef" for c in head) and rest else file


def write_regions(shapes: Sequence[Shape], size: ImageSize) -> list[bytes]:
    """Each shape as a region. Boxes of objects with points are their parents."""
    parents = {each.group: f"box{each.group}" for each in shapes if each.kind is ShapeKind.BOX and each.group}
    found = []
    for number, each in enumerate(shapes):
        about = {
            "id": parents.get(each.group, "") if each.kind is ShapeKind.BOX and each.group else f"r{number}",
            "to_name": "image",
            "original_width": size.width,
            "original_height": size.height,
            "image_rotation": 0,
        }
        for type_name, value, parent in _values(each, size, parents):
            region = {**about, "type": type_name, "from_name": type_name, "value": value}
            found.append(msgspec.json.encode({**region, "parentID": parent} if parent else region))
    return found


def _shapes(regions: Sequence[Region], width: int, height: int, dropped: Counter[str]) -> list[Shape]:
    """Points with one parent are one object, whose box the parent is; points without one are an object of their own."""
    shapes: list[Shape] = []
    points: dict[str, dict[str, Point]] = {}
    for region in regions:
        kind_name, value = region.get("type"), region.get("value")
        kind = LABEL_KEYS.get(kind_name) if isinstance(kind_name, str) else None
        if kind is None or not isinstance(value, dict):
            shapes.append(Shape(kind=ShapeKind.OTHER, name=str(kind_name)))
            continue
        names = value.get(str(kind_name))
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            shapes.append(
                Shape(kind=kind, problem=("missing_key", f"a region of {kind_name} has no label: give it one"))
            )
            continue
        if kind is ShapeKind.TAG:
            shapes += [Shape(kind=kind, label=name) for name in names]
            continue
        if len(names) > 1:
            dropped["a second label"] += 1
        dropped["text"] += bool(region.get("meta"))
        try:
            if kind is ShapeKind.POINTS:
                group = str(region.get("parentID") or "")
                of_group = points.setdefault(group, {})
                if names[0] in of_group:
                    problem = ("repeated_label", f"two points {names[0]!r} have no object of their own: group them")
                    shapes.append(Shape(kind=kind, problem=problem))
                    continue
                of_group[names[0]] = (_pixel(value["x"], width), _pixel(value["y"], height))
            else:
                shapes.append(_shape(kind, names[0], region, value, width, height))
        except (KeyError, TypeError, ValueError) as error:
            shapes.append(
                Shape(kind=kind, label=names[0], problem=("bad_value", f"a region cannot be read: {error!r}"))
            )
    return shapes + [Shape(kind=ShapeKind.POINTS, points=named, group=group) for group, named in points.items()]


def _shape(kind: ShapeKind, label: str, region: Region, value: Mapping[str, Any], width: int, height: int) -> Shape:
    group = str(region.get("id") or "")
    if kind is ShapeKind.MASK:
        if value.get("format") != "rle" or not isinstance(value.get("rle"), list):
            return Shape(kind=kind, label=label, problem=("bad_rle", "a mask has no `rle`: export it as JSON"))
        return Shape(kind=kind, label=label, draw=partial(_draw, value["rle"]))
    if kind is ShapeKind.POLYGON:
        numbers = tuple(number for x, y in value["points"] for number in (_pixel(x, width), _pixel(y, height)))
        return Shape(kind=kind, label=label, numbers=numbers)
    left, top = _pixel(value["x"], width), _pixel(value["y"], height)
    right, bottom = _pixel(value["x"] + value["width"], width), _pixel(value["y"] + value["height"], height)
    angle = value.get("rotation") or 0
    if not angle % 360:
        return Shape(kind=ShapeKind.BOX, label=label, numbers=(left, top, right, bottom), group=group)
    corners = turned_around(((left, top), (right, top), (right, bottom), (left, bottom)), (left, top), angle)
    return Shape(kind=ShapeKind.QUAD, label=label, numbers=tuple(number for point in corners for number in point))


def _draw(rle: Sequence[Any], size: ImageSize) -> Runs:
    try:
        return runs_of_mask(decode_brush([int(each) for each in rle], width=size.width, height=size.height))
    except (TypeError, ValueError) as error:
        raise RasterError("bad_rle", "has a mask that is no list of bytes") from error


def _pixel(hundredths: float, length: int) -> float:
    """A coordinate, rounded so that what was whole is whole again."""
    return round(float(hundredths) * length / HUNDRED, 6)


def _values(shape: Shape, size: ImageSize, parents: Mapping[str, str]) -> list[tuple[str, dict[str, Any], str]]:
    """The regions of a shape: type, value, and the parent of each."""

    def at(x: float, y: float) -> tuple[float, float]:
        return round(x * HUNDRED / size.width, ROUND), round(y * HUNDRED / size.height, ROUND)

    if shape.kind is ShapeKind.TAG:
        return [("choices", {"choices": [shape.label]}, "")]
    if shape.kind is ShapeKind.POINTS:
        parent = parents.get(shape.group, "")
        named = [(name, *at(*point)) for name, point in shape.points.items()]
        return [
            ("keypointlabels", {"x": x, "y": y, "width": 0.5, "keypointlabels": [name]}, parent) for name, x, y in named
        ]
    if shape.kind is ShapeKind.MASK:
        assert shape.draw is not None, "a mask can be drawn"
        mask = mask_of_runs(shape.draw(size), height=size.height, width=size.width)
        return [("brushlabels", {"format": "rle", "rle": encode_brush(mask), "brushlabels": [shape.label]}, "")]
    if shape.kind is ShapeKind.BOX:
        (x, y), (right, bottom) = at(*shape.numbers[:2]), at(*shape.numbers[2:])
        sides = {"width": round(right - x, ROUND), "height": round(bottom - y, ROUND)}
        return [("rectanglelabels", {"x": x, "y": y, **sides, "rotation": 0, "rectanglelabels": [shape.label]}, "")]
    points = [at(x, y) for x, y in zip(shape.numbers[::2], shape.numbers[1::2], strict=True)]
    return [("polygonlabels", {"points": points, "closed": True, "polygonlabels": [shape.label]}, "")]
