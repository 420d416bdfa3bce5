"""LZW pieces, whole and damaged. A damaged one must not end the process, as it once did."""

from __future__ import annotations

import random

import imagecodecs
import pytest

from services.conversion.raster.lzw import LzwError, decode_lzw

FOUND = bytes.fromhex(
    "80002050381812060d0783426150b864361d0f88445ff02898022b178a4662d1a8c4463d058ec8639238dc963f279149653"
    "2b93cb6592a924a65b1e97cd64933894c675309e4e221369e4be7d3f9dc5687478350"
)
"""Much like the piece on which another decoder died now and then."""


@pytest.mark.parametrize("size", [1, 1_000, 100_000])
def test_a_whole_piece_comes_back_and_no_more_of_it_than_was_asked_for(size: int) -> None:
    content = bytes(random.Random(1).randrange(5) for _ in range(size))
    piece = imagecodecs.lzw_encode(content)
    assert decode_lzw(piece, size) == content
    assert decode_lzw(piece, (size + 1) // 2) == content[: (size + 1) // 2]
    with pytest.raises(LzwError):
        decode_lzw(piece, size + 1)


def test_a_damaged_piece_is_refused_or_decoded_to_its_size() -> None:
    source = random.Random(2)
    whole = [FOUND, imagecodecs.lzw_encode(bytes(5_000)), imagecodecs.lzw_encode(source.randbytes(300))]
    refused = 0
    for _ in range(2_000):
        piece = bytearray(source.choice(whole))
        for _ in range(source.randrange(1, 6)):
            piece[source.randrange(len(piece))] = source.randrange(256)
        size = source.choice([1, 100, 432, 1_296, 5_000])
        try:
            assert len(decode_lzw(bytes(piece), size)) == size
        except LzwError:
            refused += 1
    assert 0 < refused < 2_000
