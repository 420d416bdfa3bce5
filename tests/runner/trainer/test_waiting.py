"""A training step reads nothing from the device and hands it nothing but a batch: on a GPU each would wait a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from runner.tasks import TASKS
from runner.trainer.augmentation import Changes, augment, change_of
from runner.trainer.optimizer import build_optimizer
from runner.trainer.targets import Targets
from tests.runner.trainer.conftest import spec_from
from tests.runner.trainer.ideal_outputs import CANVAS
from tests.runner.trainer.task_rows import IMAGES, ROWS, Row
from tests.runner.trainer.test_augmentation import EVERYTHING
from tests.runner.trainer.test_tasks import model_of, pictures_for, targets_of

FROM_THE_HOST = frozenset({"tensor", "as_tensor", "new_tensor", "from_numpy", "frombuffer"})
TO_THE_HOST = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2", "bincount"}
)
SIZE_GIVEN = "output_size"


class Functions(TorchFunctionMode):
    """Notes where numbers of Python become a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in FROM_THE_HOST:
            self.found.append(name)
        return function(*arguments, **(named or {}))


class Operations(TorchDispatchMode):
    """Notes operations whose answer, or its shape, has to be read from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__  # type: ignore[attr-defined] # every operation has one
        masks = [each for each in arguments[1:2] if name in ("index", "index_put", "index_put_") for each in each]
        unsized = name == "repeat_interleave" and SIZE_GIVEN not in (named or {})
        if (
            name in TO_THE_HOST
            or unsized
            or any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in masks)
        ):
            self.found.append(name)
        return function(*arguments, **(named or {}))


def waits(step: Callable[[], Any]) -> list[str]:
    with Functions() as functions, Operations() as operations:
        step()
    return [*functions.found, *operations.found]


def test_what_makes_a_device_wait_is_noted() -> None:
    numbers = torch.rand(4)
    assert waits(lambda: numbers + 1) == []
    for step in (
        lambda: numbers.sum().item(),
        lambda: numbers[numbers > 0.5],
        lambda: numbers.new_tensor([1.0]),
        lambda: torch.tensor([1.0]),
        lambda: bool(numbers.sum() > 1),
        lambda: torch.repeat_interleave(torch.arange(4)),
        lambda: torch.bincount(torch.arange(4)),
    ):
        assert waits(step), "an operation that waits was not noticed"


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
@pytest.mark.parametrize("labelled", ["all", "some"])
def test_a_step_of_a_task_waits_for_nothing(row: Row, labelled: str, tmp_path: Path) -> None:
    model, _ = model_of(row)
    spec = spec_from(model={"heads": [row.head_json()]})
    optimizer = build_optimizer(model, spec.trainer)
    placed = targets_of(row, tmp_path, row.annotations[:IMAGES])
    targets = Targets.of(TASKS[row.task], placed if labelled == "all" else [placed[0], None, *placed[2:]])
    pictures = pictures_for(row)

    def step() -> None:
        losses = model.losses(model(pictures, IMAGES), [targets])
        losses.total.backward()
        norm = torch.nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
        optimizer.step()
        torch.stack([losses.total, norm, *losses.named().values()])

    assert waits(step) == []


def test_changing_pictures_waits_for_nothing() -> None:
    changes = Changes.of([change_of(Augmentations(**EVERYTHING), CANVAS, seed) for seed in range(IMAGES)])
    assert changes is not None
    assert changes.blurs is not None
    assert changes.colors is not None
    assert changes.matrices is not None
    elsewhere = torch.device("meta")  # not the CPU: what is done here is what a GPU does
    there, pictures = changes.to(elsewhere), torch.rand(IMAGES, 3, CANVAS.height, CANVAS.width, device=elsewhere)
    assert waits(lambda: augment(pictures, there, 0.3)) == []
