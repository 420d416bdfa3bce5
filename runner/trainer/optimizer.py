"""The optimizer of a specification: which weights decay, which rate each group gets."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.trainer.schedule import peak_rate, rate_factor


def build_optimizer(model: nn.Module, trainer: job_spec_pb2.Trainer) -> torch.optim.Optimizer:
    """SGD or AdamW over the weights that learn: norms and biases do not decay, the backbone has a rate factor."""
    options = trainer.sgd if trainer.WhichOneof("optimizer") == "sgd" else trainer.adamw
    names_by_group: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or "bias" in name.rsplit(".", 1)[-1] else options.weight_decay
        factor = options.backbone_rate_factor if name.startswith("backbone.") else 1.0
        names_by_group[(decay, factor)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "rate_factor": factor}
        for (decay, factor), parameters in names_by_group.items()
    ]
    # One kernel for all weights instead of a dozen calls for each: a third of a small model's step.
    if trainer.WhichOneof("optimizer") == "sgd":
        sgd = trainer.sgd
        return torch.optim.SGD(groups, lr=sgd.learning_rate, momentum=sgd.momentum, nesterov=sgd.nesterov, fused=True)
    adamw = trainer.adamw
    return torch.optim.AdamW(
        groups, lr=adamw.learning_rate, betas=(adamw.beta1, adamw.beta2), eps=adamw.epsilon, fused=True
    )


def set_rate(
    optimizer: torch.optim.Optimizer, iteration: int, trainer: job_spec_pb2.Trainer, hours: float = 0.0
) -> float:
    """Set every group's rate for the step that follows so many steps and hours; the rate without a group's factor."""
    rate = peak_rate(trainer) * rate_factor(iteration, trainer, hours)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    return rate


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the optimizer keeps of the weights that learn, from its first step on: two moments of each where it is
    AdamW, one where it is SGD with momentum.
    """
    size_bytes = 0
    for group in optimizer.param_groups:
        moments = 2 if "betas" in group else int(group["momentum"] > 0)
        size_bytes += moments * sum(parameter.nbytes for parameter in group["params"])
    return size_bytes


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> str | None:
    """Give a new optimizer the moments of a saved one; its own rates, decays and other options stay.

    Answers None, or why the saved state does not fit; the optimizer then begins anew.
    """
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    saved_groups = state["param_groups"]
    if [set(group) for group in saved_groups] != [set(group) for group in optimizer.param_groups]:
        return "the checkpoint's optimizer is of another kind"
    if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in optimizer.param_groups]:
        return "the checkpoint's optimizer holds other groups of weights"
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, fresh, strict=True):
        group.update(options)
    return None
