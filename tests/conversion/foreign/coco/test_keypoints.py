"""COCO keypoints in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PERSON = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}
POINTS = [2, 2, 2, 4, 3, 1, 0, 0, 0]
OBJECT = {"category_id": 1, "keypoints": POINTS, "num_keypoints": 2, "bbox": [1, 1, 4, 4], "area": 12.5, "iscrowd": 0}


def test_real_people_come_back_but_for_what_is_occluded(trade: Any, real: Any, tmp_path: Path) -> None:
    root = real("tiny_coco_train")

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_KEYPOINTS", root, tmp_path / "native")
        assert (taken.errors, taken.result.images_in, taken.result.annotations_out) == ([], 50, 99)
        metadata = taken.json("metadata.json")
        assert metadata["category_ids"] == {"person": 1}
        assert metadata["flip_pairs"][0] == ["left_eye", "right_eye"]
        assert (len(metadata["flip_pairs"]), metadata["sigmas"][0], metadata["sigmas"][-1]) == (8, 0.026, 0.089)
        given = await trader.give("COCO_KEYPOINTS", tmp_path / "native", tmp_path / "back")
        before = json.loads((root / "person_keypoints_train2017.json").read_text())
        after = given.json("annotations/keypoints.json")
        assert after["categories"][0]["keypoints"] == before["categories"][0]["keypoints"]
        seen = {(each["image_id"], tuple(each["bbox"])): each for each in after["annotations"]}
        for each in before["annotations"]:
            x, y, width, height = each["bbox"]
            back = min(
                (s for (image, _), s in seen.items() if image == each["image_id"]),
                key=lambda s: abs(s["bbox"][0] - x) + abs(s["bbox"][1] - y) + abs(s["bbox"][2] - width),
            )
            assert back["bbox"] == pytest.approx([x, y, width, height], abs=1e-6)
            assert (back["iscrowd"], back["num_keypoints"]) == (each["iscrowd"], each["num_keypoints"])
            assert back["area"] == pytest.approx(each["area"])
            assert back["keypoints"] == [2 if i % 3 == 2 and v else v for i, v in enumerate(each["keypoints"])]
        assert [f.value for f in given.findings if f.rule == "not_said"] == ["visibility"]

    trade(test)


def test_a_point_that_is_not_there_is_left_out_and_one_that_is_hidden_is_there(look: Any, files: Any) -> None:
    nobody = {**OBJECT, "keypoints": [0] * 9, "num_keypoints": 0}
    files.coco("person_keypoints", {"a.png": [OBJECT, nobody], "b.png": []}, [PERSON])
    found = look("COCO keypoints", files.path)
    first, second = found.annotations["a.png"]
    assert dict(first.points) == {"nose": (2.0, 2.0), "left_eye": (4.0, 3.0)}
    assert (dict(second.points), second.bbox, second.area) == ({}, (1.0, 1.0, 5.0, 5.0), 12.5)
    assert found.annotations["b.png"] == ()
    assert [(f.rule, f.value, f.place.image) for f in found.report.findings] == [("not_kept", "visibility", "a.png")]
    assert found.dataset.vocabulary.flip_pairs == (("left_eye", "right_eye"),)
    assert found.dataset.vocabulary.sigmas == (0.026, 0.025, 0.025)


def test_points_that_coco_does_not_know_have_sigmas_of_one_part_in_k(look: Any, files: Any) -> None:
    files.coco("person_keypoints", {"a.png": []}, [{**PERSON, "keypoints": ["tip", "root"]}])
    assert look("COCO keypoints", files.path).dataset.vocabulary.sigmas == (0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"keypoints": POINTS[:-1]}, "wrong_coordinate_count"),
        ({"keypoints": "nose"}, "wrong_coordinate_count"),
        ({"keypoints": [2, 2, 3, *POINTS[3:]]}, "bad_value"),
        ({"keypoints": [1e300, 2, 2, *POINTS[3:]]}, "number_too_large"),
        ({"category_id": 2}, "undeclared_category"),
        ({"bbox": [1, 1, 4]}, "wrong_coordinate_count"),
        ({"bbox": [1, 1, 0, 4]}, "no_area"),
        ({"area": "small"}, "bad_value"),
    ],
)
def test_a_bad_object_is_found_and_the_others_stay(look: Any, files: Any, change: Any, rule: str) -> None:
    files.coco("person_keypoints", {"a.png": [{**OBJECT, **change}, OBJECT]}, [PERSON])
    found = look("COCO keypoints", files.path)
    assert found.errors == [rule]
    assert len(found.annotations["a.png"]) == 1


def test_keypoints_of_two_categories_are_refused_with_their_names(look: Any, files: Any) -> None:
    files.coco("person_keypoints", {"a.png": []}, [PERSON, {**PERSON, "id": 2, "name": "dog"}])
    found = look("COCO keypoints", files.path)
    assert found.report.fatal
    assert "person, dog" in str(found.report.findings[-1])
