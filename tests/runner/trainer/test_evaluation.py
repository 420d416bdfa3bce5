"""An evaluation: the model of a checkpoint, validated on what the attempt names, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.report import COMMAND_STOP, CheckpointWritten, Points, Progress, Report
from runner.report import Outcome as Ending
from runner.trainer.card import CARD_JSON, CARD_MARKDOWN
from runner.trainer.checkpoint import read_weights
from runner.trainer.samples import SAMPLES_FILE
from tests.runner.trainer.conftest import Outcome, Workshop, spec_from

NAME = "projects/halves/jobs/one/checkpoints/1-30"


def evaluate(workshop: Workshop, trained: Outcome, spec: Any, tell: Any = lambda report: None, **data: Any) -> Outcome:
    written = trained.of(CheckpointWritten)[-1]
    attempt = workshop.write_attempt(
        None,
        spec,
        resume_folder=written.folder,
        evaluates={"checkpoint": NAME, "iteration": written.iteration},
        dataset_fingerprint="of what it validates on",
        **data,
    )
    return workshop.run(attempt, tell=tell)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_evaluation_finds_what_the_last_validation_of_its_training_found(
    workshop: Workshop, halves: dict[str, str], ema_decay: float
) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 30, "validations": 1, "ema_decay": ema_decay})
    trained = workshop.run(workshop.write_attempt(training, spec))
    chosen = {each["name"] for each in json.loads(_samples(trained))["images"]}
    some = workshop.write_dataset({"side": {name: halves[name] for name in chosen}}, name="set-aside")
    for name in chosen:  # a picture of this dataset is made from its place in it
        shutil.copyfile(Path(training["images"]) / name, Path(some["images"]) / name)
    found = evaluate(workshop, trained, spec, validation=some)

    assert (found.ended.outcome, found.ended.iteration) == (Ending.COMPLETED, 30)
    for series in ("side/valid/accuracy", "side/valid/loss", "valid/loss"):
        assert found.series(series) == {30: pytest.approx(trained.series(series)[30])}
    assert not any("train" in name for report in found.of(Points) for name in report.values)
    (written,) = found.of(CheckpointWritten)
    assert (written.cause, written.iteration, written.best) == ("EVALUATION", 30, True)
    assert written.selection_value == pytest.approx(trained.series("side/valid/accuracy")[30])
    folder = Path(written.folder)
    before = read_weights(Path(trained.of(CheckpointWritten)[-1].folder))
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_weights(folder).items())
    assert not (folder / "state.pt").exists()
    assert json.loads(_samples(found)) == json.loads(_samples(trained))
    card = json.loads((folder / CARD_JSON).read_text())
    assert (card["evaluates"], card["dataset_fingerprint"]) == (NAME, "of what it validates on")
    assert card["final_metrics"]["side/valid/accuracy"] == pytest.approx(written.selection_value)
    assert f"An evaluation of {NAME}" in (folder / CARD_MARKDOWN).read_text()


def test_a_dataset_of_its_own_is_validated_on_whole_and_how_far_it_is_is_told(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 30})
    trained = workshop.run(workshop.write_attempt(training, spec))
    others = workshop.write_dataset({"side": dict.fromkeys(halves, "left")}, name="others")
    found = evaluate(workshop, trained, spec, validation=others)
    assert found.ended.message == f"evaluated {NAME} on 40 images"
    progress = [each for each in found.of(Progress) if each.total]
    assert (progress[0].done, {each.total for each in progress}) == (0, {40})


def test_a_category_that_the_model_never_learned_is_told(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 2})
    trained = workshop.run(workshop.write_attempt(training, spec))
    others = workshop.write_dataset({"side": halves}, name="others", categories=("left", "right", "top", "middle"))
    found = evaluate(workshop, trained, spec, validation=others)
    assert (found.ended.outcome, found.ended.reason) == (Ending.FAILED, "DATASET_ERROR")
    assert "middle" in found.ended.message


def test_an_evaluation_can_be_stopped_and_leaves_nothing(workshop: Workshop, halves: dict[str, str]) -> None:
    def tell(report: Report) -> str | None:
        return COMMAND_STOP if isinstance(report, Progress) and report.total else None

    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 2, "batch_size": 1})
    trained = workshop.run(workshop.write_attempt(training, spec))
    found = evaluate(workshop, trained, spec, tell, validation=training)
    assert found.ended.outcome == Ending.STOPPED
    assert not found.of(CheckpointWritten)


def _samples(outcome: Outcome) -> str:
    return (Path(outcome.of(CheckpointWritten)[-1].folder) / SAMPLES_FILE).read_text()
