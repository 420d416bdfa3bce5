"""The XML of CVAT for images 1.1: what it says of an image, and how that is written. Nothing is expanded or fetched.

A mask is runs of pixels row by row within its box, outside first. A box may be turned, in degrees, around its middle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from xml.etree.ElementTree import Element, ParseError, tostring
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import quoteattr

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from services.conversion.foreign.shapes.shape import Shape, ShapedImage, ShapeKind, ShapesError
from services.conversion.foreign.turning import turned_around
from services.conversion.formats.colors import Color
from services.conversion.formats.number import Point, written
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError
from services.conversion.raster.runs import Runs, bounds_of_runs, runs_of_window, window_of_runs

FALSE_WORDS = ("0", "", "false", "False")
BESIDE = ("attribute",)
"""Elements of an image, or of a shape, that are no shapes."""
COORDINATES_MAX = 1_000_000
"""Characters of one shape's numbers, a million of which nobody draws."""


@dataclass(frozen=True, kw_only=True)
class CvatDocument:
    """A document: labels in order, their colours, and each image's element as text, with its name and its part."""

    labels: tuple[str, ...]
    colors: dict[str, Color]
    points: tuple[str, ...]
    images: tuple[tuple[str, str, bytes], ...]


def read_cvat(content: bytes) -> CvatDocument:
    """The document. Raises ShapesError where it is none of CVAT's for images."""
    root = _element(content)
    if root.tag != "annotations":
        raise ShapesError("syntax", f"holds <{root.tag[:40]}>, where <annotations> was wanted")
    if root.find("track") is not None:
        problem = "holds tracks, as CVAT for video writes them: export the task as CVAT for images"
        raise ShapesError("bad_value", problem)
    labels: dict[str, Color | None] = {}
    points: dict[str, None] = {}
    for label in root.iterfind("meta//labels/label"):
        name = label.findtext("name") or ""
        if label.findtext("parent"):
            points[name] = None
        else:
            labels[name] = _color(label.findtext("color") or "")
    images = tuple(
        (each.get("name", ""), each.get("subset", ""), tostring(each, encoding="utf-8"))
        for each in root.iterfind("image")
    )
    colors = {name: color for name, color in labels.items() if color is not None}
    return CvatDocument(labels=tuple(labels), colors=colors, points=tuple(points), images=images)


def read_cvat_image(content: bytes) -> ShapedImage:
    """The shapes in an image's element. Raises ShapesError."""
    element = _element(content)
    dropped: Counter[str] = Counter()
    shapes = [_read_shape(each, dropped) for each in element if each.tag not in BESIDE]
    return ShapedImage(
        name=element.get("name", ""),
        width=_whole(element.get("width")),
        height=_whole(element.get("height")),
        shapes=tuple(shapes),
        dropped=dict(dropped),
    )


def write_cvat_shapes(shapes: Sequence[Shape], size: ImageSize) -> list[bytes]:
    """The elements of shapes, one a line."""
    return [_written(each, size).encode() for each in shapes]


def _element(content: bytes) -> Element:
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ShapesError("syntax", "declares a DTD or entities: leave them out") from error
    except (ParseError, ExpatError, ValueError, LookupError) as error:  # the last two: an encoding that nobody knows
        raise ShapesError("syntax", f"is not XML: {error}") from error
    return root


def _read_shape(element: Element, dropped: Counter[str]) -> Shape:
    label = element.get("label", "")
    for flag in ("occluded",):
        dropped.update({flag: 1} if element.get(flag, "0") not in FALSE_WORDS else {})
    dropped.update({"attribute": 1} if element.find("attribute") is not None else {})
    group = element.get("group_id", "")
    group = group if group not in FALSE_WORDS else ""
    try:
        return _SHAPES[element.tag](element, label, group)
    except KeyError:
        return Shape(kind=ShapeKind.OTHER, label=label, name=element.tag)
    except ValueError as error:
        kind = _KINDS[element.tag]
        return Shape(kind=kind, label=label, problem=("bad_value", f"the <{element.tag}> cannot be read: {error}"))


