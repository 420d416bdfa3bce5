"""Datasets as other tools write them, rebuilt in small: read, recognised, and with what is odd in them told."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.chassis.errors import InvalidArgument
from services.conversion.finding import Report
from services.conversion.foreign.label_studio.brush import decode_brush, encode_brush
from services.conversion.foreign.recognition import find_format
from services.conversion.formats.instance_segmentation import InstanceMap
from services.conversion.formats.object_detection import Box
from services.conversion.raster.runs import mask_of_runs
from tests.conversion.foreign.conftest import LocalFiles

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels>
    <label><name>car</name><color>#3df53d</color><type>any</type><attributes></attributes></label>
    <label><name>sign</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
  </labels></task></meta>
  <image id="0" name="a.png" subset="default" task_id="7" width="8" height="6">{shapes}</image>
  <image id="1" name="b.png" width="8" height="6"></image>
</annotations>
"""
CVAT_BOX = (
    '<box label="{}" source="manual" occluded="{}" xtl="1.00" ytl="1.00" xbr="4.00" ybr="5.00" z_order="0"{}></box>'
)


def recognised(folder: Any) -> str:
    return asyncio.run(find_format(LocalFiles(folder), Report(findings_max=10)))


def masks(found: Any, name: str = "a.png") -> list[Any]:
    annotation: InstanceMap = found.annotations[name]
    return [mask_of_runs(each.mask, height=annotation.height, width=annotation.width) for each in annotation.instances]


def png(pixels: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def palette_png(numbers: Any) -> bytes:
    """Numbers with VOC's palette, as VOC's own maps are."""
    picture = Image.fromarray(numbers.astype(np.uint8), "P")
    colors = [[sum((n >> (3 * k + c) & 1) << (7 - k) for k in range(8)) for c in range(3)] for n in range(256)]
    picture.putpalette([part for color in colors for part in color])
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write(files: Any, path: str, content: bytes) -> Any:
    (files.path / path).parent.mkdir(parents=True, exist_ok=True)
    (files.path / path).write_bytes(content)
    return files


def cvat(files: Any, shapes: str) -> Any:
    return files.image("images/a.png").image("images/b.png").text("annotations.xml", CVAT.format(shapes=shapes))


def test_cvat_boxes_with_what_is_not_kept(look: Any, files: Any) -> None:
    shapes = CVAT_BOX.format("car", 1, "") + CVAT_BOX.format("sign", 0, "").replace(
        "></box>", '><attribute name="text">STOP</attribute></box>'
    ) + '<polyline label="car" points="1,1;2,2" z_order="0"></polyline>'  # fmt: skip
    found = look("CVAT", cvat(files, shapes).path)
    assert recognised(files.path) == "CVAT"
    assert found.annotations == {
        "a.png": (Box(category="car", bbox=(1, 1, 4, 5)), Box(category="sign", bbox=(1, 1, 4, 5))),
        "b.png": (),
    }
    assert {finding.value for finding in found.report.findings} == {"occluded", "attribute", "polyline"}
    assert found.errors == []


def test_a_cvat_box_that_is_turned_is_a_quadrilateral(look: Any, files: Any) -> None:
    found = look("CVAT", cvat(files, CVAT_BOX.format("car", 0, ' rotation="90.0"')).path)
    ((quad,), corners) = found.annotations["a.png"], ((4.5, 1.5), (4.5, 4.5), (0.5, 4.5), (0.5, 1.5))
    assert np.allclose(quad.quad, corners)


def test_cvat_masks_polygons_and_groups(look: Any, files: Any) -> None:
    shapes = (
        '<mask label="car" source="manual" occluded="0" rle="0, 2, 1, 3" left="1" top="2" width="3" height="2" '
        'z_order="0"></mask>'
        '<polygon label="sign" occluded="0" points="0,0;2,0;2,2;0,2" z_order="0" group_id="3"></polygon>'
        '<polygon label="sign" occluded="0" points="4,0;6,0;6,2;4,2" z_order="0" group_id="3"></polygon>'
        + CVAT_BOX.format("car", 0, "")
    )  # fmt: skip
    found = look("CVAT", cvat(files, shapes).path)
    mask, sign = masks(found)
    assert mask[2:4, 1:4].tolist() == [[True, True, False], [True, True, True]]
    assert (mask.sum(), sign.sum()) == (5, 8), "two polygons of a group are one object"
    assert found.errors == ["missing_key"], "a box among masks is an object that would be missing"
    boxes = look("CVAT", files.path, task="object detection")
    assert (len(boxes.annotations["a.png"]), boxes.errors) == (4, [])


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ('<box label="car" xtl="1" ytl="1" xbr="x" ybr="2"/>', "bad_value"),
        ('<box label="car" xtl="1" ytl="1" xbr="3"/>', "bad_value"),
        ('<box label="plane" xtl="1" ytl="1" xbr="nan" ybr="2"/>', "not_finite"),
    ],
)
def test_a_bad_cvat_shape_is_one_object(look: Any, files: Any, shape: str, rule: str) -> None:
    found = look("CVAT", cvat(files, CVAT_BOX.format("car", 0, "") + shape).path)
    assert (found.errors, len(found.annotations["a.png"])) == ([rule], 1)


