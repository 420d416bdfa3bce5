"""The gradient of a batch, added up over its parts, so that a large batch fits into little memory."""

from __future__ import annotations

import torch

from runner.trainer.batch import Batch
from runner.trainer.model import Model


def add_gradient(model: Model, batch: Batch, device: torch.device, autocast: torch.autocast) -> dict[str, torch.Tensor]:
    """Add the gradient of a batch's loss to the weights' own; the losses by series, empty where nothing can be learned.

    Of an average over images each part has its share, so that both are the whole batch's. Norms that look at several
    images, and losses over the images of a batch together, see one part at a time.
    """
    measured: dict[str, torch.Tensor] = {}
    for part in batch.parts:
        if not part.teaches:
            continue
        with autocast:
            outputs = model(part.on_device(device), part.images)
        losses = model.losses(outputs, part.targets_on(device), part.shares)
        losses.total.backward()  # type: ignore[no-untyped-call]
        for name, value in {"train/loss": losses.total, **losses.named()}.items():
            measured[name] = measured[name] + value.detach() if name in measured else value.detach()
    return measured
