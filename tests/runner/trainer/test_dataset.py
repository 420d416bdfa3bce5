"""What is refused in a dataset, and in which words."""

import json
from pathlib import Path
from typing import Any

import pytest
from sihlai.conversion.v1.task_pb2 import TASK_MULTICLASS_CLASSIFICATION, TASK_UNSPECIFIED
from sihlai.scheduler.v1.job_spec_pb2 import Head

from runner.trainer.attempt_file import DatasetFolders
from runner.trainer.dataset import read_dataset
from runner.trainer.failure import Failure, FailureReason
from tests.runner.trainer.conftest import Workshop

HEADS = [Head(id="side", task=TASK_MULTICLASS_CLASSIFICATION)]


def folders(written: dict[str, Any]) -> DatasetFolders:
    heads = {head: Path(folder) for head, folder in written["heads"].items()}
    return DatasetFolders(images=Path(written["images"]), heads=heads)


def test_images_without_an_annotation_are_left_out(workshop: Workshop) -> None:
    found = read_dataset(
        folders(workshop.write_dataset({"side": {"b.png": "top", "a.png": "left", "c.png": None}})), HEADS
    )
    assert [(example.name, example.targets) for example in found.examples] == [("a.png", (0,)), ("b.png", (2,))]
    assert found.vocabularies == ({"categories": ["left", "right", "top", "bottom"]},)


def test_an_image_counts_for_each_head_that_knows_it(workshop: Workshop) -> None:
    written = workshop.write_dataset(
        {"side": {"a.png": "left", "b.png": None}, "more": {"a.png": None, "b.png": "top"}}
    )
    heads = [*HEADS, Head(id="more", task=TASK_MULTICLASS_CLASSIFICATION)]
    assert [each.targets for each in read_dataset(folders(written), heads).examples] == [(0, None), (None, 2)]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("annotations.json", {"a.png": "middle"}, "a.png: 'middle' is none of the 4 categories"),
        ("annotations.json", {"a.png": 3}, "a category's name was wanted, 3 was found"),
        ("annotations.json", {"a.png": []}, "a category's name was wanted"),
        ("annotations.json", {"../a.png": "left"}, "no plain file name"),
        ("annotations.json", ["a.png"], "must be a JSON mapping"),
        ("metadata.json", {"task": "object detection", "categories": ["a"]}, "annotated for 'object detection'"),
        ("metadata.json", {"task": "multiclass classification"}, "`categories` must be a list of names"),
        ("metadata.json", {"task": "multiclass classification", "categories": ["a", "a"]}, "names a category twice"),
    ],
)
def test_a_wrong_dataset_is_refused_with_what_was_found(
    workshop: Workshop, file: str, content: Any, words: str
) -> None:
    written = workshop.write_dataset({"side": {"a.png": "left"}})
    (Path(written["heads"]["side"]) / file).write_text(json.dumps(content))
    with pytest.raises(Failure) as failure:
        read_dataset(folders(written), HEADS)
    assert failure.value.reason is FailureReason.DATASET_ERROR
    assert words in failure.value.message


def test_validation_categories_are_mapped_by_name(workshop: Workshop) -> None:
    training = read_dataset(folders(workshop.write_dataset({"side": {"a.png": "left"}})), HEADS)
    turned = workshop.write_dataset({"side": {"a.png": "top"}}, "turned", categories=("top", "left"))
    found = read_dataset(folders(turned), HEADS, training.vocabularies)
    assert found.examples[0].targets == (2,)
    assert found.vocabularies == training.vocabularies


def test_a_validation_category_that_training_lacks_is_refused(workshop: Workshop) -> None:
    training = read_dataset(folders(workshop.write_dataset({"side": {"a.png": "left"}})), HEADS)
    other = workshop.write_dataset({"side": {"a.png": "top"}}, "other", categories=("top", "middle"))
    with pytest.raises(Failure, match="names middle, which the training dataset lacks"):
        read_dataset(folders(other), HEADS, training.vocabularies)


def test_a_task_that_no_head_can_learn_is_refused_by_name(workshop: Workshop) -> None:
    written = workshop.write_dataset({"side": {"a.png": "left"}})
    with pytest.raises(Failure, match="no head can learn unspecified yet: take multiclass classification"):
        read_dataset(folders(written), [Head(id="side", task=TASK_UNSPECIFIED)])