def test_cvat_for_video_is_told_apart(look: Any, files: Any) -> None:
    files.image("a.png").text("annotations.xml", "<annotations><meta/><track id='0' label='car'/></annotations>")
    assert "CVAT for images" in look("CVAT", files.path).report.findings[0].message


def labelme(files: Any, *shapes: dict[str, Any], **more: Any) -> Any:
    about = {"version": "5.4.1", "flags": {}, "shapes": [{"group_id": None, "flags": {}, **s} for s in shapes],
             "imagePath": "..\\x\\a.png", "imageData": None, "imageHeight": 6, "imageWidth": 8, **more}  # fmt: skip
    return files.image("a.png").image("b.png").json("a.json", about)


def test_labelme_shapes_of_every_kind(look: Any, files: Any) -> None:
    window = np.array([[1, 0], [1, 1]], np.uint8)
    mask = base64.b64encode(png(window * 255)).decode()
    labelme(
        files,
        {"label": "cat", "points": [[1, 1], [4, 1], [4, 4], [1, 4]], "shape_type": "polygon", "group_id": 0},
        {"label": "cat", "points": [[5, 4], [7, 4], [7, 6], [5, 6]], "shape_type": "polygon", "group_id": 0},
        {"label": "dog", "points": [[6, 1], [5, 2]], "shape_type": "mask", "mask": mask},
        {"label": "dog", "points": [[2, 2], [3, 3]], "shape_type": "circle"},
    )
    found = look("LabelMe", files.path)
    assert recognised(files.path) == "LabelMe"
    cat, dog = masks(found)
    assert (cat.sum(), dog.sum()) == (9 + 4, 3)
    assert dog[1:3, 5:7].tolist() == [[True, False], [True, True]]
    assert (found.annotations["b.png"], found.errors) == (None, [])
    assert [finding.value for finding in found.report.findings] == ["circle"]


def test_labelme_rectangles_in_any_direction_points_and_flags(look: Any, files: Any) -> None:
    box = {"label": "cat", "points": [[4, 5], [1, 2]], "shape_type": "rectangle"}
    assert look("LabelMe", labelme(files, box).path).annotations["a.png"] == (Box(category="cat", bbox=(1, 2, 4, 5)),)
    points = [{"label": name, "points": [[x, 2]], "shape_type": "point", "group_id": group}
              for group, name, x in ((1, "head", 1), (1, "tail", 2), (2, "head", 5))]  # fmt: skip
    found = look("LabelMe", labelme(files, *points).path)
    assert [dict(each.points) for each in found.annotations["a.png"]] == [
        {"head": (1, 2), "tail": (2, 2)}, {"head": (5, 2)}
    ]  # fmt: skip
    found = look("LabelMe", labelme(files, flags={"sunny": True, "rain": False}).path)
    assert (found.dataset.vocabulary.names, found.annotations["a.png"]) == (("sunny", "rain"), "sunny")


