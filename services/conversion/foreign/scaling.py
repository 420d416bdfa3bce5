"""Maps at the size of their images, where a foreign format wants them so; natively they may be smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.conversion.index import ImageSize
from services.conversion.raster.runs import Runs, mask_of_runs, runs_of_mask

Pixel = TypeVar("Pixel", np.bool_, np.uint16)


def scaled_runs(masks: Sequence[Runs], width: int, height: int, size: ImageSize) -> list[Runs]:
    """Masks of a map of that width and height, as they are at the image's size."""
    if (width, height) == (size.width, size.height):
        return list(masks)
    return [runs_of_mask(scaled(mask_of_runs(mask, height=height, width=width), size)) for mask in masks]


def scaled(pixels: NDArray[Pixel], size: ImageSize) -> NDArray[Pixel]:
    """Each pixel is that of the map, of shape (height, width), which its middle lies in."""
    height, width = pixels.shape
    rows = (2 * np.arange(size.height) + 1) * height // (2 * size.height)
    columns = (2 * np.arange(size.width) + 1) * width // (2 * size.width)
    found: NDArray[Pixel] = pixels[rows][:, columns]
    return found
