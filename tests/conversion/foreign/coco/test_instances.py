"""COCO instances in and out, with pycocotools as the judge of masks."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "unused"}]
SQUARE = {"category_id": 7, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]], "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}


def by_image(coco: COCO) -> dict[str, list[Any]]:
    """Everything that counts of each annotation: category id, crowd, mask."""
    found: dict[str, list[Any]] = defaultdict(list)
    for image in coco.dataset["images"]:
        found[image["file_name"]] = [
            (each["category_id"], each["iscrowd"], coco.annToMask(each).tobytes())
            for each in coco.imgToAnns[image["id"]]
        ]
    return dict(found)


@pytest.fixture
def load(capsys: Any) -> Any:
    def load(path: Path) -> COCO:
        coco = COCO(str(path))
        capsys.readouterr()
        return coco

    return load


def test_real_masks_crowds_parts_and_ids_come_back_as_pycocotools_sees_them(
    trade: Any, real: Any, tmp_path: Path, load: Any
) -> None:
    root = real("tiny_coco_train")

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", root, tmp_path / "native")
        assert (taken.errors, taken.result.images_in, taken.result.annotations_out) == ([], 50, 470)
        given = await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "back")
        assert given.rules == ["images_not_copied"]

    trade(test)
    before, after = load(root / "instances_train2017.json"), load(tmp_path / "back/annotations/instances.json")
    assert by_image(after) == by_image(before)
    assert sum(each["iscrowd"] for each in after.dataset["annotations"]) == 5
    assert any(not annotations for annotations in by_image(after).values()), "photos with nothing on them stay"
    assert {c["id"]: c["name"] for c in after.dataset["categories"]} == {
        c["id"]: c["name"] for c in before.dataset["categories"]
    }
    assert {i["id"]: i["file_name"] for i in after.dataset["images"]} == {
        i["id"]: i["file_name"] for i in before.dataset["images"]
    }
    for each in after.dataset["annotations"]:
        mask = after.annToMask(each)
        assert each["area"] == mask.sum()
        assert each["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()


def test_every_way_to_write_a_mask_is_read(trade: Any, files: Any, tmp_path: Path, load: Any) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 2:7] = 1
    mask[2:4, 4] = 0  # a hole
    compressed = coco_mask.encode(np.asfortranarray(mask))
    counts = [13, 4, 2, 4, 2, 1, 2, 1, 2, 4, 2, 4, 7]
    files.coco(
        "instances_train",
        {
            "a.png": [
                SQUARE,
                {**SQUARE, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [5, 3, 8, 3, 8, 6, 5, 6]]},
                {"category_id": 3, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": counts}},
                {"category_id": 3, "segmentation": {"size": [6, 8], "counts": compressed["counts"].decode()}},
            ],
            "b.png": [],
        },
        CATEGORIES,
    )

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert taken.errors == []
        assert taken.json("metadata.json")["category_ids"] == {"cat": 7, "dog": 3, "unused": 90}
        given = await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "back")
        assert given.json("annotations/instances.json")["categories"] == CATEGORIES

    trade(test)
    before = load(files.path / "annotations/instances_train.json")
    for each in before.dataset["annotations"]:
        each.setdefault("iscrowd", 0)
    before.dataset["annotations"][2]["segmentation"] = compressed
    assert by_image(load(tmp_path / "back/annotations/instances.json")) == by_image(before)


def test_boxes_alone_are_object_detection(trade: Any, files: Any, tmp_path: Path) -> None:
    box = {"category_id": 3, "bbox": [1.5, 1, 4, 3.25], "segmentation": [], "iscrowd": 1}
    files.coco("instances", {"a.png": [box], "b.png": []}, CATEGORIES)

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        boxes = [{"category": "dog", "bbox": [1.5, 1, 5.5, 4.25], "crowd": True}]
        assert taken.json() == {"a.png": boxes, "b.png": []}
        given = await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "back")
        (back,) = given.json("annotations/instances.json")["annotations"]
        assert back == {
            "id": 1, "image_id": 1, "category_id": 3, "bbox": [1.5, 1, 4, 3.25], "area": 13, "iscrowd": 1
        }  # fmt: skip

    trade(test)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"category_id": 5}, "undeclared_category"),
        ({"segmentation": [[1, 1, 4, 1]]}, "wrong_coordinate_count"),
        ({"segmentation": [[1, 1, 4, 1, 4]]}, "wrong_coordinate_count"),
        ({"segmentation": [["x", 1, 4, 1, 4, 4]]}, "bad_segmentation"),
        ({"segmentation": "left of the cat"}, "bad_segmentation"),
        ({"segmentation": [[1, 1, 1e300, 1, 4, 4]]}, "number_too_large"),
        ({"segmentation": [[1, 1, 1.1, 1, 1.1, 1.1]]}, "no_area"),
        ({"segmentation": {"size": [8, 6], "counts": [0, 48]}}, "bad_segmentation"),
        ({"segmentation": {"size": [6, 8], "counts": [0, 47]}}, "bad_segmentation"),
        ({"segmentation": {"size": [6, 8], "counts": "~~~"}}, "bad_segmentation"),
        ({"segmentation": {"size": [6, 8], "counts": [-1, 49]}}, "bad_segmentation"),
        ({"segmentation": None}, "missing_key"),
        ({"iscrowd": "yes"}, "bad_value"),
        ({"image_id": 12}, "annotation_without_image"),
    ],
)
def test_a_bad_annotation_is_found_and_the_others_stay(look: Any, files: Any, change: Any, rule: str) -> None:
    files.coco("instances", {"a.png": [SQUARE, {**SQUARE, **change}]}, CATEGORIES)
    found = look("COCO instances", files.path)
    assert found.errors == [rule]
    assert found.report.annotations_dropped == 1
    assert [each.category for each in found.annotations["a.png"].instances] == ["cat"]


def test_a_bad_dataset_is_refused_with_its_findings_or_taken_without_what_is_bad(
    trade: Any, files: Any, tmp_path: Path
) -> None:
    boxes = [{"category_id": 7, "bbox": [1, 1, 2, 2]}, {"category_id": 7, "bbox": [1, 1, 0, 2]}]
    files.coco("instances", {"a.png": boxes}, CATEGORIES)

    async def test(trader: Any) -> None:
        strict = await trader.take("COCO_INSTANCES", files.path, tmp_path / "strict")
        assert strict.errors == ["no_area"]
        assert strict.error.startswith("FAILED_PRECONDITION")
        lenient = await trader.take("COCO_INSTANCES", files.path, tmp_path / "lenient", lenient=True)
        assert [(d.rule, d.annotations) for d in lenient.result.dropped] == [("no_area", 1)]
        assert (lenient.result.annotations_in, lenient.result.annotations_out) == (2, 1)

    trade(test)


def test_box_and_area_that_are_not_the_masks_are_told_and_the_mask_counts(look: Any, files: Any) -> None:
    far = {**SQUARE, "bbox": [5, 0, 3, 3], "area": 4000}
    files.coco("instances", {"a.png": [SQUARE, far], "b.png": [{**SQUARE, "bbox": "wide"}]}, CATEGORIES)
    found = look("COCO instances", files.path)
    assert [(f.rule, f.place.image, f.index) for f in found.report.findings] == [
        ("box_mismatch", "a.png", 1), ("area_mismatch", "a.png", 1), ("box_mismatch", "b.png", 0)
    ]  # fmt: skip
    assert [len(each.instances) for each in found.annotations.values()] == [2, 1]


def test_what_is_wrong_with_the_document_is_found(look: Any, files: Any) -> None:
    files.coco("instances", {"a.png": [SQUARE, SQUARE], "gone.png": [SQUARE], "turned.png": [SQUARE]}, CATEGORIES)
    (files.path / "images/gone.png").unlink()
    files.image("images/turned.png", size=(6, 8))
    path = files.path / "annotations/instances.json"
    document = json.loads(path.read_text())
    for each in document["annotations"]:
        each["id"] = 4
    path.write_text(json.dumps(document))
    found = look("COCO instances", files.path)
    assert sorted(set(found.rules)) == ["exif_rotation", "missing_image", "repeated_id"]
    assert found.annotations["turned.png"] is None
    assert len(found.annotations["a.png"].instances) == 2


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ('{"images": [', "syntax"),
        ('{"images": [{"id": NaN}]}', "bad_value"),
        ("\ufeff[]", "bad_value"),
        ('{"images": [], "annotations": [], "categories": []}', "empty_vocabulary"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
         "repeated_category"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
         "repeated_category"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "crowd"}]}', "bad_name"),
        ('{"images": [], "categories": [], "annotations": [{"image_id": 1, "category_id": 1, "segmentation": '
         + "[" * 100_000 + "]" * 100_000 + "}]}", "syntax"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_document_that_cannot_be_understood_fails(look: Any, files: Any, content: str, rule: str) -> None:
    files.image("images/a.png").text("annotations/instances.json", content)
    found = look("COCO instances", files.path)
    assert (found.rules, found.report.fatal) == ([rule], True)


def test_unannotated_is_nothing_there_unless_the_request_says_that_nothing_is_known(
    trade: Any, files: Any, tmp_path: Path
) -> None:
    files.coco("instances", {"a.png": [{"category_id": 7, "bbox": [1, 1, 2, 2]}], "b.png": []}, CATEGORIES)

    async def test(trader: Any) -> None:
        empty = await trader.take("COCO_INSTANCES", files.path, tmp_path / "empty")
        assert empty.json()["b.png"] == []
        null = await trader.take(
            "COCO_INSTANCES", files.path, tmp_path / "null", unannotated=service_pb2.UNANNOTATED_NULL
        )
        assert null.json()["b.png"] is None
        given = await trader.give("COCO_INSTANCES", tmp_path / "null", tmp_path / "back", copy_images=True)
        assert [(f.rule, f.value) for f in given.findings] == [("not_said", "null")]
        assert [each["file_name"] for each in given.json("annotations/instances.json")["images"]] == ["a.png"]
        assert [path.name for path in (tmp_path / "back/images").iterdir()] == ["a.png"]

    trade(test)


def test_a_split_is_a_word_of_the_files_name(trade: Any, files: Any, tmp_path: Path) -> None:
    for name in ("instances_train2017", "instances_val2017", "person_keypoints_val2017", "captions_val2017"):
        files.coco(name, {f"{name}.png": [{"category_id": 7, "bbox": [1, 1, 2, 2]}]}, CATEGORIES)

    async def test(trader: Any) -> None:
        none = await trader.take("COCO_INSTANCES", files.path, tmp_path / "none")
        assert none.error.startswith("INVALID_ARGUMENT: split")
        assert "instances_val2017" in none.error
        wrong = await trader.take("COCO_INSTANCES", files.path, tmp_path / "wrong", split="test")
        assert wrong.error.startswith("INVALID_ARGUMENT: split")
        shared = await trader.take("COCO_INSTANCES", files.path, tmp_path / "shared", split="val")
        assert "copy_images" in shared.error, "a folder of several splits is not one dataset"
        files.image("images/beside.png")
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native", split="val", copy_images=True)
        assert set(taken.json()) == {"instances_val2017.png"}
        assert "images" not in taken.json("metadata.json")
        assert [path.name for path in (tmp_path / "native/images").iterdir()] == ["instances_val2017.png"]

    trade(test)


def test_regions_to_ignore_are_told_and_come_back(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": [{**SQUARE, "ignore": 1}]}, CATEGORIES)

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert taken.json()["a.png"]["ignore"] == [1]
        given = await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "back")
        assert [(f.rule, f.value) for f in given.findings] == [("not_said", "ignore"), ("images_not_copied", "")]
        (back,) = given.json("annotations/instances.json")["annotations"]
        assert (back["iscrowd"], back["ignore"]) == (1, 1)

    trade(test)


def test_images_that_are_not_listed_are_unlabelled(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": [{"category_id": 7, "bbox": [1, 1, 2, 2]}]}, CATEGORIES)
    files.image("images/beside.png")

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert taken.rules == ["unlisted_image"]
        assert taken.json()["beside.png"] is None

    trade(test)
