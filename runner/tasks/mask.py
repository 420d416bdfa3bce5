"""Masks of instances: runs of pixels in COCO's encoding, and from a coarse map of the canvas to pixels of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from hotcoco import mask as coco
from numpy.typing import NDArray

from runner.trainer.view import View

Mask: TypeAlias = NDArray[np.bool_]
"""(height, width)."""
Rle: TypeAlias = dict[str, Any]
"""COCO's: `size` (height, width) and `counts`."""
Shares: TypeAlias = NDArray[np.uint8]
"""How likely each cell is inside, in 255ths."""

Value = TypeVar("Value", bound=np.generic)

HALF = 127.5


def encoded(mask: Mask) -> Rle:
    """The runs of a mask."""
    found: Rle = coco.encode(np.asfortranarray(mask))
    return found


def decoded(rle: Rle) -> Mask:
    """The mask of runs."""
    found: Mask = coco.decode(rle).astype(np.bool_)
    return found


def area_of(rle: Rle) -> int:
    """Pixels."""
    return int(coco.area(rle))


def json_of(rle: Rle) -> dict[str, Any]:
    """In JSON values: counts as text."""
    counts = rle["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": list(rle["size"]), "counts": text}


def enlarged(maps: NDArray[Value], width: int, height: int) -> NDArray[Value]:
    """Maps, (…, height, width), of an image's size where they were made smaller; nearest pixels."""
    rows, columns = maps.shape[-2:]
    if (rows, columns) == (height, width):
        return maps
    y = (np.arange(height) + 0.5) * rows / height
    x = (np.arange(width) + 0.5) * columns / width
    found: NDArray[Value] = maps[..., y.astype(np.int64)[:, None], x.astype(np.int64)]
    return found


def mask_in_image(shares: Shares, stride: int, box: Sequence[float], view: View) -> Mask:
    """The pixels of an image that are likelier inside than not, and in a box of the image.

    `shares` covers the canvas in cells of `stride` pixels; between their centres it is bilinear.
    """
    found = np.zeros((view.height, view.width), np.bool_)
    left, top = int(np.floor(max(box[0], 0))), int(np.floor(max(box[1], 0)))
    right, bottom = int(np.ceil(min(box[2], view.width))), int(np.ceil(min(box[3], view.height)))
    if right <= left or bottom <= top:
        return found
    a, b, c, d, e, f = view.matrix
    assert b == d == 0, "an image is predicted as it is, not turned"
    columns = ((np.arange(left, right) + 0.5) * a + c) / stride - 0.5
    rows = ((np.arange(top, bottom) + 0.5) * e + f) / stride - 0.5
    across = _between(_between(shares.astype(np.float32), rows, 0), columns, 1)
    found[top:bottom, left:right] = across > HALF
    return found


def _between(values: NDArray[np.float32], places: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Values at places between the numbers along an axis."""
    last = values.shape[axis] - 1
    inside = places.clip(0, last)
    low = np.minimum(inside.astype(np.int64), max(last - 1, 0))
    share = (inside - low).astype(np.float32)
    share = share[:, None] if axis == 0 else share
    first, second = values.take(low, axis), values.take(np.minimum(low + 1, last), axis)
    found: NDArray[np.float32] = first + (second - first) * share
    return found
