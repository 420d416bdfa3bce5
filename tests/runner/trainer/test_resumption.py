"""The same numbers to the last bit, however a job of many heads is computed and wherever it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from sihlai.conversion.v1.task_pb2 import (
    TASK_METRIC_LEARNING,
    TASK_MULTICLASS_CLASSIFICATION,
    TASK_SEMANTIC_SEGMENTATION,
)
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations
from sihlai.scheduler.v1.job_spec_pb2 import Head as HeadSpecification

from runner.report import COMMAND_STOP, CheckpointWritten, Points, Report
from runner.report import Outcome as Ending
from runner.trainer.checkpoint import read_weights
from tests.runner.trainer.conftest import Outcome, Workshop, spec_from
from tests.runner.trainer.drawn_annotations import picture_of
from tests.runner.trainer.task_rows import ROWS, Row, write_head, write_images

Tell: TypeAlias = Callable[[Report], str | None]
Job: TypeAlias = tuple[dict[str, Any], Any]
"""The dataset's part of attempt.json, and a specification."""
STEPS = 8
AUGMENTATIONS = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 20,
    "translation": 0.1,
    "zoom": 0.2,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.1,
    "gray": 0.2,
    "blur": 0.03,
    "crop": 0.3,
}


def job_of(workshop: Workshop, rows: Sequence[Row]) -> Job:
    """Eight images of which each head knows others, and a specification with heads for these rows, and dropout."""
    folder = workshop.folder / "training"
    write_images(folder / "images", rows)
    heads = []
    for index, row in enumerate(rows):
        labelled = [number for number in range(8) if (number + index) % 3]
        write_head(folder / "heads" / f"head-{index}", row, labelled)
        head = row.head_json(f"head-{index}")
        parameters = HeadSpecification.DESCRIPTOR.fields_by_name[row.name.replace(" ", "_").replace("-", "_")]
        if "dropout" in parameters.message_type.fields_by_name:
            head[parameters.name]["dropout"] = 0.2
        heads.append(head)
    training = {
        "images": str(folder / "images"),
        "heads": {head["id"]: str(folder / "heads" / head["id"]) for head in heads},
    }
    spec = spec_from(
        model={"heads": heads},
        data={"height": 32, "width": 48, "augmentations": AUGMENTATIONS, "balanced_sampling": True},
        trainer={
            "iterations_max": STEPS,
            "validations": 2,
            "batch_size": 3,
            "gradient_clip_norm": 5.0,
            "ema_decay": 0.9,
            "micro_batches": 2,
        },
    )
    return training, spec


@pytest.fixture
def job(workshop: Workshop) -> Job:
    """With every head there is."""
    return job_of(workshop, ROWS)


def stop_at(step: int) -> Tell:
    def tell(report: Report) -> str | None:
        return COMMAND_STOP if isinstance(report, Points) and report.step >= step else None

    return tell


def numbers(*outcomes: Outcome) -> dict[tuple[int, str, str], float]:
    """All that was measured, but for what goes by the clock."""
    return {
        (report.step, name, str(report.context)): value
        for outcome in outcomes
        for report in outcome.of(Points)
        for name, value in report.values.items()
        if not name.startswith("system/")
    }


class Runs:
    """Runs of one job, however it is computed."""

    def __init__(self, workshop: Workshop, job: Job) -> None:
        self._workshop = workshop
        self._training, self._spec = job

    def run(self, tell: Tell = lambda report: None, resume: str | None = None, **how: Any) -> Outcome:
        attempt = self._workshop.write_attempt(
            self._training, self._spec, validation=self._training, resume_folder=resume
        )
        outcome = self._workshop.run(attempt, tell=tell, **how)
        assert outcome.ended.outcome in (Ending.COMPLETED, Ending.STOPPED), outcome.ended.message
        return outcome

    def assert_the_same_after_an_interruption(self, whole: Outcome, step: int) -> None:
        first = self.run(stop_at(step), loader_threads=1)
        last: CheckpointWritten = first.of(CheckpointWritten)[-1]
        second = self.run(resume=last.folder, loader_threads=2)
        assert {**numbers(first), **numbers(second)} == numbers(whole)
        weights, found = (read_weights(Path(each.checkpoint_folder / str(STEPS))) for each in (whole, second))
        assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())


