"""What the training loop calls between its steps: to validate, to save, to say how far it is, and to end.

One Session serves one attempt in one process. It remembers what was written and said, and nothing that the training
depends on: that is the Position.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.report import COMMAND_HAND_BACK, Ended, Outcome
from runner.trainer.batch import Batch
from runner.trainer.card import Measured, card_files
from runner.trainer.checkpoint import Position, write_checkpoint, write_model
from runner.trainer.commands import Commands
from runner.trainer.failure import dataset_failure, trainer_failure
from runner.trainer.preparation import Subject, Training
from runner.trainer.reporter import Reporter
from runner.trainer.samples import SAMPLES_FILE
from runner.trainer.validation import validate

FINAL = "FINAL"
"""The cause of the checkpoint that is the finished model."""
EVALUATION = "EVALUATION"
"""The cause of the one that is a model with what was found of it."""
LOG_SECONDS = 5.0
"""How often a line tells how far the training is."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time that a training takes, and where its limits are. `started` is on the clock `monotonic`, in seconds."""

    start: Position
    batch_size: int
    iterations_max: int
    seconds_max: float
    """0 is no limit."""
    started: float
    monotonic: Callable[[], float] = time.perf_counter

    def after_step(self, position: Position) -> Position:
        """The position after one more step."""
        seconds = self.start.training_seconds + self.monotonic() - self.started
        return replace(
            position,
            iteration=position.iteration + 1,
            training_seconds=seconds,
            places=position.places + self.batch_size,
        )

    def limit_reached(self, position: Position) -> bool:
        """Whether the job has done its steps or its hours."""
        over_time = 0 < self.seconds_max <= position.training_seconds
        return over_time or position.iteration >= self.iterations_max

    def seconds_left(self, position: Position) -> float:
        """An estimate, from what the steps of this attempt took so far."""
        steps = position.iteration - self.start.iteration
        spent = position.training_seconds - self.start.training_seconds
        left = spent / steps * (self.iterations_max - position.iteration)
        return left if self.seconds_max == 0 else max(0.0, min(left, self.seconds_max - position.training_seconds))


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that is done. `numbers` are on the CPU, or will be once `arrived`, where it is set, has happened.

    So a GPU need not be waited for in each step: its numbers are looked at when the next step is under way.
    """

    number: int
    iterations_max: int
    names: Sequence[str]
    """Of the numbers, by series."""
    numbers: torch.Tensor
    arrived: torch.cuda.Event | None
    values: Mapping[str, float]
    """What is known without the device."""

    def measured(self) -> dict[str, float]:
        """All values by series; waits until they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return {**dict(zip(self.names, self.numbers.tolist(), strict=True)), **self.values}


