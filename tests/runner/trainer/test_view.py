"""Where an image lies on the canvas: there and back, and alike for pixels, points, boxes and maps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations

from runner.trainer.augmentation import Changes, augment, change_of
from runner.trainer.image import Canvas, letterbox, view_of
from runner.trainer.view import View, flip_horizontally, inverted, product, shift, turn_and_zoom

GEOMETRY = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 180,
    "translation": 0.2,
    "zoom": 0.5,
    "crop": 0.6,
}


def random_view(seed: int) -> View:
    random = np.random.default_rng(seed)
    width, height, canvas_width, canvas_height = random.integers(20, 2_000, 4).tolist()
    canvas = Canvas(height=canvas_height, width=canvas_width, centered=bool(seed % 2), fill=0.0, enlarge=True)
    return view_of(width, height, canvas).then(change_of(Augmentations(**GEOMETRY), canvas, seed).matrix)


def test_a_thousand_random_views_lead_back_to_where_they_began() -> None:
    for seed in range(1_000):
        view = random_view(seed)
        points = np.random.default_rng(seed).uniform((0, 0), (view.width, view.height), (20, 2))
        assert np.abs(view.inverse(view.points(points)) - points).max() < 1e-4


@pytest.mark.parametrize("kind", [*GEOMETRY, "all", "none"])
@pytest.mark.parametrize(("width", "height"), [(200, 90), (70, 160), (64, 64)])
def test_a_dot_is_found_where_its_view_says(kind: str, width: int, height: int) -> None:
    canvas = Canvas(height=96, width=128, centered=True, fill=0.0, enlarge=True)
    some = GEOMETRY if kind == "all" else {name: value for name, value in GEOMETRY.items() if name == kind}
    looked_at = 0
    for seed in range(12):
        x, y = np.random.default_rng(seed).integers((8, 8), (width - 8, height - 8)).tolist()
        image = Image.new("RGB", (width, height))
        image.paste((255, 255, 255), (x - 3, y - 3, x + 4, y + 4))
        change = change_of(Augmentations(**some), canvas, seed)
        view = view_of(width, height, canvas).then(change.matrix)
        wanted = view.points([(x + 0.5, y + 0.5)])[0]
        if not (6 < wanted[0] < canvas.width - 6 and 6 < wanted[1] < canvas.height - 6):
            continue  # moved out of the picture
        pictures = letterbox(image, canvas)[None].float() / 255
        changes = Changes.of([change])
        picture = (pictures if changes is None else augment(pictures, changes, 0.0))[0, 0].double()
        columns, rows = (torch.arange(size).double() + 0.5 for size in (canvas.width, canvas.height))
        found = (picture.sum(dim=0) @ columns / picture.sum(), picture.sum(dim=1) @ rows / picture.sum())
        assert np.abs(np.array([float(each) for each in found]) - wanted).max() < 0.5
        looked_at += 1
    assert looked_at >= 5


def test_a_map_and_a_box_go_with_their_image() -> None:
    for seed in range(30):
        view = random_view(seed)
        view = replace(view, canvas_width=300, canvas_height=200)
        random = np.random.default_rng(seed)
        left, right = np.sort(random.uniform(0, view.width, 2))
        top, bottom = np.sort(random.uniform(0, view.height, 2))
        y, x = np.mgrid[0 : view.height, 0 : view.width] + 0.5
        values = ((x > left) & (x < right) & (y > top) & (y < bottom)).astype(np.uint8) + 1
        placed = view.map(values, 0)
        assert placed.shape == (200, 300)
        rows, columns = np.nonzero(placed == 2)
        if len(rows):
            box = view.boxes([(left, top, right, bottom)])[0]
            pixel = 1 + view.scale
            assert (np.array([columns.min(), rows.min()]) + 0.5 > box[:2] - pixel).all()
            assert (np.array([columns.max(), rows.max()]) + 0.5 < box[2:] + pixel).all()
        centres = view.inverse([(0.5, 0.5), (299.5, 199.5)])
        for (x_image, y_image), found in zip(centres, (placed[0, 0], placed[-1, -1]), strict=True):
            inside = 0 < x_image < view.width and 0 < y_image < view.height
            assert (found > 0) == inside


def test_a_smaller_map_covers_its_image_all_the_same() -> None:
    canvas = Canvas(height=64, width=64, centered=True, fill=0.0, enlarge=True)
    view = view_of(128, 64, canvas)
    small = np.repeat(np.arange(1, 9, dtype=np.uint8)[None], 4, axis=0)
    large = small.repeat(16, axis=0).repeat(16, axis=1)
    placed = view.map(small, 0)
    assert np.array_equal(placed, view.map(large, 0))
    assert (placed[:16] == 0).all()
    assert (placed[48:] == 0).all()
    assert np.array_equal(view.map_back(placed), large)
    assert np.array_equal(view.map_back(placed, 8, 4), small)


def test_changes_multiply_in_the_order_in_which_they_happen() -> None:
    matrix = product(turn_and_zoom(90, 2, 10, 5), product(flip_horizontally(20), shift(1, 0)))
    view = View(width=20, height=10, canvas_width=20, canvas_height=10, matrix=matrix)
    # (9, 5) is moved to (10, 5), flipped to (10, 5), which is the point of the turn; (10, 5) comes to lie left of it.
    assert np.allclose(view.points([(9, 5), (10, 5)]), [(10, 5), (10, 3)])
    assert np.allclose(product(matrix, inverted(matrix)), (1, 0, 0, 0, 1, 0))
    assert view.scale == pytest.approx(2)
