"""Files as other tools write them and users file bugs about: none of them may say nothing, and mean it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.conversion.formats.object_detection import Box

YOLO = "path: .\ntrain: images/train\nnames: [cat, dog]\n"
BOX = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"


def voc_object(name: str, *boxes: str, more: str = "") -> str:
    return f"<object><name>{name}</name>{more}{''.join(boxes)}</object>"


def voc(files: Any, stem: str, *objects: str) -> Any:
    files.image(f"JPEGImages/{stem}.png")
    return files.text(f"Annotations/{stem}.xml", f"<annotation>{''.join(objects)}</annotation>")


def test_yolo_labels_beside_their_images_are_found(look: Any, files: Any) -> None:
    files.text("data.yaml", YOLO).image("images/train/a.png").text("images/train/a.txt", "0 0.5 0.5 0.5 0.5\n")
    found = look("YOLO detect", files.path)
    assert (len(found.annotations["a.png"]), found.rules) == (1, [])


def test_yolo_images_without_any_labels_are_an_error_and_some_are_counted(look: Any, files: Any) -> None:
    files.text("data.yaml", YOLO).image("images/train/a.png").image("images/train/b.png")
    found = look("YOLO detect", files.path)
    assert found.errors == ["no_labels"]
    assert "not one of 2 images" in found.report.findings[0].message
    found = look("YOLO detect", files.text("labels/train/a.txt", "0 0.5 0.5 0.5 0.5\n").path)
    assert (found.errors, found.rules) == ([], ["no_labels"])
    assert "1 of 2 images" in found.report.findings[0].message


@pytest.mark.parametrize("number", ["1", "1.0", "1.000000000000000000e+00"])
def test_a_yolo_class_is_any_whole_number(look: Any, files: Any, number: str) -> None:
    files.text("data.yaml", YOLO).image("images/train/a.png")
    found = look("YOLO detect", files.text("labels/train/a.txt", f"{number} 0.5 0.5 0.5 0.5\n").path)
    assert [box.category for box in found.annotations["a.png"]] == ["dog"]


def test_a_yolo_export_has_all_that_its_tools_want_and_comes_back(trade: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write(
        "task: object detection\ncategories: [cat]\nannotations: a.yaml\n",
        **{"a.yaml": "my photo 1.png: [{category: cat, bbox: [1, 1, 4, 4]}]\n"},
    )

    dataset.image("my photo 1.png")

    async def test(trader: Any) -> None:
        for kind in ("YOLO_DETECT", "PASCAL_VOC"):
            given = await trader.give(kind, dataset.path, tmp_path / kind, copy_images=True)
            assert given.error == ""
            taken = await trader.take(kind, tmp_path / kind, tmp_path / f"{kind} back", split="train")
            assert taken.error == ""
            assert taken.json() == {"my photo 1.png": [{"category": "cat", "bbox": [1, 1, 4, 4]}]}
        assert "\nval: train.txt\n" in (tmp_path / "YOLO_DETECT/data.yaml").read_text()

    trade(test)


def test_a_voc_list_names_files_with_spaces_and_begins_with_a_mark(look: Any, files: Any) -> None:
    for stem in ("photo", "photo 2", "photo 1", "other"):
        voc(files, stem, voc_object("cat", BOX.format(1)))
    files.text("ImageSets/Main/train.txt", "\ufeffphoto 2\nphoto 1\nother  1\nphoto -1\n")
    found = look("Pascal VOC", files.path, split="train")
    assert sorted(found.annotations) == ["other.png", "photo 1.png", "photo 2.png"]
    assert found.errors == []


def test_a_voc_object_with_several_boxes_is_as_many_objects(look: Any, files: Any) -> None:
    found = look("Pascal VOC", voc(files, "a", voc_object("cat", BOX.format(1), BOX.format(2), BOX.format(3))).path)
    assert [box.bbox[0] for box in found.annotations["a.png"]] == [0, 1, 2]


def test_voc_objects_in_another_place_are_no_empty_image(look: Any, files: Any) -> None:
    voc(files, "b", voc_object("cat", BOX.format(1)))
    found = look("Pascal VOC", voc(files, "a", f"<objects>{voc_object('cat', BOX.format(1))}</objects>").path)
    assert (found.errors, found.annotations["a.png"]) == (["bad_value"], None)


@pytest.mark.parametrize(("text", "wanted"), [("True", True), ("1", True), ("false", False), ("", False)])
def test_a_voc_flag_may_be_a_word(look: Any, files: Any, text: str, wanted: bool) -> None:
    flag = f"<difficult>{text}</difficult>"
    found = look("Pascal VOC", voc(files, "a", voc_object("cat", BOX.format(1), more=flag)).path)
    assert found.annotations["a.png"] == (Box(category="cat", bbox=(0, 0, 4, 4), ignore=wanted),)


def test_a_voc_flag_that_is_none_is_an_error(look: Any, files: Any) -> None:
    flag = "<difficult>2</difficult>"
    found = look("Pascal VOC", voc(files, "a", voc_object("cat", BOX.format(1), more=flag)).path)
    assert found.errors == ["missing_key"]


def test_all_parts_of_a_voc_dataset_have_one_vocabulary(look: Any, files: Any) -> None:
    voc(files, "a", voc_object("cat", BOX.format(1)))
    voc(files, "b", voc_object("dog", BOX.format(1)))
    files.text("ImageSets/Main/train.txt", "a\n").text("ImageSets/Main/val.txt", "b\n")
    for split in ("train", "val"):
        assert look("Pascal VOC", files.path, split=split).dataset.vocabulary.names == ("cat", "dog")


@pytest.mark.parametrize("kind", ["image folders", "Pascal VOC", "YOLO detect", "COCO instances"])
def test_pictures_that_are_not_read_are_said(look: Any, files: Any, kind: str) -> None:
    files.image("cat/a.png").image("dog/b.bmp").text("data.yaml", "train: cat\nnames: [cat]\n")
    files.text("cat/a.xml", "<annotation></annotation>").text("b.xml", f"<annotation>{voc_object('x')}</annotation>")
    files.json("c.json", {"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.bmp"}],
                          "annotations": [], "categories": [{"id": 1, "name": "cat"}]})  # fmt: skip
    found = look(kind, files.path)
    (finding,) = [each for each in found.report.findings if each.rule == "wrong_extension"]
    assert (finding.place.file, finding.value) == ("dog/b.bmp", ".bmp")
    missing = [each.message for each in found.report.findings if each.rule == "missing_image"]
    assert all("there is dog/b.bmp" in message for message in missing)


@pytest.mark.parametrize("tops", [("Train", "Test"), ("training", "testing"), ("train", "val")])
def test_parts_of_image_folders_may_have_other_letters_and_strays_beside(
    look: Any, files: Any, tops: tuple[str, str]
) -> None:
    for top in tops:
        files.image(f"{top}/cat/1.png").image(f"{top}/dog/2.png")
    found = look("image folders", files.image("stray.png").path, split=tops[0].lower())
    assert found.dataset.vocabulary.names == ("cat", "dog")
    assert (sorted(found.annotations), found.rules) == (["1.png", "2.png"], ["image_without_category"])


def test_folders_of_the_same_names_are_perhaps_no_categories(look: Any, files: Any) -> None:
    for path in ("camera1/cat/1.png", "camera1/dog/2.png", "camera2/cat/3.png", "camera2/dog/4.png"):
        files.image(path)
    assert look("image folders", files.path).rules == ["folders_alike"]


def coco(files: Any, *, image: dict[str, Any] | None = None, **annotation: Any) -> Any:
    """One image with one annotation."""
    files.image("images/a.png")
    about = {"category_id": 1, "image_id": 1, "bbox": [1, 1, 3, 3], **annotation}
    return files.json("instances.json", {
        "images": [{"id": 1, "file_name": "a.png", **(image or {})}],
        "annotations": [about],
        "categories": [{"id": 1, "name": "cat"}],
    })  # fmt: skip


@pytest.mark.parametrize(
    "about",
    [
        {"color": "#a60f2f", "metadata": {"a": [1]}},
        {"color": 7, "keypoints": "none", "isthing": "yes", "supercategory": ["animal"]},
        {"color": [1, 2], "keypoints": [1]},
    ],
)
def test_coco_categories_are_read_whatever_else_is_said_of_them(look: Any, files: Any, about: Any) -> None:
    files.image("images/a.png")
    files.json("a.json", {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]}],
        "categories": [{"id": 1, "name": "cat", **about}],
    })  # fmt: skip
    found = look("COCO instances", files.path)
    assert (len(found.annotations["a.png"]), found.errors) == (1, [])
    assert set(found.rules) <= {"bad_value", "not_kept"}


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("area", "NaN", None),
        ("bbox", "[1, 1, NaN, 3]", "not_finite"),
        ("segmentation", "[[1, 1, -Infinity, 1, 4, 4]]", "not_finite"),
        ("score", "[Infinity]", None),
        ("caption", '"NaN \\" Infinity"', None),
    ],
)
def test_a_number_that_is_none_is_one_annotation_and_not_the_file(
    look: Any, files: Any, key: str, value: str, rule: str | None
) -> None:
    coco(files, **{key: "PUT"}, category_id=1)
    path = files.path / "instances.json"
    path.write_text(path.read_text().replace('"PUT"', value))
    found = look("COCO instances", files.path)
    assert (found.errors, found.report.fatal) == ([rule] if rule else [], False)


@pytest.mark.parametrize("nothing", [[], [[]], "", {}, None])
def test_no_segmentation_has_many_spellings(look: Any, files: Any, nothing: Any) -> None:
    found = look("COCO instances", coco(files, segmentation=nothing).path)
    assert found.annotations["a.png"] == (Box(category="cat", bbox=(1, 1, 4, 4)),)
    path = files.path / "instances.json"
    path.write_text(path.read_text().replace("[]", "[ ]"))
    assert look("COCO instances", files.path).errors == []


def test_boxes_of_all_can_be_asked_for_where_some_have_masks(look: Any, files: Any) -> None:
    coco(files)
    square = [[1, 1, 4, 1, 4, 4, 1, 4]]
    files.json("instances.json", {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]},
            {"image_id": 1, "category_id": 1, "segmentation": square},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    })  # fmt: skip
    found = look("COCO instances", files.path)
    assert (found.errors, "object detection" in found.report.findings[-1].message) == (["missing_key"], True)
    found = look("COCO instances", files.path, task="object detection")
    assert (found.annotations["a.png"], found.rules) == ((Box(category="cat", bbox=(1, 1, 4, 4)),) * 2, [])


@pytest.mark.parametrize(
    "name", ["images\\a.png", "./images/a.png", "/data/shop/images/a.png", "C:\\x\\images\\a.png", "../images/a.png"]
)
def test_a_coco_path_is_found_however_it_is_spelled(look: Any, files: Any, name: str) -> None:
    found = look("COCO instances", coco(files, image={"file_name": name}).path)
    assert (found.rules, len(found.annotations["a.png"])) == ([], 1)


def test_a_coco_path_may_be_quoted_and_other_letters_are_a_hint(look: Any, files: Any) -> None:
    files.image("images/my photo.png")
    found = look("COCO instances", coco(files, image={"file_name": "my%20photo.png"}).path)
    assert (found.rules, list(found.annotations)) == ([], ["my photo.png"])
    found = look("COCO instances", coco(files, image={"file_name": "A.PNG"}).path)
    assert "there is images/a.png" in found.report.findings[0].message


@pytest.mark.parametrize(
    "image", [{"id": "street_0001"}, {"file_name": None, "coco_url": "http://host/images/a.png"}, {"id": "1"}]
)
def test_coco_images_have_names_for_numbers_and_addresses_for_names(
    look: Any, files: Any, image: dict[str, Any]
) -> None:
    coco(files, image=image, image_id=image.get("id", 1))
    path = files.path / "instances.json"
    path.write_text(path.read_text().replace('"file_name": null, ', ""))
    found = look("COCO instances", files.path)
    assert (found.rules, len(found.annotations["a.png"])) == ([], 1)


def test_of_two_keypoint_categories_one_may_have_no_points(look: Any, files: Any) -> None:
    files.image("images/a.png")
    files.json("person_keypoints.json", {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"image_id": 1, "category_id": 2, "keypoints": [1, 1, 2], "bbox": [1, 1, 3, 3]},
            {"image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person", "keypoints": ["nose"]}],
    })  # fmt: skip
    found = look("COCO keypoints", files.path)
    assert (len(found.annotations["a.png"]), found.rules) == (1, ["not_kept"])


def test_a_coco_export_has_what_pycocotools_reads(trade: Any, dataset: Any, tmp_path: Path, capsys: Any) -> None:
    from pycocotools.coco import COCO

    dataset.write(
        "task: object detection\ncategories: [cat]\nannotations: a.yaml\n",
        **{"a.yaml": "a.png: [{category: cat, bbox: [1, 1, 4, 4]}]\n"},
    )

    async def test(trader: Any) -> None:
        await trader.give("COCO_INSTANCES", dataset.path, tmp_path / "coco")

    trade(test)
    coco = COCO(str(tmp_path / "coco/annotations/instances.json"))
    results = coco.loadRes([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "score": 0.5}])
    assert len(results.anns) == 1
    capsys.readouterr()


def test_an_export_of_an_annotation_host_has_a_document_a_part_and_a_root(look: Any, files: Any) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
    ]
    for split in ("train", "valid"):
        files.image(f"{split}/a.png").image(f"{split}/b.png")
        files.json(f"{split}/_annotations.coco.json", {
            "info": {}, "licenses": [{"id": 1, "url": "", "name": "CC"}], "categories": categories,
            "images": [{"id": 0, "license": 1, "file_name": "a.png", "height": 6, "width": 8, "extra": {"name": "x"}}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9,
                             "segmentation": [], "iscrowd": 0}],
        })  # fmt: skip
    found = look("COCO instances", files.path, split="valid")
    assert found.dataset.vocabulary.names == ("cat",)
    assert [image.path for image in found.dataset.images] == ["valid/a.png"]
    assert found.errors == []
