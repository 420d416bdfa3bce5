"""LabelMe's JSON of one image. Masks are PNGs of their box, which includes its last pixel; flags label the image.

Files may hold the whole image as text (`imageData`), which is not looked at.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import msgspec
import numpy as np

from services.conversion.foreign.shapes.shape import Shape, ShapedImage, ShapeKind, ShapesError
from services.conversion.formats.number import written
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.png import decode_png, encode_png
from services.conversion.raster.runs import Runs, bounds_of_runs, runs_of_window, window_of_runs

VERSION = "5.4.1"
"""Of the tool whose files these are like: from it on there are masks."""
CIRCLES = ("circle", "line", "linestrip", "points", "ellipse")


class LabelmeShape(msgspec.Struct, gc=False):
    """One of `shapes`."""

    label: str
    points: list[list[float]] = []
    shape_type: str | None = "polygon"
    group_id: Any = None
    mask: str | None = None
    description: Any = None
    flags: Any = None


class LabelmeFile(msgspec.Struct, gc=False):
    """One file."""

    shapes: list[LabelmeShape]
    imagePath: str = ""  # noqa: N815 — the key of the file
    imageWidth: int | None = None  # noqa: N815
    imageHeight: int | None = None  # noqa: N815
    flags: dict[str, Any] | None = None


_DECODER: msgspec.json.Decoder[LabelmeFile] = msgspec.json.Decoder(LabelmeFile)


def read_labelme(content: bytes) -> ShapedImage:
    """The image's shapes. Raises ShapesError."""
    try:
        file = _DECODER.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ShapesError("syntax", f"is none of LabelMe's: {error}") from error
    tags = [Shape(kind=ShapeKind.TAG, label=name) for name, value in (file.flags or {}).items() if value is True]
    dropped = {
        "flags": sum(any((each.flags or {}).values()) for each in file.shapes if isinstance(each.flags, dict)),
        "description": sum(bool(each.description) for each in file.shapes),
    }
    return ShapedImage(
        name=PureWindowsPath(file.imagePath).name if "\\" in file.imagePath else PurePosixPath(file.imagePath).name,
        width=file.imageWidth or 0,
        height=file.imageHeight or 0,
        shapes=(*tags, *_shapes(file.shapes)),
        dropped={what: count for what, count in dropped.items() if count},
    )


def labelme_flags(content: bytes) -> tuple[str, ...]:
    """The labels that images may have, set or not. Empty where the file cannot be read."""
    try:
        return tuple(_DECODER.decode(content.removeprefix(b"\xef\xbb\xbf")).flags or ())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()


def write_labelme_shapes(shapes: Sequence[Shape], size: ImageSize) -> list[bytes]:
    """Each shape as JSON; a tag as its label alone."""
    return [msgspec.json.encode(about) for each in shapes for about in _written(each, size)]


def _shapes(shapes: Sequence[LabelmeShape]) -> list[Shape]:
    """Points are an object's where they share a group; those of none are one object, or several of the same names."""
    found: list[Shape] = []
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for each in shapes:
        group = "" if each.group_id is None else str(each.group_id)
        if each.shape_type == "point":
            if any(len(point) != 2 for point in each.points[:1]) or not each.points:
                found.append(Shape(kind=ShapeKind.POINTS, problem=("bad_value", "a point has no x and y")))
                continue
            of_group = points.setdefault(group, {})
            key = group
            while each.label in of_group:
                key += "'"
                of_group = points.setdefault(key, {})
            of_group[each.label] = (each.points[0][0], each.points[0][1])
        else:
            found.append(_shape(each, group))
    return found + [Shape(kind=ShapeKind.POINTS, points=named, group=group) for group, named in points.items()]


def _shape(each: LabelmeShape, group: str) -> Shape:
    kind = each.shape_type or "polygon"
    if any(len(point) != 2 for point in each.points):
        return Shape(kind=ShapeKind.POLYGON, label=each.label, problem=("bad_value", "a corner is not [x, y]"))
    numbers = tuple(number for point in each.points for number in point)
    if kind == "polygon":
        return Shape(kind=ShapeKind.POLYGON, label=each.label, numbers=numbers, group=group)
    if kind in ("oriented_rectangle", "rotation") and len(numbers) == 8:
        return Shape(kind=ShapeKind.QUAD, label=each.label, numbers=numbers, group=group)
    if kind in ("rectangle", "mask") and len(numbers) == 4:
        ax, ay, bx, by = numbers
        box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
        if kind == "rectangle":
            return Shape(kind=ShapeKind.BOX, label=each.label, numbers=box, group=group)
        draw = partial(_draw, each.mask or "", box[0], box[1])
        return Shape(kind=ShapeKind.MASK, label=each.label, draw=draw, group=group)
    if kind in ("rectangle", "mask"):
        problem = ("wrong_coordinate_count", f"the {kind} has {len(each.points)} corners, but must have two")
        return Shape(kind=ShapeKind.BOX, label=each.label, problem=problem)
    return Shape(kind=ShapeKind.OTHER, label=each.label, name=kind)


def _draw(mask: str, x: float, y: float, size: ImageSize) -> Runs:
    left, top = round(x), round(y)
    try:
        content = base64.b64decode(mask, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RasterError("unreadable_map", "has a mask that is not base64") from error
    pixels = decode_png(content, RasterLimits(pixels_max=size.width * size.height, pages_max=1))
    window = np.atleast_3d(pixels).astype(np.bool_).max(axis=2)
    rows, columns = window.shape
    if left < 0 or top < 0 or left + columns > size.width or top + rows > size.height:
        raise RasterError("unreadable_map", f"has a mask of {columns} x {rows} at {left}, {top}, not in the image")
    return runs_of_window(window, left=left, top=top, height=size.height)


def _written(shape: Shape, size: ImageSize) -> list[Any]:
    if shape.kind is ShapeKind.TAG:
        return [shape.label]
    about: dict[str, Any] = {"label": shape.label, "group_id": int(shape.group) if shape.group else None}
    if shape.kind is ShapeKind.POINTS:
        return [
            {**about, "label": name, "points": [[written(x), written(y)]], "shape_type": "point", "flags": {}}
            for name, (x, y) in shape.points.items()
        ]
    if shape.kind is ShapeKind.MASK:
        assert shape.draw is not None, "a mask can be drawn"
        runs = shape.draw(size)
        left, top, right, bottom = bounds = bounds_of_runs(runs, height=size.height)
        window = window_of_runs(runs, bounds, height=size.height)
        text = base64.b64encode(encode_png(window * np.uint8(255))).decode()
        corners = [[left, top], [right - 1, bottom - 1]]
        return [{**about, "points": corners, "shape_type": "mask", "flags": {}, "mask": text}]
    pairs = [[written(x), written(y)] for x, y in zip(shape.numbers[::2], shape.numbers[1::2], strict=True)]
    kind = {ShapeKind.BOX: "rectangle", ShapeKind.QUAD: "oriented_rectangle"}.get(shape.kind, "polygon")
    return [{**about, "points": pairs, "shape_type": kind, "flags": {}}]
