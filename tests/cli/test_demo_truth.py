"""What the demo wants of conversions, on a scene small enough to read, and that it sees each difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.cli.demo.scenes import COLORS, Scene, Segment
from services.cli.demo.truth import (
    KINDS,
    Converted,
    Kind,
    compare,
    wanted_boxes,
    wanted_instances,
    wanted_labels,
    wanted_quads,
    wanted_semantic,
)

LABELS = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 2, 1, 0],
        [0, 2, 1, 2, 3, 0],
        [0, 1, 1, 1, 4, 0],
    ],
    np.uint8,
)
SEGMENTS = (
    Segment(category="paper", id=0),
    Segment(category="7", id=9, crowd=True),
    Segment(category="1", id=0),
    Segment(category="1", id=3, ignore=True),
    Segment(category="5", id=5),  # hidden by the others
)
SCENE = Scene(name="a.png", width=12, height=8, labels=LABELS, segments=SEGMENTS, scale=2)
NOBODY_LOOKED = Scene(name="b.png", width=6, height=4, labels=None, segments=SEGMENTS, scale=1)
NOTHING_THERE = Scene(name="c.png", width=6, height=4, labels=np.minimum(LABELS, 1), segments=SEGMENTS[:1], scale=1)
SEMANTIC, INSTANCE, BOXES, QUADS, LABELS_KIND = KINDS


def converted(folder: Path, annotations: dict[str, Any]) -> Converted:
    (folder / "metadata.json").write_text(json.dumps({"colors": COLORS}))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return Converted(folder)


def color_map(folder: Path, *pages: list[tuple[int, str]], name: str = "a.tiff") -> dict[str, str]:
    """A map with a page for each list of labels, each painted in the colour of a category."""
    images = []
    for page in pages:
        pixels = np.zeros((*LABELS.shape, 3), np.uint8)
        for number, category in page:
            pixels[number == LABELS] = COLORS[category]
        images.append(Image.fromarray(pixels))
    images[0].save(folder / name, **({"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}))
    return {"map": name}


def problems(kind: Kind, found: Converted, *scenes: Scene) -> list[str]:
    return compare(kind, found, scenes)[1]


def test_boxes_and_quads_are_the_bounds_of_all_parts_in_pixels_of_the_image() -> None:
    assert wanted_boxes(SCENE) == [
        ("1", (8, 4, 10, 6), ()),
        ("1", (8, 6, 10, 8), ("ignore",)),
        ("7", (2, 2, 8, 6), ("crowd",)),
    ]
    quads = wanted_quads(SCENE)
    assert quads is not None
    assert quads[2] == ("7", ((2, 2), (8, 2), (8, 6), (2, 6)), ("crowd",))


def test_classes_and_labels_are_what_is_seen_and_cared_for() -> None:
    semantic, instances = wanted_semantic(SCENE), wanted_instances(SCENE)
    assert semantic is not None
    assert instances is not None
    assert [(each.category, each.pixels) for each in semantic] == [("1", 1), ("7", 3), ("paper", 7)]
    assert [(each.category, each.pixels) for each in instances] == [("1", 1), ("1", 1), ("7", 3)]
    assert wanted_labels(SCENE) == ["1", "7", "paper"]


def test_what_nobody_looked_at_is_not_what_holds_nothing() -> None:
    assert [kind.wanted(NOBODY_LOOKED) for kind in KINDS] == [None] * len(KINDS)
    assert [kind.wanted(NOTHING_THERE) for kind in (INSTANCE, BOXES, QUADS)] == [[], [], []]
    assert wanted_labels(NOTHING_THERE) == ["paper"]


def test_maps_are_equal_where_every_pixel_is(tmp_path: Path) -> None:
    parts = [(1, "paper"), (2, "7"), (3, "1")]
    right = converted(tmp_path, {"a.png": color_map(tmp_path, parts, name="a.png")})
    assert compare(SEMANTIC, right, [SCENE]) == ("3 areas of classes in 1 scenes, 0 unlabelled", [])
    wrong = converted(tmp_path, {"a.png": color_map(tmp_path, [*parts, (4, "1")], name="a.png")})
    assert problems(SEMANTIC, wrong, SCENE) == [
        "a.png: wanted [1 1 px; 7 3 px; paper 7 px], found [1 2 px; 7 3 px; paper 7 px]"
    ]


def test_pages_are_equal_with_their_flags_in_any_order(tmp_path: Path) -> None:
    pages = color_map(tmp_path, [(3, "1")], [(2, "7")], [(4, "1")])
    assert problems(INSTANCE, converted(tmp_path, {"a.png": {**pages, "crowd": [2], "ignore": [3]}}), SCENE) == []
    assert problems(INSTANCE, converted(tmp_path, {"a.png": {**pages, "crowd": [1], "ignore": [3]}}), SCENE)
    black = color_map(tmp_path, [], name="c.tiff")
    assert problems(INSTANCE, converted(tmp_path, {"c.png": black, "b.png": None}), NOTHING_THERE, NOBODY_LOOKED) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (["1", "7", "paper"], ""),
        (["paper", "7", "1"], ""),
        (["1", "7"], "a.png: wanted [1; 7; paper], found [1; 7]"),
        (["1", "7", "7", "paper"], "a.png: wanted [1; 7; paper], found [1; 7; 7; paper]"),
        (None, "a.png: wanted [1; 7; paper], found null"),
    ],
)
def test_labels_are_compared_whole(tmp_path: Path, value: list[str] | None, problem: str) -> None:
    assert problems(LABELS_KIND, converted(tmp_path, {"a.png": value}), SCENE) == ([problem] if problem else [])


def test_missing_and_strange_images_are_problems(tmp_path: Path) -> None:
    found = converted(tmp_path, {"x.png": None})
    assert problems(LABELS_KIND, found, SCENE) == ["x.png is there, but no such scene", "a.png is missing"]


def test_a_box_that_is_a_pixel_too_wide_is_seen(tmp_path: Path) -> None:
    def objects(right: int) -> list[dict[str, Any]]:
        return [
            {"category": "7", "bbox": [2, 2, right, 6], "crowd": True},
            {"category": "1", "bbox": [8.0, 4, 10, 6]},
            {"category": "1", "bbox": [8, 6, 10, 8], "ignore": True},
        ]

    assert problems(BOXES, converted(tmp_path, {"a.png": objects(8)}), SCENE) == []
    assert "(2, 2, 9, 6)" in problems(BOXES, converted(tmp_path, {"a.png": objects(9)}), SCENE)[0]
