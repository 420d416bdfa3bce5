"""Scene text recognition: the text in the image, as tokens of an alphabet."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import replace

from services.conversion.file.document import List, Mapping, Value, kind, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import Names, check_declared, read_names
from services.conversion.index import ImageSize
from services.conversion.task import Task

TOKENS_MAX = 10_000
"""Tokens of one image's text."""


class SceneTextRecognition:
    """An annotation is a tuple of tokens; the empty one says that there is no text.

    A text with one wrong token is dropped as a whole: without the token it would be another text.
    """

    task = Task.SCENE_TEXT_RECOGNITION
    annotated = True
    optional = False
    keys = ("tokens",)
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Names:
        names = read_names(_split(metadata), "tokens", place, report)
        at = replace(place, line=metadata.lines.get("tokens", place.line))
        for name in names.names:
            if any(character.isspace() for character in name):
                message = f"the token {name!r} has white space in it, which no token may have"
                report.fail("bad_name", message, at, value=name)
        return names

    def write_vocabulary(self, vocabulary: Names) -> AnyMapping[str, Json]:
        return {"tokens": vocabulary.names}

    def names(self, vocabulary: Names) -> Sequence[str]:
        return vocabulary.names

    def read(
        self, value: Value, size: ImageSize, place: Place, vocabulary: Names, report: Report
    ) -> tuple[str, ...] | None:
        if isinstance(value, str):
            items: Sequence[Value] = tuple(value)
            lines: Sequence[int] = (place.line,) * len(value)
        elif isinstance(value, List):
            items, lines = value, value.lines
        else:
            message = f"the annotation is {kind(value)}, but must be a list of tokens, or a text"
            report.error("bad_value", message, place, value=shown(value))
            return None
        if len(items) > TOKENS_MAX:
            message = f"the text has {len(items)} tokens, but at most {TOKENS_MAX} may be"
            report.error("text_too_long", message, place, value=str(len(items)))
            return None
        tokens = tuple(item for item in items if isinstance(item, str) and item in vocabulary.known)
        if len(tokens) == len(items):
            return tokens
        _report_tokens(items, lines, place, vocabulary, report)
        return None

    def write(self, annotation: tuple[str, ...], size: ImageSize, vocabulary: Names) -> Json:
        return annotation

    def count(self, annotation: tuple[str, ...]) -> int:
        return min(len(annotation), 1)

    def categories(self, annotation: tuple[str, ...]) -> Sequence[str]:
        return annotation


def _split(metadata: Mapping) -> Mapping:
    """The metadata with `tokens` as a list: one string stands for its characters."""
    tokens = metadata.get("tokens")
    if not isinstance(tokens, str):
        return metadata
    line = metadata.lines["tokens"]
    split, characters = Mapping(line), List(line)
    characters.extend(tokens)
    split["tokens"] = characters
    return split


def _report_tokens(
    items: Sequence[Value], lines: Sequence[int], place: Place, vocabulary: Names, report: Report
) -> None:
    """Every wrong token is found; what is dropped for them is one text."""
    dropped = 0
    for index, (item, line) in enumerate(zip(items, lines, strict=True)):
        at = replace(place, line=line)
        if isinstance(item, str):
            wrong = not check_declared(item, "token", at, index, vocabulary, report, annotations=1 - dropped)
        else:
            message = f"an item is {kind(item)}, but must be a token"
            report.error("bad_value", message, at, index=index, value=shown(item), annotations=1 - dropped)
            wrong = True
        dropped = max(dropped, int(wrong))
