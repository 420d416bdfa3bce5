from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from services.conversion.file.header import Header, HeaderError, ImageFormat, MoreNeededError, Pieces, read_header

FORMATS = [(ImageFormat.JPEG, "JPEG"), (ImageFormat.PNG, "PNG"), (ImageFormat.TIFF, "TIFF")]


def encoded(name: str, *, size: tuple[int, int] = (31, 17), orientation: int | None = None, **options: object) -> bytes:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def header_of(content: bytes) -> Header:
    return read_header(Pieces(head=content, tail=b"", size_bytes=len(content)))


def pieces_of(content: bytes, head: int, tail: int) -> Pieces:
    return Pieces(head=content[:head], tail=content[-tail:], size_bytes=len(content))


@pytest.mark.parametrize(("kind", "name"), FORMATS)
def test_size_and_format_are_read(kind: ImageFormat, name: str) -> None:
    assert header_of(encoded(name)) == Header(format=kind, width=31, height=17, orientation=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_size_is_that_of_the_image_as_it_is_shown(name: str, orientation: int) -> None:
    content = encoded(name, orientation=orientation)
    header = header_of(content)
    assert header.orientation == orientation
    # Pillow turns a TIFF when it opens it, the others when it is asked to.
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert (header.width, header.height) == shown.size == ((17, 31) if orientation > 4 else (31, 17))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    assert header_of(encoded("JPEG", orientation=orientation)).orientation == 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"comment": b"x" * 60_000}])
def test_every_kind_of_jpeg_is_read(options: dict[str, object]) -> None:
    assert header_of(encoded("JPEG", **options)).width == 31


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"big_tiff": True}])
def test_every_kind_of_tiff_is_read(options: dict[str, object]) -> None:
    header = header_of(encoded("TIFF", size=(300, 200), **options))
    assert (header.width, header.height) == (300, 200)


def test_a_tiff_of_the_other_byte_order_is_read() -> None:
    entries = [(256, 4, 1, 5), (257, 4, 1, 7), (273, 4, 1, 0), (279, 4, 1, 8)]
    content = b"MM\0*" + struct.pack(">IH", 8, 4) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    assert header_of(content).width == 5


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_a_file_that_was_cut_off_anywhere_is_never_taken_for_a_whole_one(name: str) -> None:
    content = encoded(name, size=(40, 40), orientation=6)
    for length in range(len(content)):
        cut = content[:length]
        try:
            header_of(cut)
        except HeaderError:
            continue
        # A TIFF's own data may lie before what is cut: then nothing of the picture is missing.
        assert name == "TIFF"
        Image.open(io.BytesIO(cut)).load()


def test_bytes_after_the_end_do_no_harm() -> None:
    for name in ("JPEG", "PNG", "TIFF"):
        assert header_of(encoded(name) + b"\0" * 5000).width == 31


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"BM" + b"\0" * 60, b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"II*\0", b"II*\0\xff\xff\xff\xff"],
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(HeaderError):
        header_of(content)


def test_a_size_of_zero_is_refused() -> None:
    content = bytearray(encoded("PNG"))
    content[16:20] = b"\0\0\0\0"
    with pytest.raises(HeaderError, match="0 x 17"):
        header_of(bytes(content))


def test_damaged_exif_is_no_orientation_and_no_failure() -> None:
    content = encoded("JPEG", orientation=6)
    at = content.index(b"Exif\0\0") + 6
    for damage in (b"XXXX", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\xff\xff"):
        assert header_of(content[:at] + damage + content[at + len(damage) :]).orientation == 1


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_first_and_last_bytes_are_enough_for_a_large_file(name: str) -> None:
    content = encoded(name, size=(400, 400), orientation=8)
    assert read_header(pieces_of(content, 700, 64)) == header_of(content)


def test_the_whole_file_is_asked_for_where_pieces_do_not_tell() -> None:
    for name in ("JPEG", "PNG", "TIFF"):
        content = encoded(name, size=(400, 400))
        with pytest.raises(MoreNeededError):
            read_header(pieces_of(content + b"\0" * 500, 40 if name == "TIFF" else 900, 64))


def test_a_header_that_claims_a_huge_picture_costs_nothing() -> None:
    content = bytearray(encoded("PNG"))
    content[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    assert header_of(bytes(content)).width == 2**31 - 1


def test_a_tiff_of_numbers_with_fractions_is_no_picture() -> None:
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 5), np.float32)).save(file, "TIFF")
    content = file.getvalue()
    with pytest.raises(HeaderError, match="fractions"):
        read_header(Pieces(head=content, tail=b"", size_bytes=len(content)))
