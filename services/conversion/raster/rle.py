"""COCO's run-length encoding of a mask: a list of counts, or the same as text of 5 bits a character.

Counts alternate between pixels outside and inside, begin outside (perhaps with 0), and add up to the map. As text each
count but the first three is the difference to the one two before, in groups of 5 bits, the lowest first, bit 6 where
more follow, and the last group carries the sign. The bytes equal pycocotools'.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.raster.error import RasterError
from services.conversion.raster.runs import Integers, Runs, runs_of_bounds

GROUPS_MAX = 7
"""Of 5 bits, in one count of a text: more than any map of ours has pixels."""


def encode_rle(runs: Runs, *, height: int, width: int) -> bytes:
    """The text of a mask."""
    return encode_rles([runs], height=height, width=width)[0]


def encode_rles(masks: Sequence[Runs], *, height: int, width: int) -> list[bytes]:
    """The texts of masks of one map; many at once cost little more than one."""
    if not masks:
        return []
    counts, sizes = _counts(masks, height * width)
    firsts = np.cumsum(sizes) - sizes
    deltas = counts.copy()
    deltas[2:] -= counts[:-2]
    for offset in range(3):  # the first three of each mask stand for themselves
        places = (firsts + offset)[sizes > offset]
        deltas[places] = counts[places]
    if height * width < 2**31:
        deltas = deltas.astype(np.int32)  # half the memory to go through, which is what takes the time
    magnitude = np.where(deltas < 0, ~deltas, deltas)
    groups = np.ones_like(deltas)
    for shift in range(4, max(int(magnitude.max()).bit_length(), 1), 5):
        groups += magnitude >> shift > 0
    columns = np.arange(groups.max(), dtype=deltas.dtype)
    characters = (deltas[:, None] >> (5 * columns)) & 31
    characters |= (columns < groups[:, None] - 1) << 5
    characters += 48
    text = characters[columns < groups[:, None]].astype(np.uint8).tobytes()
    bounds = [0, *np.cumsum(np.add.reduceat(groups, firsts)).tolist()]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


def decode_rle(text: bytes, *, height: int, width: int) -> Runs:
    """The mask of a text. Raises RasterError (bad_rle)."""
    return decode_rles([text], height=height, width=width)[0]


def decode_rles(texts: Sequence[bytes], *, height: int, width: int) -> list[Runs]:
    """The masks of texts of one map; many at once cost little more than one. Raises RasterError (bad_rle)."""
    if not texts:
        return []
    lengths = np.array([len(text) for text in texts])
    if not lengths.all():
        raise RasterError("bad_rle", "has an RLE without any count")
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63:
        raise RasterError("bad_rle", "has an RLE with characters that none has")
    last = codes < 32
    if not last[np.cumsum(lengths) - 1].all():
        raise RasterError("bad_rle", "has an RLE that ends in the middle of a count")
    ends = np.flatnonzero(last)
    firsts = np.concatenate(([0], ends[:-1] + 1))
    groups = ends - firsts + 1
    if groups.max() > GROUPS_MAX:
        raise RasterError("bad_rle", "has an RLE with a count that is larger than any map")
    shifts = 5 * (np.arange(codes.size) - np.repeat(firsts, groups))
    counts = np.add.reduceat((codes & 31) << shifts, firsts)
    counts -= np.where(codes[ends] & 16, 1 << (5 * groups), 0)
    sizes = np.diff(np.searchsorted(ends, np.cumsum(lengths) - 1, side="right"), prepend=0)
    pairs, rows = _pairs(counts, sizes)
    # A difference is undone by adding up every other count, of each mask for itself; the first count is none. For an
    # overflow the text would need 2^28 counts.
    first_rows = np.cumsum(rows) - rows
    first_counts = pairs[first_rows, 0]
    pairs[first_rows, 0] = 0
    sums = np.cumsum(pairs, axis=0)
    sums -= np.repeat(sums[first_rows] - pairs[first_rows], rows, axis=0)
    sums[first_rows, 0] = first_counts
    sums[np.cumsum(rows)[sizes % 2 == 1] - 1, 1] = 0  # no count: it fills the pair
    return _runs(sums, rows, height, width)


def counts_of_runs(runs: Runs, *, height: int, width: int) -> list[int]:
    """The list of counts of a mask."""
    counts: list[int] = _counts([runs], height * width)[0].tolist()
    return counts


def runs_of_counts(counts: Sequence[Any], *, height: int, width: int) -> Runs:
    """The mask of a list of counts. Raises RasterError (bad_rle)."""
    try:
        array = np.array(counts)
    except (ValueError, OverflowError) as error:
        raise RasterError("bad_rle", "has an RLE that is no list of counts") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise RasterError("bad_rle", "has an RLE that is no list of counts")
    return _runs(*_pairs(array, np.array([array.size])), height, width)[0]


def _counts(masks: Sequence[Runs], pixels: int) -> tuple[Integers, Integers]:
    """The counts of all masks, one after the other, and how many each has."""
    sizes = np.array([mask.starts.size for mask in masks])
    starts = np.concatenate([mask.starts for mask in masks])
    lengths = np.concatenate([mask.lengths for mask in masks])
    some = sizes > 0
    ends = starts + lengths
    before = np.append(0, ends)[:-1]
    before[(np.cumsum(sizes) - sizes)[some]] = 0
    last = np.zeros(len(masks), np.int64)
    last[some] = ends[np.cumsum(sizes)[some] - 1]
    counts = np.empty(2 * starts.size + len(masks), np.int64)
    places = 2 * np.arange(starts.size) + np.repeat(np.arange(len(masks)), sizes)
    counts[places] = starts - before
    counts[places + 1] = lengths
    sizes = 2 * sizes + 1
    tails = np.cumsum(sizes) - 1
    counts[tails] = pixels - last
    full = last == pixels  # these have no count of what is outside at their end
    return np.delete(counts, tails[full]), sizes - full


def _pairs(counts: NDArray[Any], sizes: Integers) -> tuple[NDArray[Any], Integers]:
    """The counts of all masks in pairs of outside and inside, and how many pairs each has; a 0 fills the last one."""
    rows = (sizes + 1) // 2
    padded = np.zeros(2 * int(rows.sum()), counts.dtype)
    offsets = 2 * (np.cumsum(rows) - rows) - (np.cumsum(sizes) - sizes)
    padded[np.arange(counts.size) + np.repeat(offsets, sizes)] = counts
    return padded.reshape(-1, 2), rows


def _runs(pairs: NDArray[Any], rows: Integers, height: int, width: int) -> list[Runs]:
    """The masks of pairs of counts, so many pairs each."""
    pixels = height * width
    if pairs.min() < 0:
        raise RasterError("bad_rle", "has an RLE with a count below 0")
    if pairs.max() > pixels:  # first: then the sum cannot overflow
        raise RasterError("bad_rle", f"has an RLE with a count of {pairs.max()}, where {width} x {height} were wanted")
    turns = np.cumsum(pairs, dtype=np.int64).reshape(-1, 2)
    totals = np.diff(turns[np.cumsum(rows) - 1, 1], prepend=0)
    if (wrong := totals[totals != pixels]).size:
        raise RasterError("bad_rle", f"has an RLE of {wrong[0]} pixels, where {width} x {height} were wanted")
    # Each mask goes on where the last one ended, but for a pixel between them: so no run goes on in the next mask.
    masks = np.arange(rows.size)
    turns += np.repeat(masks, rows)[:, None]
    runs = runs_of_bounds(turns[:, 0], turns[:, 1])
    bounds = np.append(runs.starts.searchsorted(masks * (pixels + 1)), runs.starts.size)
    starts = runs.starts - np.repeat(masks * (pixels + 1), np.diff(bounds))
    return [
        Runs(starts=starts[start:end], lengths=runs.lengths[start:end])
        for start, end in itertools.pairwise(bounds.tolist())
    ]
