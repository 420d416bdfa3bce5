"""What the next tasks need and no head of today uses: two pictures of each image, and images without annotation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner import tasks
from runner.report import Outcome as Ending
from runner.tasks.task import Decoded, Evaluation, Features, Head, Losses, Outputs, Prediction, Task, Vocabulary
from runner.trainer.view import View
from tests.runner.trainer.conftest import Workshop, spec_from


class Likeness(Task):
    """Two pictures of one image shall look alike to the head; a task in small, without a vocabulary."""

    name = "view-invariance learning"
    metrics: Mapping[str, bool] = {}
    views = 2
    images_alone = True

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        return []

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], bool]:
        return lambda annotation: True

    def place(self, target: bool, view: View) -> bool:
        return target

    def batch(self, placed: Sequence[bool]) -> Mapping[str, torch.Tensor]:
        return {"there": torch.tensor(placed)}

    def crowded(self, vocabulary: Vocabulary, view: View) -> bool:
        return True

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        return LikenessHead(out_channels[max(out_channels)])


@dataclass(frozen=True, kw_only=True)
class Vector(Prediction):
    numbers: list[float]

    def to_json(self) -> dict[str, Any]:
        return {"numbers": self.numbers}

    def summary(self) -> str:
        return f"{len(self.numbers)} numbers"

    def draw(self, image: Image.Image) -> Image.Image:
        return image.copy()


class LikenessHead(Head):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 4)
        self.seen: list[tuple[int, int]] = []
        self.apart = 0.0
        self.begun = 0

    def initialised(self, model: nn.Module) -> None:
        self.begun += 1

    def forward(self, features: Features) -> Outputs:
        return {"vector": self.linear(features[max(features)].mean(dim=(2, 3)))}

    def loss(self, outputs: Outputs, targets: Mapping[str, torch.Tensor]) -> Losses:
        vectors = outputs["vector"]
        one, other = vectors.chunk(2)
        if self.training:
            self.seen.append((len(vectors), len(targets["there"])))
            self.apart = max(self.apart, float((one - other).detach().abs().max()))
        return {"apart": (one - other).square().mean(), "small": 0 * vectors.sum()}

    def decode(self, outputs: Outputs) -> Decoded:
        return outputs

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Prediction]:
        return [Vector(numbers=row.tolist()) for row in decoded["vector"]]

    def evaluation(self) -> Evaluation:
        return Nothing()


class Nothing:
    def add(self, prediction: Any, target: Any, view: View) -> None:
        pass

    def values(self) -> list[Any]:
        return []

    def text(self) -> list[str]:
        return []


@pytest.fixture
def heads_made(monkeypatch: pytest.MonkeyPatch) -> list[LikenessHead]:
    made: list[LikenessHead] = []

    class Noted(Likeness):
        def head(self, *arguments: Any) -> Head:
            made.append(LikenessHead(arguments[2][max(arguments[2])]))
            return made[-1]

    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, task_pb2.TASK_VIEW_INVARIANCE_LEARNING: Noted()})
    return made


def test_a_task_of_two_views_sees_every_image_twice_beside_one_that_sees_it_once(
    workshop: Workshop, halves: dict[str, str], heads_made: list[LikenessHead]
) -> None:
    training = workshop.write_dataset({"side": halves})
    alone = workshop.folder / "alone"
    alone.mkdir()
    (alone / "metadata.json").write_text(json.dumps({"task": "view-invariance learning"}))
    (alone / "annotations.json").write_text(json.dumps(dict.fromkeys(halves)))  # every image is named, none annotated
    some = {name: category if int(name[:3]) % 2 else None for name, category in halves.items()}
    (Path(training["heads"]["side"]) / "annotations.json").write_text(json.dumps(some))
    training["heads"]["alone"] = str(alone)
    spec = spec_from(
        model={
            "heads": [
                {"id": "side", "task": "TASK_MULTICLASS_CLASSIFICATION"},
                {"id": "alone", "task": "TASK_VIEW_INVARIANCE_LEARNING"},
            ]
        },
        data={"augmentations": {"rotation_degrees": 20, "brightness": 0.3}},
        trainer={"iterations_max": 12, "batch_size": 8},
    )
    whole = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert whole.ended.outcome is Ending.COMPLETED, whole.ended.message
    (head,) = heads_made
    assert head.begun == 1
    assert set(head.seen) == {(16, 8)}
    assert head.apart > 0  # the two pictures are not one
    assert list(whole.series("alone/train/apart_loss")) == list(range(1, 13))
    assert list(whole.series("side/valid/accuracy")) == [12]
    folder = whole.checkpoint_folder / "12"
    again = workshop.run(workshop.write_attempt(training, spec, validation=training, resume_folder=str(folder)))
    assert again.ended.outcome is Ending.COMPLETED
    assert heads_made[-1].begun == 0  # only a fresh start initialises
