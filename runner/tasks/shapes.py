"""Objects on a picture: outlines, masks and points in the colours of their categories, with words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from runner.tasks.drawing import FONT_PIXELS, PLATE, WHITE, Rgb, distinct_colors, enlarged, font, with_lines
from runner.tasks.objects import Integers
from runner.trainer.view import Floats

SCORE_TOLD_MIN = 0.3
"""What is less likely is in the JSON alone: a picture of all that may be shows nothing."""
LINE_PIXELS = 2
POINT_PIXELS = 3
MASK_SHARE = 0.5
OBJECTS_LISTED_MAX = 12
CATEGORIES_TOLD_MAX = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """One object to be drawn, in pixels of the image. `points` have names; `mask` is bool, the image's size."""

    category: int
    score: float
    outline: Floats | None = None
    """(corners, 2)."""
    points: Sequence[tuple[str, float, float]] = ()
    mask: NDArray[np.bool_] | None = None
    words: str = field(default="")
    """Instead of category and score."""


def with_shapes(
    image: Image.Image, names: Sequence[str], shapes: Sequence[Shape], colors: Sequence[Rgb] = ()
) -> Image.Image:
    """The picture with the shapes that are likely enough, the likeliest on top, and a list of them below."""
    told = [shape for shape in shapes if shape.score >= SCORE_TOLD_MIN]
    colors = colors or distinct_colors(len(names))
    drawn = enlarged(_masked(image, told, colors))
    factor = drawn.width / image.width
    pen = ImageDraw.Draw(drawn)
    for shape in reversed(told):
        _draw(pen, shape, colors[shape.category], factor, names)
    listed = told[:OBJECTS_LISTED_MAX]
    lines = [shape.words or f"{names[shape.category]}  {shape.score:.0%}" for shape in listed]
    if len(told) > len(listed):
        lines.append(f"and {len(told) - len(listed)} more")
    return with_lines(drawn, lines or ["nothing"], [colors[shape.category] for shape in listed])


def counted(names: Sequence[str], categories: Integers, scores: Floats) -> str:
    """How many of which category are likely enough, in words."""
    found = Counter(names[index] for index in categories[scores >= SCORE_TOLD_MIN].tolist())
    words = [f"{count} {name}" if count > 1 else name for name, count in found.most_common(CATEGORIES_TOLD_MAX)]
    return ", ".join(words) + (", …" if len(found) > CATEGORIES_TOLD_MAX else "") if found else "nothing"


def _masked(image: Image.Image, shapes: Sequence[Shape], colors: Sequence[Rgb]) -> Image.Image:
    pixels = np.array(image.convert("RGB"))
    for shape in reversed(shapes):
        if shape.mask is not None:
            mixed = pixels[shape.mask] * (1 - MASK_SHARE) + np.array(colors[shape.category]) * MASK_SHARE
            pixels[shape.mask] = mixed.astype(np.uint8)
    return Image.fromarray(pixels)


def _draw(pen: ImageDraw.ImageDraw, shape: Shape, color: Rgb, factor: float, names: Sequence[str]) -> None:
    if shape.outline is not None:
        corners = [(x * factor, y * factor) for x, y in shape.outline.tolist()]
        pen.line([*corners, corners[0]], fill=color, width=LINE_PIXELS, joint="curve")
        left, top = min(corners, key=lambda corner: (corner[1], corner[0]))
        words = f"{names[shape.category]} {shape.score:.0%}"
        top = max(0.0, top - FONT_PIXELS - LINE_PIXELS)
        box = pen.textbbox((left, top), words, font=font())
        pen.rectangle(box, fill=PLATE, outline=color)
        pen.text((left, top), words, fill=WHITE, font=font())
    for name, x, y in shape.points:
        across, down = x * factor, y * factor
        pen.ellipse(
            (across - POINT_PIXELS, down - POINT_PIXELS, across + POINT_PIXELS, down + POINT_PIXELS),
            fill=color,
            outline=WHITE,
        )
        pen.text((across + POINT_PIXELS + 1, down - FONT_PIXELS / 2), name, fill=WHITE, font=font())
