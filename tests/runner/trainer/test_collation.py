"""Which images a step sees, and that nothing but the dataset, the seed and the iteration decides it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from sihlai.conversion.v1.task_pb2 import TASK_MULTICLASS_CLASSIFICATION
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations, Head

from runner.trainer.batch import Batch
from runner.trainer.collation import Collation
from runner.trainer.dataset import Example
from runner.trainer.image import canvas_from_data
from runner.trainer.order import Order
from runner.trainer.store import ImageStore
from tests.runner.trainer.conftest import picture, spec_from

HEADS = [Head(id="side", task=TASK_MULTICLASS_CLASSIFICATION)]
CANVAS = canvas_from_data(spec_from().data)
CPU = torch.device("cpu")


def examples(count: int) -> list[Example]:
    return [Example(name=f"{index}.png", targets=(index % 4,)) for index in range(count)]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for index in range(12):
        picture(("left", "top")[index % 2], index).save(tmp_path / f"{index}.png")
    return tmp_path


def collation(folder: Path, count: int = 12, cache_bytes_max: int = 2**20) -> Collation:
    store = ImageStore(folder, [example.name for example in examples(count)], CANVAS, cache_bytes_max)
    return Collation(examples(count), HEADS, store)


def batches(folder: Path, augmentations: Augmentations, *, threads: int, cache_bytes_max: int = 2**20) -> list[Batch]:
    with collation(folder, cache_bytes_max=cache_bytes_max).training_loader(
        Order(examples(12), 1, 5, 0), augmentations=augmentations, seed=0, iterations=range(3, 9), threads=threads
    ) as loader:
        return list(loader)


def indices(batch: Batch) -> list[int]:
    (targets,) = batch.targets
    assert targets is not None
    found: list[int] = targets.values["index"].tolist()
    return found


@pytest.mark.parametrize("augmentations", [Augmentations(), Augmentations(rotation_degrees=30, blur=0.05, hue=0.2)])
def test_threads_and_cache_do_not_change_a_batch(image_folder: Path, augmentations: Augmentations) -> None:
    wanted = batches(image_folder, augmentations, threads=0)
    assert len(wanted) == 6
    for threads, cache_bytes_max in ((1, 2**20), (3, 2**20), (2, 0), (2, 4_000)):
        found = batches(image_folder, augmentations, threads=threads, cache_bytes_max=cache_bytes_max)
        for one, other in zip(wanted, found, strict=True):
            assert torch.equal(one.on_device(CPU), other.on_device(CPU))
            assert indices(one) == indices(other)
            assert one.views == other.views


def test_every_example_is_seen_once_before_any_is_seen_again() -> None:
    order = Order(examples(10), 1, 4, seed=3)
    seen = [at for iteration in range(5) for at in order.positions(iteration)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_the_order_is_a_function_of_seed_and_iteration() -> None:
    forwards, backwards = Order(examples(10), 1, 4, seed=3), Order(examples(10), 1, 4, seed=3)
    wanted = [forwards.positions(iteration) for iteration in range(8)]
    assert [backwards.positions(iteration) for iteration in reversed(range(8))] == wanted[::-1]
    assert Order(examples(10), 1, 4, seed=4).positions(0) != wanted[0]


def test_a_batch_may_be_larger_than_the_dataset() -> None:
    counts = Counter(Order(examples(3), 1, 8, seed=0).positions(0))
    assert sum(counts.values()) == 8
    assert set(counts.values()) == {2, 3}


def test_every_head_gets_an_annotated_image_in_every_batch() -> None:
    both = [Example(name=f"{index}.png", targets=(0, 0 if index == 7 else None)) for index in range(49)]
    rare = [*both, Example(name="other.png", targets=(None, 1))]
    order = Order(rare, 2, 4, seed=0)
    for iteration in range(50):
        positions = order.positions(iteration)
        assert len(positions) == 4
        for head in (0, 1):
            assert any(rare[at].targets[head] is not None for at in positions)


def test_another_batch_size_takes_the_places_that_follow() -> None:
    before, after = Order(examples(10), 1, 4, seed=3), Order(examples(10), 1, 2, 3, first_iteration=3, first_place=12)
    seen = [at for iteration in range(3) for at in before.positions(iteration)]
    seen += [at for iteration in range(3, 7) for at in after.positions(iteration)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert after.positions(3) == before.positions(3)[:2]


def test_an_image_that_cannot_be_read_keeps_its_slot_without_a_target(image_folder: Path) -> None:
    (image_folder / "4.png").write_text("torn")
    with collation(image_folder).validation_loader(batch_size=8, threads=2) as loader:
        first, second = list(loader)
    assert (len(first.pictures), len(second.pictures)) == (8, 4)
    assert first.targets[0] is not None
    assert first.targets[0].rows is not None
    assert first.targets[0].rows.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert indices(first) == [0, 1, 2, 3, 1, 2, 3]
    assert first.readable == (True, True, True, True, False, True, True, True)
    assert len(first.views) == 8
    assert not first.pictures[4].any()
    assert [each.name for each in first.unreadable] == ["4.png"]


def test_an_unexpected_error_in_a_thread_reaches_the_training(image_folder: Path) -> None:
    broken = collation(image_folder)
    broken.store = ImageStore(image_folder, [], CANVAS, 2**20)
    with pytest.raises(IndexError), broken.validation_loader(batch_size=2, threads=1) as loader:
        next(loader)
