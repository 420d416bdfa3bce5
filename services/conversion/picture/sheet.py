"""Contact sheets: tiles with their titles and legends on one page, as a PNG or JPEG file.

A row of the page shows one image or several, each as one tile, or as two: before and after a conversion.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from services.conversion.formats.colors import Color
from services.conversion.picture.color import WHITE
from services.conversion.picture.legend import Entry
from services.conversion.picture.text import cut, font, width_of

PAGE_WIDTH = 1_600
"""What a page has room for; one with a single small column is narrower."""
TILES_ACROSS = ((2, 2), (4, 2), (1_000_000, 4))
"""(at most so many tiles, so many beside each other)."""
TILE_SIDE_MAX = 780
MARGIN = 20
GAP = 10
"""Between tiles; between images it is twice that."""
TITLE_PIXELS, HEADING_PIXELS, NAME_PIXELS, LEGEND_PIXELS = 22, 15, 13, 12
LEGEND_LINES_MAX = 3
PAPER: Color = (250, 250, 248)
INK: Color = (28, 28, 30)
PALE: Color = (110, 110, 116)
RIM: Color = (205, 205, 202)
STRONG: Color = (176, 42, 42)

FLAT_COLORS_MAX = 4_096
"""A page with fewer colours is no photo: as a PNG it is smaller than as a JPEG, and sharper."""
JPEG_QUALITIES = (90, 75, 60, 40)
"""The best that keeps to the limit is taken."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture with what stands above and below it. `note` says what no drawing can, such as `unlabelled`."""

    picture: Image.Image
    legend: Sequence[Entry] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One image: its name, and its tiles from left to right, as many as the page has headings."""

    name: str
    tiles: Sequence[Tile]
    remark: str = ""
    """About the image, such as what was left out of it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture file."""

    content: bytes
    media_type: str

    @property
    def suffix(self) -> str:
        """For its name."""
        return ".png" if self.media_type == "image/png" else ".jpg"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a page of so many images, with so many tiles each, is divided."""

    images_across: int
    tiles_an_image: int
    tile_side: int

    @property
    def image_width(self) -> int:
        """All tiles of one image, with the gaps between them."""
        return self.tiles_an_image * (self.tile_side + GAP) - GAP


