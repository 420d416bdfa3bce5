"""Which images a step sees, and that nothing but the dataset, the seed and the iteration decides it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from sihlai.conversion.v1.task_pb2 import TASK_MULTICLASS_CLASSIFICATION
from sihlai.scheduler.v1.job_spec_pb2 import Head, JobSpec

from runner.trainer.augmentation import augment
from runner.trainer.data import Batch, Collation, ImageStore, Order, training_loader, validation_loader
from runner.trainer.dataset import Example
from runner.trainer.image import canvas_from_data
from tests.runner.trainer.conftest import Workshop, picture, spec_from

HEADS = [Head(id="side", task=TASK_MULTICLASS_CLASSIFICATION)]
EVERYTHING = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 30,
    "translation": 0.2,
    "zoom": 0.3,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
}


def examples(count: int) -> list[Example]:
    return [Example(name=f"{index}.png", targets=(index % 4,)) for index in range(count)]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for index in range(12):
        picture(("left", "top")[index % 2], index).save(tmp_path / f"{index}.png")
    return tmp_path


def batches(folder: Path, spec: JobSpec, *, threads: int, cache_bytes_max: int = 2**20) -> list[Batch]:
    canvas = canvas_from_data(spec.data)
    store = ImageStore(folder, [example.name for example in examples(12)], canvas, cache_bytes_max)
    order = Order(examples(12), 1, spec.trainer.batch_size, spec.trainer.seed)
    collation = Collation(examples(12), HEADS, store, canvas)
    with training_loader(collation, order, spec=spec, iterations=range(3, 9), threads=threads) as loader:
        return list(loader)


@pytest.mark.parametrize("augmentations", [{}, EVERYTHING])
def test_threads_and_cache_do_not_change_a_batch(image_folder: Path, augmentations: dict[str, float]) -> None:
    spec = spec_from(data={"augmentations": augmentations}, trainer={"batch_size": 5})
    wanted = batches(image_folder, spec, threads=0)
    assert len(wanted) == 6
    for threads, cache_bytes_max in ((1, 2**20), (3, 2**20), (2, 0), (2, 4_000)):
        found = batches(image_folder, spec, threads=threads, cache_bytes_max=cache_bytes_max)
        for one, other in zip(wanted, found, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets[0].indices, other.targets[0].indices)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_augmentation_changes_some_images_and_its_seed_alone_decides_how(name: str) -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = spec_from(data={"augmentations": {name: EVERYTHING[name]}})
    before = torch.get_rng_state()
    found = [augment(image, spec.data.augmentations, fill_byte=0, seed=seed) for seed in range(10)]
    assert any(not torch.equal(each, image) for each in found)
    assert all(each.dtype == torch.uint8 and each.shape == image.shape for each in found)
    again = [augment(image, spec.data.augmentations, fill_byte=0, seed=seed) for seed in range(10)]
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_turned_image_shows_the_fill_at_its_corners() -> None:
    spec = spec_from(data={"augmentations": {"rotation_degrees": 90}})
    image = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    found = [augment(image, spec.data.augmentations, fill_byte=77, seed=seed)[:, 0, 0].tolist() for seed in range(8)]
    assert [77, 77, 77] in found


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


def test_an_image_that_cannot_be_read_is_left_out_with_its_target(image_folder: Path) -> None:
    (image_folder / "4.png").write_text("torn")
    canvas = canvas_from_data(spec_from().data)
    store = ImageStore(image_folder, [example.name for example in examples(12)], canvas, 2**20)
    with validation_loader(Collation(examples(12), HEADS, store, canvas), 12, batch_size=8, threads=2) as loader:
        first, second = list(loader)
    assert (len(first.images), len(second.images)) == (7, 4)
    assert first.targets[0].indices.tolist() == [0, 1, 2, 3, 1, 2, 3]  # type: ignore[union-attr]
    assert [each.name for each in first.unreadable] == ["4.png"]


def test_an_unexpected_error_in_a_thread_reaches_the_training(workshop: Workshop) -> None:
    canvas = canvas_from_data(spec_from().data)
    store = ImageStore(workshop.folder, [], canvas, 2**20)
    with (
        pytest.raises(IndexError),
        validation_loader(Collation([], HEADS, store, canvas), 3, batch_size=2, threads=1) as loader,
    ):
        next(loader)
