"""The demo's scenes: what is written is what is known of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageSequence

from services.cli.demo.scenes import (
    BORDER,
    COARSE,
    EMPTY,
    SCENES,
    STUFF,
    THINGS,
    UNANNOTATED,
    VOID,
    Scene,
    write_scenes,
)

FEW = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets") / "scenes"


@pytest.fixture(scope="module")
def scenes(folder: Path) -> list[Scene]:
    return write_scenes(folder)


def drawn(folder: Path, scene: Scene) -> dict[tuple[str, int], bytes]:
    """The pixels of each pair of category and id, as Pillow reads them from the two pages."""
    colors: dict[str, Any] = yaml.safe_load((folder / "metadata.yaml").read_text())["colors"]
    names = {tuple(color): name for name, color in colors.items()}
    with Image.open(map_path(folder, scene)) as image:
        color_page, id_page = (np.array(page) for page in ImageSequence.Iterator(image))
    pixels = [(tuple(color), number) for color, number in zip(color_page.reshape(-1, 3), id_page.flat, strict=True)]
    shown = {(color, number) for color, number in pixels if any(color)}
    return {
        (names[color], int(number)): ((color_page == color).all(axis=2) & (id_page == number)).tobytes()
        for color, number in shown
    }


def map_path(folder: Path, scene: Scene) -> Path:
    return (folder / "annotations" / scene.name).with_suffix(".tiff")


def test_the_maps_hold_exactly_the_segments_that_are_known(folder: Path, scenes: list[Scene]) -> None:
    assert len(scenes) == SCENES
    for scene in scenes:
        with Image.open(folder / "images" / scene.name) as image:
            assert (image.size, image.mode) == ((scene.width, scene.height), "RGB")
        if scene.labels is None:
            assert not map_path(folder, scene).exists()
        else:
            known = {(segment.category, segment.id): mask.tobytes() for segment, mask in scene.seen}
            assert drawn(folder, scene) == known
            assert scene.labels.shape == (scene.height // scene.scale, scene.width // scene.scale)


def test_nobody_says_what_the_border_is(scenes: list[Scene]) -> None:
    for scene in scenes:
        if scene.labels is not None:
            border = BORDER // scene.scale
            inside = scene.labels[border:-border, border:-border]
            assert inside.any() == (scene is not scenes[VOID])
            assert np.count_nonzero(scene.labels) == np.count_nonzero(inside)


def test_scenes_of_every_kind_are_there(folder: Path, scenes: list[Scene]) -> None:
    assert [index for index, scene in enumerate(scenes) if scene.labels is None] == list(UNANNOTATED)
    assert [index for index, scene in enumerate(scenes) if not scene.seen] == sorted([*UNANNOTATED, VOID])
    without_digits = [
        index
        for index, scene in enumerate(scenes)
        if scene.seen and {segment.category for segment, _ in scene.seen} == set(STUFF)
    ]
    assert without_digits == list(EMPTY)
    assert [index for index, scene in enumerate(scenes) if scene.scale == 2] == list(COARSE)
    segments = [segment for scene in scenes for segment, _ in scene.seen]
    assert {segment.category for segment in segments} == {*THINGS, *STUFF}
    beside = {path.stem: yaml.safe_load(path.read_text()) for path in (folder / "annotations").glob("*.yaml")}
    flagged = {
        Path(scene.name).stem: {
            "crowd": [[segment.category, segment.id] for segment, _ in scene.seen if segment.crowd],
            "ignore": [[segment.category, segment.id] for segment, _ in scene.seen if segment.ignore],
        }
        for scene in scenes
        if any(segment.crowd or segment.ignore for segment, _ in scene.seen)
    }
    assert beside == flagged
    assert sum(segment.crowd for segment in segments) == sum(segment.ignore for segment in segments) == 1


def test_no_id_stands_for_two_things_of_a_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        ids = Counter(segment.id for segment, _ in scene.seen if segment.category in THINGS)
        assert set(ids.values()) <= {1}


def test_a_seed_gives_the_same_scenes_everywhere(folder: Path, scenes: list[Scene], tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", count=FEW)
    write_scenes(tmp_path / "other", count=FEW, seed=1)
    for scene in scenes[:FEW]:
        content = (folder / "images" / scene.name).read_bytes()
        assert (tmp_path / "again" / "images" / scene.name).read_bytes() == content
        assert (tmp_path / "other" / "images" / scene.name).read_bytes() != content