def _box(element: Element, label: str, group: str) -> Shape:
    left, top, right, bottom = (_number(element, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    angle = _number(element, "rotation") if element.get("rotation") else 0.0
    if not angle % 360:
        return Shape(kind=ShapeKind.BOX, label=label, numbers=(left, top, right, bottom), group=group)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    turned = turned_around(corners, ((left + right) / 2, (top + bottom) / 2), angle)
    return Shape(kind=ShapeKind.QUAD, label=label, numbers=tuple(n for point in turned for n in point), group=group)


def _polygon(element: Element, label: str, group: str) -> Shape:
    numbers = tuple(number for point in _points_of(element) for number in point)
    return Shape(kind=ShapeKind.POLYGON, label=label, numbers=numbers, group=group)


def _points(element: Element, label: str, group: str) -> Shape:
    """Points without names of their own are numbered, as CVAT does in a skeleton."""
    points = {str(number): point for number, point in enumerate(_points_of(element), start=1)}
    return Shape(kind=ShapeKind.POINTS, label=label, points=points, group=group)


def _skeleton(element: Element, label: str, group: str) -> Shape:
    points = {}
    for each in element.iterfind("points"):
        if each.get("outside", "0") in FALSE_WORDS:
            points[each.get("label", "")] = _points_of(each)[0]
    return Shape(kind=ShapeKind.POINTS, label=label, points=points, group=group)


def _mask(element: Element, label: str, group: str) -> Shape:
    left, top, width, height = (_whole(element.get(key)) for key in ("left", "top", "width", "height"))
    counts = [int(text) for text in element.get("rle", "").split(",")]
    draw = partial(_draw, counts, left, top, width, height)
    return Shape(kind=ShapeKind.MASK, label=label, draw=draw, group=group)


def _draw(counts: Sequence[int], left: int, top: int, width: int, height: int, size: ImageSize) -> Runs:
    """A mask of runs within its box, in a map of the image's size."""
    if left + width > size.width or top + height > size.height or not width or not height:
        raise RasterError("bad_rle", f"has a box of {width} x {height} at {left}, {top}, which is not in the image")
    if min(counts) < 0 or sum(counts) != width * height:
        raise RasterError("bad_rle", f"has runs of {sum(counts)} pixels, where {width} x {height} were wanted")
    inside = np.zeros(len(counts), np.bool_)
    inside[1::2] = True
    window = np.repeat(inside, counts).reshape(height, width)
    return runs_of_window(window, left=left, top=top, height=size.height)


def _tag(element: Element, label: str, group: str) -> Shape:
    return Shape(kind=ShapeKind.TAG, label=label)


_SHAPES = {"box": _box, "polygon": _polygon, "points": _points, "skeleton": _skeleton, "mask": _mask, "tag": _tag}
_KINDS = {
    "box": ShapeKind.BOX,
    "polygon": ShapeKind.POLYGON,
    "points": ShapeKind.POINTS,
    "skeleton": ShapeKind.POINTS,
    "mask": ShapeKind.MASK,
    "tag": ShapeKind.TAG,
}


def _points_of(element: Element) -> list[Point]:
    text = element.get("points", "")
    if len(text) > COORDINATES_MAX:
        raise ValueError(f"its points have {len(text)} characters, but at most {COORDINATES_MAX} may be")
    points = []
    for pair in text.split(";"):
        x, comma, y = pair.partition(",")
        if not comma:
            raise ValueError(f"{pair[:20]!r} is no point, x,y was wanted")
        points.append((float(x), float(y)))
    return points


def _number(element: Element, key: str) -> float:
    text = element.get(key)
    if text is None:
        raise ValueError(f"it has no {key}")
    return float(text)


def _whole(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _color(text: str) -> Color | None:
    try:
        number = int(text.removeprefix("#"), 16) if len(text) == 7 and text.startswith("#") else -1
    except ValueError:
        return None
    return None if number < 0 else (number >> 16, number >> 8 & 255, number & 255)


def _written(shape: Shape, size: ImageSize) -> str:
    head = f"label={quoteattr(shape.label)}"
    flags = 'source="manual" occluded="0"'
    if shape.kind is ShapeKind.TAG:
        return f'<tag {head} source="manual"></tag>'
    if shape.kind is ShapeKind.BOX:
        keys = zip(("xtl", "ytl", "xbr", "ybr"), shape.numbers, strict=True)
        corners = " ".join(f'{key}="{written(number)}"' for key, number in keys)
        return f'<box {head} {flags} {corners} z_order="0"></box>'
    if shape.kind is ShapeKind.POINTS:
        points = "".join(
            f'<points label={quoteattr(name)} {flags} outside="0" points="{written(x)},{written(y)}"></points>'
            for name, (x, y) in shape.points.items()
        )
        return f'<skeleton {head} source="manual" z_order="0">{points}</skeleton>'
    if shape.kind is ShapeKind.MASK:
        assert shape.draw is not None, "a mask can be drawn"
        return f'<mask {head} {flags} {_written_mask(shape.draw(size), size)} z_order="0"></mask>'
    pairs = zip(shape.numbers[::2], shape.numbers[1::2], strict=True)
    points = ";".join(f"{written(x)},{written(y)}" for x, y in pairs)
    return f'<polygon {head} {flags} points="{points}" z_order="0"></polygon>'


def _written_mask(mask: Runs, size: ImageSize) -> str:
    left, top, right, bottom = bounds = bounds_of_runs(mask, height=size.height)
    flat = window_of_runs(mask, bounds, height=size.height).reshape(-1)
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *turns.tolist(), flat.size]).tolist()
    runs = ", ".join(map(str, [0, *counts] if flat[0] else counts))
    return f'rle="{runs}" left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
