"""Depth estimation: a map of distances."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.document import Mapping
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json, MapFile
from services.conversion.formats.interval import KEY, Interval, read_interval, write_interval
from services.conversion.formats.raw_map import open_map
from services.conversion.index import ImageSize
from services.conversion.raster.png import encode_png, png_header
from services.conversion.task import Task

BIT_DEPTHS = (8, 16)


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthMap:
    """One map; at least one of its pixels is not ignored, else the image's annotation is null.

    `levels`: uint8 or uint16, (height, width) of the map, which may be smaller than the image: 0 is ignored, 1 is the
    far end of the vocabulary's range, the type's maximum its near end, linear between.
    """

    levels: NDArray[np.uint8] | NDArray[np.uint16]


class DepthEstimation:
    """An annotation is a map of levels; the range turns them into distances."""

    task = Task.DEPTH_ESTIMATION
    annotated = True
    optional = False
    keys = (KEY,)
    map_suffixes = (".png",)

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Interval:
        return read_interval(metadata, place, report)

    def write_vocabulary(self, vocabulary: Interval) -> AnyMapping[str, Json]:
        return {KEY: write_interval(vocabulary)}

    def names(self, vocabulary: Interval) -> Sequence[str]:
        return ()

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: Interval, report: Report) -> DepthMap | None:
        raw = open_map(value, size, place, report)
        if raw is None:
            return None
        raw.refuse_about()
        levels = raw.picture()
        if levels is None:
            return None
        if levels.ndim != 2:
            raw.error("not_gray", "the map has colours, but a depth map is gray, of 8 or 16 bits: save it as gray")
            return None
        bits = png_header(raw.file.content, raw.limits(pages_max=1)).bits
        if bits not in BIT_DEPTHS:
            message = f"the map has {bits} bits a pixel, but a depth map has 8 or 16: save it with as many"
            raw.error("wrong_bit_depth", message, value=str(bits))
            return None
        return DepthMap(levels=levels) if levels.any() else None

    def write(self, annotation: DepthMap, size: ImageSize, vocabulary: Interval) -> MapFile:
        return MapFile(suffix=".png", content=encode_png(annotation.levels))

    def count(self, annotation: DepthMap) -> int:
        return 1

    def categories(self, annotation: DepthMap) -> Sequence[str]:
        return ()
