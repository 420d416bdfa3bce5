"""Scenes of handwritten digits whose every object is known, in the form that a trainer reads, for all object tasks.

The digits are scikit-learn's; those of training and of validation scenes are other ones. A scene has 96 x 96 pixels, a
sheet of paper on a table, and digits that may hide one another a little. What is where is known because it was put
there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 96
DIGITS = tuple(str(digit) for digit in range(10))
STUFF = ("paper", "table")
CATEGORIES = (*DIGITS, *STUFF)
COLORS = {
    name: [(53 * number) % 200 + 40, (97 * number) % 211 + 30, 20 * number + 5]
    for number, name in enumerate(CATEGORIES)
}
CORNERS = ("top-left", "top-right", "bottom-right", "bottom-left")
TRAINING_DIGITS = 1_300
"""Of the 1,797: the others are in validation scenes."""
SIDE_MIN, SIDE_MAX = 24, 40
TURN_MAX = math.pi / 4
INK_MIN = 0.35
OBJECTS_MAX = 5
TRIES_MAX = 20
NEAR_MIN = 0.75
"""Middles of two digits are at least so much of the smaller one's side apart."""
PIXEL_MAX = 16.0
Folders = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """A digit: its pixels that can be seen, and the corners of its frame, clockwise from its own top left."""

    category: str
    mask: NDArray[np.bool_]
    corners: NDArray[np.float64]

    @property
    def box(self) -> list[float]:
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return [float(each) for each in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    pixels: NDArray[np.uint8]
    stuff: NDArray[np.int64]
    """Where paper and table are, as places in CATEGORIES."""
    things: Sequence[Thing]


@cache
def _pieces(*, held_out: bool) -> list[tuple[NDArray[np.float64], str]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pieces = [(pixels / PIXEL_MAX, str(target)) for pixels, target in zip(data.images, data.target, strict=True)]
    return pieces[TRAINING_DIGITS:] if held_out else pieces[:TRAINING_DIGITS]


def scene(seed: int, *, held_out: bool, turned: bool) -> Scene:
    random = np.random.default_rng([seed, held_out, turned])
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(float)
    pixels, stuff = _ground(random, x, y)
    pieces = _pieces(held_out=held_out)
    drawn: list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]] = []
    places: list[tuple[float, float, float]] = []
    for _ in range(random.integers(1, OBJECTS_MAX + 1)):
        side = random.uniform(SIDE_MIN, SIDE_MAX)
        for _ in range(TRIES_MAX):
            across, down = random.uniform(side / 2, SIZE - side / 2, 2).tolist()
            if all(math.hypot(across - a, down - b) >= NEAR_MIN * min(side, s) for a, b, s in places):
                break
        else:
            continue
        places.append((across, down, side))
        ink, category = pieces[random.integers(len(pieces))]
        angle = random.uniform(-TURN_MAX, TURN_MAX) if turned else 0.0
        cover = _stamp(ink, across, down, side, angle)
        pen = random.uniform((10, 10, 30), (70, 60, 140))
        pixels = pixels * (1 - cover[..., None]) + pen * cover[..., None]
        mask = cover > INK_MIN
        drawn = [(name, seen & ~mask, corners) for name, seen, corners in drawn]
        frame = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        drawn.append((category, mask, frame @ turn + (across, down)))
    things = [Thing(category=name, mask=mask, corners=corners) for name, mask, corners in drawn if mask.sum() > 10]
    return Scene(pixels=pixels.clip(0, 255).round().astype(np.uint8), stuff=stuff, things=things)


def write(
    folder: Path, count: int, *, heads: Sequence[str], seed: int = 0, held_out: bool = False, turned: bool = False
) -> Folders:
    """Heads are boxes, areas (semantic), labels, instances, panoptic, quads, corners (keypoints)."""
    (folder / "images").mkdir(parents=True)
    annotations: dict[str, dict[str, Any]] = {head: {} for head in heads}
    for head in heads:
        (folder / head / "annotations").mkdir(parents=True)
    for number in range(count):
        made = scene(1_000_003 * seed + number, held_out=held_out, turned=turned)
        name = f"{number:04}.png"
        Image.fromarray(made.pixels).save(folder / "images" / name)
        for head in heads:
            annotations[head][name] = HEADS[head].annotate(made, folder / head, name)
    for head in heads:
        (folder / head / "metadata.json").write_text(json.dumps(HEADS[head].metadata))
        (folder / head / "annotations.json").write_text(json.dumps(annotations[head]))
    return {"images": str(folder / "images"), "heads": {head: str(folder / head) for head in heads}}


