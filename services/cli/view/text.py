"""Text that comes from outside, made safe to show: it may steer no terminal, and is no mark-up."""

from __future__ import annotations

from rich.markup import escape

__all__ = ["safe", "shown"]


def shown(text: str) -> str:
    """The text in one line, each character that could steer a terminal replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def safe(text: str) -> str:
    """The text as a part of mark-up: line by line as `shown`, and no mark-up itself."""
    return escape("\n".join(shown(line.expandtabs(4)) for line in text.split("\n")))
