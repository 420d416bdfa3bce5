"""Datasets that the benchmarks of training learn from, in the form that a trainer reads."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from services.cli.demo.digits import HEAD, write_digits
from services.cli.demo.scenes import CATEGORIES, COLORS, SEED, Scene, write_scenes

Folders = Mapping[str, Any]
"""The dataset's part of attempt.json."""


def write_head(folder: Path, metadata: Mapping[str, Any], annotations: Mapping[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return str(folder)


def digits(folder: Path) -> Folders:
    """The 1,797 digits, for one head."""
    found = write_digits(folder / "digits")
    metadata = {"task": "multiclass classification", "categories": [str(number) for number in range(10)]}
    head = write_head(folder / "head", metadata, {digit.path.name: digit.category for digit in found})
    return {"images": str(folder / "digits" / "images"), "heads": {HEAD: head}}


def scenes(folder: Path, count: int, *, seed: int = SEED, flat: int = 0) -> Folders:
    """Digit scenes for three heads: `areas` (semantic), `labels` (multilabel) and `digits` (how many, regression).

    The truth is that of the scenes as they were composed. `flat`: makes another dataset of the same kind.
    """
    made = write_scenes(folder / "scenes", count=count, seed=seed + flat)
    areas, labels, counts = {}, {}, {}
    maps = folder / "areas" / "annotations"
    maps.mkdir(parents=True)
    for scene in made:
        areas[scene.name] = _write_map(maps, scene)
        seen = [segment.category for segment, _ in scene.seen]
        labels[scene.name] = sorted(set(seen)) if seen else None
        counts[scene.name] = sum(category.isdigit() for category in seen) if seen else None
    colors = {name: list(color) for name, color in COLORS.items()}
    semantic = {"task": "semantic segmentation", "categories": list(CATEGORIES), "colors": colors}
    multilabel = {"task": "multilabel classification", "labels": list(CATEGORIES)}
    heads = {
        "areas": write_head(folder / "areas", semantic, areas),
        "labels": write_head(folder / "labels", multilabel, labels),
        "digits": write_head(folder / "digits", {"task": "regression", "range": [0, 8]}, counts),
    }
    return {"images": str(folder / "scenes" / "images"), "heads": heads}


def omniglot(archive: Path, folder: Path) -> tuple[Folders, Folders]:
    """Handwritten characters of alphabets to train on, and of other alphabets to validate on; white on black."""
    annotations: dict[str, str] = {}
    (folder / "images").mkdir(parents=True)
    with zipfile.ZipFile(archive) as content:
        for name in content.namelist():
            if not name.endswith(".png"):
                continue
            *_, alphabet, character, file = name.split("/")
            image = Image.open(io.BytesIO(content.read(name))).convert("L")
            image.point(lambda level: 255 - level).save(folder / "images" / f"{alphabet}-{character}-{file}")
            annotations[f"{alphabet}-{character}-{file}"] = f"{alphabet}/{character}"
    alphabets = sorted({identity.split("/")[0] for identity in annotations.values()})
    held_out = alphabets[-len(alphabets) // 3 :]
    sides = []
    for side, mine in (("train", False), ("valid", True)):
        chosen = {n: identity for n, identity in annotations.items() if (identity.split("/")[0] in held_out) is mine}
        metadata = {"task": "metric learning", "identities": sorted(set(chosen.values()))}
        head = write_head(folder / side, metadata, chosen)
        sides.append({"images": str(folder / "images"), "heads": {"character": head}})
    return sides[0], sides[1]


def photos(folder: Path, size: tuple[int, int], count: int) -> Folders:
    """JPEG photos of noise that is smooth as photos are, for one head."""
    (folder / "images").mkdir(parents=True)
    annotations = {}
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.jpg", quality=90)
        annotations[f"{number}.jpg"] = "ab"[number % 2]
    head = write_head(folder / "head", {"task": "multiclass classification", "categories": ["a", "b"]}, annotations)
    return {"images": str(folder / "images"), "heads": {"photo": head}}


def _write_map(maps: Path, scene: Scene) -> dict[str, str] | None:
    if scene.labels is None or not scene.seen:
        return None
    colors: Sequence[tuple[int, int, int]] = [(0, 0, 0), *(COLORS[segment.category] for segment in scene.segments)]
    name = f"{Path(scene.name).stem}.png"
    Image.fromarray(np.array(colors, np.uint8)[scene.labels]).save(maps / name)
    return {"map": f"annotations/{name}"}
