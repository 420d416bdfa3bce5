"""Validation: the losses and metrics of a model on images that it does not learn from, and which of them selects."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.trainer.data import Batch, Loader
from runner.trainer.failure import trainer_failure
from runner.trainer.model import Model, images_to_float

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
    autocast: torch.autocast,
    on_batch: Callable[[Batch], bool],
) -> Validation | None:
    """Measure the model on every batch of the loader. `on_batch` sees each first; if it says no, the answer is None.

    Losses are means over all annotated images. The model is in training mode again afterwards.
    """
    began = time.perf_counter()
    evaluations = {head_id: head.evaluation() for head_id, head in model.heads.items()}
    loss_sums = dict.fromkeys(model.heads, 0.0)
    labelled = dict.fromkeys(model.heads, 0)
    model.eval()
    try:
        for batch in loader:
            if not on_batch(batch):
                return None
            if len(batch.images) == 0:
                continue
            with torch.inference_mode(), autocast:
                outputs = model(images_to_float(batch.images, device))
                for (head_id, head), found in zip(model.heads.items(), batch.targets, strict=True):
                    if found is None:
                        continue
                    targets = found.to(device)
                    loss_sums[head_id] += head.loss(outputs[head_id], targets).item() * targets.labelled
                    labelled[head_id] += targets.labelled
                    evaluations[head_id].add(outputs[head_id], targets)
    finally:
        model.train()
    plain: dict[str, float] = {}
    in_context: list[Values] = []
    text: list[str] = []
    for head_id in (head_id for head_id in model.heads if labelled[head_id]):
        plain[f"{head_id}/valid/loss"] = loss_sums[head_id] / labelled[head_id]
        for metric in evaluations[head_id].values():
            series = f"{head_id}/valid/{metric.name}"
            if metric.context:
                in_context.append(Values(values={series: metric.value}, context=metric.context))
            else:
                plain[series] = metric.value
        text += [f"{head_id}: {line}" for line in evaluations[head_id].text()]
    if plain:
        weights = {head.id: head.loss_weight for head in spec.heads}
        losses = (weights[head_id] * loss_sums[head_id] / count for head_id, count in labelled.items() if count)
        plain = {"valid/loss": sum(losses), **plain}
    seconds = time.perf_counter() - began
    return Validation(values=(Values(values=plain), *in_context), text=tuple(text), seconds=seconds)