def fetched(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Begin to bring numbers to the CPU; where they will be, and what happens when they are there."""
    if numbers.device.type != "cuda":
        return numbers, None
    here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    here.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types for it
    arrived.record()
    return here, arrived


class Session:
    """One attempt, from its first step to its end."""

    def __init__(
        self,
        *,
        reporter: Reporter,
        commands: Commands,
        checkpoint_folder: Path,
        start: Position,
        wishes: job_spec_pb2.Data,
    ) -> None:
        """`wishes` say what becomes of images and maps that cannot be read."""
        self.reporter = reporter
        self.commands = commands
        self._checkpoint_folder = checkpoint_folder
        self._start = start
        self._wishes = wishes
        self.iteration = start.iteration
        """Steps done and known to be good; for whoever must say where the training failed."""
        self._saved_iteration: int | None = None
        self._unreadable: dict[tuple[str, str], str] = {}
        """What is left out: what it is and its name, with the reason."""
        self._pending: Step | None = None
        self._samples = b""
        """What the last validation said of some images."""
        self._last: Measured | None = None
        self._best: Measured | None = None
        self._told_at = time.perf_counter()

    def note_unreadable(self, batch: Batch, kind: str = "training") -> None:
        """Warn of images and maps that are left out, once each. Raises Failure when they are too many of their kind."""
        for found in batch.unreadable:
            what = f"{kind} {found.what}"
            if self._wishes.bad_data == job_spec_pb2.BAD_DATA_FAIL:
                raise dataset_failure(f"{what} {found.name} {found.reason}, and data.bad_data is BAD_DATA_FAIL")
            if (what, found.name) in self._unreadable:
                continue
            self._unreadable[what, found.name] = found.reason
            self.reporter.warning(f"{what} {found.name} is left out: it {found.reason}")
            count = sum(each == what for each, _ in self._unreadable)
            if count > max(1.0, self._wishes.bad_data_share_max * found.files):
                raise dataset_failure(
                    f"{count} of {found.files} files cannot be read, more than data.bad_data_share_max"
                    f" ({self._wishes.bad_data_share_max:g}); {what} {found.name}, the last, {found.reason}"
                )

    def note_step(self, step: Step) -> None:
        """Report a step, or the one before it where its numbers are still on their way. Raises Failure for NaN."""
        pending, self._pending = self._pending, step if step.arrived is not None else None
        for each in (pending, step if step.arrived is None else None):
            if each is not None:
                self._report(each)

    def settle(self) -> None:
        """Report what was not yet: nothing is saved or measured before it is known that the loss is a number."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._report(pending)

    def _report(self, step: Step) -> None:
        values = step.measured()
        for name, what in (("train/loss", "loss"), ("train/gradient_norm", "norm of the gradients")):
            if not math.isfinite(values.get(name, 0.0)):
                raise trainer_failure(
                    f"the {what} is {values[name]} in step {step.number}: lower the learning rate, or set"
                    " gradient_clip_norm"
                )
        self.iteration = step.number
        self.reporter.points(step.number, values)
        now = time.perf_counter()
        if step.number - self._start.iteration > 1 and now - self._told_at < LOG_SECONDS:
            return
        self._told_at = now
        loss = f"loss {values['train/loss']:.4f}" if "train/loss" in values else "nothing to learn from"
        self.reporter.line(
            f"step {step.number} of {step.iterations_max}: {loss},"
            f" rate {values['train/learning_rate']:.3g}, {values['system/images_per_second']:.0f} images/s"
        )

    def validated(self, subject: Subject, position: Position, *, last: bool = False) -> Position:
        """Validate and report it; the position with the outcome, or as it was where a stop was wished meanwhile."""
        self.settle()
        images = len(subject.validation.collation.examples)
        done = 0

        def go_on(batch: Batch) -> bool:
            nonlocal done
            self.note_unreadable(batch, kind="validation")
            self.reporter.validating(position.iteration, subject.spec.trainer.iterations_max, done, images)
            done += batch.images
            return self.commands.wish is None

        samples = subject.validation.samples()
        with subject.validation.batches() as batches:
            found = validate(
                subject.shown_model,
                batches,
                spec=subject.spec.model,
                device=subject.device,
                samples=samples,
                on_batch=go_on,
            )
        if found is None:
            return position
        for each in found.values:
            if each.values:
                self.reporter.points(position.iteration, each.values, each.context)
        shown = ", ".join(
            f"{name.replace('/valid/', ' ')} {value:.4f}" for name, value in found.values[0].values.items()
        )
        self.reporter.line(f"validation after step {position.iteration}: {shown or 'nothing'} ({found.seconds:.2f} s)")
        for line in found.text if last else ():
            self.reporter.line(line)
        self._samples = samples.content(position.iteration)
        self._last = Measured(iteration=position.iteration, values=found.values[0].values)
        value = found.value(subject.selection.series)
        position = replace(
            position,
            validated_iteration=position.iteration,
            validated_seconds=position.training_seconds,
            selection_value=value,
        )
        if subject.selection.improves(value, position.best_value):
            position = replace(position, best_iteration=position.iteration, best_value=value)
            self._best = self._last
        return position

    def save(self, training: Training, position: Position, *, cause: str) -> None:
        """Write a checkpoint and report it. Raises Failure."""
        self.settle()
        folder = self._checkpoint_folder / str(position.iteration)
        measured = position.validated_iteration == position.iteration
        began = time.perf_counter()
        write_checkpoint(
            folder,
            model=training.model,
            average=training.average,
            optimizer=training.optimizer,
            position=position,
            spec=training.spec,
            vocabularies=training.vocabularies,
            device=training.device,
            more={
                **({SAMPLES_FILE: self._samples} if measured and self._samples else {}),
                **(self._card(training, position) if cause == FINAL else {}),
            },
        )
        self._saved_iteration = position.iteration
        self.reporter.checkpoint_written(
            folder,
            iteration=position.iteration,
            cause=cause,
            selection_value=position.selection_value if measured else None,
            best=position.best_iteration == position.iteration,
        )
        self.reporter.line(f"checkpoint after step {position.iteration} ({time.perf_counter() - began:.2f} s)")

    def _card(self, subject: Subject, position: Position, evaluates: str = "") -> dict[str, bytes]:
        measured = position.validated_iteration == position.iteration
        return card_files(
            job=subject.job,
            evaluates=evaluates,
            dataset_fingerprint=subject.dataset_fingerprint,
            spec=subject.spec,
            vocabularies=subject.vocabularies,
            position=position,
            series=subject.selection.series,
            last=self._last if measured else None,
            best=self._best,
            samples=self._samples if measured else b"",
            left_out=[f"{what} {name}: it {reason}" for (what, name), reason in sorted(self._unreadable.items())],
        )

    def stopped(self, training: Training, position: Position) -> Ended:
        """End as was wished, with a checkpoint of the steps that none holds yet."""
        self.settle()
        hand_back = self.commands.wish == COMMAND_HAND_BACK
        steps = position.iteration - self._start.iteration
        if steps > 0:
            self.reporter.progress(position.iteration, training.spec.trainer.iterations_max, None, last=True)
        if steps > 0 and self._saved_iteration != position.iteration:
            self.reporter.checkpoint_started(position.iteration)
            self.save(training, position, cause="HAND_BACK" if hand_back else "STOP")
        return self._ended_as_wished(position)

    def _ended_as_wished(self, position: Position) -> Ended:
        hand_back = self.commands.wish == COMMAND_HAND_BACK
        steps = position.iteration - self._start.iteration
        verb = "handed back" if hand_back else "stopped"
        return Ended(
            outcome=Outcome.HANDED_BACK if hand_back else Outcome.STOPPED,
            reason="UNSPECIFIED" if hand_back else "USER_STOP",
            message=f"{verb} after step {position.iteration}" if steps else f"{verb} before the first step",
            iteration=position.iteration,
        )

    def completed(self, training: Training, position: Position) -> Ended:
        """Validate what was not yet, write the final model and end; or end as was wished meanwhile."""
        if training.spec.trainer.validations and position.validated_iteration < position.iteration:
            position = self.validated(training, position, last=True)
            if position.validated_iteration < position.iteration:
                return self.stopped(training, position)
        self.reporter.checkpoint_started(position.iteration)
        self.save(training, position, cause=FINAL)
        limit = "iterations_max" if position.iteration >= training.spec.trainer.iterations_max else "hours_max"
        return Ended(
            outcome=Outcome.COMPLETED,
            reason="LIMIT_REACHED",
            message=f"reached {limit} after step {position.iteration}",
            iteration=position.iteration,
        )

    def evaluated(self, subject: Subject, checkpoint: str) -> Ended:
        """Validate the model of a checkpoint of this name, keep what was found beside it, and end."""
        position = self.validated(subject, subject.start, last=True)
        if position.validated_iteration < position.iteration:
            return self._ended_as_wished(position)
        self.reporter.checkpoint_started(position.iteration)
        folder = self._checkpoint_folder / str(position.iteration)
        write_model(
            folder,
            model=subject.shown_model,
            iteration=position.iteration,
            spec=subject.spec,
            vocabularies=subject.vocabularies,
            more={SAMPLES_FILE: self._samples, **self._card(subject, position, checkpoint)},
        )
        self.reporter.checkpoint_written(
            folder,
            iteration=position.iteration,
            cause=EVALUATION,
            selection_value=position.selection_value,
            best=position.best_iteration == position.iteration,
        )
        return Ended(
            outcome=Outcome.COMPLETED,
            reason="LIMIT_REACHED",
            message=f"evaluated {checkpoint} on {len(subject.validation.collation.examples)} images",
            iteration=position.iteration,
        )