def test_labelme_files_that_are_none_are_told(look: Any, files: Any) -> None:
    labelme(files, {"label": "cat", "points": [[4, 5], [1, 2]], "shape_type": "rectangle"}).text("b.json", "{")
    found = look("LabelMe", files.path)
    assert (found.errors, found.annotations["b.png"]) == (["syntax"], None)


def studio(files: Any, *results: Any, **more: Any) -> Any:
    head = {"original_width": 8, "original_height": 6, "image_rotation": 0, "from_name": "label", "to_name": "image"}
    task = {"id": 1, "annotations": [{"id": 1, "was_cancelled": False, "result": [{**head, **r} for r in results]}],
            "data": {"image": "/data/upload/2/3f2a9c1b-a.png"}, "predictions": [], **more}  # fmt: skip
    files.image("a.png").image("b.png")
    other = {"id": 2, "annotations": [{"was_cancelled": True, "result": []}], "data": {"image": "s3://bucket/b.png"}}
    return files.json("project-1.json", [task, other])


def test_label_studio_rectangles_turn_around_their_first_corner(look: Any, files: Any) -> None:
    value = {"x": 25, "y": 50, "width": 25, "height": 50 / 3, "rotation": 0, "rectanglelabels": ["Car"]}
    found = look("Label Studio", studio(files, {"id": "x", "type": "rectanglelabels", "value": value}).path)
    assert recognised(files.path) == "Label Studio"
    assert found.annotations == {"a.png": (Box(category="Car", bbox=(2, 3, 4, 4)),), "b.png": None}
    turned = {"id": "x", "type": "rectanglelabels", "value": {**value, "rotation": 90}}
    found = look("Label Studio", studio(files, turned).path)
    assert np.allclose(found.annotations["a.png"][0].quad, [(2, 3), (2, 5), (1, 5), (1, 3)])


def test_label_studio_polygons_brushes_and_choices(look: Any, files: Any) -> None:
    mask = np.zeros((6, 8), np.bool_)
    mask[1:4, 2:7] = True
    polygon = {"type": "polygonlabels", "value": {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "closed": True,
                                                  "polygonlabels": ["Car"]}}  # fmt: skip
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["Tree"]}}
    choice = {"type": "choices", "value": {"choices": ["day"]}}
    found = look("Label Studio", studio(files, polygon, brush, choice).path)
    car, tree = masks(found)
    assert (car.sum(), (tree == mask).all()) == (12, True)
    assert [finding.value for finding in found.report.findings] == ["tag"]
    found = look("Label Studio", studio(files, choice).path)
    assert found.annotations["a.png"] == "day"


@pytest.mark.parametrize("seed", range(4))
def test_a_brush_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 40), rng.integers(1, 300))) < (0.02, 0.5, 0.98, 1.1)[seed]
    height, width = mask.shape
    assert (decode_brush(encode_brush(mask), width=width, height=height) == mask).all()


def test_label_studio_json_min_is_told_apart(look: Any, files: Any) -> None:
    files.image("a.png").json("p.json", [{"image": "/data/upload/a.png", "label": [{"x": 1}], "id": 1}])
    found = look("Label Studio", files.path)
    assert "JSON-MIN" in found.report.findings[0].message
    assert found.report.fatal


def datumaro(files: Any, *annotations: Any) -> Any:
    head = {"id": 0, "attributes": {}, "group": 0, "label_id": 1, "z_order": 0}
    files.image("images/default/x/a.png")
    return files.json("annotations/default.json", {
        "dm_format_version": "1.0", "media_type": 2, "infos": {},
        "categories": {"label": {"labels": [{"name": "bg", "parent": "", "attributes": []}, {"name": "cat"}],
                                 "attributes": []}, "mask": {"colormap": [{"label_id": 1, "r": 9, "g": 8, "b": 7}]}},
        "items": [{"id": "x/a", "annotations": [{**head, **each} for each in annotations],
                   "image": {"path": "x/a.png", "size": [6, 8]}}],
    })  # fmt: skip


