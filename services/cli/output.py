"""What a command says: tables for people or JSON for programs on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import IO, Any

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, RenderableType

PLAIN_WIDTH = 160
"""How wide tables are where standard output is no terminal: a pipe has no width of its own."""


class Output:
    """Speaks for one command."""

    def __init__(self, *, as_json: bool, stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self.as_json = as_json
        self._stdout = stdout or sys.stdout
        terminal = self._stdout.isatty()
        self.console = Console(file=self._stdout, highlight=False, width=None if terminal else PLAIN_WIDTH)
        self.errors = Console(file=stderr or sys.stderr, highlight=False, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Whether what is shown may be drawn over again."""
        return self.console.is_terminal and not self.as_json

    def show(self, renderable: RenderableType) -> None:
        """A table, or a text that may break into lines."""
        self.console.print(renderable)

    def line(self, text: str) -> None:
        """A line of text as it is: no mark-up, no wrapping."""
        self.console.print(text, markup=False, soft_wrap=True)

    def json(self, found: Message | Mapping[str, Any]) -> None:
        """One JSON object on one line; protos in their own JSON, with the names of the .proto files."""
        plain = message_to_json(found) if isinstance(found, Message) else found
        self._stdout.write(json.dumps(plain, ensure_ascii=False) + "\n")
        self._stdout.flush()

    def note(self, text: str) -> None:
        """A remark for the person who watches; never part of the result."""
        self.errors.print(text, style="dim", markup=False)


def message_to_json(message: Message) -> dict[str, Any]:
    """A proto's JSON with the names of the .proto files, fields without presence included."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
