"""What the tasks without annotations share: there is nothing to read and nothing to write."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence

from services.conversion.file.document import Mapping, Value
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.index import ImageSize


class ImagesAlone:
    """No vocabulary, no annotations."""

    annotated = False
    optional = True
    keys: Sequence[str] = ()
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> None:
        return None

    def write_vocabulary(self, vocabulary: None) -> AnyMapping[str, Json]:
        return {}

    def names(self, vocabulary: None) -> Sequence[str]:
        return ()

    def read(self, value: Value, size: ImageSize, place: Place, vocabulary: None, report: Report) -> None:
        return None

    def write(self, annotation: None, size: ImageSize, vocabulary: None) -> Json:
        return None

    def count(self, annotation: None) -> int:
        return 0

    def categories(self, annotation: None) -> Sequence[str]:
        return ()
