"""A dataset of panoptic maps on disk, through the service, to everything that it can become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

SEMANTIC = task_pb2.TASK_SEMANTIC_SEGMENTATION
INSTANCE = task_pb2.TASK_INSTANCE_SEGMENTATION
PANOPTIC = task_pb2.TASK_PANOPTIC_SEGMENTATION
DETECTION = task_pb2.TASK_OBJECT_DETECTION
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
QUADS = task_pb2.TASK_QUADRILATERAL_DETECTION
METADATA = """\
task: panoptic segmentation
categories: [cat, dog, sky]
colors: {cat: '#ff0000', dog: [0, 255, 0], sky: [0, 0, 255]}
annotations: maps/
"""
COLORS = {".": (0, 0, 0), "c": (255, 0, 0), "d": (0, 255, 0), "s": (0, 0, 255), "?": (9, 9, 9)}
# Two cats, a crowd of dogs in two parts, a dog to ignore, sky; the image is twice as large as the map.
LARGE = (["ssssss", "cc.ccd", "dc.cdd"], ["000000", "110227", "510277"])
STUFF = (["sss", "..."], ["000", "000"])
VOID = (["...", "..."], ["123", "000"])


def write_map(path: Path, drawn: tuple[list[str], list[str]]) -> None:
    """Colours, then ids."""
    colors = np.array([[COLORS[each] for each in row] for row in drawn[0]], np.uint8)
    ids = np.array([[int(each) for each in row] for row in drawn[1]], np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(colors).save(path, save_all=True, append_images=[Image.fromarray(ids)], compression="tiff_deflate")


@pytest.fixture
def scenes(dataset: Any) -> Any:
    dataset.write(METADATA + "things: [cat, dog]\n", images=())
    for name, size in (("large.png", (12, 6)), ("none.png", (3, 2)), ("stuff.png", (3, 2)), ("void.png", (3, 2))):
        dataset.image(name, size=size)
    write_map(dataset.path / "maps/large.tif", LARGE)
    write_map(dataset.path / "maps/stuff.tiff", STUFF)
    write_map(dataset.path / "maps/void.tiff", VOID)
    dataset.text("maps/large.yaml", "crowd:\n- [dog, 5]\nignore: [[dog, 7]]\n")
    return dataset


def folder_of(result: service_pb2.ConversionResult) -> Path:
    return Path(result.dataset.uri.removeprefix("file://"))


def pages(path: Path) -> list[Any]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image))
        return found


def test_a_dataset_of_maps_is_sound_and_is_counted(run: Any, scenes: Any) -> None:
    async def test(service: Any) -> None:
        findings, totals = await service.findings(scenes.source)
        assert (list(findings), totals.images) == ([], 4)
        (summary,) = (
            await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=scenes.source))
        ).annotation_sets
        assert (summary.labelled_images, summary.negative_images, summary.unlabelled_images) == (2, 0, 2)

    run(test)


def test_things_become_instances_and_an_image_of_stuff_has_none(run: Any, scenes: Any) -> None:
    async def test(service: Any) -> None:
        result = await service.convert(scenes.source, INSTANCE)
        written = service.converted(result)
        folder = folder_of(result)
        assert written["metadata"]["annotations"] == "annotations/"
        assert (written["annotations"]["none.png"], written["annotations"]["void.png"]) == (None, None)
        (black,) = pages(folder / written["annotations"]["stuff.png"]["map"])
        assert not black.any()
        large = written["annotations"]["large.png"]
        assert (large["crowd"], large["ignore"]) == ([3], [4])
        assert json.loads((folder / "annotations/large.json").read_text()) == {"crowd": [3], "ignore": [4]}
        found = pages(folder / large["map"])
        assert [page.any(axis=2).astype(int).tolist() for page in found] == [
            [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
            [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]],
            [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
            [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]],
        ]
        assert (result.annotations_in, result.annotations_out) == (6, 4)
        assert [(each.rule, each.annotations, each.images) for each in result.dropped] == [("stuff", 2, 2)]

    run(test)


def test_boxes_and_labels_come_straight_from_the_maps_and_by_way_of_written_ones_alike(run: Any, scenes: Any) -> None:
    boxes = [
        {"category": "cat", "bbox": [0, 2, 4, 6]},
        {"category": "cat", "bbox": [6, 2, 10, 6]},
        {"category": "dog", "bbox": [0, 4, 2, 6], "crowd": True},
        {"category": "dog", "bbox": [8, 2, 12, 6], "ignore": True},
    ]

    async def test(service: Any) -> None:
        expected = {"large.png": boxes, "none.png": None, "stuff.png": [], "void.png": None}
        straight = await service.convert(scenes.source, DETECTION)
        assert service.converted(straight)["annotations"] == expected
        instances = await service.convert(scenes.source, INSTANCE)
        around = await service.convert(instances.dataset, DETECTION)
        assert service.converted(around)["annotations"] == expected
        labels = service.converted(await service.convert(scenes.source, MULTILABEL))
        assert labels["annotations"] == {
            "large.png": ["cat", "dog", "sky"],
            "none.png": None,
            "stuff.png": ["sky"],
            "void.png": None,
        }
        assert labels["metadata"]["labels"] == ["cat", "dog", "sky"]
        step = service_pb2.ConversionOptions.SemanticToMultilabel(min_pixels=6)
        options = service_pb2.ConversionOptions(
            steps=[service_pb2.ConversionOptions.StepOptions(semantic_to_multilabel=step)]
        )
        large = service.converted(await service.convert(scenes.source, MULTILABEL, options=options))["annotations"]
        assert (large["large.png"], large["stuff.png"]) == (["cat", "sky"], [])
        things = service.converted(await service.convert(scenes.source, MULTILABEL, via=[DETECTION]))
        assert things["annotations"] == {
            "large.png": ["cat", "dog"],
            "none.png": None,
            "stuff.png": [],
            "void.png": None,
        }

    run(test)


def test_the_semantic_map_has_the_map_s_own_size_and_leaves_out_what_is_to_be_ignored(run: Any, scenes: Any) -> None:
    async def test(service: Any) -> None:
        result = await service.convert(scenes.source, SEMANTIC)
        written = service.converted(result)["annotations"]
        (found,) = pages(folder_of(result) / written["large.png"]["map"])
        rows = ["ssssss", "cc.cc.", "dc.c.."]
        assert np.array_equal(found, np.array([[COLORS[each] for each in row] for row in rows], np.uint8))
        assert (written["none.png"], written["void.png"]) == (None, None)

    run(test)


def test_a_dataset_of_maps_normalised_reads_as_the_same(run: Any, scenes: Any) -> None:
    async def test(service: Any) -> None:
        first = await service.convert(scenes.source, PANOPTIC)
        again = await service.convert(first.dataset, PANOPTIC)
        assert service.converted(first)["metadata"]["things"] == ["cat", "dog"]
        for path in sorted((folder_of(first) / "annotations").iterdir()):
            assert (folder_of(again) / "annotations" / path.name).read_bytes() == path.read_bytes()

    run(test)


def test_that_the_things_are_not_named_is_said_once_for_all_images(run: Any, scenes: Any) -> None:
    scenes.text("metadata.yaml", METADATA)

    async def test(service: Any) -> None:
        result = await service.convert(scenes.source, INSTANCE)
        written = service.converted(result)
        said = [each for each in written["report"]["findings"] if each["rule"] == "no_things"]
        assert [(each["severity"], each["file"]) for each in said] == [("warning", "metadata.yaml")]
        assert (result.annotations_in, result.annotations_out) == (6, 6)
        assert "stuff.png" in written["annotations"]
        assert await service.convert(scenes.source, SEMANTIC)

    run(test)


def test_what_is_wrong_with_maps_is_found_in_one_pass_and_dropped_where_asked(run: Any, scenes: Any) -> None:
    write_map(scenes.path / "maps/void.tiff", (["s", "?"], ["0", "0"]))
    write_map(scenes.path / "maps/stuff.tiff", (["s?c", "ddd"], ["000", "000"]))
    scenes.text("maps/stuff.yaml", "crowd: [[dog, 1]]")

    async def test(service: Any) -> None:
        findings, totals = await service.findings(scenes.source)
        assert [(f.file, f.line, f.image, f.rule, f.value) for f in findings] == [
            ("maps/stuff.tiff", 0, "stuff.png", "unknown_color", "#090909"),
            ("maps/stuff.yaml", 1, "stuff.png", "names_nothing", "[dog, 1]"),
            ("maps/void.tiff", 0, "void.png", "aspect_ratio", "1 x 2"),
        ]
        assert (totals.errors, totals.warnings) == (3, 0)
        result = await service.convert(scenes.source, DETECTION, lenient=True)
        annotations = service.converted(result)["annotations"]
        assert annotations["stuff.png"] == [
            {"category": "cat", "bbox": [2, 0, 3, 1]},
            {"category": "dog", "bbox": [0, 1, 3, 2]},
        ]
        assert annotations["void.png"] is None

    run(test)