def _ground(random: np.random.Generator, x: Any, y: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A table, and a sheet of paper that lies a little askew."""
    grain = 12 * np.sin(y * random.uniform(0.4, 0.9) + 3 * np.sin(x / random.uniform(15, 30)))
    wood = random.uniform((100, 60, 30), (160, 110, 70))
    pixels = wood + grain[..., None] + random.normal(0, 3, (*x.shape, 1))
    angle = random.uniform(-0.3, 0.3)
    across, down = x - SIZE / 2, y - SIZE / 2
    along = across * math.cos(angle) + down * math.sin(angle)
    aside = down * math.cos(angle) - across * math.sin(angle)
    sheet = (abs(along) < SIZE * random.uniform(0.38, 0.5)) & (abs(aside) < SIZE * random.uniform(0.38, 0.5))
    shade = random.uniform(190, 235) + 15 * y / SIZE + random.normal(0, 3, sheet.shape)
    pixels[sheet] = (shade[..., None] + np.array((8, 4, -8)))[sheet]
    return pixels, np.where(sheet, CATEGORIES.index("paper"), CATEGORIES.index("table"))


def _stamp(ink: NDArray[np.float64], across: float, down: float, side: float, angle: float) -> NDArray[np.float64]:
    """How much of each pixel the ink covers."""
    scale = ink.shape[0] / side
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    middle = ink.shape[0] / 2
    matrix = (
        cosine,
        sine,
        middle - cosine * across - sine * down,
        -sine,
        cosine,
        middle + sine * across - cosine * down,
    )
    grown = Image.fromarray(ink.astype(np.float32)).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    found: NDArray[np.float64] = np.asarray(grown).astype(np.float64).clip(0, 1)
    return found


def _classes(made: Scene) -> NDArray[np.int64]:
    classes = made.stuff.copy()
    for thing in made.things:
        classes[thing.mask] = CATEGORIES.index(thing.category)
    return classes


def _boxes(made: Scene, folder: Path, name: str) -> Any:
    return [{"category": thing.category, "bbox": thing.box} for thing in made.things]


def _quads(made: Scene, folder: Path, name: str) -> Any:
    return [{"category": thing.category, "quad": thing.corners.tolist()} for thing in made.things]


def _corners(made: Scene, folder: Path, name: str) -> Any:
    return [dict(zip(CORNERS, thing.corners.tolist(), strict=True)) for thing in made.things]


def _labels(made: Scene, folder: Path, name: str) -> Any:
    return sorted({thing.category for thing in made.things})


def _areas(made: Scene, folder: Path, name: str) -> Any:
    colors = np.array([COLORS[category] for category in CATEGORIES], np.uint8)
    Image.fromarray(colors[_classes(made)]).save(folder / "annotations" / name)
    return {"map": f"annotations/{name}"}


def _instances(made: Scene, folder: Path, name: str) -> Any:
    pages = [
        Image.fromarray(thing.mask[..., None] * np.array(COLORS[thing.category], np.uint8)) for thing in made.things
    ]
    return _tiff(pages or [Image.new("RGB", (SIZE, SIZE))], folder, name)


def _panoptic(made: Scene, folder: Path, name: str) -> Any:
    colors = np.array([COLORS[category] for category in CATEGORIES], np.uint8)
    ids = np.zeros((SIZE, SIZE), np.uint8)
    for number, thing in enumerate(made.things, start=1):
        ids[thing.mask] = number
    return _tiff([Image.fromarray(colors[_classes(made)]), Image.fromarray(ids)], folder, name)


def _tiff(pages: Sequence[Image.Image], folder: Path, name: str) -> Any:
    path = folder / "annotations" / f"{Path(name).stem}.tiff"
    pages[0].save(path, save_all=True, append_images=list(pages[1:]), compression="tiff_adobe_deflate")
    return {"map": f"annotations/{path.name}"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a head learns of a scene."""

    metadata: Mapping[str, Any]
    annotate: Callable[[Scene, Path, str], Any]


def _kind(task: str, annotate: Callable[[Scene, Path, str], Any], **vocabulary: Any) -> Kind:
    return Kind(metadata={"task": task, **vocabulary}, annotate=annotate)


DIGIT_COLORS = {name: COLORS[name] for name in DIGITS}
HEADS: Mapping[str, Kind] = {
    "boxes": _kind("object detection", _boxes, categories=DIGITS),
    "areas": _kind("semantic segmentation", _areas, categories=CATEGORIES, colors=COLORS),
    "labels": _kind("multilabel classification", _labels, labels=DIGITS),
    "instances": _kind("instance segmentation", _instances, categories=DIGITS, colors=DIGIT_COLORS),
    "panoptic": _kind("panoptic segmentation", _panoptic, categories=CATEGORIES, colors=COLORS, things=DIGITS),
    "quads": _kind("quadrilateral detection", _quads, categories=DIGITS),
    "corners": _kind("keypoint detection", _corners, keypoints=CORNERS),
}
