"""Two real panoptic maps become the instances that COCO's own tool makes of them, where shared/data is at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.conversion.convert.maps import instance_to_detection, panoptic_to_instance, panoptic_to_semantic
from services.conversion.file.document import read_document
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.format import MapFile
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterLimits
from services.conversion.raster.palette import KeyTable, keys_of_pixels
from services.conversion.raster.png import decode_png
from services.conversion.raster.rle import encode_rle
from services.conversion.task import Task

ROOT = Path(__file__).parents[4] / "shared/data/coco_panoptic_sample"
PANOPTIC = FORMATS[Task.PANOPTIC_SEGMENTATION]
LIMITS = RasterLimits(pixels_max=2**20, pages_max=1)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image's map with its COCO image and the category ids by name."""

    image: Mapping[str, Any]
    panoptic: PanopticMap
    vocabulary: PanopticColors
    category_ids: Mapping[str, int]

    @property
    def size(self) -> ImageSize:
        return ImageSize(width=self.image["width"], height=self.image["height"])

    @property
    def place(self) -> Place:
        return Place(file=self.image["file_name"], image=self.image["file_name"])


def samples(*, things: bool) -> Iterator[Sample]:
    if not ROOT.is_dir():
        pytest.skip("the real data of coco_panoptic_sample are not beside the repository")
    categories = json.loads((ROOT / "panoptic_coco_categories.json").read_text())
    vocabulary = PanopticColors(
        names=tuple(each["name"] for each in categories),
        colors={each["name"]: (number, 255, 255 - number) for number, each in enumerate(categories)},
        things=frozenset(each["name"] for each in categories if each["isthing"]) if things else None,
    )
    names = {each["id"]: each["name"] for each in categories}
    found = json.loads((ROOT / "panoptic_examples.json").read_text())
    annotations = {each["image_id"]: each for each in found["annotations"]}
    for image in found["images"]:
        annotation = annotations[image["id"]]
        infos = annotation["segments_info"]
        pixels = decode_png((ROOT / "panoptic_examples" / annotation["file_name"]).read_bytes(), LIMITS)
        labels, unknown = KeyTable([each["id"] for each in infos]).indices(keys_of_pixels(pixels))
        assert not unknown
        segments = tuple(
            Segment(category=names[each["category_id"]], id=number, crowd=bool(each["iscrowd"]))
            for number, each in enumerate(infos, start=1)
        )
        yield Sample(
            image=image,
            panoptic=PanopticMap(labels=labels, segments=segments),
            vocabulary=vocabulary,
            category_ids={each["name"]: each["id"] for each in categories},
        )


def through_its_file(sample: Sample, report: Report) -> PanopticMap:
    """The map as the native format keeps it."""
    written: Any = PANOPTIC.write(sample.panoptic, sample.size, sample.vocabulary)
    about = None if written.about is None else read_document(json.dumps(written.about).encode(), "a.json").value
    file = MapFile(suffix=written.suffix, content=written.content, about=about)
    found: PanopticMap = PANOPTIC.read(file, sample.size, sample.place, sample.vocabulary, report)
    return found


def objects(sample: Sample, panoptic: PanopticMap, report: Report) -> Iterator[dict[str, Any]]:
    """The instances and their boxes as COCO writes them, but for the ids."""
    masks = panoptic_to_instance(sample.vocabulary, None)
    instances = masks.convert(panoptic, sample.size, sample.place, report)
    boxes = instance_to_detection(masks.vocabulary, None).convert(instances, sample.size, sample.place, report)
    height, width = sample.image["height"], sample.image["width"]
    for instance, box in zip(instances.instances, boxes, strict=True):
        assert (instance.category, instance.crowd) == (box.category, box.crowd)
        xmin, ymin, xmax, ymax = box.bbox
        counts = encode_rle(instance.mask, height=height, width=width).decode()
        yield {
            "segmentation": {"counts": counts, "size": [height, width]},
            "area": instance.mask.area,
            "iscrowd": int(instance.crowd),
            "image_id": sample.image["id"],
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "category_id": sample.category_ids[instance.category],
        }


def golden() -> list[dict[str, Any]]:
    found = json.loads((ROOT / "panoptic_coco_detection_format.json").read_text())["annotations"]
    return [{key: value for key, value in each.items() if key != "id"} for each in found]


def in_order(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda each: (each["image_id"], each["segmentation"]["counts"]))


@pytest.mark.parametrize("native", [False, True], ids=["in memory", "through the native file"])
def test_without_things_every_segment_is_the_instance_that_coco_s_own_tool_makes(native: bool) -> None:
    report = Report(findings_max=100)
    found = [
        each
        for sample in samples(things=False)
        for each in objects(sample, through_its_file(sample, report) if native else sample.panoptic, report)
    ]
    assert in_order(found) == in_order(golden())
    assert (len(found), sum(each["iscrowd"] for each in found)) == (50, 3)
    assert report.findings == []


@pytest.mark.parametrize("native", [False, True], ids=["in memory", "through the native file"])
def test_with_coco_s_things_the_stuff_is_gone(native: bool) -> None:
    report = Report(findings_max=100)
    found = [
        each
        for sample in samples(things=True)
        for each in objects(sample, through_its_file(sample, report) if native else sample.panoptic, report)
    ]
    categories = json.loads((ROOT / "panoptic_coco_categories.json").read_text())
    stuff = {each["id"] for each in categories if not each["isthing"]}
    assert len(found) == 43
    assert in_order(found) == in_order([each for each in golden() if each["category_id"] not in stuff])
    assert report.findings == []


def test_the_classes_of_the_semantic_maps_have_the_areas_of_the_segments_and_the_rest_is_void() -> None:
    report = Report(findings_max=100)
    void = []
    for sample in samples(things=True):
        semantic = panoptic_to_semantic(sample.vocabulary, None).convert(
            sample.panoptic, sample.size, sample.place, report
        )
        areas = dict.fromkeys(sample.vocabulary.names, 0)
        for each in objects(sample, sample.panoptic, report):
            assert each["area"] > 0
        for each in golden():
            if each["image_id"] == sample.image["id"]:
                (name,) = (name for name, number in sample.category_ids.items() if number == each["category_id"])
                areas[name] += each["area"]
        assert semantic.areas[1:].tolist() == list(areas.values())
        assert semantic.areas.sum() == sample.size.width * sample.size.height
        void.append(int(semantic.areas[0]))
    assert void == [2712, 7189]
