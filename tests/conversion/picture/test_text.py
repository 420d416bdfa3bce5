"""Text of pictures: cut to its room, in letters that the font has."""

import pytest

from services.conversion.picture.text import cut, drawable, width_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("person", "person"),
        ("Straße → Größe", "Strasse > Grosse"),
        ("café, Ångström, Łódź", "cafe, Angstrom, lodz"),
        ("人 person", "? person"),
        ("", ""),
    ],
)
def test_what_the_font_lacks_is_replaced(text: str, expected: str) -> None:
    assert drawable(text) == expected


def test_a_text_that_fits_stays_as_it_is() -> None:
    assert cut("person", 12, width_of("person", 12)) == "person"


@pytest.mark.parametrize("middle", [False, True])
def test_a_long_text_is_cut_with_a_mark_and_uses_the_room(middle: bool) -> None:
    text = "a_very_long_name_of_an_image_0000012345.jpg"
    for room in (40, 80, 160):
        shown = cut(text, 13, room, middle=middle)
        assert "..." in shown
        assert room - 20 < width_of(shown, 13) <= room
        assert text.startswith(shown.partition("...")[0])
        assert text.endswith(shown.partition("...")[2])
    assert bool(shown.partition("...")[2]) is middle


def test_where_there_is_no_room_the_mark_stands_alone() -> None:
    assert cut("person", 12, 0) == "..."
