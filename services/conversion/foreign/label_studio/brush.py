"""Label Studio's masks: runs of bytes, packed into bits, of a picture of four channels of which the last one counts.

A stream begins with the number of bytes (32 bits), the bits of a byte less one (5), and four widths of lengths less one
(4 each). Then follow pieces: whether it is a run (1 bit), which width (2), its length less one, and one byte or as many
as the length says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.conversion.raster.error import RasterError

WIDTHS = (3, 4, 8, 16)
CHANNELS = 4
OPAQUE = 255


def decode_brush(rle: Sequence[int], *, width: int, height: int) -> NDArray[np.bool_]:
    """The mask, (height, width). Raises RasterError (bad_rle)."""
    try:
        bits = int.from_bytes(bytes(rle), "big")
    except ValueError as error:
        raise RasterError("bad_rle", "has a mask that is no list of bytes") from error
    text = f"{bits:0{8 * len(rle)}b}" if rle else ""
    stream = _Bits(text)
    total, word = stream.take(32), stream.take(5) + 1
    widths = [stream.take(4) + 1 for _ in range(4)]
    if total != CHANNELS * width * height:
        raise RasterError("bad_rle", f"has a mask of {total} bytes, where {CHANNELS} x {width} x {height} were wanted")
    out = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        run, which = stream.take(1), stream.take(2)
        length = stream.take(widths[which]) + 1
        if done + length > total:
            raise RasterError("bad_rle", "has a mask that goes on behind its end")
        if run:
            out[done : done + length] = stream.take(word) & OPAQUE
        else:
            out[done : done + length] = [stream.take(word) & OPAQUE for _ in range(length)]
        done += length
    found: NDArray[np.bool_] = out.reshape(height, width, CHANNELS)[..., CHANNELS - 1] > 0
    return found


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """The stream of a mask, (height, width)."""
    flat = mask.reshape(-1)
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = (CHANNELS * np.diff([0, *turns.tolist(), flat.size])).tolist()
    value = bool(flat[0])
    pieces = [f"{CHANNELS * flat.size:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    for length in lengths:
        left = length
        while left:
            which = next((number for number, width in enumerate(WIDTHS) if left <= 1 << width), len(WIDTHS) - 1)
            taken = min(left, 1 << WIDTHS[which])
            pieces.append(f"1{which:02b}{taken - 1:0{WIDTHS[which]}b}{OPAQUE if value else 0:08b}")
            left -= taken
        value = not value
    text = "".join(pieces)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


class _Bits:
    """Takes numbers off a text of bits. Raises RasterError where it ends."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def take(self, count: int) -> int:
        """The next number of so many bits."""
        end = self._at + count
        if end > len(self._text):
            raise RasterError("bad_rle", "has a mask that ends in the middle")
        found = int(self._text[self._at : end], 2)
        self._at = end
        return found
