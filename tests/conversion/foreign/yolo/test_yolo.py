"""YOLO in and out: boxes and polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2

from services.conversion.finding import Place, Report
from services.conversion.foreign.format import Unannotated
from services.conversion.foreign.yolo.detect import YoloBoxes
from services.conversion.foreign.yolo.segment import YoloMasks
from services.conversion.formats.colors import Colors
from services.conversion.formats.format import MapFile
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box
from services.conversion.index import ImageSize
from services.conversion.raster.runs import mask_of_runs, runs_of_mask

DATA = "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, 007]\n"
PLACE = Place(file="labels/a.txt", image="a.png")


def pets(files: Any, labels: str | None, data: str = DATA) -> Any:
    """Images of 8 x 6: one to train with, one to validate."""
    files.text("data.yaml", data).image("images/train/a.png").image("images/val/b.png")
    return files if labels is None else files.text("labels/train/a.txt", labels)


def test_boxes_are_shares_of_the_image_around_their_middle(look: Any, files: Any) -> None:
    found = look("YOLO detect", pets(files, "0 0.5 0.5 0.25 0.5\n1 0.0625 0.083333333333 0.125 0.166666666667\n").path,
                 split="train")  # fmt: skip
    assert found.rules == []
    assert found.annotations == {
        "a.png": (
            Box(category="cat", bbox=(3.0, 1.5, 5.0, 4.5)),
            Box(category="007", bbox=(0.0, 0.0, 1.0, 1.0)),
        )
    }


@pytest.mark.parametrize(
    ("labels", "unannotated", "wanted"),
    [
        (None, Unannotated.DEFAULT, ()),
        ("", Unannotated.DEFAULT, ()),
        ("\n", Unannotated.EMPTY, ()),
        (None, Unannotated.NULL, None),
        ("", Unannotated.NULL, None),
    ],
)
def test_a_missing_and_an_empty_file_say_that_nothing_is_there(
    look: Any, files: Any, labels: str | None, unannotated: Unannotated, wanted: Any
) -> None:
    found = look("YOLO detect", pets(files, labels).path, split="train", unannotated=unannotated)
    assert found.annotations == {"a.png": wanted}


@pytest.mark.parametrize(
    ("kind", "line", "rule"),
    [
        ("detect", "0 0.5 0.5 0.25", "wrong_coordinate_count"),
        ("detect", "0 0.1 0.1 0.5 0.1 0.5 0.5", "wrong_coordinate_count"),
        ("detect", "2 0.5 0.5 0.25 0.5", "undeclared_category"),
        ("detect", "cat 0.5 0.5 0.25 0.5", "undeclared_category"),
        ("detect", "0 320 240 64 64", "out_of_range"),
        ("detect", "0 0.5 0.5 -0.25 0.5", "out_of_range"),
        ("detect", "0 0.5 0.5 0 0.5", "no_area"),
        ("detect", "0 0.5 nan 0.25 0.5", "not_finite"),
        ("detect", "0 0.5 x 0.25 0.5", "bad_value"),
        ("segment", "0 0.5 0.5 0.25 0.5", "wrong_coordinate_count"),
        ("segment", "0 0.1 0.1 0.5 0.1 0.5", "wrong_coordinate_count"),
        ("segment", "0 0.1 0.1 0.5 0.1 0.5 1.5", "out_of_range"),
        ("segment", "0 0.1 0.1 0.1 0.1 0.1 0.1", "no_area"),
    ],
)
def test_a_bad_line_is_found_with_its_file_and_number(look: Any, files: Any, kind: str, line: str, rule: str) -> None:
    good = "0 0.5 0.5 0.25 0.5" if kind == "detect" else "0 0.1 0.1 0.9 0.1 0.9 0.9"
    found = look(f"YOLO {kind}", pets(files, f"{good}\n\n{line}\n").path, split="train")
    (finding,) = found.report.findings
    assert (finding.rule, finding.place.file, finding.place.line) == (rule, "labels/train/a.txt", 3)
    annotation = found.annotations["a.png"]
    assert len(annotation.instances if kind == "segment" else annotation) == 1


def test_a_box_in_part_outside_stays_with_a_warning(look: Any, files: Any) -> None:
    found = look("YOLO detect", pets(files, "0 0.05 0.5 0.5 0.5\n").path, split="train")
    assert (found.errors, found.rules) == ([], ["partly_outside_image"])


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ("names: [cat, cat]\ntrain: images/train\n", "bad_name"),
        ("names: {0: cat, 2: dog}\ntrain: images/train\n", "bad_value"),
        ("train: images/train\n", "missing_key"),
        ("names: [cat]\n", "missing_key"),
        ("names: [cat]\ntrain: elsewhere\n", "missing_file"),
        ("names: [cat\n", "syntax"),
    ],
)
def test_a_description_that_cannot_be_understood_fails(look: Any, files: Any, data: str, rule: str) -> None:
    found = look("YOLO detect", pets(files, None, data).path)
    assert found.rules[-1] == rule
    assert found.report.fatal


@pytest.mark.parametrize(
    "data",
    [
        "names: {0: cat, 1: '007'}\ntrain: ../images/train\n",
        "names: [cat, 007]\npath: /home/me/pets\ntrain: [./images/train]\n",
        "names: [cat, 007]\ntrain: train.txt\n",
        "names: [cat, 007]\npath: .\ntrain: lists/train.txt\n",
    ],
)
def test_images_are_found_however_the_description_leads_to_them(look: Any, files: Any, data: str) -> None:
    pets(files, "1 0.5 0.5 0.25 0.5\n", data)
    files.text("train.txt", "./images/train/a.png\n").text("lists/train.txt", "../images/train/a.png\n\n")
    found = look("YOLO detect", files.path)
    assert found.rules == []
    assert [each.category for each in found.annotations["a.png"]] == ["007"]


def test_what_is_listed_or_labelled_and_not_there_is_found(look: Any, files: Any) -> None:
    pets(files, "0 0.5 0.5 0.25 0.5\n", "names: [cat]\nnc: 3\nkpt_shape: [17, 3]\ntrain: train.txt\n")
    files.text("train.txt", "images/train/a.png\nimages/train/gone.png\n../../secret.png\n")
    files.text("labels/train/lone.txt", "")
    found = look("YOLO detect", files.path)
    assert sorted(found.rules) == [
        "annotation_without_image", "bad_value", "missing_image", "missing_image", "not_kept"
    ]  # fmt: skip
    missing = [f.place for f in found.report.findings if f.rule == "missing_image"]
    assert [(place.file, place.line) for place in missing] == [("train.txt", 2), ("train.txt", 3)]


def test_a_split_must_be_named_where_there_are_several(trade: Any, files: Any, tmp_path: Path) -> None:
    pets(files, "0 0.5 0.5 0.25 0.5\n")

    async def test(trader: Any) -> None:
        for split, found in (("", "is empty"), ("test", "'test'")):
            taken = await trader.take("YOLO_DETECT", files.path, tmp_path / "native", split=split)
            assert taken.error.startswith("INVALID_ARGUMENT: split")
            assert found in taken.error
            assert "train, val" in taken.error
        refused = await trader.take("YOLO_DETECT", files.path, tmp_path / "native", split="val")
        assert "not one of 1 images has a file of labels" in refused.error
        empty = service_pb2.UNANNOTATED_EMPTY
        taken = await trader.take("YOLO_DETECT", files.path, tmp_path / "native", split="val", unannotated=empty)
        assert taken.json() == {"b.png": []}
        assert taken.json("metadata.json")["images"] == (files.path / "images/val").as_uri()

    trade(test)


def test_boxes_come_back_and_what_cannot_be_said_is_told(trade: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write(
        "task: object detection\ncategories: [dog, '1.10', unused]\nannotations: objects.yaml\n",
        **{
            "objects.yaml": "a.png:\n- {category: '1.10', bbox: [0, 1, 3.5, 4]}\n- {category: dog, bbox: [1, 1, 2, 2], "
            "crowd: true}\n- {category: dog, bbox: [1, 1, 2, 3], ignore: true}\nb.png: []\nc.png: null\n"
            "d.png:\n- {category: dog, bbox: [-1, 0, 9, 4]}\n"
        },
    )

    async def test(trader: Any) -> None:
        given = await trader.give("YOLO_DETECT", dataset.path, tmp_path / "yolo", copy_images=True)
        assert [(f.rule, f.value) for f in given.findings if f.rule == "not_said"] == [
            ("not_said", "clipped"), ("not_said", "crowd"), ("not_said", "ignore"), ("not_said", "null")
        ]  # fmt: skip
        assert (tmp_path / "yolo/train.txt").read_text().split() == [f"./images/{name}.png" for name in "abd"]
        taken = await trader.take("YOLO_DETECT", tmp_path / "yolo", tmp_path / "back")
        assert taken.errors == []
        assert taken.json("metadata.json")["categories"] == ["dog", "1.10", "unused"]
        assert taken.json() == {
            "a.png": [{"category": "1.10", "bbox": [0, 1, 3.5, 4]}, {"category": "dog", "bbox": [1, 1, 2, 2]}],
            "b.png": [],
            "d.png": [{"category": "dog", "bbox": [0, 0, 5, 4]}],
        }
        uncopied = await trader.give("YOLO_DETECT", dataset.path, tmp_path / "uncopied")
        assert uncopied.rules[-1] == "images_not_copied"
        assert not (tmp_path / "uncopied/images").exists()

    trade(test)


def test_real_masks_with_holes_and_parts_come_back_exactly(trade: Any, real: Any, tmp_path: Path) -> None:
    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", real("tiny_coco_train"), tmp_path / "native")
        given = await trader.give("YOLO_SEGMENT", tmp_path / "native", tmp_path / "yolo", copy_images=True)
        assert [f.value for f in given.findings if f.rule == "not_said"] == ["crowd", "holes", "parts"]
        back = await trader.take("YOLO_SEGMENT", tmp_path / "yolo", tmp_path / "back")
        assert back.errors == []
        assert back.result.annotations_out == 470
        same = 0
        for name, value in taken.json().items():
            if not value.get("crowd"):  # crowds became single objects
                assert back.json()[name]["sha256"] == value["sha256"]
                same += 1
        assert same == 46

    trade(test)


def test_unannotated_follows_the_request(trade: Any, files: Any, tmp_path: Path) -> None:
    pets(files, None)

    async def test(trader: Any) -> None:
        for value, name, wanted in (
            (service_pb2.UNANNOTATED_NULL, "null", None),
            (service_pb2.UNANNOTATED_EMPTY, "empty", []),
        ):
            taken = await trader.take(
                "YOLO_DETECT", files.path, tmp_path / name, split="val", unannotated=value, copy_images=True
            )
            assert taken.json() == {"b.png": wanted}

    trade(test)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(lambda mask: mask.any()))
def test_any_mask_is_one_polygon_and_comes_back(mask: Any) -> None:
    height, width = mask.shape
    size = ImageSize(width=width, height=height)
    instance = Instance(category="cat", mask=runs_of_mask(mask))
    vocabulary = Colors(names=("cat",), colors={})
    fragment = YoloMasks().write(InstanceMap(width=width, height=height, instances=(instance,)), size, vocabulary)
    report = Report(findings_max=10)
    file = MapFile(suffix=".txt", content=b"".join(fragment.pieces))
    back = YoloMasks().read(file, size, PLACE, vocabulary, report)
    assert not report.findings
    assert back is not None
    assert np.array_equal(mask_of_runs(back.instances[0].mask, height=height, width=width), mask)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_box_inside_its_image_comes_back(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 9_000)), data.draw(st.integers(1, 9_000))
    grid = data.draw(st.sampled_from([1, 2, 10, 100]))
    xs = sorted(data.draw(st.lists(st.integers(0, width * grid), min_size=2, max_size=2, unique=True)))
    ys = sorted(data.draw(st.lists(st.integers(0, height * grid), min_size=2, max_size=2, unique=True)))
    box = Box(category="cat", bbox=(xs[0] / grid, ys[0] / grid, xs[1] / grid, ys[1] / grid))
    size, vocabulary = ImageSize(width=width, height=height), Names(names=("dog", "cat"))
    fragment = YoloBoxes().write((box,), size, vocabulary)
    report = Report(findings_max=10)
    back = YoloBoxes().read(MapFile(suffix=".txt", content=b"".join(fragment.pieces)), size, PLACE, vocabulary, report)
    assert (back, report.findings) == ((box,), [])
