import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agent.telemetry.lines import LineSplitter, Piece, pieces_of
from runner.report import LINE_CHARACTERS_MAX


def lines_of(*chunks: bytes, characters_max: int = 100) -> list[Piece]:
    splitter = LineSplitter(characters_max)
    return [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.end()


@pytest.mark.parametrize(
    ("chunks", "texts"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nt", b"wo"], ["one", "two"]),
        ([b"10%\r20%\r30%\n"], ["30%"]),
        ([b"10%\r", b"20%\r", b"30%"], ["30%"]),
        ([b"windows\r\nlines\r\n"], ["windows", "lines"]),
        ([b"split\r", b"\nlines"], ["split", "lines"]),
        ([b"done\r\r\n"], ["done"]),
        ([b"\n\n"], ["", ""]),
        ([b""], []),
        (["größe\n".encode()[:3], "größe\n".encode()[3:]], ["größe"]),
        ([b"\xff\xfe\n"], ["\ufffd\ufffd"]),
    ],
)
def test_a_progress_bar_keeps_its_last_state_and_lines_are_whole(chunks: list[bytes], texts: list[str]) -> None:
    assert [piece.text for piece in lines_of(*chunks)] == texts


def test_a_long_line_is_split_with_a_mark_on_all_but_its_last_piece() -> None:
    assert lines_of(b"x" * 250 + b"\n") == [
        Piece(text="x" * 100, continued=True),
        Piece(text="x" * 100, continued=True),
        Piece(text="x" * 50),
    ]


def test_a_line_of_exactly_the_limit_is_not_split() -> None:
    assert lines_of(b"x" * 100 + b"\n") == [Piece(text="x" * 100)]


def test_a_line_without_end_does_not_gather_in_memory() -> None:
    splitter = LineSplitter(100)
    pieces = [piece for _ in range(1_000) for piece in splitter.feed(b"y" * 64)]
    assert len(splitter._pending) <= 101
    text = "".join(piece.text for piece in [*pieces, *splitter.end()])
    assert text == "y" * 64_000


@given(content=st.binary(max_size=60), data=st.data())
def test_where_chunks_are_cut_changes_nothing(content: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(content)))
    assert lines_of(content[:cut], content[cut:], characters_max=10_000) == lines_of(content, characters_max=10_000)


def test_a_text_of_several_lines_becomes_several_pieces() -> None:
    assert pieces_of("a\nbbb", 2) == [Piece(text="a"), Piece(text="bb", continued=True), Piece(text="b")]


def test_a_line_of_a_hundred_megabytes_takes_little_time_and_memory() -> None:
    splitter = LineSplitter()
    chunk = b"z" * 2**16
    began = time.process_time()
    characters = pending_max = 0
    for _ in range(1_600):
        characters += sum(len(piece.text) for piece in splitter.feed(chunk))
        pending_max = max(pending_max, len(splitter._pending))
    characters += sum(len(piece.text) for piece in [*splitter.feed(b"\n"), *splitter.end()])
    assert characters == 1_600 * len(chunk)
    assert pending_max <= LINE_CHARACTERS_MAX + 1
    assert time.process_time() - began < 5
