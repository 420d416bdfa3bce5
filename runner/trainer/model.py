"""The model: a backbone, a neck, and heads that learn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.tasks import task_of
from runner.tasks.task import Decoded, Head, Outputs, Vocabulary, WrongAnnotation
from runner.tasks.task import Losses as Parts
from runner.trainer.backbone import DEVIATION, MEAN, Backbone, build_backbone
from runner.trainer.failure import trainer_failure
from runner.trainer.image import CHANNELS
from runner.trainer.neck import FeaturePyramid, NoNeck, build_neck
from runner.trainer.targets import Targets
from runner.trainer.timm_backbone import TimmBackbone


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The weighted sum, and the parts of the loss of each head that had a target in the batch; float32."""

    total: torch.Tensor
    by_head: Mapping[str, Parts]

    def named(self) -> dict[str, torch.Tensor]:
        """The series of a step: of each head the sum, and its parts where there are several."""
        series: dict[str, torch.Tensor] = {}
        for head_id, parts in self.by_head.items():
            series[f"{head_id}/train/loss"] = summed(parts)
            if len(parts) > 1:
                series |= {f"{head_id}/train/{part}_loss": value for part, value in parts.items()}
        return series


class Model(nn.Module):
    """Heads by id, in the order of the specification."""

    _mean: torch.Tensor
    _deviation: torch.Tensor

    def __init__(
        self,
        backbone: Backbone | TimmBackbone,
        neck: NoNeck | FeaturePyramid,
        heads: Mapping[str, Head],
        weights: Mapping[str, float],
        views: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heads = dict(heads)
        self._weights = weights
        self._views = views
        for head_id, head in heads.items():
            # Not in a ModuleDict: that refuses names such as `type` and `train`, which are fine ids.
            self.add_module(f"head-{head_id}", head)
        self.register_buffer("_mean", torch.tensor(MEAN).view(1, CHANNELS, 1, 1), persistent=False)
        self.register_buffer("_deviation", torch.tensor(DEVIATION).view(1, CHANNELS, 1, 1), persistent=False)

    def forward(self, pictures: torch.Tensor, images: int | None = None) -> dict[str, Outputs]:
        """The outputs of each head for RGB pictures from 0 to 1, batch x 3 x height x width.

        `images`: how many images the pictures are of, where there are two of each. A head with one view sees the first
        of them alone, one with two views sees all.
        """
        normalised = (pictures - self._mean) / self._deviation
        features = {0: normalised, **self.neck(self.backbone(normalised))}
        if images is None or images == len(pictures):
            return {head_id: head(features) for head_id, head in self.heads.items()}
        first = {level: found[:images] for level, found in features.items()}
        return {head_id: head(features if self._views[head_id] > 1 else first) for head_id, head in self.heads.items()}

    def views(self, head_id: str) -> int:
        """How many pictures of each image a head sees in training."""
        return self._views[head_id]

    def losses(
        self,
        outputs: Mapping[str, Outputs],
        targets: Sequence[Targets | None],
        shares: Sequence[float] | None = None,
    ) -> Losses:
        """The losses of a batch; `targets` is in the heads' order, and at least one is there.

        `shares`: of a part of a batch, what share of each head's labelled images is in it; its losses are that share.

        A head is handed the rows of its labelled images, in float32: no other row can get a gradient from it.
        """
        by_head: dict[str, Parts] = {}
        total: torch.Tensor | None = None
        for index, ((head_id, head), wanted) in enumerate(zip(self.heads.items(), targets, strict=True)):
            if wanted is None:
                continue
            rows = _all_rows(wanted.rows, self._views[head_id], outputs[head_id])
            with torch.autocast(self._mean.device.type, enabled=False):
                chosen = {name: _chosen(tensor, rows) for name, tensor in outputs[head_id].items()}
                parts = head.loss(chosen, wanted.values)
            if shares is not None:
                parts = {name: value * shares[index] for name, value in parts.items()}
            by_head[head_id] = parts
            weighted = summed(by_head[head_id]) * self._weights[head_id]
            total = weighted if total is None else total + weighted
        assert total is not None, "a batch without any target teaches nothing"
        return Losses(total=total, by_head=by_head)

    def decoded(self, outputs: Mapping[str, Outputs]) -> dict[str, Decoded]:
        """What the outputs mean, in float32, by head."""
        return {
            head_id: head.decode({name: _chosen(tensor, None) for name, tensor in outputs[head_id].items()})
            for head_id, head in self.heads.items()
        }


def summed(parts: Parts) -> torch.Tensor:
    """The loss of a head."""
    values = list(parts.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def build_model(spec: job_spec_pb2.Model, vocabularies: Sequence[Vocabulary]) -> Model:
    """The model of a complete specification, on the CPU, with weights from torch's random state. Raises Failure."""
    backbone = build_backbone(spec.backbone.name)
    backbone.freeze(spec.backbone.frozen_levels)
    neck = build_neck(spec.neck, backbone.out_channels)
    out_channels = {0: CHANNELS, **neck.out_channels}
    heads: dict[str, Head] = {}
    for head, vocabulary in zip(spec.heads, vocabularies, strict=True):
        try:
            heads[head.id] = task_of(head.task).head(head, vocabulary, out_channels)
        except WrongAnnotation as error:
            raise trainer_failure(f"head {head.id!r} cannot be built: {error}") from error
    weights = {head.id: head.loss_weight for head in spec.heads}
    views = {head.id: task_of(head.task).views for head in spec.heads}
    model = Model(backbone, neck, heads, weights, views)
    for each in heads.values():
        each.built(model)
    # Convolutions on the CPU take two thirds of the time in this order of memory, and less on a GPU as well.
    return model.to(memory_format=torch.channels_last)


def _all_rows(rows: torch.Tensor | None, views: int, outputs: Outputs) -> torch.Tensor | None:
    """The rows of both pictures of the labelled images, where a head sees two of each."""
    if rows is None or views == 1:
        return rows
    pictures = len(next(iter(outputs.values())))
    return torch.cat([rows, rows + pictures // views])


def _chosen(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    found = tensor if rows is None else tensor.index_select(0, rows)
    return found.float() if found.is_floating_point() else found
