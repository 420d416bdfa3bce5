"""What an interrupted conversion has done already: the results of its chunks, a file each.

A file is there whole or not at all, and one that cannot be read, or is about other records, counts as not there: the
chunk is then done again. Whoever opens a journal answers for it that the recipe and the records are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import msgspec

from services.chassis.files import replace_file
from services.conversion.conveyor.chunk import ChunkResult
from services.conversion.conveyor.counts import Counts
from services.conversion.conveyor.sink import Fragment, JsonText
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Report
from services.conversion.formats.format import MapFile

SUFFIX = ".chunk"


class Journal:
    """A folder of results. Slow enough for a thread; two chunks may be written at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, number: int, records: Sequence[RawRecord]) -> ChunkResult | None:
        """The result of a chunk of these records, if it is there."""
        try:
            found = _decode(self._path(number).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        names = [name for name, *_ in found.written]
        return found if names == [record.image.name for record in records] else None

    def write(self, number: int, result: ChunkResult) -> None:
        """Keep a result, for this process and for the next one."""
        replace_file(self._path(number), _encode(result), synced=False)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}{SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class _Page:
    """A result in a form that can be read back without its types being guessed."""

    written: list[tuple[str, bool, Any, JsonText | None, MapFile | None, Fragment | None]]
    counts_in: Counts
    counts_out: Counts
    dropped_by_steps: int
    report: Report


def _encode(result: ChunkResult) -> bytes:
    page = _Page(
        written=[(name, annotated, *_sorted(value)) for name, annotated, value in result.written],
        counts_in=result.counts_in,
        counts_out=result.counts_out,
        dropped_by_steps=result.dropped_by_steps,
        report=result.report,
    )
    return msgspec.msgpack.encode(page)


def _decode(content: bytes) -> ChunkResult:
    page = msgspec.msgpack.decode(content, type=_Page, dec_hook=_counter)
    return ChunkResult(
        written=tuple(
            (name, annotated, next((each for each in kinds if each is not None), value))
            for name, annotated, value, *kinds in page.written
        ),
        counts_in=page.counts_in,
        counts_out=page.counts_out,
        dropped_by_steps=page.dropped_by_steps,
        report=page.report,
    )


def _sorted(written: Any) -> tuple[Any, JsonText | None, MapFile | None, Fragment | None]:
    """By the kind of what was written: it cannot be told from the bytes."""
    if isinstance(written, JsonText):
        return None, written, None, None
    if isinstance(written, MapFile):
        return None, None, written, None
    if isinstance(written, Fragment):
        return None, None, None, written
    return written, None, None, None


def _counter(kind: Any, value: Any) -> Any:
    """What msgspec does not know: a Counter is written as a mapping. Its keys are texts, and so are severities."""
    if get_origin(kind) is Counter:
        return Counter(value)
    raise NotImplementedError(f"no result has a {kind}")
