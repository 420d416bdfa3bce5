"""The 1,797 handwritten digits of scikit-learn, written as a dataset in the native format and drawn in the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.columns import Columns
from rich.panel import Panel
from rich.text import Text

PIXEL_MAX = 16
"""The digits' pixels go from 0 to 16."""
SHADES = " ░▒▓█"
HEAD = "digits"


@dataclass(frozen=True, kw_only=True)
class Digit:
    """An image of the dataset: its file, its pixels from 0 to 16 by row, and what it shows."""

    path: Path
    pixels: Sequence[Sequence[int]]
    category: str


def write_digits(folder: Path) -> list[Digit]:
    """Write images/, metadata.yaml and annotations.yaml; return the digits in the order of their file names."""
    # Only the demo needs them, and they take a second to import.
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    images = folder / "images"
    images.mkdir(parents=True)
    digits = []
    for index, (pixels, target) in enumerate(zip(data.images, data.target, strict=True)):
        path = images / f"digit-{index:04}.png"
        Image.fromarray((pixels * (255 / PIXEL_MAX)).round().astype("uint8")).save(path)
        digits.append(Digit(path=path, pixels=pixels.astype(int).tolist(), category=str(target)))
    _annotate(folder, digits, [digit.category for digit in digits])
    return digits


def write_dataset(folder: Path, digits: Sequence[Digit], labels: Sequence[str | None]) -> None:
    """Write some of the digits as a dataset of their own; those whose label is None are not labelled."""
    (folder / "images").mkdir(parents=True)
    for digit in digits:
        shutil.copyfile(digit.path, folder / "images" / digit.path.name)
    _annotate(folder, digits, labels)


def _annotate(folder: Path, digits: Sequence[Digit], labels: Sequence[str | None]) -> None:
    categories = "\n".join(f'  - "{category}"' for category in range(10))
    (folder / "metadata.yaml").write_text(
        f"task: multiclass classification\ncategories:\n{categories}\nannotations: annotations.yaml\n"
    )
    # In quotes: names are strings, whatever they look like.
    rows = [
        f"{digit.path.name}: " + ("null" if label is None else f'"{label}"')
        for digit, label in zip(digits, labels, strict=True)
    ]
    (folder / "annotations.yaml").write_text("\n".join(rows) + "\n")


def drawn(digits: Sequence[Digit], predictions: Sequence[tuple[str, float]]) -> Columns:
    """The digits side by side, each with what the model takes it for (category and probability)."""
    panels = []
    for digit, (category, probability) in zip(digits, predictions, strict=True):
        right = category == digit.category
        rows = ("".join(SHADES[_shade(pixel)] * 2 for pixel in row) for row in digit.pixels)
        title = Text(f"{category} {'✓' if right else f'✗ is {digit.category}'}", style="green" if right else "red")
        panels.append(Panel(Text("\n".join(rows)), title=title, subtitle=f"{probability:.0%}", expand=False))
    return Columns(panels)


def _shade(pixel: int) -> int:
    return min(pixel * len(SHADES) // (PIXEL_MAX + 1), len(SHADES) - 1)
