"""What a format can say comes back from it as it was; what it cannot say is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

SIZE = (12, 10)
DETECTION = """
a.png: [{category: dog, bbox: [0, 1, 3.5, 4]}, {category: "007", bbox: [1, 1, 2, 2]}]
b.png: []
c.png: null
d.png: [{category: dog, bbox: [2, 3, 10, 8]}]
"""
QUADS = """
a.png:
- {category: dog, quad: [[1, 1], [6, 2], [5, 7], [0.5, 6]]}
- {category: "007", quad: [[3, 3], [8, 3], [8, 6], [3, 6]]}
b.png: []
c.png: null
d.png: [{category: dog, quad: [[4, 1], [9, 5], [5, 9], [1, 5]]}]
"""
POINTS = """
a.png:
- {tip: [3, 4], left wing: [2.5, 3], bbox: [1, 1, 8, 9]}
- {right wing: [6, 6], tip: [7, 7.5], bbox: [5, 5, 9, 9]}
b.png: []
c.png: null
d.png: [{tip: [5, 5], left wing: [4, 4], right wing: [6, 4], bbox: [3, 3, 7, 7]}]
"""
SETS = {
    "object detection": ("categories: [dog, '007', unused]", DETECTION),
    "quadrilateral detection": ("categories: [dog, '007', unused]", QUADS),
    "keypoint detection": ("keypoints: [tip, left wing, right wing]\nflip_pairs: [[left wing, right wing]]", POINTS),
    "multiclass classification": ("categories: [cat, dog]", "a.png: dog\nb.png: cat\nc.png: null\nd.png: dog\n"),
    "multilabel classification": ("labels: [cat, dog]", "a.png: [dog]\nb.png: []\nc.png: null\nd.png: [cat, dog]\n"),
    "regression": ("range: [-1.5, 7]", "a.png: -1.5\nb.png: 7\nc.png: null\nd.png: 2.25\n"),
    "scene text recognition": ("tokens: 'abc,\"'", "a.png: 'ab,c\"'\nb.png: a\nc.png: null\nd.png: ba\n"),
}


def native(dataset: Any, task: str) -> Path:
    """A native dataset of a task; of c.png nothing is known."""
    if task in SETS:
        vocabulary, annotations = SETS[task]
        dataset.write(f"task: {task}\n{vocabulary}\nannotations: a.yaml\n", **{"a.yaml": annotations})
    else:
        maps(dataset, task)
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        dataset.image(name, color=number, size=SIZE)
    return dataset.path


def maps(dataset: Any, task: str) -> None:
    """Maps for a, b and d."""
    width, height = SIZE
    colors = "categories: [road, tree]\ncolors: {road: [10, 20, 30], tree: [200, 100, 0]}\n"
    head = {"semantic segmentation": colors, "instance segmentation": colors, "anomaly detection": "",
            "depth estimation": "range: [0.00390625, 255.99609375]\n"}[task]  # fmt: skip
    dataset.write(f"task: {task}\n{head}annotations: maps/\n", **{"note.txt": "-"})
    folder = dataset.path / "maps"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name in ("a", "b", "d"):
        if task == "instance segmentation":
            pages = []
            for color in ((10, 20, 30), (200, 100, 0)):
                page = np.zeros((height, width, 3), np.uint8)
                page[1 + len(pages) * 3 : 6 + len(pages) * 3, 2:7] = color
                page[8:, 9:] = color if name == "a" else 0
                pages.append(Image.fromarray(page if name != "b" else page * 0))
            pages[0].save(folder / f"{name}.tiff", save_all=True, append_images=pages[1:] if name != "b" else [])
        elif task == "semantic segmentation":
            table = np.array([[0, 0, 0], [10, 20, 30], [200, 100, 0]], np.uint8)
            Image.fromarray(table[rng.integers(0, 3, (height, width))]).save(folder / f"{name}.png")
        elif task == "depth estimation":
            levels = rng.integers(0, 65_536, (height, width)).astype(np.uint16)
            Image.fromarray(levels).save(folder / f"{name}.png")
        else:
            mask = np.zeros((height, width), np.uint8)
            mask[2:5, 3:8] = 0 if name == "b" else 255
            Image.fromarray(mask).save(folder / f"{name}.png")


def content(folder: Path) -> dict[str, Any]:
    """What a native dataset says of its images: values, or the pixels of maps."""
    metadata = json.loads((folder / "metadata.json").read_text())
    values = json.loads((folder / "annotations.json").read_text())
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and "map" in value:
            with Image.open(folder / value["map"]) as picture:
                pages = []
                for page in range(getattr(picture, "n_frames", 1)):
                    picture.seek(page)
                    pages.append(np.asarray(picture).tolist())
                found[name] = pages
        else:
            found[name] = value
    vocabulary = {key: metadata.get(key) for key in ("task", "categories", "labels", "colors", "keypoints", "range",
                                                     "tokens", "flip_pairs", "sigmas")}  # fmt: skip
    return {"vocabulary": vocabulary, "annotations": found}


def depths_of(found: dict[str, Any], name: str) -> np.ndarray:
    """Of one image, by the normalised form: 1 is the far end of the range, the highest value the near one; 0 is NaN."""
    low, high = found["vocabulary"]["range"]
    (page,) = found["annotations"][name]
    values = np.asarray(page, float)
    steps = 254 if values.max() <= 255 else 65_534
    return np.where(values == 0, np.nan, high - (values - 1) / steps * (high - low))


def assert_same_depths(before: dict[str, Any], after: dict[str, Any], *, step: float, beyond: float) -> None:
    """Depths come back to half a step of the format; those beyond it, and only they, are unknown."""
    assert after["annotations"].keys() == before["annotations"].keys()
    compared = 0
    for name in before["annotations"]:
        old, new = depths_of(before, name), depths_of(after, name)
        said = ~np.isnan(old) & (np.round(old / step) * step <= beyond) & (np.round(old / step) > 0)
        assert (~np.isnan(new) == said).all(), name
        assert np.abs(new - old)[said].max(initial=0) <= step / 2 + 1e-6, name
        compared += int(said.sum())
    assert compared > 0


CASES = [
    ("YOLO_DETECT", "object detection", set(), {}),
    ("YOLO_OBB", "quadrilateral detection", set(), {}),
    ("YOLO_POSE", "keypoint detection", set(), {}),
    ("MASK_FOLDERS", "semantic segmentation", set(), {}),
    ("COCO_HOSTED", "object detection", set(), {}),
    ("COCO_HOSTED", "instance segmentation", set(), {"colors"}),
    *(("CVAT", task, {"quads"} if task.startswith("quad") else {"boxes"} if task.startswith("key") else set(), {})
      for task in ("object detection", "quadrilateral detection", "keypoint detection", "instance segmentation",
                   "multiclass classification", "multilabel classification")),
    *(("LABELME", task, set(), {"colors"} if task.startswith("instance") else {})
      for task in ("object detection", "quadrilateral detection", "keypoint detection", "instance segmentation",
                   "multiclass classification", "multilabel classification")),
    *(("LABEL_STUDIO", task, {"quads"} if task.startswith("quad") else set(),
       {"colors"} if task.startswith("instance") else {})
      for task in ("object detection", "quadrilateral detection", "keypoint detection", "instance segmentation",
                   "multiclass classification", "multilabel classification")),
    *(("DATUMARO", task, {"quads"} if task.startswith("quad") else set(), {})
      for task in ("object detection", "quadrilateral detection", "keypoint detection", "instance segmentation",
                   "multiclass classification", "multilabel classification")),
    ("ICDAR", "quadrilateral detection", {"category", "text"}, {"categories"}),
    ("ICDAR", "scene text recognition", {"order"}, {"tokens"}),
    ("DOTA", "quadrilateral detection", {"unused", "order"}, {"categories"}),
    ("MVTEC_AD", "anomaly detection", set(), {}),
    ("IMAGE_VALUES", "regression", set(), {}),
    ("IMAGE_VALUES", "multiclass classification", set(), {}),
    ("IMAGE_VALUES", "multilabel classification", set(), {}),
    ("KITTI_DEPTH", "depth estimation", set(), {}),
    ("NYU_DEPTH", "depth estimation", {"beyond", "rounded"}, {"depths"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "task", "lost", "differs"), CASES)
def test_what_a_format_can_say_comes_back(
    trade: Any, dataset: Any, tmp_path: Path, kind: str, task: str, lost: set[str], differs: Any
) -> None:
    source = native(dataset, task)
    wanted = task_pb2.Task.Value("TASK_" + task.upper().replace(" ", "_"))

    async def test(trader: Any) -> None:
        # The native dataset as the service writes it itself, to compare with.
        plain = service_pb2.ConvertDatasetRequest(
            source=dataset.source, to=wanted, destination=type(dataset.source)(uri=(tmp_path / "plain").as_uri())
        )
        async for _ in trader.service.stub.ConvertDataset(plain):
            pass
        given = await trader.give(kind, source, tmp_path / "foreign", copy_images=True)
        assert given.error == ""
        said = {finding.value for finding in given.findings if finding.rule == "not_said"}
        assert said == {*lost, "null"}
        taken = await trader.take(
            "AUTO", tmp_path / "foreign", tmp_path / "back", copy_images=True, task=wanted if "quads" in lost else 0
        )
        assert taken.error == ""
        assert taken.result.foreign_format == service_pb2.ForeignFormat.Value(f"FOREIGN_FORMAT_{kind}")

    trade(test)
    before, after = content(tmp_path / "plain"), content(tmp_path / "back")
    assert before["annotations"].pop("c.png") is None
    assert after["annotations"].pop("c.png", None) is None, "of this one nothing is known"
    for key in differs:
        before["vocabulary"].pop(key, None)
        after["vocabulary"].pop(key, None)
    if "colors" in differs:
        before["annotations"], after["annotations"] = (
            {name: [(np.array(page) > 0).any(axis=-1).tolist() for page in pages] for name, pages in each.items()}
            for each in (before["annotations"], after["annotations"])
        )
    if "categories" in differs and kind == "ICDAR":
        for objects in before["annotations"].values():
            for each in objects:
                each["category"] = "text"
    if "boxes" in lost:
        for each in (each for objects in before["annotations"].values() for each in objects):
            del each["bbox"]
    if "depths" in differs:
        assert_same_depths(before, after, step=0.001, beyond=65.535)
    else:
        assert after["annotations"] == before["annotations"]
        assert after["vocabulary"] == before["vocabulary"]