def test_datumaro_polygons_of_a_group_are_one_object(look: Any, files: Any) -> None:
    datumaro(files, {"type": "polygon", "points": [0, 0, 2, 0, 2, 2, 0, 2], "group": 5},
             {"type": "polygon", "points": [4, 0, 6, 0, 6, 2, 4, 2], "group": 5, "attributes": {"is_crowd": True}},
             {"type": "caption", "caption": "a cat"})  # fmt: skip
    found = look("Datumaro", files.path)
    assert recognised(files.path) == "Datumaro"
    (cat,) = masks(found)
    assert (cat.sum(), found.dataset.vocabulary.colors["cat"]) == (8, (9, 8, 7))
    assert (found.errors, [f.value for f in found.report.findings]) == ([], ["caption"])


def test_datumaro_labels_that_are_none_are_found(look: Any, files: Any) -> None:
    found = look("Datumaro", datumaro(files, {"type": "bbox", "bbox": [1, 1, 2, 2], "label_id": 7}).path)
    assert (found.errors, found.annotations["a.png"]) == (["undeclared_category"], None)


@pytest.mark.parametrize(
    ("text", "quads", "ignored"),
    [
        ("\ufeff1,1,4,1,4,3,1,3,Hello, world\r\n2,2,6,2,6,5,2,5,###\r\n", 2, 1),
        ('1, 1, 4, 3, "Tiredness"\n', 1, 0),
        ('1 1 4 3 "of" \n2 2 6 5 "the"\n', 2, 0),
        ("1,1,4,1,4,3,1,3\n", 1, 0),
    ],
)
def test_icdar_quadrilaterals_of_both_years(look: Any, files: Any, text: str, quads: int, ignored: int) -> None:
    files.image("img_1.png").text("gt_img_1.txt", text)
    found = look("ICDAR", files.path)
    assert recognised(files.path) == "ICDAR"
    annotation = found.annotations["img_1.png"]
    assert (len(annotation), sum(each.ignore for each in annotation), found.errors) == (quads, ignored, [])


def test_icdar_words_are_texts_and_one_of_several_words_is_none(look: Any, files: Any) -> None:
    for number in (1, 2, 3):
        files.image(f"word_{number}.png")
    files.text("gt.txt", '\ufeffword_1.png, "Genaxis"\nword_2.png, "a, \\"b\\""\nword_3.png, "x"\n')
    found = look("ICDAR", files.path)
    assert recognised(files.path) == "ICDAR"
    assert "".join(found.annotations["word_1.png"]) == "Genaxis"
    assert (found.errors, found.annotations["word_2.png"]) == (["bad_name"], None)


def test_dota_headers_and_difficult_objects(look: Any, files: Any) -> None:
    text = (
        "imagesource:GoogleEarth\ngsd:0.146\n1 1 5 1 5 4 1 4 small-vehicle 0\n1.0 1 5 1 5 4 1 4 ship 1\n1 1 5 1 ship\n"
    )
    found = look("DOTA", files.image("images/P0001.png").text("labelTxt-v1.5/P0001.txt", text).path)
    assert recognised(files.path) == "DOTA"
    assert [(each.category, each.ignore) for each in found.annotations["P0001.png"]] == [
        ("small-vehicle", False), ("ship", True)
    ]  # fmt: skip
    assert (found.errors, found.report.findings[0].place.line) == (["wrong_coordinate_count"], 5)


def test_yolo_obb_and_segment_are_told_apart(files: Any) -> None:
    files.text("data.yaml", "train: images\nval: images\nnames: [a]\n").image("images/1.png").image("images/2.png")
    corners = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
    assert recognised(files.text("labels/1.txt", corners).path) == "YOLO OBB"
    assert recognised(files.text("labels/2.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n").path) == "YOLO segment"
    assert recognised(files.text("labels/1.txt", "0 0.5 0.5 0.5 0.5\n").text("labels/2.txt", "").path) == "YOLO detect"


