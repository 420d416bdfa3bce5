"""COCO panoptic in and out, and the golden result of the format's own tool."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from services.conversion.conveyor.chunk import Recipe, convert_chunk
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Place, Report
from services.conversion.foreign.coco.instances import CocoInstances
from services.conversion.foreign.coco.panoptic import CocoSegments
from services.conversion.foreign.format import WriteRequest
from services.conversion.formats.format import MapFile
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.raster.error import RasterLimits
from services.conversion.task import Task

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1, "color": [220, 20, 60]},
    {"id": 40, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
]
CAT, SKY = 70_000, 3


def detections(document: Any) -> dict[Any, list[Any]]:
    """Annotations without their ids, by image."""
    found: dict[Any, list[Any]] = {}
    for each in document["annotations"]:
        rle = each["segmentation"]
        parts = (each["category_id"], each["iscrowd"], each["area"], tuple(each["bbox"]), rle["counts"])
        found.setdefault(each["image_id"], []).append(parts)
    return {image: sorted(parts) for image, parts in found.items()}


def test_without_things_the_golden_result_is_equalled_and_with_them_stuff_is_left_out(
    trade: Any, real: Any, tmp_path: Path
) -> None:
    root = real("coco_panoptic_sample")
    golden = json.loads((root / "panoptic_coco_detection_format.json").read_text())

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_PANOPTIC", root, tmp_path / "native")
        assert (taken.errors, taken.result.annotations_out) == ([], 50)
        things = (await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "things")).json(
            "annotations/instances.json"
        )
        assert len(things["annotations"]) == 43
        metadata = taken.json("metadata.json")
        del metadata["things"]
        (tmp_path / "native/metadata.json").write_text(json.dumps(metadata))
        given = await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "all")
        assert "no_things" in given.rules
        everything = given.json("annotations/instances.json")
        assert detections(everything) == detections(golden)
        assert sum(each["iscrowd"] for each in everything["annotations"]) == 3
        stuff = {each["id"] for each in json.loads((root / "panoptic_examples.json").read_text())["categories"]
                 if not each["isthing"]}  # fmt: skip
        without = {i: [p for p in parts if p[0] not in stuff] for i, parts in detections(golden).items()}
        assert detections(things) == without

    trade(test)


def test_one_pass_from_panoptic_to_instances_gives_the_same_as_two(real: Any, look: Any, tmp_path: Path) -> None:
    """Foreign records, the step, the foreign writer: nothing native in between."""
    root = real("coco_panoptic_sample")
    golden = json.loads((root / "panoptic_coco_detection_format.json").read_text())
    found = look("COCO panoptic", root)
    ids = {name: number for number, name in found.dataset.codec.names.items()}
    sizes = {each["file_name"]: each for each in golden["images"]}
    records = []
    for name, image in sizes.items():
        entry = ImageEntry(name=name, size_bytes=1, etag="", width=image["width"], height=image["height"])
        raw = found.dataset.annotation(entry)
        file = MapFile(suffix=raw.suffix, content=(root / raw.path).read_bytes(), about=raw.value)
        records.append(RawRecord(image=entry, place=raw.place, annotated=True, value=file))
    recipe = Recipe(
        reader=found.dataset.codec,
        source_vocabulary=replace(found.dataset.vocabulary, things=None),
        source=Task.PANOPTIC_SEGMENTATION,
        target=Task.INSTANCE_SEGMENTATION,
        steps=((Task.PANOPTIC_SEGMENTATION, Task.INSTANCE_SEGMENTATION, None),),
    )
    vocabulary = recipe.target_vocabulary()
    images = [record.image for record in records]
    request = WriteRequest(task=recipe.target, vocabulary=vocabulary, category_ids=ids, images=images)
    writing = CocoInstances().write(request)
    writing.sink.begin(tmp_path, vocabulary)
    result = convert_chunk(replace(recipe, writer=writing.codec), records)
    for record, (_, _, written) in zip(records, result.written, strict=True):
        writing.sink.add(record.image, written)
    writing.sink.end()
    written = json.loads((tmp_path / "annotations/instances.json").read_text())
    assert detections(written) == detections(golden)


def test_real_maps_come_back_but_for_their_ids(trade: Any, real: Any, tmp_path: Path) -> None:
    root = real("coco_panoptic_sample")

    async def test(trader: Any) -> None:
        await trader.take("COCO_PANOPTIC", root, tmp_path / "native")
        given = await trader.give("COCO_PANOPTIC", tmp_path / "native", tmp_path / "back", copy_images=True)
        assert given.rules == []
        before = json.loads((root / "panoptic_examples.json").read_text())
        after = given.json("annotations/panoptic.json")
        assert {(c["id"], c["name"], c["isthing"]) for c in after["categories"]} == {
            (c["id"], c["name"], c["isthing"]) for c in before["categories"]
        }
        for old, new in zip(before["annotations"], after["annotations"], strict=True):
            assert (old["image_id"], old["file_name"]) == (new["image_id"], new["file_name"])
            olds, news = old["segments_info"], new["segments_info"]
            same = ("category_id", "iscrowd", "area", "bbox")
            assert [[s[k] for k in same] for s in olds] == [[s[k] for k in same] for s in news]
            assert [s["id"] for s in news] == list(range(1, len(news) + 1))
            old_ids = ids_of(root / "panoptic_examples" / old["file_name"])
            new_ids = ids_of(tmp_path / "back/annotations/panoptic" / new["file_name"])
            issued = {s["id"]: t["id"] for s, t in zip(olds, news, strict=True)}
            wanted = np.vectorize({0: 0, **issued}.get)(old_ids)
            assert np.array_equal(wanted, new_ids)
        again = await trader.take("COCO_PANOPTIC", tmp_path / "back", tmp_path / "again")
        assert again.rules == []
        for path in (tmp_path / "native/annotations").iterdir():
            assert (tmp_path / "again/annotations" / path.name).read_bytes() == path.read_bytes()

    trade(test)


def ids_of(path: Path) -> Any:
    rgb = imagecodecs.png_decode(path.read_bytes()).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65_536 * rgb[..., 2]


def write(files: Any, ids: Any, segments: Any, **document: Any) -> None:
    """One image `a.png` with a map of ids."""
    files.image("images/a.png")
    ids = np.array(ids, np.int64)
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
    (files.path / "annotations/panoptic_val").mkdir(parents=True, exist_ok=True)
    (files.path / "annotations/panoptic_val/a.png").write_bytes(imagecodecs.png_encode(rgb))
    about = {
        "images": [{"id": 5, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    files.json("annotations/panoptic_val.json", {**about, **document})


def cat_and_sky() -> Any:
    ids = np.zeros((6, 8), np.int64)
    ids[:3], ids[4:, :2], ids[4:, 4:6] = SKY, CAT, CAT
    return ids


SEGMENTS = [{"id": CAT, "category_id": 1, "iscrowd": 1}, {"id": SKY, "category_id": 40, "iscrowd": 0}]


def test_ids_are_issued_anew_and_isthing_becomes_things(look: Any, files: Any) -> None:
    write(files, cat_and_sky(), SEGMENTS)
    found = look("COCO panoptic", files.path)
    assert found.rules == []
    assert found.dataset.vocabulary == PanopticColors(
        names=("cat", "sky"), colors={"cat": (220, 20, 60), "sky": (70, 130, 180)}, things=frozenset({"cat"})
    )
    panoptic = found.annotations["a.png"]
    assert panoptic.segments == (Segment(category="cat", id=1, crowd=True), Segment(category="sky", id=2))
    assert np.array_equal(panoptic.labels, np.select([cat_and_sky() == CAT, cat_and_sky() == SKY], [1, 2]))


@pytest.mark.parametrize(
    ("segments", "rule", "value", "left"),
    [
        (SEGMENTS[:1], "undeclared_segment", "3", ["cat"]),
        ([*SEGMENTS, {"id": 9, "category_id": 1}], "missing_segment", "9", ["cat", "sky"]),
        ([*SEGMENTS, SEGMENTS[0]], "repeated_segment", "70000", ["cat", "sky"]),
        ([*SEGMENTS, {"id": 0, "category_id": 1}], "bad_segment", "0", ["cat", "sky"]),
        ([SEGMENTS[0], {"id": SKY, "category_id": 41}], "undeclared_category", "41", ["cat"]),
    ],
)
def test_ids_of_file_and_map_must_match_both_ways(
    look: Any, files: Any, segments: Any, rule: str, value: str, left: list[str]
) -> None:
    write(files, cat_and_sky(), segments)
    found = look("COCO panoptic", files.path)
    (finding,) = found.report.findings
    assert (finding.rule, finding.value, finding.place.image) == (rule, value, "a.png")
    assert finding.place.file == "annotations/panoptic_val/a.png"
    panoptic = found.annotations["a.png"]
    assert [each.category for each in panoptic.segments] == left
    assert set(np.unique(panoptic.labels)) <= set(range(len(left) + 1))


def test_a_map_that_is_all_void_says_nothing(look: Any, files: Any) -> None:
    write(files, np.zeros((6, 8)), [])
    found = look("COCO panoptic", files.path)
    assert (found.rules, found.annotations) == ([], {"a.png": None})


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"no picture", "unreadable_map"),
        (imagecodecs.png_encode(np.zeros((6, 8), np.uint8)), "unreadable_map"),
        (imagecodecs.png_encode(np.zeros((6, 8, 3), np.uint16)), "unreadable_map"),
        (imagecodecs.png_encode(np.zeros((8, 6, 3), np.uint8)), "exif_rotation"),
        (imagecodecs.png_encode(np.zeros((3, 4, 3), np.uint8)), "size_mismatch"),
        (imagecodecs.png_encode(np.zeros((6, 8, 3), np.uint8))[:-20], "truncated_map"),
    ],
)
def test_a_map_that_is_not_the_images_is_an_error(look: Any, files: Any, content: bytes, rule: str) -> None:
    write(files, cat_and_sky(), SEGMENTS)
    (files.path / "annotations/panoptic_val/a.png").write_bytes(content)
    found = look("COCO panoptic", files.path)
    assert found.errors == [rule]
    assert found.annotations == {"a.png": None}


def test_a_map_that_is_missing_or_there_twice_is_an_error(look: Any, files: Any) -> None:
    twice = [{"image_id": 5, "file_name": "a.png", "segments_info": SEGMENTS}] * 2
    write(files, cat_and_sky(), SEGMENTS, annotations=twice)
    assert look("COCO panoptic", files.path).errors == ["repeated_image"]
    write(files, cat_and_sky(), SEGMENTS)
    (files.path / "annotations/panoptic_val/a.png").unlink()
    assert look("COCO panoptic", files.path).errors == ["missing_file"]


def test_more_segments_than_a_map_can_number_are_an_error() -> None:
    report = Report(findings_max=10)
    segments = [{"id": number, "category_id": 1} for number in range(1, 65_537)]
    codec = CocoSegments(names={1: "cat"}, ids={}, limits=RasterLimits(pixels_max=10**6, pages_max=1))
    ids = np.arange(1, 65_537).reshape(256, 256)
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
    vocabulary = PanopticColors(names=("cat",), colors={"cat": (1, 2, 3)})
    for count, rules in ((65_535, ["undeclared_segment"]), (65_536, ["undeclared_segment", "too_many_segments"])):
        about = json.dumps(segments[:count]).encode()
        file = MapFile(suffix=".png", content=imagecodecs.png_encode(rgb), about=about)
        codec.read(file, ImageSize(width=256, height=256), Place(file="a.png"), vocabulary, report)
        assert [finding.rule for finding in report.findings] == rules


def test_a_map_smaller_than_its_image_is_written_at_the_images_size() -> None:
    labels = np.array([[1, 2], [0, 2]], np.uint16)
    segments = (Segment(category="cat", id=9), Segment(category="sky", id=4, ignore=True))
    vocabulary = PanopticColors(names=("cat", "sky"), colors={})
    codec = CocoSegments(names={}, ids={"cat": 1, "sky": 2}, limits=RasterLimits(pixels_max=0, pages_max=0))
    annotation = PanopticMap(labels=labels, segments=segments)
    fragment = codec.write(annotation, ImageSize(width=4, height=6), vocabulary)
    about, png = fragment.pieces
    assert [(s["area"], s["bbox"], s["iscrowd"]) for s in json.loads(about)] == [
        (6, [0, 0, 2, 3], 0), (12, [2, 0, 2, 6], 1)
    ]  # fmt: skip
    assert imagecodecs.png_decode(png)[..., 0].tolist() == [[1, 1, 2, 2]] * 3 + [[0, 0, 2, 2]] * 3
    assert fragment.lost == {"scaled": 1, "ignore": 1}


def test_pycocotools_reads_the_masks_of_the_panoptic_path(trade: Any, files: Any, tmp_path: Path) -> None:
    write(files, cat_and_sky(), SEGMENTS)

    async def test(trader: Any) -> None:
        await trader.take("COCO_PANOPTIC", files.path, tmp_path / "native")
        given = await trader.give("COCO_INSTANCES", tmp_path / "native", tmp_path / "back")
        (cat,) = given.json("annotations/instances.json")["annotations"]
        assert np.array_equal(coco_mask.decode(cat["segmentation"]), cat_and_sky() == CAT)
        assert (cat["category_id"], cat["iscrowd"], cat["area"], cat["bbox"]) == (1, 1, 8, [0, 4, 6, 2])

    trade(test)
