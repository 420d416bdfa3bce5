"""What a GPU changes in a training. Skipped where there is none; `python -m pytest tests/gpu` is all that one needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sihlai.conversion.v1.task_pb2 import TASK_SEMANTIC_SEGMENTATION

from runner.predict import Predictor
from runner.report import COMMAND_STOP, CheckpointWritten, Points, Report, ReportWriter
from runner.report import Outcome as Ending
from runner.train import failure_of
from runner.trainer.attempt_file import read_attempt
from runner.trainer.augmentation import Changes, augment, change_of
from runner.trainer.config import TrainerConfig
from runner.trainer.failure import FailureReason
from runner.trainer.image import canvas_from_data
from runner.trainer.machine import loader_threads
from runner.trainer.preparation import prepare
from runner.trainer.reporter import Reporter
from runner.trainer.session import fetched
from services.chassis.machine import cores
from tests.runner.trainer.conftest import Outcome, Workshop, spec_from
from tests.runner.trainer.task_rows import ROWS, write_head, write_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
STEPS = 40
RATE = {"learning_rate": 0.01}
AUGMENTATIONS = {"horizontal_flip": 0.5, "rotation_degrees": 15, "brightness": 0.2, "hue": 0.1, "blur": 0.02}


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(folder=tmp_path)


@pytest.fixture
def training(workshop: Workshop) -> dict[str, Any]:
    """Eight images of which each head knows others."""
    folder = workshop.folder / "training"
    write_images(folder / "images", ROWS)
    for index, row in enumerate(ROWS):
        write_head(folder / "heads" / f"head-{index}", row, [number for number in range(8) if (number + index) % 3])
    heads = {f"head-{index}": str(folder / "heads" / f"head-{index}") for index in range(len(ROWS))}
    return {"images": str(folder / "images"), "heads": heads}


def spec(**trainer: Any) -> Any:
    return spec_from(
        model={"heads": [row.head_json(f"head-{index}") for index, row in enumerate(ROWS)]},
        data={"height": 32, "width": 48, "augmentations": AUGMENTATIONS},
        trainer={"iterations_max": STEPS, "validations": 2, "batch_size": 4, "adamw": RATE, **trainer},
    )


def train(workshop: Workshop, training: dict[str, Any], wanted: Any, **changes: Any) -> Outcome:
    tell: Callable[[Report], str | None] = changes.pop("tell", lambda report: None)
    attempt = workshop.write_attempt(training, wanted, validation=training, device="cuda", **changes)
    return workshop.run(attempt, tell=tell)


@pytest.mark.parametrize("precision", ["PRECISION_FLOAT32", "PRECISION_BFLOAT16_MIXED"])
def test_every_head_learns_on_a_gpu(workshop: Workshop, training: dict[str, Any], precision: str) -> None:
    outcome = train(workshop, training, spec(precision=precision))
    assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
    for index in range(len(ROWS)):
        losses = outcome.series(f"head-{index}/train/loss")
        assert losses[max(losses)] < losses[min(losses)]
    assert list(outcome.series("train/loss")) == list(range(1, STEPS + 1))
    folder = outcome.checkpoint_folder / str(STEPS)
    images = sorted(Path(training["images"]).iterdir())
    on_gpu, on_cpu = (list(Predictor(folder, device).predict(images)) for device in ("cuda", "cpu"))
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.heads["head-3"].to_json()["value"] == pytest.approx(  # the regression's
            other.heads["head-3"].to_json()["value"], abs=0.05
        )


def test_numbers_that_are_fetched_late_are_reported_before_a_stop(workshop: Workshop, training: dict[str, Any]) -> None:
    def tell(report: Report) -> str | None:
        return COMMAND_STOP if isinstance(report, Points) and report.step >= 5 else None

    outcome = train(workshop, training, spec(), tell=tell)
    assert outcome.ended.outcome is Ending.STOPPED
    (written,) = outcome.of(CheckpointWritten)
    assert list(outcome.series("train/loss")) == list(range(1, written.iteration + 1))
    resumed = train(workshop, training, spec(), resume_folder=written.folder)
    assert resumed.ended.outcome is Ending.COMPLETED
    assert min(resumed.series("train/loss")) == written.iteration + 1


def test_a_loss_that_is_no_number_ends_the_job_without_a_checkpoint(
    workshop: Workshop, training: dict[str, Any]
) -> None:
    outcome = train(workshop, training, spec(adamw=None, sgd={"learning_rate": 1e3}, iterations_max=500))
    assert (outcome.ended.outcome, outcome.ended.reason) == (Ending.FAILED, "TRAINER_ERROR")
    assert "lower the learning rate" in outcome.ended.message
    measured = outcome.series("train/loss")
    assert all(step in measured for step in range(1, outcome.ended.iteration + 1))


def test_a_step_waits_for_nothing_on_the_gpu(workshop: Workshop, training: dict[str, Any]) -> None:
    """As tests/runner/trainer/test_waiting.py says of operations, here said by CUDA itself."""
    attempt = read_attempt(workshop.write_attempt(training, spec(gradient_clip_norm=1.0), device="cuda"))
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb"):
        prepared = prepare(
            attempt, TrainerConfig(attempt_file=Path(), report_fd=writing), Reporter(ReportWriter(writing))
        )
        model, optimizer, device = prepared.model, prepared.optimizer, prepared.device
        with prepared.data.training_batches(range(6)) as batches:
            for number, batch in enumerate(batches):
                torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")  # kernels are measured first
                try:
                    optimizer.zero_grad()
                    losses = model.losses(model(batch.on_device(device), batch.images), batch.targets_on(device))
                    losses.total.backward()
                    gradients = [each.grad for each in model.parameters() if each.grad is not None]
                    norm = torch.nn.utils.get_total_norm(gradients)
                    torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
                    optimizer.step()
                    fetched(torch.stack([losses.total.detach(), norm]))
                finally:
                    torch.cuda.set_sync_debug_mode("default")


def test_pictures_are_changed_alike_on_both_devices() -> None:
    canvas = canvas_from_data(spec().data)
    pictures = torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    changes = Changes.of([change_of(spec().data.augmentations, canvas, seed) for seed in range(6)])
    assert changes is not None
    device = torch.device("cuda")
    found = augment(pictures.to(device), changes.pinned().to(device), 0.3).cpu()
    torch.testing.assert_close(found, augment(pictures, changes, 0.3), atol=1e-3, rtol=0)


def test_memory_that_is_not_enough_is_said_before_the_first_step(workshop: Workshop) -> None:
    row = next(row for row in ROWS if row.task == TASK_SEMANTIC_SEGMENTATION)
    images, head = workshop.folder / "large" / "images", workshop.folder / "large" / "head"
    write_images(images, [row])
    write_head(head, row)
    large = {"images": str(images), "heads": {"areas": str(head)}}
    wanted = spec_from(
        model={"backbone": {"name": "resnet18"}, "heads": [row.head_json("areas")]},
        data={"height": 512, "width": 512},
        trainer={"batch_size": 4096},
    )
    outcome = train(workshop, large, wanted)
    assert (outcome.ended.reason, outcome.ended.iteration) == ("OUT_OF_MEMORY", 0)
    assert "before the first step: lower trainer.batch_size (4096)" in outcome.ended.message


def test_a_gpus_error_is_told_as_what_it_is(workshop: Workshop, training: dict[str, Any]) -> None:
    attempt = read_attempt(workshop.write_attempt(training, spec()))
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")
    assert failure_of(raised.value, None, attempt).reason is FailureReason.OUT_OF_MEMORY


def test_beside_a_gpu_all_cores_but_one_prepare_batches() -> None:
    assert loader_threads(None, torch.device("cuda")) == max(1, cores() - 1)