@pytest.mark.parametrize(("numbers", "line"), [(3, "0.25 0.5 2 0 0 0 0.75 0.5 1"), (2, "0.25 0.5 0 0 0.75 0.5")])
def test_yolo_pose_has_pairs_and_points_of_two_or_three_numbers(look: Any, files: Any, numbers: int, line: str) -> None:
    data = f"path: .\ntrain: images\nkpt_shape: [3, {numbers}]\nflip_idx: [0, 2, 1]\nnames: {{0: tiger}}\n"
    files.text("data.yaml", data).image("images/a.png").text("labels/a.txt", f"0 0.5 0.5 0.5 0.5 {line}\n")
    found = look("YOLO pose", files.path)
    assert recognised(files.path) == "YOLO pose"
    assert found.dataset.vocabulary.flip_pairs == (("point 1", "point 2"),)
    (animal,) = found.annotations["a.png"]
    assert (dict(animal.points), animal.bbox) == ({"point 0": (2, 3), "point 2": (6, 3)}, (2, 1.5, 6, 4.5))
    assert found.errors == []


def test_voc_segmentation_by_its_palette_with_255_as_void(look: Any, files: Any) -> None:
    numbers = np.zeros((6, 8), np.uint8)
    numbers[1:3], numbers[4:, 3:] = 15, 255
    files.image("JPEGImages/a.jpg").image("JPEGImages/b.jpg").text("ImageSets/Segmentation/train.txt", "a\n")
    write(files, "SegmentationClass/a.png", palette_png(numbers))
    write(files, "SegmentationObject/a.png", palette_png(numbers))
    found = look("mask folders", files.path, split="train")
    assert recognised(files.path) == "mask folders"
    classes = found.annotations["a.jpg"].classes
    assert (classes[0, 0], classes[1, 0], classes[5, 5]) == (1, 16, 0), "the background is a class, void is none"
    assert (found.dataset.vocabulary.names[15], list(found.annotations), found.errors) == ("person", ["a.jpg"], [])


