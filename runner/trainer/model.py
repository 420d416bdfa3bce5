"""The model: a backbone, a neck, and heads that learn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.tasks import task_of
from runner.tasks.task import Head, Outputs, Targets, Vocabulary
from runner.trainer.backbone import DEVIATION, MEAN, Backbone, build_backbone
from runner.trainer.failure import trainer_failure
from runner.trainer.image import BYTE_MAX, CHANNELS
from runner.trainer.neck import FeaturePyramid, NoNeck, build_neck


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The weighted sum, and the loss of each head that had an annotated image in the batch; float32 on the device."""

    total: torch.Tensor
    by_head: Mapping[str, torch.Tensor]


class Model(nn.Module):
    """Heads by id, in the order of the specification."""

    _mean: torch.Tensor
    _deviation: torch.Tensor

    def __init__(
        self, backbone: Backbone, neck: NoNeck | FeaturePyramid, heads: Mapping[str, Head], weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heads = dict(heads)
        self._weights = weights
        for head_id, head in heads.items():
            # Not in a ModuleDict: that refuses names such as `type` and `train`, which are fine ids.
            self.add_module(f"head-{head_id}", head)
        self.register_buffer("_mean", torch.tensor(MEAN).view(1, CHANNELS, 1, 1), persistent=False)
        self.register_buffer("_deviation", torch.tensor(DEVIATION).view(1, CHANNELS, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> dict[str, Outputs]:
        """The outputs of each head for RGB images from 0 to 1, batch x 3 x height x width."""
        features = self.neck(self.backbone((images - self._mean) / self._deviation))
        return {head_id: head(features) for head_id, head in self.heads.items()}

    def losses(self, outputs: Mapping[str, Outputs], targets: Sequence[Targets | None]) -> Losses:
        """The losses of a batch; `targets` is in the heads' order, and at least one is there."""
        by_head: dict[str, torch.Tensor] = {}
        total: torch.Tensor | None = None
        for (head_id, head), wanted in zip(self.heads.items(), targets, strict=True):
            if wanted is None:
                continue
            by_head[head_id] = head.loss(outputs[head_id], wanted)
            weighted = by_head[head_id] * self._weights[head_id]
            total = weighted if total is None else total + weighted
        assert total is not None, "a batch without any target teaches nothing"
        return Losses(total=total, by_head=by_head)


def build_model(spec: job_spec_pb2.Model, vocabularies: Sequence[Vocabulary]) -> Model:
    """The model of a complete specification, on the CPU, with weights from torch's random state. Raises Failure."""
    backbone = build_backbone(spec.backbone.name)
    backbone.freeze(spec.backbone.frozen_levels)
    neck = build_neck(spec.neck, backbone.out_channels)
    heads = {
        head.id: task_of(head.task).head(head, vocabulary, neck.out_channels)
        for head, vocabulary in zip(spec.heads, vocabularies, strict=True)
    }
    weights = {head.id: head.loss_weight for head in spec.heads}
    model = Model(backbone, neck, heads, weights)
    # Convolutions on the CPU take two thirds of the time in this order of memory, and less on a GPU as well.
    return model.to(memory_format=torch.channels_last)


def check_size(model: Model, height: int, width: int) -> None:
    """Raise Failure where the model cannot take images of this size: told before the first step, not in it."""
    device = next(model.parameters()).device
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, CHANNELS, height, width, device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise trainer_failure(
            f"the model cannot take images of {height} x {width}, raise data.height and data.width: {reason}"
        ) from error
    model.train(training)


def images_to_float(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a batch of uint8 images to the device, as numbers from 0 to 1 in the model's order of memory."""
    moved = images.to(device, non_blocking=True).to(memory_format=torch.channels_last)
    return moved.float().div_(BYTE_MAX)
