"""Which images a contact sheet shows, and what it says of each."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.conversion.convert.edge import KeypointToDetection
from services.conversion.conveyor.chunk import Recipe
from services.conversion.dataset.annotations import Annotations, read_annotation_file, read_annotation_folder
from services.conversion.dataset.metadata import AnnotationSet, read_metadata, read_vocabulary
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Colors
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.index import ImageEntry, ImageSize, Index
from services.conversion.picture.exhibit import choose_entries, exhibit_of, page_of, select, spread
from services.conversion.picture.sheet import Exhibit, layout_of
from services.conversion.task import Task

BOX = {"category": "cat", "bbox": [1, 1, 30, 20]}
PNG = io.BytesIO()
Image.new("RGB", (64, 48), (120, 130, 140)).save(PNG, "PNG")


def index(*names: str) -> Index:
    return Index(
        entries=tuple(
            ImageEntry(name=name, size_bytes=9, etag=name, width=64, height=48, format="PNG") for name in names
        )
    )


def annotations(values: Mapping[str, Any]) -> Annotations:
    return read_annotation_file(json.dumps(values).encode(), "objects.json", Report(findings_max=9))


def names(entries: tuple[ImageEntry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def declared(task: Task = Task.OBJECT_DETECTION, **keys: Any) -> AnnotationSet:
    content = {"task": task, "annotations": "objects.json", **(keys or {"categories": ["cat", "dog"]})}
    return read_metadata(json.dumps(content).encode(), "metadata.json", Report(findings_max=9)).sets[0]


def exhibit(
    value: Any, *path: Task, image: bytes | str = PNG.getvalue(), chosen: AnnotationSet | None = None
) -> Exhibit:
    chosen = chosen or declared()
    task = chosen.task
    steps = tuple((start, end, None) for start, end in zip((task, *path), path, strict=False))
    recipe = Recipe(
        reader=FORMATS[task],
        source_vocabulary=read_vocabulary(chosen, Report(findings_max=9)),
        source=task,
        target=path[-1] if path else task,
        steps=steps,
    )
    selection = select(chosen, annotations({"a.png": value}), index("a.png").images, recipe, 1)
    layout = layout_of(1, 2 if path else 1)
    found = exhibit_of(recipe, selection.records[0], image, layout)
    page_of(selection, [found], layout)
    return found


def test_images_are_spread_over_the_dataset() -> None:
    assert spread(range(100), 4) == [12, 37, 62, 87]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread([], 5) == []
    all_names = [f"{n:03}.png" for n in range(100)]
    found = choose_entries(index(*all_names), annotations({name: [BOX] for name in all_names}), 4)
    assert names(found) == ["012.png", "037.png", "062.png", "087.png"]


def test_labelled_images_come_first_then_empty_ones_then_unlabelled_ones() -> None:
    values = {"a.png": None, "b.png": [], "c.png": [BOX], "e.png": [], "f.png": [BOX]}
    known = index("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")
    chosen = [names(choose_entries(known, annotations(values), count)) for count in (1, 2, 3, 5, 9)]
    assert chosen == [
        ["f.png"],
        ["c.png", "f.png"],
        ["c.png", "e.png", "f.png"],
        ["b.png", "c.png", "d.png", "e.png", "f.png"],
        ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"],
    ]


def test_half_of_the_images_are_of_those_that_lost_something() -> None:
    all_names = [f"{n:03}.png" for n in range(100)]
    known, values = index(*all_names), annotations({name: [BOX] for name in all_names})
    lost = set(all_names[:30])
    found = names(choose_entries(known, values, 8, lost))
    assert len(found) == len(set(found)) == 8
    assert len([name for name in found if name in lost]) >= 4
    assert len([name for name in found if name not in lost]) >= 2
    assert "005.png" in names(choose_entries(known, values, 8, {"005.png"}))


def test_an_annotation_that_belongs_to_no_image_counts_as_none() -> None:
    files = {f"labels/{name}.json": b'{"bbox": []}' for name in ("a", "b")}
    by_stem = read_annotation_folder(files, (), Report(findings_max=9))
    known = index("a.jpg", "a.png", "b.png")
    assert names(choose_entries(known, by_stem, 1)) == ["b.png"]


def test_the_three_states_are_told_apart_in_words() -> None:
    labelled, negative, unlabelled = (exhibit(value).tiles[0] for value in ([BOX], [], None))
    assert (labelled.note, [entry.text for entry in labelled.legend]) == ("", ["cat: 1"])
    assert (negative.note, list(negative.legend)) == ("labelled: nothing is there", [])
    assert (unlabelled.note, list(unlabelled.legend)) == ("unlabelled: nothing is known", [])


def test_before_and_after_stand_beside_each_other() -> None:
    before, after = exhibit(
        [BOX, BOX], Task.QUADRILATERAL_DETECTION, Task.OBJECT_DETECTION, Task.MULTILABEL_CLASSIFICATION
    ).tiles
    assert [entry.text for entry in before.legend] == ["cat: 2"]
    assert [entry.text for entry in after.legend] == ["cat"]
    assert before.picture.tobytes() != after.picture.tobytes()
    (_, alone) = exhibit([BOX], Task.AUTOENCODING).tiles
    assert alone.note == "the image alone"


def test_what_was_left_out_is_said() -> None:
    wrong = [BOX, {"category": "cat", "bbox": [5, 5, 5, 5]}, {"category": "lion", "bbox": [1, 1, 9, 9]}]
    assert exhibit(wrong).remark == "left out: 1 no_area, 1 undeclared_category"
    assert not exhibit([BOX]).remark
    poses = declared(Task.KEYPOINT_DETECTION, keypoints=["nose"])
    assert exhibit([{"nose": [4, 4]}], Task.OBJECT_DETECTION, chosen=poses).remark == "left out: 1 no_area"


@pytest.mark.parametrize("image", [b"", b"no image", PNG.getvalue()[:60], "the store does not answer"])
def test_an_image_that_cannot_be_shown_is_a_tile_that_says_so(image: bytes | str) -> None:
    found = exhibit([BOX], Task.MULTILABEL_CLASSIFICATION, image=image)
    assert [tile.note.startswith("cannot be shown: ") for tile in found.tiles] == [True, True]
    assert found.name == "a.png"


def test_an_exhibit_is_the_same_every_time() -> None:
    first, second = (exhibit([BOX], Task.QUADRILATERAL_DETECTION) for _ in range(2))
    assert [tile.picture.tobytes() for tile in first.tiles] == [tile.picture.tobytes() for tile in second.tiles]


def test_steps_take_their_options() -> None:
    chosen = declared(Task.KEYPOINT_DETECTION, keypoints=["nose"])
    recipe = Recipe(
        reader=FORMATS[chosen.task],
        source_vocabulary=read_vocabulary(chosen, Report(findings_max=9)),
        source=chosen.task,
        target=Task.OBJECT_DETECTION,
        steps=((chosen.task, Task.OBJECT_DETECTION, KeypointToDetection(min_size=10, category_name="bird")),),
    )
    values = annotations({"a.png": [{"nose": [20, 20]}]})
    (record,) = select(chosen, values, index("a.png").images, recipe, 1).records
    found = exhibit_of(recipe, record, PNG.getvalue(), layout_of(1, 2))
    assert [entry.text for entry in found.tiles[1].legend] == ["bird: 1"]


def test_a_category_keeps_its_own_colour_where_the_conversion_forgets_it() -> None:
    size = ImageSize(width=64, height=48)
    vocabulary = Colors(names=("cat", "sky"), colors={"sky": (1, 2, 3), "cat": (200, 30, 40)})
    annotation = SemanticMap(classes=np.full((48, 64), 1, np.uint16), names=vocabulary.names)
    task_format = FORMATS[Task.SEMANTIC_SEGMENTATION]
    recipe = Recipe(
        reader=task_format,
        source_vocabulary=vocabulary,
        source=Task.SEMANTIC_SEGMENTATION,
        target=Task.MULTILABEL_CLASSIFICATION,
        steps=((Task.SEMANTIC_SEGMENTATION, Task.MULTILABEL_CLASSIFICATION, None),),
    )
    record = RawRecord(
        image=index("a.png").images[0],
        place=Place(file="maps/a.png"),
        annotated=True,
        value=task_format.write(annotation, size, vocabulary),
    )
    found = exhibit_of(recipe, record, PNG.getvalue(), layout_of(1, 2))
    assert [(entry.text, entry.color) for tile in found.tiles for entry in tile.legend] == [
        ("cat: 100%", (200, 30, 40)),
        ("cat", (200, 30, 40)),
    ]
