"""Datasets of maps, made from a seed: noise in a few colours, as semantic maps beside images of the same size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

METADATA = """\
task: semantic segmentation
categories: [sky, road, car]
colors: {sky: [0, 0, 255], road: [90, 90, 90], car: [255, 0, 0]}
annotations: maps/
"""
COLORS = np.array([(0, 0, 0), (0, 0, 255), (90, 90, 90), (255, 0, 0)], np.uint8)


def png(pixels: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def noise(seed: int, size: tuple[int, int] = (12, 8)) -> bytes:
    """A map of three classes; every seventh is ignored as a whole."""
    width, height = size
    classes = np.random.default_rng(seed).integers(0, 4, (height, width))
    return png(COLORS[classes * (seed % 7 != 6)])


def write_semantic(folder: Path, count: int, *, size: tuple[int, int] = (12, 8), without: int = 5) -> Path:
    """Images and maps by number; each `without`-th image has no map."""
    (folder / "images").mkdir(parents=True)
    (folder / "maps").mkdir()
    (folder / "metadata.yaml").write_text(METADATA)
    for number in range(count):
        width, height = size
        (folder / f"images/{number:04}.png").write_bytes(png(np.full((height, width, 3), number % 256, np.uint8)))
        if number % without != without - 1:
            (folder / f"maps/{number:04}.png").write_bytes(noise(number, size))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
