"""What the training loop calls between its steps: to validate, to save, to say how far it is, and to end.

One Session serves one attempt in one process. It remembers what was written and said, and nothing that the training
depends on: that is the Position.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from runner.report import COMMAND_HAND_BACK, Ended, Outcome
from runner.trainer.checkpoint import Position, write_checkpoint
from runner.trainer.commands import Commands
from runner.trainer.data import Batch
from runner.trainer.failure import dataset_failure, trainer_failure
from runner.trainer.preparation import Training
from runner.trainer.reporter import Reporter
from runner.trainer.validation import validate

LOG_SECONDS = 5.0
"""How often a line tells how far the training is."""
UNREADABLE_SHARE_MAX = 0.1
"""More unreadable images than this share, and than one, end the job: it would learn something else than was meant."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time that a training takes, and where its limits are. `started` is on the clock `monotonic`, in seconds."""

    start: Position
    iterations_max: int
    seconds_max: float
    """0 is no limit."""
    started: float
    monotonic: Callable[[], float] = time.perf_counter

    def after_step(self, position: Position) -> Position:
        """The position after one more step."""
        seconds = self.start.training_seconds + self.monotonic() - self.started
        return replace(position, iteration=position.iteration + 1, training_seconds=seconds)

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


class Session:
    """One attempt, from its first step to its end."""

    def __init__(self, *, reporter: Reporter, commands: Commands, checkpoint_folder: Path, start: Position) -> None:
        self.reporter = reporter
        self.commands = commands
        self._checkpoint_folder = checkpoint_folder
        self._start = start
        self.iteration = start.iteration
        """Steps done; for whoever must say where the training failed."""
        self._saved_iteration: int | None = None
        self._unreadable: set[tuple[str, str]] = set()
        self._told_at = time.perf_counter()

    def note_unreadable(self, batch: Batch, images: int, kind: str = "training") -> None:
        """Warn of images that were left out, once each. Raises Failure when they are too many of `images`."""
        for found in batch.unreadable:
            if (kind, found.name) in self._unreadable:
                continue
            self._unreadable.add((kind, found.name))
            self.reporter.warning(f"{kind} image {found.name} is left out: it {found.reason}")
            count = sum(each == kind for each, _ in self._unreadable)
            if count > max(1.0, UNREADABLE_SHARE_MAX * images):
                raise dataset_failure(
                    f"{count} of {images} {kind} images cannot be read; {found.name}, the last, {found.reason}"
                )

    def refuse_divergence(self, step: int, loss: float, gradient_norm: float) -> None:
        """Raise Failure for a loss or gradients that are no finite numbers; the weights have not moved yet."""
        name, value = ("loss", loss) if not math.isfinite(loss) else ("norm of the gradients", gradient_norm)
        if not math.isfinite(value):
            raise trainer_failure(
                f"the {name} is {value} in step {step}: lower the learning rate, or set gradient_clip_norm"
            )

    def tell_step(self, step: int, iterations_max: int, values: dict[str, float]) -> None:
        """Note a step, and write a line about it unless one was written a moment ago."""
        self.iteration = step
        now = time.perf_counter()
        if step - self._start.iteration > 1 and now - self._told_at < LOG_SECONDS:
            return
        self._told_at = now
        self.reporter.line(
            f"step {step} of {iterations_max}: loss {values['train/loss']:.4f},"
            f" rate {values['train/learning_rate']:.3g}, {values['system/images_per_second']:.0f} images/s"
        )

    def validated(self, training: Training, position: Position, *, last: bool = False) -> Position:
        """Validate and report it; the position with the outcome, or as it was where a stop was wished meanwhile."""
        images = training.data.validation_images

        def go_on(batch: Batch) -> bool:
            self.note_unreadable(batch, images, kind="validation")
            return self.commands.wish is None

        with training.data.validation_batches(training.spec.trainer.batch_size) as batches:
            found = validate(
                training.model,
                batches,
                spec=training.spec.model,
                device=training.device,
                autocast=training.autocast,
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
        value = found.value(training.selection.series)
        position = replace(position, validated_iteration=position.iteration, selection_value=value)
        if training.selection.improves(value, position.best_value):
            position = replace(position, best_iteration=position.iteration, best_value=value)
        return position

    def save(self, training: Training, position: Position, *, cause: str) -> None:
        """Write a checkpoint and report it. Raises Failure."""
        folder = self._checkpoint_folder / str(position.iteration)
        began = time.perf_counter()
        write_checkpoint(
            folder,
            model=training.model,
            optimizer=training.optimizer,
            position=position,
            spec=training.spec,
            vocabularies=training.data.vocabularies,
            device=training.device,
        )
        self._saved_iteration = position.iteration
        measured = position.validated_iteration == position.iteration
        self.reporter.checkpoint_written(
            folder,
            iteration=position.iteration,
            cause=cause,
            selection_value=position.selection_value if measured else None,
            best=position.best_iteration == position.iteration,
        )
        self.reporter.line(f"checkpoint after step {position.iteration} ({time.perf_counter() - began:.2f} s)")

    def stopped(self, training: Training, position: Position) -> Ended:
        """End as was wished, with a checkpoint of the steps that none holds yet."""
        hand_back = self.commands.wish == COMMAND_HAND_BACK
        steps = position.iteration - self._start.iteration
        if steps > 0:
            self.reporter.progress(position.iteration, training.spec.trainer.iterations_max, None, last=True)
        if steps > 0 and self._saved_iteration != position.iteration:
            self.reporter.checkpoint_started(position.iteration)
            self.save(training, position, cause="HAND_BACK" if hand_back else "STOP")
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
        self.save(training, position, cause="FINAL")
        limit = "iterations_max" if position.iteration >= training.spec.trainer.iterations_max else "hours_max"
        return Ended(
            outcome=Outcome.COMPLETED,
            reason="LIMIT_REACHED",
            message=f"reached {limit} after step {position.iteration}",
            iteration=position.iteration,
        )
