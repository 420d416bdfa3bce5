"""Semantic segmentation: a map of categories."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.document import Mapping
from services.conversion.finding import Place, Report
from services.conversion.formats.colors import Colors, colors_of_classes, paint, read_colors, write_colors
from services.conversion.formats.format import Json, MapFile
from services.conversion.formats.raw_map import open_map
from services.conversion.index import ImageSize
from services.conversion.raster.palette import stretches
from services.conversion.raster.png import encode_png
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticMap:
    """One map; at least one of its pixels is not ignored, else the image's annotation is null.

    `classes`: uint16, (height, width) of the map, which may be smaller than the image: 0 is ignored, n is `names[n-1]`.
    `names` are those of the vocabulary, in its order.
    """

    classes: NDArray[np.uint16]
    names: tuple[str, ...]

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """How many pixels each class has, (classes + 1,); the first number is that of the ignored pixels."""
        classes, lengths = stretches(self.classes)
        return np.bincount(classes, weights=lengths, minlength=len(self.names) + 1).astype(np.int64)


class SemanticSegmentation:
    """An annotation is a map; it counts as many annotations as it has classes."""

    task = Task.SEMANTIC_SEGMENTATION
    annotated = True
    optional = False
    keys = ("categories", "colors")
    map_suffixes = (".png",)

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Colors:
        return read_colors(metadata, place, report)

    def write_vocabulary(self, vocabulary: Colors) -> AnyMapping[str, Json]:
        return write_colors(vocabulary)

    def names(self, vocabulary: Colors) -> Sequence[str]:
        return vocabulary.names

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: Colors, report: Report) -> SemanticMap | None:
        raw = open_map(value, size, place, report)
        if raw is None:
            return None
        raw.refuse_about()
        pixels = raw.picture()
        if pixels is None:
            return None
        colors = raw.colors(pixels)
        if colors is None:
            return None
        classes = raw.classes(colors, vocabulary)
        return SemanticMap(classes=classes, names=vocabulary.names) if classes.any() else None

    def write(self, annotation: SemanticMap, size: ImageSize, vocabulary: Colors) -> MapFile:
        used = self.categories(annotation)
        assert all(name in vocabulary.colors for name in used), "a map uses a category without a colour"
        pixels = paint(annotation.classes, colors_of_classes(vocabulary))
        return MapFile(suffix=".png", content=encode_png(pixels))

    def count(self, annotation: SemanticMap) -> int:
        return int(np.count_nonzero(annotation.areas[1:]))

    def categories(self, annotation: SemanticMap) -> Sequence[str]:
        return [annotation.names[number] for number in np.flatnonzero(annotation.areas[1:])]