def layout_of(images: int, tiles_an_image: int) -> Layout:
    """Few images are shown large, many beside each other."""
    tiles = images * tiles_an_image
    across = next(across for most, across in TILES_ACROSS if tiles <= most)
    images_across = max(1, min(images, across // tiles_an_image))
    room = PAGE_WIDTH - 2 * MARGIN - (images_across - 1) * 2 * GAP
    tile_side = (room // images_across + GAP) // tiles_an_image - GAP
    return Layout(images_across=images_across, tiles_an_image=tiles_an_image, tile_side=min(tile_side, TILE_SIDE_MAX))


def compose(
    title: str, subtitle: str, headings: Sequence[str], exhibits: Sequence[Exhibit], layout: Layout
) -> Image.Image:
    """The page. `headings` stand above the tiles of each image."""
    width = 2 * MARGIN + layout.images_across * (layout.image_width + 2 * GAP) - 2 * GAP
    rows = [exhibits[start : start + layout.images_across] for start in range(0, len(exhibits), layout.images_across)]
    heights = [max(_height(each, layout) for each in row) for row in rows]
    top = MARGIN + TITLE_PIXELS + GAP + NAME_PIXELS + 2 * GAP
    head = HEADING_PIXELS + GAP if headings else 0
    page = Image.new("RGB", (width, top + head + sum(height + 2 * GAP for height in heights)), PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, (MARGIN, MARGIN), title, TITLE_PIXELS, INK, width - 2 * MARGIN)
    _write(draw, (MARGIN, MARGIN + TITLE_PIXELS + GAP), subtitle, NAME_PIXELS, PALE, width - 2 * MARGIN)
    for column in range(layout.images_across):
        for number, heading in enumerate(headings):
            left = MARGIN + column * (layout.image_width + 2 * GAP) + number * (layout.tile_side + GAP)
            _write(draw, (left, top), heading, HEADING_PIXELS, INK, layout.tile_side)
    top += head
    for row, height in zip(rows, heights, strict=True):
        for column, exhibit in enumerate(row):
            _place(page, draw, exhibit, MARGIN + column * (layout.image_width + 2 * GAP), top, layout)
        top += height + 2 * GAP
    return page


def encode(page: Image.Image, bytes_max: int) -> Picture:
    """The page as a file of at most so many bytes: a PNG where it is flat, else a JPEG, a smaller page if need be."""
    if page.getcolors(FLAT_COLORS_MAX) is not None:
        content = _saved(page, "PNG", compress_level=6)
        if len(content) <= bytes_max:
            return Picture(content=content, media_type="image/png")
    while True:
        for quality in JPEG_QUALITIES:
            content = _saved(page, "JPEG", quality=quality, subsampling=0)
            if len(content) <= bytes_max or max(page.size) == 1:
                return Picture(content=content, media_type="image/jpeg")
        page = page.reduce(2)


def blank(size: tuple[int, int]) -> Image.Image:
    """Stands for a picture that there is none of."""
    return Image.new("RGB", size, (222, 222, 218))


def _height(exhibit: Exhibit, layout: Layout) -> int:
    return max(_tile_height(tile, layout) for tile in exhibit.tiles) + NAME_PIXELS + GAP // 2


def _tile_height(tile: Tile, layout: Layout) -> int:
    lines = len(_lines(tile.legend, layout.tile_side)) + bool(tile.note)
    return tile.picture.height + lines * (LEGEND_PIXELS + 6) + 6


def _place(page: Image.Image, draw: ImageDraw.ImageDraw, exhibit: Exhibit, left: int, top: int, layout: Layout) -> None:
    remark_width = width_of(exhibit.remark, NAME_PIXELS) if exhibit.remark else 0
    room = max(layout.image_width - remark_width - GAP, layout.tile_side // 2)
    name = _write(draw, (left, top), exhibit.name, NAME_PIXELS, INK, room, middle=True)
    if exhibit.remark:
        _write(draw, (left + name + GAP, top), exhibit.remark, NAME_PIXELS, STRONG, layout.image_width - name - GAP)
    top += NAME_PIXELS + GAP // 2
    for number, tile in enumerate(exhibit.tiles):
        _place_tile(page, draw, tile, left + number * (layout.tile_side + GAP), top, layout)


def _place_tile(page: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, layout: Layout) -> None:
    page.paste(tile.picture, (left, top))
    around = (left - 1, top - 1, left + tile.picture.width, top + tile.picture.height)
    draw.rectangle(around, outline=RIM)  # a white image ends somewhere
    top += tile.picture.height + 6
    if tile.note:
        _write(draw, (left, top), tile.note, LEGEND_PIXELS, PALE, layout.tile_side)
        top += LEGEND_PIXELS + 6
    for line in _lines(tile.legend, layout.tile_side):
        at = left
        for entry in line:
            at += _write_entry(draw, (at, top), entry, layout.tile_side - (at - left))
        top += LEGEND_PIXELS + 6


def _lines(legend: Sequence[Entry], width: int) -> list[list[Entry]]:
    """Entries in as many lines as may be; what finds no room is counted."""
    lines: list[list[Entry]] = []
    used = 0
    for position, entry in enumerate(legend):
        needed = min(_entry_width(entry), width)
        if not lines or used + needed > width:
            if len(lines) == LEGEND_LINES_MAX:
                return [*lines[:-1], _with_count(lines[-1], len(legend) - position, width)]
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += needed
    return lines


def _with_count(line: list[Entry], left_out: int, width: int) -> list[Entry]:
    """The last line, with how many entries are missing; it gives up some of its own for that."""
    kept = list(line)
    while True:
        more = Entry(text=f"and {left_out} more")
        if not kept or sum(_entry_width(each) for each in [*kept, more]) <= width:
            return [*kept, more]
        kept.pop()
        left_out += 1


def _entry_width(entry: Entry) -> int:
    swatch = LEGEND_PIXELS + 4 if entry.color is not None else 0
    return swatch + width_of(cut(entry.text, LEGEND_PIXELS, PAGE_WIDTH), LEGEND_PIXELS) + 12


def _write_entry(draw: ImageDraw.ImageDraw, at: tuple[int, int], entry: Entry, room: int) -> int:
    """Write it; return how far the next one stands from here."""
    left, top = at
    swatch = 0
    if entry.color is not None:
        box = (left, top, left + LEGEND_PIXELS - 1, top + LEGEND_PIXELS - 1)
        draw.rectangle(box, fill=entry.color)
        if entry.striped:
            for x in range(left + 2, left + LEGEND_PIXELS, 4):
                draw.line((x, top, x, top + LEGEND_PIXELS - 1), fill=PALE if entry.color == WHITE else PAPER, width=2)
        draw.rectangle(box, outline=PALE)
        swatch = LEGEND_PIXELS + 4
    return swatch + _write(draw, (left + swatch, top), entry.text, LEGEND_PIXELS, INK, room - swatch) + 12


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    color: Color,
    room: int,
    *,
    middle: bool = False,
) -> int:
    """Write a text whose letters begin at `at`, cut to the room; return its width."""
    shown = cut(text, size, room, middle=middle)
    draw.text((at[0], at[1] + round(size * 0.86)), shown, fill=color, font=font(size), anchor="ls")
    return width_of(shown, size)


def _saved(page: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    page.save(file, kind, **options)
    return file.getvalue()
