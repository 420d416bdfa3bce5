"""Annotations of small images, and the pictures in which they can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 40, 30
COLORS = {"sky": [0, 0, 255], "ground": [0, 255, 0], "wall": [255, 0, 0]}


def class_map(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Three areas and an ignored border."""
    colors = np.zeros((height, width, 3), np.uint8)
    split = width // 3 + seed % 5
    colors[:, :split], colors[: height // 2, split:], colors[height // 2 :, split:] = COLORS.values()
    colors[:1] = 0
    return Image.fromarray(colors)


def depth_map(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A slope of 16 bits whose first row is ignored."""
    waves = np.sin(np.linspace(0, 3, width) + seed)[None] + np.cos(np.linspace(0, 2, height) + seed)[:, None]
    levels = (waves / 4 + 0.5) * 65_000 + 1
    levels[0] = 0
    return Image.fromarray(levels.astype(np.uint16))


@dataclass(frozen=True, kw_only=True)
class Pages:
    """A map of several pages, and what stands beside it."""

    pages: tuple[Image.Image, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def resized(self, size: tuple[int, int]) -> Pages:
        pages = tuple(page.resize(size, Image.Resampling.NEAREST) for page in self.pages)
        return Pages(pages=pages, about=self.about)


def boxes_of(number: int) -> list[dict[str, Any]]:
    """One to three objects of two categories, which overlap a little in some images."""
    random = np.random.default_rng(number)
    boxes: list[Any] = []
    while len(boxes) < 1 + number % 3:
        sides = random.uniform(8, 20, 2)
        low = random.uniform(0, 1, 2) * ((WIDTH, HEIGHT) - sides)
        inside = [np.minimum(low + sides, other[2:]) - np.maximum(low, other[:2]) for other in boxes]
        if all(each.clip(min=0).prod() < 0.3 * sides.prod() for each in inside):
            boxes.append(np.concatenate([low, low + sides]))
    return [{"category": THINGS[index % 2], "bbox": box.tolist()} for index, box in enumerate(boxes)]


def painted_boxes(annotation: Any, picture: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    for each in annotation:
        left, top, right, bottom = each["bbox"]
        pen.rectangle((left, top, right - 1, bottom - 1), fill=SHADES[each["category"]])
    return picture


def quads_of(number: int) -> list[dict[str, Any]]:
    """The boxes of an image, turned; in every other image they go the other way around."""
    found = []
    for index, each in enumerate(boxes_of(number)):
        left, top, right, bottom = each["bbox"]
        across, down = (left + right) / 2, (top + bottom) / 2
        angle = 0.5 * number + index
        corners = [(-0.4, -0.3), (0.4, -0.3), (0.45, 0.35), (-0.4, 0.3)][:: -1 if number % 2 else 1]
        turned = [(x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)) for x, y in corners]
        quad = [[float(across + (right - left) * x), float(down + (bottom - top) * y)] for x, y in turned]
        found.append({"category": each["category"], "quad": quad})
    return found


def painted_quads(annotation: Any, picture: Image.Image) -> Image.Image:
    """With a dot at the first corner and a smaller one at the second: their order can be seen."""
    pen = ImageDraw.Draw(picture)
    for each in annotation:
        pen.polygon([tuple(corner) for corner in each["quad"]], fill=SHADES[each["category"]])
        for (x, y), radius in zip(each["quad"], (1.5, 0.7), strict=False):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255))
    return picture


POINTS = ["top", "left", "right"]


def poses_of(number: int) -> list[dict[str, Any]]:
    """Objects with keypoints of which some are not there; in some images one has a box alone."""
    found: list[dict[str, Any]] = []
    for index, each in enumerate(boxes_of(number)):
        left, top, right, bottom = each["bbox"]
        width, height = right - left, bottom - top
        places = [(0.5, 0.1), (0.1, 0.8), (0.9, 0.7)]
        points = {
            name: [float(left + width * x), float(top + height * y)]
            for name, (x, y) in zip(POINTS, places, strict=True)
            if (number, name) != (3, "right")
        }
        bare = number == 5 and index == 1
        found.append({**({} if bare else points), "bbox": each["bbox"], "area": 0.6 * width * height})
    return found


def painted_poses(annotation: Any, picture: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    for each in annotation:
        left, top, right, bottom = each["bbox"]
        pen.rectangle((left, top, right - 1, bottom - 1), fill=(90, 90, 90))
        for name, color in zip(POINTS, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
            if name in each:
                x, y = each[name]
                pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=color)
    return picture


def instances_of(number: int, width: int = WIDTH, height: int = HEIGHT) -> Pages:
    """Ellipses in the boxes of an image, one page each."""
    pages = []
    for each in boxes_of(number):
        left, top, right, bottom = each["bbox"]
        page = Image.new("RGB", (WIDTH, HEIGHT))
        ImageDraw.Draw(page).ellipse((left, top, right, bottom), fill=SHADES[each["category"]])
        pages.append(page.resize((width, height), Image.Resampling.NEAREST))
    return Pages(pages=tuple(pages))


def painted_pages(annotation: Any, picture: Image.Image) -> Image.Image:
    for page in annotation.pages:
        if page.mode == "RGB":
            picture.paste(page, mask=Image.fromarray(np.asarray(page).any(axis=2)))
    return picture


def panoptic_of(number: int, width: int = WIDTH, height: int = HEIGHT) -> Pages:
    """The ellipses of an image on a floor, below a wall, with a border of which nobody says what it is."""
    colors, ids = Image.new("RGB", (WIDTH, HEIGHT), SHADES["wall"]), Image.new("L", (WIDTH, HEIGHT), 0)
    ImageDraw.Draw(colors).rectangle((0, 14, WIDTH, HEIGHT), fill=SHADES["floor"])
    for index, each in enumerate(boxes_of(number), start=1):
        left, top, right, bottom = each["bbox"]
        ImageDraw.Draw(colors).ellipse((left, top, right, bottom), fill=SHADES[each["category"]])
        ImageDraw.Draw(ids).ellipse((left, top, right, bottom), fill=index)
    ImageDraw.Draw(colors).rectangle((0, 0, WIDTH, 1), fill=(0, 0, 0))
    pages = (colors, ids)
    return Pages(pages=tuple(page.resize((width, height), Image.Resampling.NEAREST) for page in pages))


THINGS = ["cup", "plate"]
SHADES = {"cup": (255, 40, 40), "plate": (40, 60, 255), "floor": (40, 200, 40), "wall": (200, 200, 40)}


def picture_of(number: int) -> Image.Image:
    """An image that no other of the eight looks like, with some structure at every place."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def guided(annotation: Any, picture: Image.Image) -> Image.Image:
    """The picture of an image; a map shines through, as it does in real images."""
    if not isinstance(annotation, Image.Image):
        return picture
    shown = annotation if annotation.mode == "RGB" else Image.fromarray((np.asarray(annotation) >> 8).astype(np.uint8))
    return Image.blend(picture, shown.convert("RGB").resize((WIDTH, HEIGHT)), 0.6)
