"""Pascal VOC in and out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.conversion.foreign.format import Unannotated
from services.conversion.formats.object_detection import Box

BOX = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>{}</object>"


def voc(files: Any, objects: str, *, size: str = "<width>8</width><height>6</height>") -> Any:
    files.image("JPEGImages/a.png").image("JPEGImages/b.png")
    return files.text("Annotations/a.xml", f"<annotation>\n<size>{size}</size>\n{objects}\n</annotation>\n")


def test_one_comes_off_the_minima_only(look: Any, files: Any) -> None:
    found = look("Pascal VOC", voc(files, BOX.format("<difficult>1</difficult>")).path)
    assert found.rules == []
    assert found.annotations == {"a.png": (Box(category="cat", bbox=(0, 1, 4, 6), ignore=True),), "b.png": None}


@pytest.mark.parametrize(
    ("unannotated", "wanted"),
    [
        (Unannotated.DEFAULT, {"a.png": (), "b.png": None}),
        (Unannotated.NULL, {"a.png": None, "b.png": None}),
        (Unannotated.EMPTY, {"a.png": (), "b.png": ()}),
    ],
)
def test_a_missing_file_says_nothing_and_one_without_objects_says_that_nothing_is_there(
    look: Any, files: Any, unannotated: Unannotated, wanted: Any
) -> None:
    files.text("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n")
    found = look("Pascal VOC", voc(files, "").path, unannotated=unannotated)
    assert found.annotations == wanted
    assert found.dataset.vocabulary.names == ("cat",)


def test_what_the_native_format_does_not_say_is_counted(look: Any, files: Any) -> None:
    part = "<part><name>ear</name><bndbox/></part><pose>Left</pose><truncated>1</truncated><occluded>0</occluded>"
    found = look("Pascal VOC", voc(files, BOX.format(part) + BOX.format("<truncated>1</truncated>")).path)
    assert [(f.rule, f.value) for f in found.report.findings] == [
        ("not_kept", "part"), ("not_kept", "pose"), ("not_kept", "truncated")
    ]  # fmt: skip
    assert "2 objects" in found.report.findings[-1].message


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("<xmax>4</xmax>", "<xmax>0</xmax>", "no_area"),
        ("<xmax>4</xmax>", "", "missing_key"),
        ("<xmax>4</xmax>", "<xmax>four</xmax>", "bad_value"),
        ("<xmax>4</xmax>", "<xmax>nan</xmax>", "not_finite"),
        ("<name>cat</name>", "", "missing_key"),
        ("<xmin>1</xmin>", "<xmin>20</xmin>", "reversed_box"),
    ],
)
def test_a_bad_object_is_found_with_its_line(look: Any, files: Any, old: str, new: str, rule: str) -> None:
    found = look("Pascal VOC", voc(files, BOX.format("") + "\n\n" + BOX.format("").replace(old, new)).path)
    assert found.errors == [rule]
    (finding,) = found.report.findings
    assert (finding.place.file, finding.place.line, finding.index) == ("Annotations/a.xml", 5, 1)
    assert len(found.annotations["a.png"]) == 1


@pytest.mark.parametrize("content", ["<annotation>", "<annotations/>", "", "{}", "<annotation>\x01</annotation>"])
def test_a_file_that_is_no_annotation_is_found_and_the_others_stay(look: Any, files: Any, content: str) -> None:
    found = look("Pascal VOC", voc(files, BOX.format("")).text("Annotations/b.xml", content).path)
    assert found.errors == ["syntax"]
    assert found.report.findings[0].place.file == "Annotations/b.xml"
    assert (len(found.annotations["a.png"]), found.annotations["b.png"]) == (1, None)


def test_a_file_that_expands_entities_or_fetches_is_refused(look: Any, files: Any) -> None:
    voc(files, BOX.format(""))
    bomb = (
        '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation><object><name>&c;</name></object></annotation>'
    )
    files.text("Annotations/b.xml", bomb)
    found = look("Pascal VOC", files.path)
    assert found.errors == ["syntax"]
    assert found.annotations["b.png"] is None


def test_a_size_that_is_another_images_is_an_error_and_none_at_all_is_not(look: Any, files: Any) -> None:
    assert look("Pascal VOC", voc(files, BOX.format(""), size="").path).rules == []
    turned = look("Pascal VOC", voc(files, BOX.format(""), size="<width>6</width><height>8</height>").path)
    assert (turned.errors, turned.annotations["a.png"]) == (["exif_rotation"], None)


def test_a_missing_image_is_found(look: Any, files: Any) -> None:
    voc(files, BOX.format(""))
    (files.path / "JPEGImages/a.png").unlink()
    found = look("Pascal VOC", files.path)
    assert (found.errors, found.report.annotations_dropped) == (["missing_image"], 1)


def test_real_smears_with_their_one_pixel_boxes_come_back(trade: Any, real: Any, tmp_path: Path) -> None:
    root = real("bccd")

    async def test(trader: Any) -> None:
        taken = await trader.take("PASCAL_VOC", root, tmp_path / "native")
        assert (taken.errors, taken.result.images_in, taken.result.annotations_out) == ([], 364, 4888)
        assert Counter(taken.rules) == {"one_pixel_box": 2, "not_kept": 1}
        tiny = {(f.image) for f in taken.findings if f.rule == "one_pixel_box"}
        assert tiny == {"BloodImage_00338.jpg", "BloodImage_00343.jpg"}
        boxes = [tuple(each["bbox"]) for each in taken.json()["BloodImage_00338.jpg"]]
        assert (503, 336, 504, 337) in boxes
        given = await trader.give("PASCAL_VOC", tmp_path / "native", tmp_path / "back", copy_images=True)
        assert given.rules == []
        again = await trader.take("PASCAL_VOC", tmp_path / "back", tmp_path / "again")
        assert again.json() == taken.json()
        train = await trader.take("PASCAL_VOC", root, tmp_path / "train", split="train", copy_images=True)
        assert train.result.images_in == 205
        shared = await trader.take("PASCAL_VOC", root, tmp_path / "shared", split="train")
        assert "copy_images" in shared.error
        wrong = await trader.take("PASCAL_VOC", root, tmp_path / "wrong", split="night")
        assert "test, train, trainval, val" in wrong.error

    trade(test)


def test_boxes_names_and_their_order_come_back_and_what_cannot_be_said_is_told(
    trade: Any, dataset: Any, tmp_path: Path
) -> None:
    dataset.write(
        "task: object detection\ncategories: ['<dog> & co', cat, unused]\nannotations: objects.yaml\n",
        **{
            "objects.yaml": "a.png:\n- {category: '<dog> & co', bbox: [0, 1, 3.5, 4], ignore: true}\n"
            "b.png:\n- {category: cat, bbox: [1, 1, 2, 2], crowd: true}\nc.png: []\n"
        },
    )

    async def test(trader: Any) -> None:
        given = await trader.give("PASCAL_VOC", dataset.path, tmp_path / "voc", copy_images=True)
        assert [f.value for f in given.findings] == ["crowd", "fraction", "null"]
        taken = await trader.take("PASCAL_VOC", tmp_path / "voc", tmp_path / "back")
        assert taken.json("metadata.json")["categories"] == ["<dog> & co", "cat", "unused"]
        assert taken.json() == {
            "a.png": [{"category": "<dog> & co", "bbox": [0, 1, 3.5, 4], "ignore": True}],
            "b.png": [{"category": "cat", "bbox": [1, 1, 2, 2]}],
            "c.png": [],
        }

    trade(test)
