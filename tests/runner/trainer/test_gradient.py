"""What a step learns from: parts of a batch, categories in balance, an average of weights, images that must be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sihlai.conversion.v1 import task_pb2

from runner.report import Outcome as Ending
from runner.trainer.attempt_file import DatasetFolders
from runner.trainer.average import WeightAverage
from runner.trainer.checkpoint import read_weights
from runner.trainer.collation import Collation
from runner.trainer.dataset import Example, read_dataset
from runner.trainer.gradient import add_gradient
from runner.trainer.image import canvas_from_data
from runner.trainer.model import Model, build_model
from runner.trainer.order import Order, groups_of
from runner.trainer.store import ImageStore
from services.split.choice import HeadAnnotations
from tests.runner.trainer.conftest import Workshop, spec_from
from tests.runner.trainer.task_rows import ROWS, write_head, write_images

CPU = torch.device("cpu")
MEAN_ROWS = [row for row in ROWS if row.task != task_pb2.TASK_VIEW_INVARIANCE_LEARNING]
"""Of view-invariance learning no image has a loss of its own."""


def gradient(model: Model, collation: Collation, micro_batches: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Of the first eight images in so many parts: losses by series, gradients by weight."""
    assembly = collation.assembly(range(8), None, micro_batches)
    for part in assembly.parts():
        part()
    model.zero_grad()
    found = add_gradient(model, assembly.finish(), CPU, torch.autocast("cpu", enabled=False))
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: float(value) for name, value in found.items()}, gradients


def test_the_gradient_of_a_batch_in_parts_is_that_of_the_whole_with_every_head(tmp_path: Path) -> None:
    write_images(tmp_path / "images", MEAN_ROWS)
    heads = []
    for index, row in enumerate(MEAN_ROWS):
        write_head(tmp_path / f"head-{index}", row, [number for number in range(8) if (number + index) % 3])
        heads.append(row.head_json(f"head-{index}"))
    spec = spec_from(model={"heads": heads}, data={"height": 32, "width": 48})
    folders = DatasetFolders(
        images=tmp_path / "images", heads={head["id"]: tmp_path / str(head["id"]) for head in heads}
    )
    dataset = read_dataset(folders, spec.model.heads)
    store = ImageStore(dataset.image_folder, [each.name for each in dataset.examples], canvas_from_data(spec.data), 0)
    collation = Collation(dataset.examples, list(spec.model.heads), store)
    torch.manual_seed(0)
    model = build_model(spec.model, dataset.vocabularies)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    losses, whole = gradient(model, collation, 1)
    for parts in (2, 3, 8):
        again, divided = gradient(model, collation, parts)
        assert again == pytest.approx(losses, rel=1e-5, abs=1e-6)
        assert divided.keys() == whole.keys()
        off = torch.nn.utils.get_total_norm([divided[name] - wanted for name, wanted in whole.items()])
        # Convolutions of a single image are computed in another order.
        assert off <= (5e-6 if parts == 8 else 1e-6) * torch.nn.utils.get_total_norm(list(whole.values())), parts


def test_the_average_follows_closely_at_first_and_is_what_is_kept(workshop: Workshop, halves: dict[str, str]) -> None:
    model = torch.nn.BatchNorm1d(3)
    average = WeightAverage(model, 0.5)  # type: ignore[arg-type]
    with torch.no_grad():
        model.weight.fill_(3)
        model.num_batches_tracked.fill_(7)
    average.update(1)  # (1 + 1) / (10 + 1) is less than the decay
    torch.testing.assert_close(average.model.weight, torch.full((3,), 1 + 2 * (1 - 2 / 11)))
    assert int(average.model.num_batches_tracked) == 7  # type: ignore[arg-type]
    before = average.model.weight.clone()  # type: ignore[operator, union-attr]
    average.update(1_000)
    torch.testing.assert_close(average.model.weight, (before + 3) / 2)

    training = workshop.write_dataset({"side": halves})
    kept = {}
    for decay in (0.0, 0.99):
        spec = spec_from(trainer={"iterations_max": 10, "ema_decay": decay})
        outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
        assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
        folder = outcome.checkpoint_folder / "10"
        state = torch.load(folder / "state.pt", weights_only=True)
        kept[decay] = (read_weights(folder), state.get("weights"), outcome.series("train/loss"))
    assert kept[0.0][1] is None
    assert kept[0.0][2] == kept[0.99][2]  # the average changes nothing in what learns
    learned = kept[0.0][0]
    assert all(torch.equal(tensor, kept[0.99][1][name]) for name, tensor in learned.items())
    assert not all(torch.equal(tensor, kept[0.99][0][name]) for name, tensor in learned.items())


def test_a_job_may_go_on_with_or_without_an_average_and_the_log_says_so(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    training = workshop.write_dataset({"side": halves})
    folders = {}
    for decay in (0.0, 0.9):
        spec = spec_from(trainer={"iterations_max": 4, "ema_decay": decay})
        folders[decay] = workshop.run(workshop.write_attempt(training, spec)).checkpoint_folder / "4"
    for before, after, said in ((0.0, 0.9, "the average begins with the weights"), (0.9, 0.0, "is given up")):
        spec = spec_from(trainer={"iterations_max": 6, "ema_decay": after})
        outcome = workshop.run(workshop.write_attempt(training, spec, resume_folder=str(folders[before])))
        assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
        assert said in outcome.lines


def test_in_balance_each_category_is_seen_as_often_as_any_other_and_each_image_of_it_too() -> None:
    categories = {f"{number:02}.png": "rare" if number < 2 else "common" for number in range(20)}
    examples = [Example(name=name, targets=(category,)) for name, category in categories.items()]
    examples.append(Example(name="unlabelled.png", targets=(None,)))
    annotations = [HeadAnnotations(task="multiclass classification", annotations=categories)]
    groups = groups_of(examples, annotations)
    assert sorted(map(len, groups)) == [1, 2, 18]
    order = Order(examples, 1, 6, seed=1, groups=groups)
    seen = Counter(at for iteration in range(18) for at in order.positions(iteration))
    assert seen == {**dict.fromkeys((0, 1), 18), **dict.fromkeys(range(2, 20), 2), 20: 36}
    later = Order(examples, 1, 6, seed=1, groups=groups, first_iteration=7, first_place=42)
    assert later.positions(9) == order.positions(9)


def test_an_image_that_cannot_be_read_ends_a_strict_job_with_its_name(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    training = workshop.write_dataset({"side": halves})
    (Path(training["images"]) / "007.png").write_text("torn")
    spec = spec_from(trainer={"iterations_max": 40}, data={"bad_data": "BAD_DATA_FAIL"})
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.FAILED
    assert outcome.ended.reason == "DATASET_ERROR"
    assert "007.png" in outcome.ended.message
    assert "data.bad_data is BAD_DATA_FAIL" in outcome.ended.message
