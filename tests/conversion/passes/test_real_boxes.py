"""Real annotations, where shared/data is at hand: brought into the native format here, and left where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from sihlai.conversion.v1 import dataset_pb2, task_pb2

DATA = Path(__file__).parents[4] / "shared/data"
DETECTION = task_pb2.TASK_OBJECT_DETECTION
QUADS = task_pb2.TASK_QUADRILATERAL_DETECTION
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"the real data of {name} are not beside the repository")
    return path


def write(dataset: Any, task: str, categories: list[str], images: Path, annotations: dict[str, Any]) -> Any:
    dataset.path.mkdir()
    metadata = {"task": task, "categories": categories, "images": images.as_uri(), "annotations": "objects.json"}
    (dataset.path / "metadata.json").write_text(json.dumps(metadata))
    (dataset.path / "objects.json").write_text(json.dumps(annotations, indent=1))
    return dataset.source


def test_the_boxes_of_82_real_quads_are_the_golden_ones(run: Any, dataset: Any, tmp_path: Path) -> None:
    root = folder("icdar2015_toy")
    quads: dict[str, Any] = {}
    golden: dict[str, Any] = {}
    for photo in json.loads((root / "textdet_test.json").read_text())["data_list"]:
        name = Path(photo["img_path"]).name
        flags = [{"ignore": True} if each["ignore"] else {} for each in photo["instances"]]
        corners = [[each["polygon"][i : i + 2] for i in range(0, 8, 2)] for each in photo["instances"]]
        quads[name] = [{"category": "text", "quad": q, **f} for q, f in zip(corners, flags, strict=True)]
        golden[name] = [
            {"category": "text", "bbox": each["bbox"], **f} for each, f in zip(photo["instances"], flags, strict=True)
        ]
    assert sum(map(len, golden.values())) == 82
    source = write(dataset, "quadrilateral detection", ["text"], root / "imgs/test", quads)

    async def test(service: Any) -> None:
        findings, totals = await service.findings(source)
        assert (list(findings), totals.images) == ([], 10)
        result = await service.convert(source, DETECTION)
        assert service.converted(result)["annotations"] == golden
        assert (result.annotations_in, result.annotations_out) == (82, 82)
        boxes = await service.convert(result.dataset, QUADS)
        around = await service.convert(boxes.dataset, DETECTION)
        assert service.converted(around)["annotations"] == golden
        straight = service.converted(await service.convert(source, QUADS))["annotations"]
        assert straight == quads
        # An image in which all text is to be ignored has no label that counts.
        labels = service.converted(await service.convert(source, MULTILABEL))["annotations"]
        assert labels == {
            name: ["text"] if any("ignore" not in each for each in boxes) else [] for name, boxes in golden.items()
        }

    run(test, allowed_roots=(tmp_path, DATA))


def bccd(root: Path, *, taken_off: int) -> dict[str, Any]:
    """Pascal VOC counts from one and includes the last pixel: 1 comes off the minima only."""
    found: dict[str, Any] = {}
    for path in sorted((root / "Annotations").iterdir()):
        boxes = []
        for each in ElementTree.parse(path).getroot().iter("object"):
            corners = {corner.tag: int(corner.text or "") for corner in each.iterfind("bndbox/*")}
            bbox = [corners["xmin"] - taken_off, corners["ymin"] - taken_off, corners["xmax"], corners["ymax"]]
            boxes.append({"category": each.findtext("name"), "bbox": bbox})
        found[f"{path.stem}.jpg"] = boxes
    return found


@pytest.fixture
def blood(dataset: Any) -> Any:
    root = folder("bccd")
    source: dataset_pb2.DatasetSource = write(
        dataset,
        "object detection",
        ["RBC", "WBC", "Platelets"],
        root / "JPEGImages",
        bccd(root, taken_off=1),
    )
    return source


def test_the_one_pixel_boxes_of_real_blood_smears_are_boxes_of_1_by_1(run: Any, blood: Any, tmp_path: Path) -> None:
    async def test(service: Any) -> None:
        findings, totals = await service.findings(blood)
        assert (list(findings), totals.images) == ([], 364)
        result = await service.convert(blood, DETECTION, via=[QUADS])
        assert (result.annotations_in, result.annotations_out) == (4888, 4888)
        annotations = service.converted(result)["annotations"]
        tiny = {
            (name, *each["bbox"])
            for name, boxes in annotations.items()
            for each in boxes
            if each["bbox"][2] - each["bbox"][0] == 1
        }
        assert tiny == {
            ("BloodImage_00338.jpg", 503, 336, 504, 337),
            ("BloodImage_00343.jpg", 180, 328, 181, 329),
        }
        assert annotations == bccd(DATA / "bccd", taken_off=1)

    run(test, allowed_roots=(tmp_path, DATA))


def test_read_as_half_open_they_have_no_area_and_are_found(run: Any, blood: Any, dataset: Any, tmp_path: Path) -> None:
    (dataset.path / "objects.json").write_text(json.dumps(bccd(DATA / "bccd", taken_off=0), indent=1))

    async def test(service: Any) -> None:
        findings, _ = await service.findings(blood)
        assert [(f.rule, f.image, f.value) for f in findings] == [
            ("no_area", "BloodImage_00338.jpg", "[504, 337, 504, 337]"),
            ("no_area", "BloodImage_00343.jpg", "[181, 329, 181, 329]"),
        ]
        result = await service.convert(blood, DETECTION, lenient=True)
        assert (result.annotations_in, result.annotations_out) == (4888, 4886)

    run(test, allowed_roots=(tmp_path, DATA))
