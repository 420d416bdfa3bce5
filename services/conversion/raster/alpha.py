"""Alpha, which a map has no use for: it goes where that loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.raster.error import RasterError


def without_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """The pixels (height, width, samples) without their last sample. Raises as refuse_transparent."""
    colors, alpha = pixels[..., :-1], pixels[..., -1]
    refuse_transparent(colors, alpha != np.iinfo(pixels.dtype).max)
    return colors


def refuse_transparent(pixels: NDArray[Any], transparent: NDArray[np.bool_]) -> None:
    """Raise RasterError where one of these pixels is not black: nobody knows which colour it means."""
    places = np.flatnonzero(transparent)
    if places.size and pixels.reshape(-1, pixels.shape[-1])[places].any():
        problem = "has pixels that are transparent and not black, so that it is not sure which colour they mean"
        raise RasterError("transparent_map", problem)
