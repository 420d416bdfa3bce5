"""Points that say objects: which of them learn what, and what is told of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from runner.tasks.anchor_free import AnchorFree, Dense, within
from runner.tasks.assignment import (
    PAIRS_MAX,
    Grid,
    _pair_counts,
    agreement_loss,
    assign,
    overlaps,
    pairs_inside,
    points_in_regions,
    points_of,
)
from runner.tasks.objects import PlacedObjects, on_canvas, stacked
from runner.trainer.image import Canvas, view_of
from runner.trainer.view import View, shift, turn_and_zoom

GRIDS = [Grid(0, 4, 6, 16), Grid(24, 8, 12, 8)]
"""Of a canvas of 64 x 96."""
POINTS = 24 + 96


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 58.0])
    return torch.cat([low, low + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def inside_of(boxes: torch.Tensor, *, grown: bool) -> torch.Tensor:
    """Which points lie in which boxes, boxes x points."""
    places, strides = points_of(GRIDS, torch.device("cpu"))
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    halves = torch.maximum(half[:, None], strides[None, :, None] / 2) if grown else half[:, None]
    shift_to = places[None] - center[:, None]
    return ((shift_to >= -halves) & (shift_to < halves)).all(dim=2)


def test_pairs_are_those_of_which_the_point_lies_in_the_box() -> None:
    boxes = random_boxes(40)
    inside = inside_of(boxes, grown=True)
    sizes = _pair_counts(boxes.numpy(), GRIDS).sum(axis=0).tolist()
    points, owners, counts = pairs_inside(boxes, sizes, GRIDS)
    assert counts.tolist() == inside.sum(dim=1).tolist()
    assert {(o, p) for o, p in zip(owners.tolist(), points.tolist(), strict=True)} == {
        (o, p) for o, p in torch.nonzero(inside).tolist()
    }


def test_points_in_regions_are_those_of_each_image() -> None:
    regions, counts = random_boxes(40), torch.tensor([25, 0, 15])
    found = points_in_regions(regions, counts, GRIDS, 3)
    inside = inside_of(regions, grown=False)
    assert torch.equal(found[0], inside[:25].any(dim=0))
    assert not found[1].any()
    assert torch.equal(found[2], inside[25:].any(dim=0))


def assigned(boxes: torch.Tensor, predicted: torch.Tensor, logits: torch.Tensor) -> dict[int, int]:
    """Objects by point."""
    categories = torch.zeros(len(boxes), dtype=torch.long)
    images = torch.zeros(len(boxes), dtype=torch.long)
    found = assign(
        GRIDS,
        logits=logits,
        predicted=predicted,
        boxes=boxes,
        categories=categories,
        images=images,
        on_host=boxes.numpy(),
    )
    assert (found.agreement >= 0).all()
    assert (found.agreement <= 1).all()
    assert not found.agreement[~found.there].any()
    rows, ranks = torch.nonzero(found.there, as_tuple=True)
    points = found.points[rows, ranks].tolist()
    assert len(set(points)) == len(points), "a point learns two objects"
    return dict(zip(points, rows.tolist(), strict=True))


def test_an_object_is_learned_by_the_ten_points_in_it_that_agree_best() -> None:
    box = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    predicted = box.repeat(POINTS, 1)
    predicted[:, 2] *= torch.linspace(0.2, 1, POINTS)  # each a little better than the one before
    assert set(assigned(box, predicted, torch.zeros(POINTS, 1))) == set(range(POINTS - 10, POINTS))


def test_an_object_smaller_than_a_stride_has_a_point() -> None:
    for place in torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([94.0, 62.0]):
        box = torch.cat([place, place + 1])[None]
        found = assigned(box, torch.zeros(POINTS, 4), torch.zeros(POINTS, 1))
        assert set(found.values()) == {0}


def test_where_nothing_agrees_the_nearest_points_learn() -> None:
    box = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    far = torch.tensor([200.0, 200.0, 210.0, 210.0]).repeat(POINTS, 1)
    found = assigned(box, far, torch.zeros(POINTS, 1))
    places, _ = points_of(GRIDS, torch.device("cpu"))
    nearest = (places - torch.tensor([48.0, 32.0])).square().sum(dim=1)
    assert max(nearest[list(found)]) <= nearest.sort().values[9]


def test_a_point_learns_one_object_the_one_that_it_overlaps_most() -> None:
    boxes = torch.tensor([[2.0, 2.0, 38.0, 38.0], [0.0, 0.0, 40.0, 40.0]])
    found = assigned(boxes, boxes[1].repeat(POINTS, 1), torch.zeros(POINTS, 1))
    assert set(found.values()) == {1}


def test_images_of_a_batch_do_not_meet() -> None:
    boxes = random_boxes(6, seed=3)
    categories, images = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1, 2])
    logits, predicted = torch.randn(3, POINTS, 2), random_boxes(3 * POINTS, seed=4).view(3, POINTS, 4)
    all_at_once = assign(
        GRIDS,
        logits=logits.flatten(0, 1),
        predicted=predicted.flatten(0, 1),
        boxes=boxes,
        categories=categories,
        images=images,
        on_host=boxes.numpy(),
    )
    for image in range(3):
        mine = torch.nonzero(images == image).flatten()
        alone = assign(
            GRIDS,
            logits=logits[image],
            predicted=predicted[image],
            boxes=boxes[mine],
            categories=categories[mine],
            images=torch.zeros_like(mine),
            on_host=boxes[mine].numpy(),
        )
        assert all_at_once.there[mine].tolist() == alone.there.tolist()
        points = all_at_once.points[mine][alone.there]
        assert (points // POINTS == image).all()
        assert (points % POINTS).tolist() == alone.points[alone.there].tolist()
        torch.testing.assert_close(all_at_once.agreement[mine], alone.agreement)


def test_a_batch_without_an_object_has_no_point_that_learns_one() -> None:
    assert assigned(torch.zeros(0, 4), torch.zeros(POINTS, 4), torch.zeros(POINTS, 1)) == {}


def test_many_objects_are_assigned_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, predicted, logits = random_boxes(60), random_boxes(POINTS, seed=5), torch.randn(POINTS, 1)
    whole = assigned(boxes, predicted, logits)
    monkeypatch.setattr("runner.tasks.assignment.PAIRS_MAX", 50)
    assert PAIRS_MAX > 50
    assert assigned(boxes, predicted, logits) == whole


def test_boxes_that_agree_lose_nothing_and_gradients_are_finite_everywhere() -> None:
    boxes = random_boxes(30)
    assert agreement_loss(boxes, boxes).abs().max() < 1e-5
    strange = torch.tensor([[5.0, 5, 5, 5], [0, 0, 1e4, 1e-4], [90, 90, 91, 91]]).requires_grad_()
    agreement_loss(strange, torch.tensor([[5.0, 5, 6, 6], [0, 0, 1, 1], [0, 0, 1, 1]])).sum().backward()
    assert strange.grad is not None
    assert strange.grad.isfinite().all()
    assert overlaps(boxes, boxes + 1000).max() == 0


def placed(boxes: Any, ignored: bool = False, category: int = 0) -> PlacedObjects:
    found = np.asarray(boxes, np.float32).reshape(-1, 4)
    return PlacedObjects(
        boxes=found,
        categories=np.full(len(found), category, np.int64),
        ignored=np.full(len(found), ignored, np.bool_),
    )


@pytest.fixture
def layers() -> AnchorFree:
    torch.manual_seed(0)
    return AnchorFree({3: 8, 4: 8}, level_min=3, channels=8, categories=2)


def features(images: int, height: int = 64, width: int = 96) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        level: torch.rand(images, 8, height >> level, width >> level, generator=generator, requires_grad=True)
        for level in (3, 4)
    }


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong(layers: AnchorFree) -> None:
    def gradients(one: PlacedObjects) -> torch.Tensor:
        dense = layers.dense(layers(features(1)))
        dense.logits.retain_grad()
        losses, _ = layers.losses(dense, stacked([one]))
        sum(losses.values()).backward()  # type: ignore[union-attr]
        assert dense.logits.grad is not None
        return dense.logits.grad[0]

    crowd = placed([0, 0, 48, 64], ignored=True)
    places, _ = points_of(GRIDS, torch.device("cpu"))
    inside = places[:, 0] < 48
    ignored = gradients(crowd)
    assert not ignored[inside].any()
    assert ignored[~inside].all()
    assert gradients(placed([])).all()


def test_an_image_weighs_the_same_beside_any_other(layers: AnchorFree) -> None:
    crowded, lonely = placed(random_boxes(50).numpy()), placed([10, 10, 30, 30])
    both = features(2)

    def loss(images: slice, *objects: PlacedObjects) -> float:
        dense = layers.dense(layers({level: found[images] for level, found in both.items()}))
        return float(sum(value.detach() for value in layers.losses(dense, stacked(objects))[0].values()))

    apart = loss(slice(0, 1), crowded) + loss(slice(1, 2), lonely)
    assert loss(slice(0, 2), crowded, lonely) == pytest.approx(apart / 2, rel=1e-4)


def test_doubles_of_one_category_are_left_out_and_the_likeliest_stays(layers: AnchorFree) -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [0, 0, 20, 20], [50, 10, 70, 30]])
    logits = torch.tensor([[2.0, -9], [3, -9], [-9, 1], [0, -9]])
    dense = Dense(grids=GRIDS, logits=logits[None], boxes=boxes[None], extras=boxes[None, :, :0])
    kept = layers.kept(dense, instances_max=6)
    assert kept.points[0, :3].tolist() == [1, 2, 3]
    assert kept.categories[0, :3].tolist() == [0, 1, 0]
    assert (kept.scores[0] > 0).tolist() == [True] * 3 + [False] * 3
    assert layers.kept(dense, instances_max=2).points.tolist() == [[1, 2]]


def test_places_in_a_box_are_shares_of_it() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60]])
    corners = within(boxes, torch.tensor([[[-0.5, -0.5], [0.5, 0.5], [0.0, 0.0]]]))
    assert corners.tolist() == [[[10, 20], [30, 60], [20, 40]]]


def test_an_object_that_is_pushed_out_is_ignored_before_it_is_gone() -> None:
    view = view_of(100, 100, Canvas(height=100, width=100, centered=True, fill=0.0, enlarge=True))
    box = np.array([[0.0, 0.0, 50.0, 50.0]])

    def seen(moved: View) -> tuple[bool, bool]:
        _, ignored, there = on_canvas(moved.boxes(box), np.array([False]), moved)
        return bool(ignored[0]), bool(there[0])

    assert seen(view.then(shift(-35, 0))) == (False, True)
    assert seen(view.then(shift(-45, 0))) == (True, True)
    assert seen(view.then(shift(-55, 0)))[1] is False
    assert seen(view.then(turn_and_zoom(45, 1, 50, 50)))[1] is True


def test_five_thousand_boxes_of_one_image_are_learned_from() -> None:
    torch.manual_seed(0)
    layers = AnchorFree({3: 8, 4: 8, 5: 8}, level_min=3, channels=8, categories=2)
    generator = torch.Generator().manual_seed(0)
    found = {level: torch.rand(1, 8, 640 >> level, 640 >> level, generator=generator) for level in (3, 4, 5)}
    random = np.random.default_rng(0)
    low = random.uniform(0, 600, (5_000, 2))
    boxes = np.concatenate([low, low + random.uniform(2, 300, (5_000, 2))], axis=1)
    outputs = layers(found)
    losses, _ = layers.losses(layers.dense(outputs), stacked([placed(boxes.clip(max=640))]))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(value.isfinite() for value in losses.values())
