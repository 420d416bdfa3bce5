"""One image of a dataset with its annotation as it is written, whatever wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.conversion.finding import Place
from services.conversion.index import ImageEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRecord:
    """One image with its annotation as it is written. `value` None is null, unless there is a `path`.

    Where `path` is set the annotation is a file of the source, and `value` what stands beside it: before the record is
    converted, whoever carries it puts a MapFile with its content in the value's place. `annotated`: the source has an
    annotation, even if it had to be dropped.
    """

    image: ImageEntry
    place: Place
    annotated: bool
    value: Any
    path: str = ""
    suffix: str = ""
    """In lower case, with its point."""
    size_bytes: int = 0
    """Of the file at `path`, where it is known: chunks are bounded by it."""
    about_file: str = ""
    """Where `value` stands, if that is not `path`."""