def test_threads_and_cache_change_nothing_and_neither_does_an_interruption(workshop: Workshop, job: Job) -> None:
    runs = Runs(workshop, job)
    assert set(AUGMENTATIONS) == {field.name for field in Augmentations.DESCRIPTOR.fields}
    whole = runs.run(loader_threads=0)
    wanted = numbers(whole)
    assert {f"head-{index}/train/loss" for index in range(len(ROWS))} <= {name for _, name, _ in wanted}
    for how in ({"loader_threads": 1}, {"loader_threads": 3, "image_cache_share": 0.0}):
        assert numbers(runs.run(**how)) == wanted, how
    for step in (2, 5):  # before the first validation, and after it
        runs.assert_the_same_after_an_interruption(whole, step)


def test_and_neither_with_the_augmentations_that_some_heads_leave_out(workshop: Workshop) -> None:
    some = (TASK_MULTICLASS_CLASSIFICATION, TASK_METRIC_LEARNING, TASK_SEMANTIC_SEGMENTATION)
    rows = [row for row in ROWS if row.task in some]
    runs = Runs(workshop, job_of(workshop, rows))
    whole = runs.run(loader_threads=0)
    assert "is left out" not in whole.lines
    assert numbers(runs.run(loader_threads=3, image_cache_share=0.0)) == numbers(whole)
    runs.assert_the_same_after_an_interruption(whole, STEPS // 2 + 1)


def test_zoom_and_crop_are_left_out_beside_a_depth_head_and_the_log_says_so(workshop: Workshop, job: Job) -> None:
    training, spec = job
    outcome = workshop.run(workshop.write_attempt(training, spec), tell=stop_at(1))
    for name in ("zoom", "crop"):
        assert f"data.augmentations.{name} is left out: " in outcome.lines


def test_another_batch_size_goes_on_in_the_order_and_the_log_says_so(workshop: Workshop, job: Job) -> None:
    training, spec = job
    first = workshop.run(workshop.write_attempt(training, spec), tell=stop_at(2))
    (last,) = first.of(CheckpointWritten)
    spec.trainer.batch_size = 2
    second = workshop.run(workshop.write_attempt(training, spec, resume_folder=last.folder))
    assert "trainer.batch_size was 3, is 2: the order of the images goes on where it was" in second.lines
    assert second.ended.iteration == STEPS


def test_a_torn_image_does_not_end_a_job_with_batches_of_one(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    (Path(training["images"]) / "007.png").write_text("torn")
    spec = spec_from(trainer={"iterations_max": 40, "batch_size": 1})
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED
    assert len(outcome.series("train/learning_rate")) == 40
    assert len(outcome.series("train/loss")) == 39


def test_a_torn_map_costs_its_head_one_image(workshop: Workshop, job: Job) -> None:
    training, spec = job
    index = next(index for index, row in enumerate(ROWS) if row.task == TASK_SEMANTIC_SEGMENTATION)
    maps = sorted((Path(training["heads"][f"head-{index}"]) / "annotations").iterdir())
    maps[0].write_bytes(maps[0].read_bytes()[:40])
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
    warned = f"training map for head head-{index} of image {maps[0].name} is left out: it cannot be decoded"
    assert outcome.lines.count(warned) == 1


def test_too_many_torn_maps_of_a_head_end_the_job_however_many_images_there_are(workshop: Workshop) -> None:
    rows = [next(row for row in ROWS if row.task == TASK_SEMANTIC_SEGMENTATION), ROWS[0]]
    training, spec = job_of(workshop, rows)
    head = Path(training["heads"]["head-0"])
    (head / "annotations.json").write_text(
        json.dumps({f"{number}.png": {"map": f"annotations/{number}.png"} for number in (1, 2)})
    )
    for number in range(8, 40):  # images that the other head alone knows: two torn maps are few of so many
        picture_of(number).save(Path(training["images"]) / f"{number}.png")
    known = json.loads((Path(training["heads"]["head-1"]) / "annotations.json").read_text())
    known |= {f"{number}.png": "left" for number in range(8, 40)}
    (Path(training["heads"]["head-1"]) / "annotations.json").write_text(json.dumps(known))
    for number in (1, 2):
        (head / "annotations" / f"{number}.png").write_bytes(b"torn")
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert (outcome.ended.outcome, outcome.ended.reason) == (Ending.FAILED, "DATASET_ERROR")
    assert (
        "2 of 2 files cannot be read, more than data.bad_data_share_max (0.1); training map for head head-0 of image "
        in outcome.ended.message
    )
