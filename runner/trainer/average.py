"""An exponential moving average of a model's weights: often a better model than the one that still moves."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from runner.trainer.model import Model

FIRST_STEPS = 10
"""The average follows more closely in the beginning, when the weights are still far from good."""


class WeightAverage:
    """A second model, `model`, whose weights and statistics are the average of a first one's."""

    def __init__(self, of: Model, decay: float) -> None:
        """It begins as it is now."""
        self._of = of
        self._decay = decay
        self.model: Model = copy.deepcopy(of).requires_grad_(False)
        self._pairs = self._paired()

    def update(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self._decay, (1 + steps) / (FIRST_STEPS + steps))
        with torch.no_grad():
            torch._foreach_lerp_([own for own, _ in self._pairs], [other for _, other in self._pairs], 1 - decay)
            for name, buffer in self.model.named_buffers():
                if not buffer.is_floating_point():
                    buffer.copy_(self._of.get_buffer(name))

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on with a saved average. Raises RuntimeError where it is another model's."""
        self.model.load_state_dict(weights)

    def _paired(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        there = self._of.state_dict(keep_vars=True)
        return [
            (own, there[name]) for name, own in self.model.state_dict(keep_vars=True).items() if own.is_floating_point()
        ]
