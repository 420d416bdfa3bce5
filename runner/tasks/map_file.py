"""Annotations that are maps: a file beside annotations.json, opened when its image is seen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.tasks.task import WrongAnnotation
from services.chassis.image import DECODER_ERRORS, PIXELS_MAX

Classes: TypeAlias = NDArray[np.int16]
"""(height, width): 0 is ignored, n is the nth category."""

COLORS = 2**24
UNKNOWN = int(np.iinfo(np.int16).max)
"""The class of a colour of no category, while a map is read."""
PALETTE_SIZE = 256


def map_path(annotation: Any, folder: Path) -> Path:
    """Where an annotation's map lies. Raises WrongAnnotation."""
    name = annotation.get("map") if isinstance(annotation, Mapping) else None
    if not isinstance(name, str):
        raise WrongAnnotation(f"a map's file was wanted, {annotation!r:.100} was found")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise WrongAnnotation(f"a map's file below the dataset's folder was wanted, {name!r:.100} was found")
    return folder / path


class Palette:
    """Which colour is which category. `colors` are by name; a category without one is in no map."""

    def __init__(self, categories: Sequence[str], colors: Mapping[str, Sequence[int]]) -> None:
        self.categories = tuple(categories)
        self._colors = colors

    @cached_property
    def colors(self) -> NDArray[np.uint8]:
        """Colours by class, (classes + 1, 3): the ignored ones are black."""
        found = np.zeros((len(self.categories) + 1, 3), np.uint8)
        for number, name in enumerate(self.categories, start=1):
            found[number] = self._colors.get(name, (0, 0, 0))
        return found

    def classes(self, path: Path) -> Classes:
        """Read a map. Raises WrongAnnotation for a file that is none, or that has a colour of no category."""
        with _opened(path) as image:
            if image.mode == "P":
                # A table of 256 colours stands for a picture of any size.
                table = np.zeros((PALETTE_SIZE, 3), np.uint8)
                listed = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
                table[: len(listed)] = listed
                by_index: Classes = self._class_by_color[_packed(table)]
                found: Classes = by_index[np.asarray(image)]
            else:
                found = self._class_by_color[_packed(np.asarray(image.convert("RGB")))]
        return _known(found)

    def classes_of(self, colors: NDArray[np.uint8]) -> Classes:
        """Of colours, (…, 3). Raises WrongAnnotation for one of no category."""
        return _known(self._class_by_color[_packed(colors)])

    def category(self, color: NDArray[np.uint8]) -> int:
        """The place, from 0 on, of the category that has this colour. Raises WrongAnnotation."""
        return int(self.classes_of(color)) - 1

    def encoded(self, classes: Classes) -> bytes:
        """A map as the native format has it: a PNG of colours."""
        return png(Image.fromarray(self.colors[classes]))

    @cached_property
    def _class_by_color(self) -> Classes:
        """Of every colour there is: looking up is several times as fast as searching."""
        table: Classes = np.full(COLORS, UNKNOWN, np.int16)
        for number, name in enumerate(self.categories, start=1):
            if name in self._colors:
                red, green, blue = self._colors[name]
                table[red << 16 | green << 8 | blue] = number
        table[0] = 0
        return table


def read_palette(metadata: Mapping[str, Any], categories: Sequence[str]) -> dict[str, list[int]]:
    """Colours by category. Raises WrongAnnotation."""
    colors = metadata.get("colors")
    if not isinstance(colors, Mapping):
        raise WrongAnnotation(f"`colors` must name a colour for each category, {colors!r:.100} was found")
    known = set(categories)
    for name, color in colors.items():
        sound = isinstance(color, list) and len(color) == 3 and all(type(each) is int for each in color)
        if name not in known or not sound or not all(0 <= each <= 255 for each in color):
            raise WrongAnnotation(f"`colors` must give three bytes for a category, {name}: {color!r:.100} was found")
    return {name: list(color) for name, color in colors.items()}


def read_levels(path: Path) -> tuple[NDArray[np.uint16], int]:
    """A gray map of 8 or 16 bits, and its highest possible value. Raises WrongAnnotation."""
    with _opened(path) as image:
        if image.mode == "L":
            return np.asarray(image).astype(np.uint16), np.iinfo(np.uint8).max
        if image.mode.startswith("I"):
            return np.asarray(image).astype(np.uint16), np.iinfo(np.uint16).max
        raise WrongAnnotation(f"has the pixel format {image.mode}, gray of 8 or 16 bits was wanted")


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _known(classes: Classes) -> Classes:
    unknown = classes == UNKNOWN
    if unknown.any():
        raise WrongAnnotation(f"has {int(unknown.sum())} pixels with a colour of no category")
    return classes


def _packed(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    wide = colors.astype(np.int32)
    packed: NDArray[np.int32] = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def _opened(path: Path) -> Image.Image:
    """A map that is decoded."""
    try:
        image = Image.open(path, formats=("PNG",))
        if image.width * image.height > PIXELS_MAX:
            raise WrongAnnotation(f"has {image.width} x {image.height} pixels, at most {PIXELS_MAX} are read")
        image.load()
        image.info.pop("transparency", None)  # no map has one, and Pillow would look for its colour in the palette
    except WrongAnnotation:
        raise
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise WrongAnnotation(f"cannot be decoded: {str(error) or type(error).__name__}") from error
    return image
