"""Scenes composed of scikit-learn's handwritten digits, on sheets of paper on a table, with exact panoptic truth.

The digits are real images of 8 by 8 pixels, grown smoothly; everything else is made from a seed. What is where is known
because it was put there: the truth stays in memory, and a check must never read it from the files written here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

SEED = 1797
SCENES = 36
WIDTH, HEIGHT = 128, 96
BORDER = 3
"""Pixels around each scene of which nobody says what they are."""
THINGS = tuple(str(digit) for digit in range(10))
STUFF = ("paper", "table")
CATEGORIES = (*THINGS, *STUFF)
COLORS = {
    "0": (230, 25, 75),
    "1": (60, 180, 75),
    "2": (255, 225, 25),
    "3": (0, 130, 200),
    "4": (245, 130, 48),
    "5": (145, 30, 180),
    "6": (70, 240, 240),
    "7": (240, 50, 230),
    "8": (170, 255, 195),
    "9": (220, 190, 255),
    "paper": (128, 128, 128),
    "table": (128, 128, 0),
}
"""A category's pixels on the page of colours; black is void."""
UNANNOTATED = (5, 17, 29)
"""Scenes that nobody looked at: they have no map."""
VOID = 11
"""The scene of which the map says nothing."""
EMPTY = (8, 20, 32)
"""Scenes without any digit."""
CROWD = 14
"""The scene with a heap of one digit that was not told apart."""
CROWD_DIGITS = 9
IGNORED = 23
"""The scene whose last digit is not to be looked at."""
COARSE = (3, 15, 27)
"""Scenes whose map has half the scene's width and height."""
COLUMNS, ROWS = 3, 2
"""Digits stand in the cells of a grid, shifted at random."""
SHIFT = 5
SIDE_MIN, SIDE_MAX = 26, 44
INK_MIN = 0.35
"""A pixel belongs to a digit where the ink covers so much of it."""
PIXEL_MAX = 16
"""The digits' pixels go from 0 to 16."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The pixels of one pair of category and id. `crowd`: not told apart; `ignore`: whatever is there, do not care."""

    category: str
    id: int
    crowd: bool = False
    ignore: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image and what is on it.

    `labels`: uint8, (height, width) of the map, 0 void, n is `segments[n-1]`; None where nobody annotated the scene. A
    segment that others hide has no pixel. `scale`: pixels of the image a pixel of the map, along each side.
    """

    name: str
    width: int
    height: int
    labels: NDArray[np.uint8] | None
    segments: tuple[Segment, ...]
    scale: int

    @property
    def seen(self) -> list[tuple[Segment, NDArray[np.bool_]]]:
        """The segments that have pixels, with these; none where the map says nothing."""
        if self.labels is None:
            return []
        masks = [(segment, self.labels == number) for number, segment in enumerate(self.segments, start=1)]
        return [(segment, mask) for segment, mask in masks if mask.any()]


def write_scenes(folder: Path, *, count: int = SCENES, seed: int = SEED) -> list[Scene]:
    """Write a panoptic dataset in the native format; return its scenes in the order of their file names."""
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    data = load_digits()
    pieces = [(pixels / PIXEL_MAX, str(target)) for pixels, target in zip(data.images, data.target, strict=True)]
    scenes = [_write_scene(folder, index, pieces, np.random.default_rng([seed, index])) for index in range(count)]
    metadata = {
        "task": "panoptic segmentation",
        "categories": list(CATEGORIES),
        "colors": {category: list(color) for category, color in COLORS.items()},
        "things": list(THINGS),
        "annotations": "annotations/",
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata, sort_keys=False))
    return scenes


def _write_scene(folder: Path, index: int, pieces: list[tuple[Any, str]], random: Generator) -> Scene:
    canvas = _Canvas(random)
    canvas.paint_paper()
    if index == CROWD:
        canvas.add_heap(pieces)
    elif index not in EMPTY:
        canvas.add_digits(pieces)
    if index == IGNORED:
        canvas.segments[-1] = replace(canvas.segments[-1], ignore=True)
    labels = None if index in UNANNOTATED else canvas.truth(void=index == VOID, step=2 if index in COARSE else 1)
    scene = Scene(
        name=f"scene-{index:02}.png",
        width=WIDTH,
        height=HEIGHT,
        labels=labels,
        segments=tuple(canvas.segments),
        scale=2 if index in COARSE else 1,
    )
    Image.fromarray(canvas.pixels.round().astype(np.uint8)).save(folder / "images" / scene.name)
    if labels is not None:
        _write_map(folder / "annotations" / scene.name, labels, scene)
    return scene


def _write_map(place: Path, labels: NDArray[np.uint8], scene: Scene) -> None:
    """Two pages: the colours of the categories, then the ids. What is a crowd or to be ignored stands beside them."""
    colors = np.array([(0, 0, 0), *(COLORS[segment.category] for segment in scene.segments)], np.uint8)
    ids = np.array([0, *(segment.id for segment in scene.segments)], np.uint8)
    pages = [Image.fromarray(colors[labels]), Image.fromarray(ids[labels])]
    pages[0].save(place.with_suffix(".tiff"), save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate")
    about = {
        "crowd": [[segment.category, segment.id] for segment, _ in scene.seen if segment.crowd],
        "ignore": [[segment.category, segment.id] for segment, _ in scene.seen if segment.ignore],
    }
    if any(about.values()):
        place.with_suffix(".yaml").write_text(yaml.safe_dump(about))


class _Canvas:
    """A scene while it is made: what lies on top hides what lies below."""

    def __init__(self, random: Generator) -> None:
        self._random = random
        self.segments = [Segment(category="table", id=0), Segment(category="paper", id=0)]
        self._labels = np.ones((HEIGHT, WIDTH), np.uint8)
        self._free_ids = iter(random.permutation(256).tolist())
        """No id stands for two things of a scene; 0 is one like any other."""
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
        self._x, self._y = x, y
        grain = 12 * np.sin(y * random.uniform(0.5, 0.9) + 3 * np.sin(x / random.uniform(15, 30)))
        light = 0.75 + 0.35 * x / WIDTH + random.normal(0, 0.02, x.shape)
        wood = np.array(random.uniform((100, 60, 30), (150, 100, 60)))
        self.pixels: NDArray[np.float64] = np.clip((wood + grain[..., None]) * light[..., None], 0, 255)

    def paint_paper(self) -> None:
        """A sheet that lies a little askew."""
        angle = self._random.uniform(-0.15, 0.15)
        across, down = self._x - WIDTH / 2, self._y - HEIGHT / 2
        along = across * math.cos(angle) + down * math.sin(angle)
        aside = down * math.cos(angle) - across * math.sin(angle)
        sheet = (abs(along) < WIDTH * 0.44) & (abs(aside) < HEIGHT * 0.4)
        shade = 215 + 25 * self._y / HEIGHT + self._random.normal(0, 3, sheet.shape)
        self.pixels[sheet] = (shade[..., None] + np.array((8, 4, -8)))[sheet].clip(0, 255)
        self._labels[sheet] = 2

    def add_digits(self, pieces: list[tuple[Any, str]]) -> None:
        """Two to six digits, no two in one cell; neighbours may overlap a little."""
        cells = self._random.permutation(COLUMNS * ROWS)[: self._random.integers(2, COLUMNS * ROWS + 1)]
        for cell in cells.tolist():
            row, column = divmod(cell, COLUMNS)
            shift_x, shift_y = self._random.integers(-SHIFT, SHIFT + 1, 2).tolist()
            ink, category = pieces[self._random.integers(len(pieces))]
            self.segments.append(Segment(category=category, id=next(self._free_ids)))
            center = (column + 0.5) * WIDTH / COLUMNS + shift_x, (row + 0.5) * HEIGHT / ROWS + shift_y
            self._stamp(ink, center, int(self._random.integers(SIDE_MIN, SIDE_MAX + 1)))

    def add_heap(self, pieces: list[tuple[Any, str]]) -> None:
        """Many of one digit over one another, as one segment; beside them a digit that stands alone."""
        self.add_digits(pieces[:1])
        chosen, category = pieces[1]
        self.segments.append(Segment(category=category, id=next(self._free_ids), crowd=True))
        for x, y in self._random.uniform((0.15, 0.2), (0.5, 0.8), (CROWD_DIGITS, 2)).tolist():
            self._stamp(chosen, (x * WIDTH, y * HEIGHT), SIDE_MIN)

    def truth(self, *, void: bool, step: int) -> NDArray[np.uint8]:
        """What is where, for each `step`-th pixel; nothing is said of the border, or of anything."""
        labels = self._labels.copy()
        inside = np.zeros_like(labels, dtype=bool)
        inside[BORDER:-BORDER, BORDER:-BORDER] = not void
        labels[~inside] = 0
        return labels[::step, ::step]

    def _stamp(self, ink: NDArray[np.float64], center: tuple[float, float], side: int) -> None:
        """Draw a digit for the newest segment, as far as it lies in the scene."""
        grown = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        left, top = (round(middle - side / 2) for middle in center)
        cover = np.zeros((HEIGHT, WIDTH))
        rows, columns = slice(max(top, 0), min(top + side, HEIGHT)), slice(max(left, 0), min(left + side, WIDTH))
        cover[rows, columns] = grown[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        cover = cover.clip(0, 1)[..., None]
        pen = self._random.uniform((10, 10, 30), (70, 60, 140))
        self.pixels = self.pixels * (1 - cover) + pen * cover
        self._labels[cover[..., 0] > INK_MIN] = len(self.segments)
