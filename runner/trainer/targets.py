"""What one head learns from a batch: its labelled images, and what is wanted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from runner.tasks.task import HOST, Task


@dataclass(frozen=True, kw_only=True)
class Targets:
    """`rows`: places of the labelled images in the batch, int64, at least one; None where that is all of them.

    `values` are the task's own, of these images alone and in their order.
    """

    labelled: int
    rows: torch.Tensor | None
    values: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, task: Task, placed: Sequence[Any | None]) -> Self | None:
        """Of a batch's images, each with what was placed or None; None where no image has anything."""
        rows = [row for row, each in enumerate(placed) if each is not None]
        if not rows:
            return None
        values = task.batch([each for each in placed if each is not None])
        some = torch.tensor(rows) if len(rows) < len(placed) else None
        return cls(labelled=len(rows), rows=some, values=values)

    def to(self, device: torch.device) -> Self:
        """The same on a device, but for what stays on the CPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same in memory that a GPU copies from while the CPU goes on."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return type(self)(
            labelled=self.labelled,
            rows=None if self.rows is None else function(self.rows),
            values={
                name: tensor if name.startswith(HOST) else function(tensor) for name, tensor in self.values.items()
            },
        )
