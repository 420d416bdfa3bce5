"""Random changes: drawn from a seed alone, and done to pixels as they are called."""

import pytest
import torch
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations
from torchvision.transforms.v2 import functional as reference

from runner.trainer.augmentation import BLURRED_ROWS, Change, Changes, augment, change_of
from runner.trainer.image import Canvas

CANVAS = Canvas(height=24, width=32, centered=True, fill=0.0, enlarge=True)
EVERYTHING = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 30,
    "translation": 0.2,
    "zoom": 0.3,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.3,
    "gray": 0.5,
    "blur": 0.05,
    "crop": 0.5,
}


def pictures(count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def changed(images: torch.Tensor, *changes: Change, fill: float = 0.0) -> torch.Tensor:
    found = Changes.of(changes)
    return images if found is None else augment(images, found, fill)


def test_every_augmentation_of_the_specification_is_tried_here() -> None:
    assert {field.name for field in Augmentations.DESCRIPTOR.fields} == set(EVERYTHING)


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_augmentation_changes_some_images_and_its_seed_alone_decides_how(name: str) -> None:
    augmentations = Augmentations(**{name: EVERYTHING[name]})
    before = torch.get_rng_state()
    drawn = [change_of(augmentations, CANVAS, seed) for seed in range(10)]
    assert drawn == [change_of(augmentations, CANVAS, seed) for seed in range(10)]
    assert torch.equal(before, torch.get_rng_state())
    images = pictures()
    found = [changed(images, change) for change in drawn]
    assert any(not torch.equal(each, images) for each in found)
    assert all(each.shape == images.shape and each.isfinite().all() for each in found)
    assert all(each.min() >= -1e-6 and each.max() <= 1 + 1e-6 for each in found)


def test_one_more_augmentation_leaves_the_draws_of_the_others() -> None:
    for seed in range(5):
        alone = change_of(Augmentations(rotation_degrees=30), CANVAS, seed)
        with_more = change_of(Augmentations(rotation_degrees=30, brightness=0.4, blur=0.05), CANVAS, seed)
        assert alone.matrix == with_more.matrix


def test_pictures_of_a_batch_are_changed_each_in_its_own_way() -> None:
    augmentations = Augmentations(**EVERYTHING)
    changes = [change_of(augmentations, CANVAS, seed) for seed in range(6)]
    images = pictures(6)
    together = changed(images, *changes)
    for index, change in enumerate(changes):
        alone = changed(images[index : index + 1], change)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
    ],
)
def test_colours_are_changed_as_by_the_reference(name: str, function: object) -> None:
    images = pictures() * 0.4 + 0.3  # nothing is clipped on the way
    for seed in range(5):
        draw = torch.rand(15, generator=torch.Generator().manual_seed(seed)).tolist()
        place = {"brightness": 6, "contrast": 7, "saturation": 8}[name]
        found = changed(images, change_of(Augmentations(**{name: 0.4}), CANVAS, seed))
        wanted = function(images, 1 + (2 * draw[place] - 1) * 0.4)  # type: ignore[operator]
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_a_hue_turned_all_around_is_the_same_and_gray_stays_gray() -> None:
    images = pictures() * 0.4 + 0.3
    gray = images.mean(dim=1, keepdim=True).expand_as(images)
    for seed in range(5):
        change = change_of(Augmentations(hue=0.5, saturation=0.5), CANVAS, seed)
        torch.testing.assert_close(changed(gray, change), gray, atol=1e-3, rtol=0)
    colorless = changed(images, change_of(Augmentations(gray=1.0), CANVAS, 0))
    assert (colorless.amax(dim=1) - colorless.amin(dim=1)).max() < 1e-5


@pytest.mark.parametrize("rows", [24, 2 * BLURRED_ROWS, 2 * BLURRED_ROWS + 1])
def test_a_blur_is_that_of_the_reference(rows: int) -> None:
    images = torch.rand(1, 3, rows, 32, generator=torch.Generator().manual_seed(0))
    found = changed(images, Change(blur=1.2))
    wanted = reference.gaussian_blur(images, [7, 7], [1.2, 1.2])
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_what_is_moved_in_has_the_fill() -> None:
    images = torch.ones(1, 3, 24, 32)
    found = [
        changed(images, change_of(Augmentations(rotation_degrees=90), CANVAS, seed), fill=0.25)[0, :, 0, 0]
        for seed in range(8)
    ]
    assert any(torch.allclose(each, torch.full((3,), 0.25)) for each in found)


def test_a_crop_keeps_its_share_of_the_area() -> None:
    for seed in range(20):
        a, _, c, _, e, f = change_of(Augmentations(crop=0.75), CANVAS, seed).matrix
        assert 1 <= a == e <= 2
        assert -(a - 1) * CANVAS.width <= c <= 0
        assert -(e - 1) * CANVAS.height <= f <= 0
