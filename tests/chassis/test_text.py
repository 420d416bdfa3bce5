"""Texts from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.text import CUT_MARK, cleaned_text, text_violations

JOINED = [
    "می\u200cشود",
    "PDF\u200cمن",
    "क्\u200dष",
    "1\ufe0f\u20e3",
    "i ❤\ufe0f it",
    "🏴\U000e0067\U000e0062\U000e007f",
    "葛\U000e0100",
]
NO_TEXT = ["\0", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\r", "\n", "\t"]
MARKS = ["\u200e", "\u200f", "\u061c"]
UNSEEN = ["\u200b", "\ufeff", "\xad", "\u2060", "\u200c", "\u200d", "\ufe0f", "\U000e0061"]


@pytest.mark.parametrize("text", ["a name", "größer", "👨\u200d👩\u200d👧", "日本語", "", *JOINED])
def test_what_people_write_is_text(text: str) -> None:
    assert text_violations(text, "display_name", characters_max=20) == []
    assert cleaned_text(text, characters_max=20) == text


@pytest.mark.parametrize("character", NO_TEXT + MARKS + UNSEEN)
def test_a_name_with_what_nobody_sees_is_refused_without_repeating_it(character: str) -> None:
    [violation] = text_violations(f"na{character}me", "labels.team", characters_max=20)
    assert violation.field == "labels.team"
    assert f"U+{ord(character):04X} at character 3" in violation.description
    assert character not in violation.description


def test_what_joins_letters_is_refused_where_nothing_is_to_be_joined() -> None:
    for text in ("ada\u200d", "\u200cada", "a\u200d\u200d\ufe0fda", "\u200d"):
        assert text_violations(text, "display_name", characters_max=20), text


def test_a_text_with_lines_may_have_them() -> None:
    assert text_violations("one\n\ttwo", "reason", characters_max=20, lines=True) == []
    assert text_violations("one\0two", "reason", characters_max=20, lines=True)
    assert text_violations("x" * 21, "reason", characters_max=20, lines=True)


def test_what_a_program_writes_loses_its_colours_and_keeps_its_lines() -> None:
    text = "\x1b[1;31mTraceback\x1b[0m:\r\n\tat\0 1\r 50 %\r100 %"
    assert cleaned_text(text, characters_max=100, lines=True) == "Traceback:\n\tat� 1\n 50 %\n100 %"
    assert cleaned_text("two\nlines", characters_max=100) == "two lines"


@given(st.text(), st.integers(1, 40), st.booleans())
def test_cleaned_text_is_text_and_no_longer_than_allowed(text: str, characters_max: int, lines: bool) -> None:
    cleaned = cleaned_text(text, characters_max=characters_max, lines=lines)
    assert text_violations(cleaned, "any", characters_max=characters_max, lines=lines) == []
    cleaned.encode()  # no half of a surrogate pair is left


def test_a_text_that_is_cut_says_so() -> None:
    assert cleaned_text("abcdef", characters_max=4) == f"abc{CUT_MARK}"
