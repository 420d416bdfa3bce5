"""What a command says: tables for people or data for programs on standard output, everything else on standard error."""

from __future__ import annotations

import csv
import enum
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, RenderableType

from services.client.name import short

PLAIN_WIDTH = 160
"""How wide tables are where standard output is no terminal: a pipe has no width of its own."""
NAME_FIELDS = ("name", "job", "series", "context", "path", "uri", "fingerprint")
"""What a record is called by, whichever of them it has."""


class Format(enum.StrEnum):
    """What is written: tables for people, or the same as data."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"


class Output:
    """Speaks for one command."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        format: Format = Format.TABLE,  # noqa: A002  # what it is called everywhere
        quiet: bool = False,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
    ) -> None:
        self.format = Format.JSON if as_json and format is Format.TABLE else format
        self.quiet = quiet
        self._stdout = stdout or sys.stdout
        self._columns: list[str] | None = None
        terminal = self._stdout.isatty()
        self.console = Console(file=self._stdout, highlight=False, width=None if terminal else PLAIN_WIDTH)
        self.errors = Console(file=stderr or sys.stderr, highlight=False, soft_wrap=True)

    @property
    def as_json(self) -> bool:
        """Whether a program reads: data is written, and no table."""
        return self.format is not Format.TABLE

    @property
    def live(self) -> bool:
        """Whether what is shown may be drawn over again."""
        return self.console.is_terminal and not self.console.is_dumb_terminal and not self.as_json

    @property
    def draws_progress(self) -> bool:
        """Whether a bar may be drawn on standard error."""
        return self.errors.is_terminal and not self.errors.is_dumb_terminal and not self.as_json and not self.quiet

    @property
    def has_blocks(self) -> bool:
        """Whether who reads can be shown more than the letters of ASCII."""
        return not self.console.options.ascii_only

    def show(self, renderable: RenderableType) -> None:
        """A table, or a text that may break into lines."""
        self.console.print(renderable)

    def line(self, text: str) -> None:
        """A line of text as it is: no mark-up, no wrapping."""
        self.console.print(text, markup=False, soft_wrap=True)

    def json(self, found: Message | Mapping[str, Any]) -> None:
        """What a program gets: one object on one line, or in the format that was asked for, of a list item by item.

        Protos are in their own JSON, with the names of the .proto files.
        """
        plain = message_to_json(found) if isinstance(found, Message) else dict(found)
        match self.format:
            case Format.YAML:
                self._write(_yaml(plain))
            case Format.CSV:
                self._write_rows(_records(plain))
            case Format.NAME:
                self._write("".join(f"{_name(record)}\n" for record in _records(plain)))
            case Format.JSONL:
                self._write("".join(_json_line(record) for record in _records(plain)))
            case _:
                self._write(_json_line(plain))

    def note(self, text: str) -> None:
        """A remark for the person who watches; never part of the result."""
        if not self.quiet:
            self.errors.print(text, style="dim", markup=False)

    def _write_rows(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Rows of CSV. The columns are those of the first record, a path for each nested field."""
        writer = csv.writer(self._stdout, lineterminator="\n")
        for record in records:
            cells = dict(_flat(record))
            if self._columns is None:
                self._columns = list(cells)
                writer.writerow(self._columns)
            writer.writerow([cells.get(column, "") for column in self._columns])
        self._stdout.flush()

    def _write(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()


def message_to_json(message: Message) -> dict[str, Any]:
    """A proto's JSON with the names of the .proto files, fields without presence included."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _records(plain: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The items of an answer that is a list; what an answer wraps alone; else the answer itself."""
    lists: list[list[Mapping[str, Any]]] = [value for value in plain.values() if isinstance(value, list)]
    others = [name for name, value in plain.items() if not isinstance(value, list) and name != "next_page_token"]
    if len(lists) == 1 and not others and all(isinstance(item, dict) for item in lists[0]):
        return lists[0]
    wrapped: list[Mapping[str, Any]] = [value for value in plain.values() if isinstance(value, dict)]
    return wrapped if len(wrapped) == 1 == len(plain) else [plain]


def _name(record: Mapping[str, Any]) -> str:
    """What a person may type for it."""
    return next((short(str(record[field])) for field in NAME_FIELDS if record.get(field)), "")


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, (list, Mapping)) else value


def _json_line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, ensure_ascii=False) + "\n"


def _yaml(plain: Mapping[str, Any]) -> str:
    import yaml  # a third of a second that most commands do not need

    return f"---\n{yaml.safe_dump(dict(plain), allow_unicode=True, sort_keys=False)}"
