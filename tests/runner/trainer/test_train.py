"""Whole trainings in this process: what is learned, reported, saved and refused."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from runner.predict import Predictor
from runner.report import (
    COMMAND_HAND_BACK,
    COMMAND_STOP,
    CheckpointStarted,
    CheckpointWritten,
    Level,
    Line,
    Points,
    Progress,
    Report,
)
from runner.report import Outcome as Ending
from runner.train import failure_of
from runner.trainer.attempt_file import read_attempt
from runner.trainer.checkpoint import read_weights
from runner.trainer.commands import Commands
from runner.trainer.failure import FailureReason
from runner.trainer.model import build_model
from runner.trainer.rehearsal import rehearse
from runner.trainer.reporter import Reporter
from tests.chaos.disk import disk, why_no_disk
from tests.runner.trainer.conftest import Outcome, Workshop, spec_from
from tests.runner.trainer.task_rows import ROWS, write_head, write_images

AUGMENTATIONS = {"horizontal_flip": 0.2, "rotation_degrees": 10, "translation": 0.1, "brightness": 0.2}


def causes(outcome: Outcome) -> list[tuple[int, str]]:
    return [(report.iteration, report.cause) for report in outcome.of(CheckpointWritten)]


def test_it_learns_eight_images_by_heart(workshop: Workshop) -> None:
    # One half of them is called what it does not look like: only learning by heart gets these right.
    names = ("left", "right", "top", "bottom")
    training = workshop.write_dataset({"side": {f"{index}.png": names[index % 4] for index in range(8)}})
    annotations = {f"{index}.png": names[(index + index // 4) % 4] for index in range(8)}
    (Path(training["heads"]["side"]) / "annotations.json").write_text(str(annotations).replace("'", '"'))
    spec = spec_from(trainer={"iterations_max": 60, "batch_size": 8})
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED
    assert outcome.series("side/valid/accuracy") == {60: 1.0}
    assert outcome.series("valid/loss")[60] < 0.05


def test_every_step_is_reported_once_and_the_last_report_is_the_end(workshop: Workshop, halves: dict[str, str]) -> None:
    spec = spec_from(trainer={"iterations_max": 12, "validations": 3})
    outcome = workshop.run(workshop.write_attempt(workshop.write_dataset({"side": halves}), spec))
    for name in ("train/loss", "side/train/loss", "train/learning_rate", "train/gradient_norm"):
        assert list(outcome.series(name)) == list(range(1, 13))
    for name in ("system/images_per_second", "system/step_seconds", "system/data_wait_seconds"):
        assert all(value >= 0 for value in outcome.series(name).values())
    for name in ("valid/loss", "side/valid/loss", "side/valid/accuracy", "side/valid/precision", "side/valid/f1"):
        assert list(outcome.series(name)) == [4, 8, 12]
    recalls = {(each.step, each.context["class"]) for each in outcome.of(Points) if each.context}
    assert recalls == {(step, name) for step in (4, 8, 12) for name in ("left", "right", "top", "bottom")}
    assert causes(outcome) == [(4, "VALIDATION"), (8, "VALIDATION"), (12, "FINAL")]
    assert outcome.of(CheckpointStarted) == [CheckpointStarted(iteration=12)]
    progress = [report.iteration for report in outcome.of(Progress)]
    assert (progress[0], progress[-1]) == (1, 12)
    assert (outcome.ended.reason, outcome.ended.iteration) == ("LIMIT_REACHED", 12)
    assert "confusion matrix" in outcome.lines
    assert sorted(path.name for path in outcome.checkpoint_folder.iterdir()) == ["12", "4", "8"]


def stop_after(step: int, command: str = COMMAND_STOP) -> Any:
    def tell(report: Report) -> str | None:
        reached = isinstance(report, Points) and "train/loss" in report.values and report.step >= step
        return command if reached else None

    return tell


@pytest.mark.parametrize("optimizer", [{"adamw": {}}, {"adamw": None, "sgd": {"nesterov": True}}])
def test_a_resumed_training_computes_the_same_to_the_last_bit(
    workshop: Workshop, halves: dict[str, str], optimizer: dict[str, Any]
) -> None:
    heads = [
        {
            "id": "side",
            "task": "TASK_MULTICLASS_CLASSIFICATION",
            "multiclass_classification": {"dropout": 0.5, "label_smoothing": 0.1},
        }
    ]
    spec = spec_from(
        model={"heads": heads},
        data={"augmentations": AUGMENTATIONS},
        trainer={"iterations_max": 80, "validations": 4, "gradient_clip_norm": 1.0, **optimizer},
    )
    training = workshop.write_dataset({"side": halves})
    whole = workshop.run(workshop.write_attempt(training, spec), loader_threads=2)
    first = workshop.run(workshop.write_attempt(training, spec), tell=stop_after(10), loader_threads=1)
    assert (first.ended.outcome, first.ended.reason) == (Ending.STOPPED, "USER_STOP")
    stopped_at = first.ended.iteration
    assert 10 <= stopped_at < 80
    last = first.of(CheckpointWritten)[-1]
    assert last.iteration == stopped_at
    second = workshop.run(
        workshop.write_attempt(training, spec, resume_folder=last.folder),
        loader_threads=0,
        image_cache_share=0.0,
    )
    assert min(second.series("train/loss")) == stopped_at + 1
    assert "not as in the checkpoint" not in second.lines
    for name in ("train/loss", "train/gradient_norm", "train/learning_rate", "valid/loss", "side/valid/accuracy"):
        assert {**first.series(name), **second.series(name)} == whole.series(name)
    wanted, found = (read_weights(outcome.checkpoint_folder / "80") for outcome in (whole, second))
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_a_resumed_training_takes_changed_hyperparameters(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    before = workshop.run(workshop.write_attempt(training, spec_from(trainer={"iterations_max": 6})))
    changed = spec_from(trainer={"iterations_max": 12, "adamw": None, "sgd": {"learning_rate": 0.5}, "batch_size": 4})
    resume_folder = str(before.checkpoint_folder / "6")
    after = workshop.run(workshop.write_attempt(training, changed, resume_folder=resume_folder))
    assert list(after.series("train/loss")) == list(range(7, 13))
    assert max(after.series("train/learning_rate").values()) > 0.1
    assert "optimizer is of another kind, so it begins anew" in after.lines


def test_a_drained_runner_hands_the_job_back_with_a_checkpoint(workshop: Workshop, halves: dict[str, str]) -> None:
    spec = spec_from(trainer={"iterations_max": 500})
    attempt = workshop.write_attempt(workshop.write_dataset({"side": halves}), spec)
    outcome = workshop.run(attempt, tell=stop_after(3, COMMAND_HAND_BACK))
    assert outcome.ended.outcome is Ending.HANDED_BACK
    assert causes(outcome) == [(outcome.ended.iteration, "HAND_BACK")]
    assert outcome.of(Progress)[-1].iteration == outcome.ended.iteration


def test_a_stop_before_the_first_step_leaves_no_checkpoint(workshop: Workshop, halves: dict[str, str]) -> None:
    commands = Commands()
    commands.wish = COMMAND_STOP
    training = workshop.write_dataset({"side": halves})
    outcome = workshop.run(workshop.write_attempt(training, spec_from()), commands=commands)
    assert (outcome.ended.outcome, outcome.ended.iteration) == (Ending.STOPPED, 0)
    assert not outcome.of(CheckpointStarted)
    assert not outcome.checkpoint_folder.exists()


def test_a_stop_right_after_a_validation_needs_no_second_checkpoint(workshop: Workshop, halves: dict[str, str]) -> None:
    class StopsOnceSaved(Reporter):
        """The stop arrives while the checkpoint is being reported: the worst moment."""

        def checkpoint_written(self, *arguments: Any, **named: Any) -> None:
            super().checkpoint_written(*arguments, **named)
            commands.wish = COMMAND_STOP

    commands = Commands()
    spec = spec_from(trainer={"iterations_max": 20, "validations": 4})
    attempt = workshop.write_attempt(workshop.write_dataset({"side": halves}), spec)
    outcome = workshop.run(attempt, commands=commands, reporter_type=StopsOnceSaved)
    assert causes(outcome) == [(5, "VALIDATION")]
    assert (outcome.ended.outcome, outcome.ended.iteration) == (Ending.STOPPED, 5)


def test_a_validation_that_a_stop_cut_short_is_made_up_for(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 8, "validations": 2, "batch_size": 1})

    class StopsInValidation(Commands):
        """The wish is there from the first batch of the first validation on."""

        asked = 0

        @property
        def wish(self) -> str | None:
            self.asked += 1
            return COMMAND_STOP if self.asked > 4 else None  # four steps asked before

        @wish.setter
        def wish(self, value: str | None) -> None:
            pass

    attempt = workshop.write_attempt(training, spec)
    first = workshop.run(attempt, commands=StopsInValidation())
    assert causes(first) == [(4, "STOP")]
    assert not first.series("valid/loss")
    resume_folder = str(first.checkpoint_folder / "4")
    second = workshop.run(workshop.write_attempt(training, spec, resume_folder=resume_folder))
    assert list(second.series("valid/loss")) == [4, 8]
    assert causes(second) == [(8, "FINAL")]


def test_hours_end_the_job_as_completed_and_count_over_attempts(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 100_000, "hours_max": 0.3 / 3600, "validations": 1})
    outcome = workshop.run(workshop.write_attempt(training, spec))
    done = outcome.ended.iteration
    assert outcome.ended.outcome is Ending.COMPLETED
    assert f"reached hours_max after step {done}" in outcome.ended.message
    assert 0 < done < 100_000
    assert list(outcome.series("valid/loss")) == [done]
    assert causes(outcome) == [(done, "FINAL")]
    again = workshop.run(
        workshop.write_attempt(training, spec, resume_folder=str(outcome.checkpoint_folder / str(done)))
    )
    assert (again.ended.outcome, again.ended.iteration) == (Ending.COMPLETED, done)
    assert not again.of(Points)
    assert causes(again) == [(done, "FINAL")]


def test_a_job_that_its_hours_end_has_its_whole_schedule_and_checkpoints_on_the_way(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    trainer = {"iterations_max": 1_000_000, "hours_max": 2 / 3600, "validations": 5, "adamw": {"learning_rate": 0.004}}
    attempt = workshop.write_attempt(workshop.write_dataset({"side": halves}), spec_from(trainer=trainer))
    outcome = workshop.run(attempt)
    rates = outcome.series("train/learning_rate")
    assert min(rates) == 1
    assert max(rates.values()) > 0.002  # by its steps alone it would be at 0.00016 to the end
    assert outcome.ended.outcome is Ending.COMPLETED
    saved = causes(outcome)
    assert list(outcome.series("valid/loss")) == [step for step, _ in saved]
    assert [cause for _, cause in saved[:-1]] == ["VALIDATION"] * (len(saved) - 1)
    assert 3 <= len(saved) <= 5


def test_two_heads_of_one_task_learn_together_from_what_each_is_given(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    rows = {name: category if category in {"top", "bottom"} else None for name, category in halves.items()}
    columns = {name: category if category in {"left", "right"} else None for name, category in halves.items()}
    training = workshop.write_dataset({"rows": rows, "columns": columns})
    task = "TASK_MULTICLASS_CLASSIFICATION"
    heads = [{"id": "rows", "task": task}, {"id": "columns", "task": task, "loss_weight": 0.5}]
    spec = spec_from(model={"heads": heads}, trainer={"iterations_max": 60, "batch_size": 8})
    outcome = workshop.run(workshop.write_attempt(training, spec))
    last = {name: outcome.series(name)[60] for name in ("train/loss", "rows/train/loss", "columns/train/loss")}
    assert last["train/loss"] == pytest.approx(last["rows/train/loss"] + 0.5 * last["columns/train/loss"], rel=1e-5)
    for head in ("rows", "columns"):
        assert list(outcome.series(f"{head}/train/loss")) == list(range(1, 61))  # in every batch, though half is null
        assert outcome.series(f"{head}/valid/accuracy") == {60: 1.0}


def test_the_best_checkpoint_is_by_the_selection_metric(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 20, "validations": 5, "selection_metric": "loss"})
    outcome = workshop.run(workshop.write_attempt(training, spec))
    losses = outcome.series("valid/loss")
    written = outcome.of(CheckpointWritten)
    assert [each.selection_value for each in written] == list(losses.values())
    best_so_far = math.inf
    for each in written:
        assert each.best == (each.selection_value < best_so_far)
        best_so_far = min(best_so_far, each.selection_value)


def test_a_diverging_loss_ends_the_job_with_its_step(workshop: Workshop, halves: dict[str, str]) -> None:
    heads = [{"id": "side", "task": "TASK_MULTICLASS_CLASSIFICATION", "loss_weight": 1e6}]
    trainer = {"iterations_max": 500, "adamw": None, "sgd": {"learning_rate": 1e3}}
    spec = spec_from(model={"heads": heads}, trainer=trainer)
    outcome = workshop.run(workshop.write_attempt(workshop.write_dataset({"side": halves}), spec))
    ended = outcome.ended
    assert (ended.outcome, ended.reason, ended.unforeseen) == (Ending.FAILED, "TRAINER_ERROR", False)
    assert f"in step {ended.iteration + 1}: lower the learning rate" in ended.message
    assert not outcome.of(CheckpointWritten)
    assert "Traceback" not in outcome.lines


@pytest.mark.parametrize("name", ["missing.png", "torn.png"])
def test_an_unreadable_image_is_named_and_left_out(workshop: Workshop, halves: dict[str, str], name: str) -> None:
    training = workshop.write_dataset({"side": halves})
    path = Path(training["images"]) / "007.png"
    path.unlink() if name == "missing.png" else path.write_bytes(path.read_bytes()[:60])
    outcome = workshop.run(workshop.write_attempt(training, spec_from(trainer={"iterations_max": 20})))
    assert outcome.ended.outcome is Ending.COMPLETED
    warnings = [line.text for line in outcome.of(Line) if line.level is Level.WARNING]
    assert len(warnings) == 1
    assert "image 007.png is left out: it " in warnings[0]
    card = json.loads((outcome.checkpoint_folder / "20" / "card.json").read_text())
    assert [each.split(": it ")[0].split(" ", 1)[1] for each in card["left_out"]] == ["image 007.png"]
    assert f"- {card['left_out'][0]}" in (outcome.checkpoint_folder / "20" / "card.md").read_text()


def test_as_many_unreadable_images_are_left_out_as_the_job_allows(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    for path in sorted(Path(training["images"]).iterdir())[:20]:
        path.write_text("torn")
    outcome = workshop.run(workshop.write_attempt(training, spec_from(trainer={"iterations_max": 20})))
    assert (outcome.ended.outcome, outcome.ended.reason) == (Ending.FAILED, "DATASET_ERROR")
    assert "files cannot be read, more than data.bad_data_share_max (0.1); training image " in outcome.ended.message
    spec = spec_from(trainer={"iterations_max": 20}, data={"bad_data_share_max": 0.9, "bad_data": "BAD_DATA_SKIP"})
    outcome = workshop.run(workshop.write_attempt(training, spec))
    assert outcome.ended.outcome is Ending.COMPLETED


def refused(workshop: Workshop, spec: Any, training: Any = None, **changes: Any) -> Outcome:
    training = training or workshop.write_dataset({"side": {"a.png": "left", "b.png": "top", "c.png": "top"}})
    outcome = workshop.run(workshop.write_attempt(training, spec, **changes))
    assert outcome.ended.outcome is Ending.FAILED
    assert "\n" not in outcome.ended.message
    return outcome


def test_a_dataset_without_annotations_is_refused(workshop: Workshop) -> None:
    ended = refused(workshop, spec_from(), workshop.write_dataset({"side": {"a.png": None}})).ended
    assert (ended.reason, "nothing to learn from" in ended.message) == ("DATASET_ERROR", True)


def test_a_batch_that_the_model_cannot_take_is_refused_before_the_first_step(workshop: Workshop) -> None:
    one_pixel = spec_from(
        model={"backbone": {"name": "resnet18"}}, data={"height": 32, "width": 32}, trainer={"batch_size": 1}
    )
    ended = refused(workshop, one_pixel).ended
    assert (ended.reason, ended.iteration) == ("TRAINER_ERROR", 0)
    wanted = "cannot take batches of 1 images of 32 x 32, raise data.height and data.width, or trainer.batch_size"
    assert wanted in ended.message


def test_a_part_of_a_batch_that_the_model_cannot_take_is_refused_before_the_first_step(workshop: Workshop) -> None:
    parts = spec_from(
        model={"backbone": {"name": "resnet18"}},
        data={"height": 32, "width": 32},
        trainer={"batch_size": 3, "micro_batches": 2},
    )
    ended = refused(workshop, parts).ended
    assert (ended.reason, ended.iteration) == ("TRAINER_ERROR", 0)
    assert "cannot take batches of 1 images of 32 x 32" in ended.message


def test_the_rehearsal_leaves_no_trace(workshop: Workshop) -> None:
    spec = spec_from()
    vocabulary = {"categories": ["a", "b"]}
    torch.manual_seed(0)
    model = build_model(spec.model, [vocabulary])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    rehearse(model, spec, [vocabulary], torch.autocast("cpu", enabled=False))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_unknown_selection_metric_names_those_that_exist(workshop: Workshop) -> None:
    ended = refused(workshop, spec_from(trainer={"selection_metric": "side/map"})).ended
    assert "loss or one of side/accuracy, side/precision, side/recall, side/f1" in ended.message


def test_a_damaged_checkpoint_is_a_checkpoint_error(workshop: Workshop) -> None:
    assert refused(workshop, spec_from(), resume_folder=str(workshop.folder)).ended.reason == "CHECKPOINT_ERROR"


def test_a_checkpoint_folder_that_cannot_be_written_is_the_runners_fault(workshop: Workshop) -> None:
    (workshop.folder / "file").write_text("in the way")
    ended = refused(workshop, spec_from(), checkpoint_folder=str(workshop.folder / "file")).ended
    assert ended.reason == "RUNNER_FAULT"


def test_a_disk_without_room_for_two_checkpoints_is_refused_before_the_first_step(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    if why := why_no_disk():
        pytest.skip(why)
    training = workshop.write_dataset({"side": halves})
    sizes: dict[float, int] = {}
    for decay in (0.0, 0.5):
        spec = spec_from(trainer={"ema_decay": decay})
        done = workshop.run(workshop.write_attempt(training, spec))
        (last,) = (each for each in done.of(CheckpointWritten) if each.cause == "FINAL")
        tensors = [Path(last.folder) / name for name in ("model.safetensors", "state.pt")]
        sizes[decay] = sum(path.stat().st_size for path in tensors)
        with disk(workshop.folder / f"disk-{decay}", round(1.9 * sizes[decay])) as small:
            outcome = refused(workshop, spec, training, checkpoint_folder=str(small.folder / "checkpoints"))
        assert outcome.ended.reason == "RUNNER_FAULT"
        assert "2 checkpoints of this model may take" in outcome.ended.message
        assert not outcome.of(Points)
    assert sizes[0.5] > 1.2 * sizes[0.0]


def test_a_disk_that_is_full_when_a_checkpoint_is_written_is_the_runners_fault(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    if why := why_no_disk():
        pytest.skip(why)
    training = workshop.write_dataset({"side": halves})
    with disk(workshop.folder / "disk", 2**23) as small:
        attempt = workshop.write_attempt(training, spec_from(), checkpoint_folder=str(small.folder / "checkpoints"))
        filled: list[Report] = []

        def fill(report: Report) -> None:
            if isinstance(report, Points) and not filled:
                filled.append(report)
                small.fill()

        ended = workshop.run(attempt, tell=fill).ended
        assert (ended.outcome, ended.reason) == (Ending.FAILED, "RUNNER_FAULT")
        assert "cannot be written to the runner's disk" in ended.message
        assert not [path for path in small.folder.rglob("*") if path.is_file() and path.name != "filler"]


def test_memory_that_is_not_enough_says_what_to_lower(workshop: Workshop) -> None:
    training = workshop.write_dataset({"side": {"a.png": "left"}})
    attempt = read_attempt(workshop.write_attempt(training, spec_from()))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    failure = failure_of(raised.value, None, attempt)
    assert failure.reason is FailureReason.OUT_OF_MEMORY
    assert "lower trainer.batch_size (8), raise trainer.micro_batches (1)" in failure.message
    assert "lower data.height and data.width (16 x 16)" in failure.message


CUDA_ADVICE = "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"CUDA error: uncorrectable ECC error encountered\n{CUDA_ADVICE}"),
        RuntimeError(f"CUDA error: CUDA-capable device(s) is/are busy or unavailable\n{CUDA_ADVICE}"),
        RuntimeError(f"CUDA error: no kernel image is available for execution on the device\n{CUDA_ADVICE}"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("CUDA driver error: unknown error"),
        RuntimeError("CUDA driver version is insufficient for CUDA runtime version"),
        RuntimeError("unable to write to file </torch_5_0>: No space left on device (28)"),
        RuntimeError("can't start new thread"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS)),
    ],
)
def test_what_the_machine_does_wrong_is_the_runners_fault(workshop: Workshop, error: Exception) -> None:
    attempt = read_attempt(workshop.write_attempt({"images": "i", "heads": {}}, spec_from()))
    failure = failure_of(error, None, attempt)
    assert failure.reason is FailureReason.RUNNER_FAULT
    assert "the runner's disk, driver or GPU does not work" in failure.message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"CUDA error: device-side assert triggered\n{CUDA_ADVICE}"),
        RuntimeError(f"CUDA error: an illegal memory access was encountered\n{CUDA_ADVICE}"),
        RuntimeError("CUDA driver error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x5)"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "dataset/images/000.png"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "dataset/images/000.png"),
    ],
)
def test_what_a_specification_or_a_mistake_brings_about_stays_the_trainers(
    workshop: Workshop, error: Exception
) -> None:
    attempt = read_attempt(workshop.write_attempt({"images": "i", "heads": {}}, spec_from()))
    assert failure_of(error, None, attempt).reason is FailureReason.TRAINER_ERROR


@pytest.mark.parametrize("bad_data", ["BAD_DATA_SKIP", "BAD_DATA_FAIL"])
def test_a_disk_that_does_not_give_an_image_is_the_runners_fault(
    workshop: Workshop, halves: dict[str, str], bad_data: str
) -> None:
    training = workshop.write_dataset({"side": halves})
    image = Path(training["images"]) / "007.png"
    image.unlink()
    image.symlink_to("/proc/self/mem")  # whose first page nobody can read: EIO
    ended = workshop.run(workshop.write_attempt(training, spec_from(data={"bad_data": bad_data}))).ended
    assert (ended.reason, ended.unforeseen) == ("RUNNER_FAULT", True)
    assert "Input/output error" in ended.message


def test_a_disk_that_does_not_give_the_annotations_is_the_runners_fault(workshop: Workshop) -> None:
    training = workshop.write_dataset({"side": {"a.png": "left"}})
    annotations = Path(training["heads"]["side"]) / "annotations.json"
    annotations.unlink()
    annotations.symlink_to("/proc/self/mem")
    assert refused(workshop, spec_from(), training).ended.reason == "RUNNER_FAULT"


def test_a_mistake_of_ours_is_told_in_a_sentence_and_traced_in_the_log(workshop: Workshop) -> None:
    training = workshop.write_dataset({"side": {"a.png": "left", "b.png": "top", "c.png": "top"}})
    spec = spec_from()
    spec.trainer.ClearField("batch_size")  # the scheduler would have filled it in
    outcome = refused(workshop, spec, training)
    assert (outcome.ended.reason, outcome.ended.unforeseen) == ("TRAINER_ERROR", True)
    assert "Traceback" in outcome.lines


def test_bfloat16_learns_too(workshop: Workshop, halves: dict[str, str]) -> None:
    spec = spec_from(trainer={"iterations_max": 60, "precision": "PRECISION_BFLOAT16_MIXED"})
    outcome = workshop.run(workshop.write_attempt(workshop.write_dataset({"side": halves}), spec))
    assert outcome.series("side/valid/accuracy") == {60: 1.0}


def test_a_validation_computes_what_a_prediction_does_also_beside_half_precision(workshop: Workshop) -> None:
    row = next(row for row in ROWS if row.name == "regression")
    folder = workshop.folder / "training"
    write_images(folder / "images", [row])
    write_head(folder / "head", row)
    training = {"images": str(folder / "images"), "heads": {"number": str(folder / "head")}}
    spec = spec_from(
        model={"heads": [row.head_json("number")]},
        trainer={"iterations_max": 5, "precision": "PRECISION_BFLOAT16_MIXED"},
    )
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    paths = [folder / "images" / f"{number}.png" for number in range(8)]
    found = Predictor(outcome.checkpoint_folder / "5", "cpu").predict(paths)
    values = [each.heads["number"].to_json()["value"] for each in found]
    errors = [abs(value - wanted) for value, wanted in zip(values, row.annotations, strict=True)]
    assert outcome.series("number/valid/mae")[5] == pytest.approx(sum(errors) / 8, rel=1e-5)


def test_a_fresh_start_may_begin_with_the_weights_of_a_checkpoint(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    before = workshop.run(workshop.write_attempt(training, spec_from(trainer={"iterations_max": 60})))
    source = {"checkpoint": {"checkpoint": "projects/halves/jobs/one/checkpoints/1-60"}}
    spec = spec_from(model={"initialization": source}, trainer={"iterations_max": 1, "adamw": {"learning_rate": 1e-6}})
    folder = str(before.checkpoint_folder / "60")
    after = workshop.run(workshop.write_attempt(training, spec, initialization_folder=folder))
    assert after.series("side/valid/accuracy") == {1: 1.0}
    assert "tensors were taken from the checkpoint" in after.lines
    assert "which the runner did not bring along" in refused(workshop, spec, training).ended.message


def test_a_checkpoint_predicts_what_the_validation_saw(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    outcome = workshop.run(workshop.write_attempt(training, spec_from(trainer={"iterations_max": 60})))
    paths = [Path(training["images"]) / name for name in halves]
    torn = workshop.folder / "torn.png"
    torn.write_text("torn")
    found = list(Predictor(outcome.checkpoint_folder / "60", "cpu").predict([*paths[:5], torn, *paths[5:]]))
    assert found[5].error is not None
    del found[5]
    assert [each.heads["side"].category for each in found] == list(halves.values())
    assert [each.image for each in found] == paths
