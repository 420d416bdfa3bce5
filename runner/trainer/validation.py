"""Validation: the losses and metrics of a model on images that it does not learn from, and which of them selects."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import Decoded, Prediction, Task, WrongAnnotation
from runner.trainer.batch import Batch
from runner.trainer.dataset import Example
from runner.trainer.failure import trainer_failure
from runner.trainer.loader import Loader
from runner.trainer.model import Losses, Model, summed
from runner.trainer.samples import Samples
from services.chassis.image import UnreadableImage

LOSS = "loss"
"""The selection metric that is the validation loss; of a head, `{head}/loss`."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The series that says which checkpoint is the best."""

    series: str
    higher_is_better: bool

    def improves(self, value: float | None, best: float | None) -> bool:
        """Whether a value beats the best one so far; NaN never does."""
        if value is None or value != value:
            return False
        if best is None:
            return True
        return value > best if self.higher_is_better else value < best


@dataclass(frozen=True, kw_only=True)
class Values:
    """Scalars of one context by series."""

    values: dict[str, float]
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The outcome of one validation. The first values are those without a context; `text` is for the log."""

    values: tuple[Values, ...]
    text: tuple[str, ...]
    seconds: float

    def value(self, series: str) -> float | None:
        """The value of a series without a context, None where no validation image was annotated for it."""
        return self.values[0].values.get(series)


def selection_of(spec: job_spec_pb2.JobSpec) -> Selection:
    """The selection of a complete specification. Raises Failure for a metric that no head measures."""
    head_id, _, metric = spec.trainer.selection_metric.rpartition("/")
    if not head_id and metric == LOSS:
        return Selection(series="valid/loss", higher_is_better=False)
    metrics = {head.id: task_of(head.task).metrics for head in spec.model.heads}
    if metric == LOSS and head_id in metrics:
        return Selection(series=f"{head_id}/valid/loss", higher_is_better=False)
    if metric not in metrics.get(head_id, {}):
        known = ", ".join(f"{head}/{name}" for head, names in metrics.items() for name in names)
        raise trainer_failure(
            f"trainer.selection_metric is {spec.trainer.selection_metric!r}, but must be {LOSS} or one of {known}"
        )
    return Selection(series=f"{head_id}/valid/{metric}", higher_is_better=metrics[head_id][metric])


def validate(
    model: Model,
    loader: Loader,
    *,
    spec: job_spec_pb2.Model,
    device: torch.device,
    samples: Samples,
    on_batch: Callable[[Batch], bool],
) -> Validation | None:
    """Measure the model on every batch of the loader. `on_batch` sees each first; if it says no, the answer is None.

    `samples` gathers what is said of some images.

    Everything is computed in float32, as a prediction is. Losses are means over all annotated images. The model is in
    training mode again afterwards.
    """
    began = time.perf_counter()
    tally = _Tally(model, [task_of(head.task) for head in spec.heads], samples)
    model.eval()
    try:
        with ThreadPoolExecutor(1, "evaluation") as thread:
            evaluated: Future[None] | None = None
            for batch in loader:
                if not on_batch(batch):
                    return None
                with torch.inference_mode():
                    outputs = model(batch.on_device(device), batch.images)
                    if batch.teaches:
                        tally.add_losses(model.losses(outputs, batch.targets_on(device)), batch)
                    decoded = model.decoded(outputs)
                if evaluated is not None:  # one batch behind, and no more: what waits takes memory
                    evaluated.result()
                evaluated = thread.submit(tally.add_predictions, decoded, batch)
            if evaluated is not None:
                evaluated.result()
    finally:
        model.train()
    plain = tally.losses({head.id: head.loss_weight for head in spec.heads})
    in_context: list[Values] = []
    text: list[str] = []
    for head_id, evaluation in tally.evaluations.items():
        for metric in evaluation.values():
            series = f"{head_id}/valid/{metric.name}"
            if metric.context:
                in_context.append(Values(values={series: metric.value}, context=metric.context))
            else:
                plain[series] = metric.value
        text += [f"{head_id}: {line}" for line in evaluation.text()]
    seconds = time.perf_counter() - began
    return Validation(values=(Values(values=plain), *in_context), text=tuple(text), seconds=seconds)


class _Tally:
    """What a validation adds up: losses in the thread that computes, predictions in the one behind it."""

    def __init__(self, model: Model, tasks: Sequence[Task], samples: Samples) -> None:
        self._heads = model.heads
        self._tasks = tasks
        self._samples = samples
        self._views = {head_id: model.views(head_id) for head_id in model.heads}
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._labelled: Counter[str] = Counter()
        self.evaluations = {head_id: head.evaluation() for head_id, head in model.heads.items()}

    def add_losses(self, losses: Losses, batch: Batch) -> None:
        """Add a batch's; they stay on the device, because each transfer would wait for all that is under way."""
        for (head_id, _), targets in zip(self._heads.items(), batch.targets, strict=True):
            if targets is None:
                continue
            loss = summed(losses.by_head[head_id]) * targets.labelled
            before = self._loss_sums.get(head_id)
            self._loss_sums[head_id] = loss if before is None else before + loss
            self._labelled[head_id] += targets.labelled

    def losses(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The mean losses by series, that of all heads first."""
        means = {head_id: float(total) / self._labelled[head_id] for head_id, total in self._loss_sums.items()}
        if not means:
            return {}
        total = sum(weights[head_id] * mean for head_id, mean in means.items())
        return {
            "valid/loss": total,
            **{f"{head_id}/valid/loss": means[head_id] for head_id in self._heads if head_id in means},
        }

    def add_predictions(self, decoded: Mapping[str, Decoded], batch: Batch) -> None:
        """Compare what is predicted with the targets as they were read, in the pixels of the images."""
        for index, (head_id, head) in enumerate(self._heads.items()):
            rows = [
                row
                for row, example in enumerate(batch.examples)
                if batch.readable[row] and example.targets[index] is not None
            ]
            if not rows:
                continue
            pictures = [row + batch.images * number for number in range(self._views[head_id]) for row in rows]
            chosen = {name: tensor[pictures].cpu() for name, tensor in decoded[head_id].items()}
            found = head.predictions(chosen, [batch.views[row % batch.images] for row in pictures])
            # Of each image what is predicted of its one picture, or of all its pictures together.
            shown = found if len(found) == len(rows) else _by_image(found, len(rows))
            for row, prediction, first in zip(rows, shown, found[: len(rows)], strict=True):
                example, view = batch.examples[row], batch.views[row]
                with contextlib.suppress(UnreadableImage, WrongAnnotation):  # told already, when the batch was made
                    target = self._kind(example) if self._tasks[index].asks_for_kind else example.targets[index]
                    self.evaluations[head_id].add(prediction, target, view)
                    if self._samples.wants(example.name):
                        self._samples.add(example.name, head_id, first, batch.pictures[row], view)

    def _kind(self, example: Example) -> str | None:
        """Of what kind an image is, by the first head that says such things; None where it does not know."""
        for task, target in zip(self._tasks, example.targets, strict=True):
            if task.says_kind:
                return None if target is None else task.kind(target)
        return None


def _by_image(predictions: Sequence[Prediction], images: int) -> list[tuple[Prediction, ...]]:
    return [tuple(predictions[image::images]) for image in range(images)]