def test_cityscapes_label_ids_and_what_stands_beside_them(look: Any, files: Any) -> None:
    numbers = np.full((6, 8), 7, np.uint8)
    numbers[0], numbers[1] = 26, 0
    stem = "aachen_000000_000019"
    files.image(f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png")
    for end in ("labelIds", "instanceIds", "color", "labelTrainIds"):
        write(files, f"gtFine/train/aachen/{stem}_gtFine_{end}.png", png(numbers))
    found = look("mask folders", files.path, split="train")
    assert recognised(files.path) == "mask folders"
    ((name, annotation),) = found.annotations.items()
    names = ("ignored", *found.dataset.vocabulary.names)
    assert name == f"{stem}_leftImg8bit.png"
    assert [names[annotation.classes[row, 0]] for row in (0, 1, 2)] == ["car", "ignored", "road"]


def test_ade20k_numbers_and_names(look: Any, files: Any) -> None:
    files.text("objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n"
               "2\t0.1\t6046\t612\t1\tbuilding, edifice\n")  # fmt: skip
    files.image("images/training/ADE_train_00000001.jpg")
    numbers = np.arange(48).reshape(6, 8) % 3
    write(files, "annotations/training/ADE_train_00000001.png", png(numbers.astype(np.uint8)))
    found = look("mask folders", files.path, split="training")
    assert recognised(files.path) == "mask folders"
    assert found.dataset.vocabulary.names == ("wall", "building")
    (annotation,) = found.annotations.values()
    assert (annotation.classes == numbers).all()
    assert found.errors == ["undeclared_category"], "the 0 of ADE20K has no label: it is said, and ignored"


def test_camvid_colours_of_which_black_is_void(look: Any, files: Any) -> None:
    files.text("label_colors.txt", "64 128 64\tAnimal\n192 0 128\t\tArchway\n0 0 0\t\tVoid\n")
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[1], pixels[2] = (64, 128, 64), (1, 2, 3)
    files.image("701_StillsRaw_full/0001TP.png")
    write(files, "LabeledApproved_full/0001TP_L.png", png(pixels))
    found = look("mask folders", files.path)
    assert recognised(files.path) == "mask folders"
    assert found.dataset.vocabulary.names == ("Animal", "Archway")
    (annotation,) = found.annotations.values()
    assert annotation.classes[:3, 0].tolist() == [0, 1, 0]
    (finding,) = found.report.findings
    assert (finding.rule, finding.value) == ("undeclared_category", "#010203")


def test_maps_without_any_list_of_labels_fail(look: Any, files: Any) -> None:
    files.image("images/a.png")
    found = look("mask folders", write(files, "masks/a.png", png(np.zeros((6, 8), np.uint8))).path)
    assert "classes.txt" in found.report.findings[-1].message


def test_mvtec_states_without_masks_and_a_defect_without_one(look: Any, files: Any) -> None:
    for path in ("train/good/1.png", "test/good/2.png", "test/crack/3.png", "test/hole/4.png"):
        files.image(f"bottle/{path}")
    found = look("MVTec AD", files.path, split="test")
    assert recognised(files.path) == "MVTec AD"
    assert found.annotations == {"2.png": "normal", "3.png": "anomalous", "4.png": "anomalous"}
    mask = np.zeros((6, 8), np.uint8)
    mask[2] = 255
    write(files, "bottle/ground_truth/crack/3_mask.png", png(mask))
    found = look("MVTec AD", files.path, split="test")
    assert (found.annotations["2.png"].state, found.annotations["3.png"].pixels.sum()) == ("normal", 8)
    assert (found.annotations["4.png"], found.errors) == (None, ["missing_file"])


@pytest.mark.parametrize(
    ("table", "task", "wanted"),
    [
        ("image,value\na.png,1.5\nb.png,\n", "regression", {"a.png": 1.5, "b.png": None}),
        ("filename;class\na.png;cat\nb.png;dog\n", "multiclass classification", {"a.png": "cat", "b.png": "dog"}),
        ("id,tags\na,cat|dog\nb,\n", "multilabel classification", {"a.png": ("cat", "dog"), "b.png": ()}),
        ("filename, cat, dog\na.png, 1, 0\nb.png, 0, 0\n", "multilabel classification",
         {"a.png": ("cat",), "b.png": ()}),
    ],
)  # fmt: skip
def test_tables_of_values(look: Any, files: Any, table: str, task: str, wanted: Any) -> None:
    found = look("image values", files.image("a.png").image("b.png").text("labels.csv", table).path)
    assert recognised(files.path) == "image values"
    assert (found.dataset.task, found.annotations, found.errors) == (task, wanted, [])


@pytest.mark.parametrize(
    ("kind", "image", "depth", "metres"),
    [
        ("KITTI depth", "image/2011_09_26_drive_0002_sync_image_0000000005_image_02.png",
         "groundtruth_depth/2011_09_26_drive_0002_sync_groundtruth_depth_0000000005_image_02.png", 256.0),
        ("NYU depth", "bathroom/rgb_00045.jpg", "bathroom/sync_depth_00045.png", 1000.0),
    ],
)  # fmt: skip
def test_depth_in_metres(look: Any, files: Any, kind: str, image: str, depth: str, metres: float) -> None:
    steps = np.zeros((6, 8), np.uint16)
    steps[1], steps[2], steps[3] = 1, 2_560, 65_535
    found = look(kind, write(files.image(image), depth, png(steps)).path)
    assert recognised(files.path) == kind
    (annotation,), interval = found.annotations.values(), found.dataset.vocabulary
    levels = annotation.levels.astype(float)
    shown = interval.high - (levels - 1) * (interval.high - interval.low) / 65_534
    assert levels[0].max() == 0
    assert np.allclose(shown[1:4, 0] * metres, [1, 2_560, 65_535])


def test_files_of_no_tool_are_told_with_what_was_looked_for(files: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"_annotations\.coco\.json"):
        recognised(files.text("notes.txt", "nothing").path)
    files.image("a/1.png").image("b/2.png")
    (files.path / "notes.txt").unlink()
    assert recognised(files.path) == "image folders"


def test_files_of_two_tools_are_told(files: Any) -> None:
    labelme(files, {"label": "cat", "points": [[4, 5], [1, 2]], "shape_type": "rectangle"})
    cvat(files, CVAT_BOX.format("car", 0, ""))
    with pytest.raises(InvalidArgument, match="CVAT or LabelMe: say which"):
        recognised(files.path)
