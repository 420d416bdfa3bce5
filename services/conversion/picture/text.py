"""Text of pictures, in the font that comes with Pillow: the same on every machine, and for Latin letters alone."""

from __future__ import annotations

import functools
import unicodedata

from PIL import ImageFont

CUT = "..."
"""Stands where a text was cut."""
UNDRAWABLE = "?"
"""Stands for a character that the font does not have."""
REPLACEMENTS = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "→": ">"}
"""Letters that lose no accent when they are taken apart, and an arrow."""


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font, so many pixels high."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont), "every wheel of Pillow brings FreeType"
    return found


@functools.lru_cache(maxsize=4_096)
def drawable(text: str) -> str:
    """The text with the letters that the font has: accents go, and what is not Latin becomes question marks."""
    if text.isascii():
        return text
    spread = "".join(REPLACEMENTS.get(each, REPLACEMENTS.get(each.lower(), each)) for each in text)
    apart = unicodedata.normalize("NFKD", spread)
    seen = (each for each in apart if not unicodedata.combining(each))
    return "".join(each if each.isascii() else UNDRAWABLE for each in seen)


@functools.lru_cache(maxsize=4_096)
def width_of(text: str, size: int) -> int:
    """How many pixels wide a drawable text is."""
    return round(font(size).getlength(text) + 0.5)


def cut(text: str, size: int, width: int, *, middle: bool = False) -> str:
    """The text in at most `width` pixels, drawable: with a mark where its end, or its middle, is left out."""
    text = drawable(text)
    if width_of(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the most characters that fit
        kept = (low + high + 1) // 2
        low, high = (kept, high) if width_of(_shortened(text, kept, middle), size) <= width else (low, kept - 1)
    return _shortened(text, low, middle)


def _shortened(text: str, kept: int, middle: bool) -> str:
    tail = kept // 2 if middle else 0
    return text[: kept - tail].rstrip() + CUT + (text[-tail:] if tail else "")
