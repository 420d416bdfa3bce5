"""Maps of instances and of segments: TIFF files of several pages, as conversion writes them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.tasks.map_file import Classes, Palette, map_path
from runner.tasks.mask import Mask
from runner.tasks.objects import Flags, Integers
from runner.tasks.task import WrongAnnotation
from services.chassis.image import DECODER_ERRORS, PIXELS_MAX

COMPRESSION = "tiff_adobe_deflate"
PAGES_MAX = 10_000
"""Instances of one image; conversion refuses more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """An object of an image: its mask, and its category, from 0 on."""

    mask: Mask
    category: int
    ignored: bool


@dataclass(frozen=True, kw_only=True)
class InstanceFile:
    """A map of instances, a page for each; the pages of those to ignore count from 1."""

    path: Path
    palette: Palette
    ignored: frozenset[int]

    def read(self) -> Iterator[Instance]:
        """The instances, one after the other: all at once they may be larger than the memory. Raises WrongAnnotation.

        All have the same size. A page without a pixel is nobody's.
        """
        size: tuple[int, ...] | None = None
        for number, page in enumerate(_pages(self.path, "RGB"), start=1):
            mask: Mask = (page[..., 0] | page[..., 1] | page[..., 2]) > 0  # a fraction of the time of `any`
            if size not in (None, mask.shape):
                raise WrongAnnotation(f"page {number} has another size than the first one")
            size = mask.shape
            place = int(mask.argmax())
            if mask.flat[place]:
                category = self.palette.category(page.reshape(-1, 3)[place])
                yield Instance(mask=mask, category=category, ignored=number in self.ignored)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """A panoptic map that was read: `labels` 0 is void, n the nth segment; classes count from 1."""

    labels: NDArray[np.int32]
    classes: Integers
    ignored: Flags


@dataclass(frozen=True, kw_only=True)
class PanopticFile:
    """A map of segments: a page of colours, then one of ids. `ignored` are pairs of class and id."""

    path: Path
    palette: Palette
    ignored: frozenset[tuple[int, int]]

    def read(self) -> Segments:
        """All segments, by class and then id. Raises WrongAnnotation."""
        pages = _pages(self.path, None)
        colors, ids = next(pages, None), next(pages, None)
        if colors is None or ids is None or colors.ndim != 3 or colors.shape[:2] != ids.shape:
            raise WrongAnnotation("must have a page of colours and a gray one of ids, of one size")
        classes = self.palette.classes_of(colors)
        pairs, numbers = np.unique(
            np.where(classes == 0, 0, (classes.astype(np.int64) << 16) | ids), return_inverse=True
        )
        labels = numbers.reshape(classes.shape).astype(np.int32)
        if pairs[0] != 0:
            labels += 1
        else:
            pairs = pairs[1:]
        of_class, of_id = pairs >> 16, pairs & 0xFFFF
        ignored = [pair in self.ignored for pair in zip(of_class.tolist(), of_id.tolist(), strict=True)]
        return Segments(labels=labels, classes=of_class, ignored=np.array(ignored, np.bool_))


def instance_file(annotation: Any, folder: Path, palette: Palette) -> InstanceFile:
    """What an annotation names. Raises WrongAnnotation."""
    path = map_path(annotation, folder)
    return InstanceFile(path=path, palette=palette, ignored=frozenset(map(int, _listed(annotation))))


def panoptic_file(annotation: Any, folder: Path, palette: Palette) -> PanopticFile:
    """What an annotation names. Raises WrongAnnotation."""
    path = map_path(annotation, folder)
    numbers = {name: number for number, name in enumerate(palette.categories, start=1)}
    pairs = frozenset((numbers.get(name, 0), int(each)) for name, each in _listed(annotation))
    return PanopticFile(path=path, palette=palette, ignored=pairs)


def written_instances(masks: Sequence[Mask], colors: Sequence[NDArray[np.uint8]], width: int, height: int) -> bytes:
    """The content of a map of instances; one black page where there is none."""
    pages = [Image.fromarray(mask[..., None] * color) for mask, color in zip(masks, colors, strict=True)]
    return _written(pages or [Image.new("RGB", (width, height))])


def written_segments(classes: Classes, ids: NDArray[np.int32], palette: Palette) -> bytes:
    """The content of a panoptic map; ids have at most 16 bits."""
    return _written([Image.fromarray(palette.colors[classes]), Image.fromarray(ids.astype(np.uint16))])


def _listed(annotation: Mapping[str, Any]) -> list[Any]:
    """What stands beside the map: crowds and what is to be ignored."""
    return [*annotation.get("crowd", ()), *annotation.get("ignore", ())]


def _pages(path: Path, mode: str | None) -> Iterator[NDArray[Any]]:
    """The pages of a file, in a mode of Pillow's where one is given."""
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            if image.width * image.height > PIXELS_MAX:
                raise WrongAnnotation(f"has {image.width} x {image.height} pixels, at most {PIXELS_MAX} are read")
            count = getattr(image, "n_frames", 1)
            if count > PAGES_MAX:
                raise WrongAnnotation(f"has {count} pages, at most {PAGES_MAX} are read")
            for number in range(count):
                image.seek(number)
                yield np.asarray(image if mode in (None, image.mode) else image.convert(mode))
    except WrongAnnotation:
        raise
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise WrongAnnotation(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def _written(pages: Sequence[Image.Image]) -> bytes:
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=list(pages[1:]), compression=COMPRESSION)
    return file.getvalue()
