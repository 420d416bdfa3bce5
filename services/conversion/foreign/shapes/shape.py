"""Shapes of one image as an annotation tool draws them, in pixels of the image. Pure values."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from services.conversion.formats.number import Point
from services.conversion.index import ImageSize
from services.conversion.raster.runs import Runs


class ShapeKind(enum.StrEnum):
    """What a shape is."""

    TAG = "tag"
    """Of the whole image."""
    BOX = "box"
    QUAD = "quadrilateral"
    """Four corners in order, such as a box that is turned."""
    POLYGON = "polygon"
    MASK = "mask"
    POINTS = "points"
    """Named points of one object."""
    OTHER = "shape of another kind"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape. `problem`: the rule that it breaks and why, so that nothing else of it counts.

    `numbers`: xmin, ymin, xmax, ymax of a box; x and y of each corner of a quadrilateral or polygon. Of a kind that
    nothing here understands `name` is the tool's word for it.
    """

    kind: ShapeKind
    label: str = ""
    numbers: tuple[float, ...] = ()
    points: Mapping[str, Point] = field(default_factory=dict)
    draw: Callable[[ImageSize], Runs] | None = None
    """The mask in a map of the image's size. Raises RasterError."""
    group: str = ""
    """Shapes of one group and label are parts of one object; empty is a group of its own."""
    ignore: bool = False
    crowd: bool = False
    name: str = ""
    line: int = 0
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapedImage:
    """One image with its shapes. `width` and `height` are 0 where the file does not say.

    `annotated`: somebody has looked at it, so that no shape says that nothing is there. `dropped`: what is said beside,
    and that the native format does not say, by what it is.
    """

    name: str = ""
    width: int = 0
    height: int = 0
    shapes: tuple[Shape, ...] = ()
    annotated: bool = True
    dropped: Mapping[str, int] = field(default_factory=dict)


class ShapesError(Exception):
    """The text is not what the tool writes for an image. `rule` is a finding's."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(problem)
        self.rule = rule
