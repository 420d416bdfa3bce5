"""Pictures of predictions of a photo that is not square and was turned by its EXIF data: what is drawn lies where the
JSON says, in the pixels of the photo as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runner.tasks import TASKS
from runner.tasks.drawing import MAP_SHARE, distinct_colors
from runner.tasks.task import Prediction
from runner.trainer.image import read_on_canvas
from services.chassis.image import read_image
from tests.runner.trainer.drawn_annotations import COLORS, HEIGHT, SHADES, WIDTH, picture_of
from tests.runner.trainer.ideal_outputs import CANVAS
from tests.runner.trainer.task_rows import ROWS, Row, written
from tests.runner.trainer.test_tasks import every_task, model_of

SIDEWAYS = 6
"""The EXIF orientation of a photo that must be turned clockwise."""
OFF_MAX = 2
"""Pixels of the drawing, whose lines are two pixels wide."""


def drawing_of(row: Row, folder: Path) -> tuple[Prediction, NDArray[np.int16], NDArray[np.int16], int]:
    """Of the first annotation, which has one object: the prediction, its drawing, the photo as large, their scale."""
    exif = Image.Exif()
    exif[274] = SIDEWAYS
    path = folder / "photo.png"
    picture_of(0).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    _, view = read_on_canvas(path, CANVAS)
    assert (view.width, view.height) == (WIDTH, HEIGHT)
    task = TASKS[row.task]
    read = task.reader(task.vocabulary(row.metadata), folder)
    targets = [read(written(each, folder, f"map-{number}")) for number, each in enumerate(row.annotations)]
    placed = [task.place(target, view) for target in targets]
    _, head = model_of(row)
    outputs = row.ideal(task, task.batch([each for each in placed if each is not None]))
    found = head.predictions(head.decode(outputs), [view] * len(targets))
    shown = read_image(path)
    assert shown.size == (WIDTH, HEIGHT)
    drawn = found[0].draw(shown)
    factor = -(-256 // WIDTH)
    photo = shown.resize((WIDTH * factor, HEIGHT * factor), Image.Resampling.NEAREST)
    return found[0], np.asarray(drawn, np.int16), np.asarray(photo, np.int16), factor


def colored(drawn: NDArray[np.int16], color: Sequence[int]) -> NDArray[np.bool_]:
    return np.asarray((drawn == np.array(color)).all(axis=2))


def assert_box_drawn(drawn: NDArray[np.int16], color: Sequence[int], bbox: Sequence[float], factor: int) -> None:
    """That the outermost lines of the colour lie on the box's edges; beside the plate of words over its top."""
    left, top, right, bottom = (edge * factor for edge in bbox)
    body = colored(drawn, color)[: HEIGHT * factor]
    sides = np.flatnonzero(body[round(top) + 6 : round(bottom) - 6].any(axis=0))
    assert abs(sides[0] - left) <= OFF_MAX
    assert abs(sides[-1] - right) <= OFF_MAX
    rows = np.flatnonzero(body[:, round(left) + 6 : round(right) - 6].any(axis=1))
    assert abs(rows[-1] - bottom) <= OFF_MAX
    assert np.abs(rows - top).min() <= OFF_MAX


def assert_dot_drawn(drawn: NDArray[np.int16], color: Sequence[int], place: Sequence[float], factor: int) -> None:
    x, y = (round(each * factor) for each in place)
    assert colored(drawn[y - OFF_MAX : y + OFF_MAX + 1, x - OFF_MAX : x + OFF_MAX + 1], color).any()


def beneath(drawn: NDArray[np.int16], photo: NDArray[np.int16]) -> NDArray[np.float64]:
    """The colours of a map that lies over the photo."""
    found = (drawn[: photo.shape[0], : photo.shape[1]] - (1 - MAP_SHARE) * photo) / MAP_SHARE
    return np.asarray(found, np.float64)


def hue_agreement(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosines of the angles between colours."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-9), np.float64)


def as_large(image: Image.Image, factor: int) -> NDArray[np.float64]:
    return np.asarray(image.resize((WIDTH * factor, HEIGHT * factor), Image.Resampling.NEAREST), np.float64)


@every_task
def test_what_is_drawn_lies_where_the_json_says(row: Row, tmp_path: Path) -> None:
    prediction, drawn, photo, factor = drawing_of(row, tmp_path)
    said: dict[str, Any] = prediction.to_json()
    truth = row.annotations[0]
    height, width = photo.shape[:2]
    match row.name:
        case "object detection" | "instance segmentation" | "keypoint detection":
            (found,) = said["objects"]
            color = SHADES["cup"] if row.name == "instance segmentation" else distinct_colors(2)[0]
            assert_box_drawn(drawn, color, found["bbox"], factor)
            if row.name == "keypoint detection":
                for name in ("top", "left", "right"):
                    assert found[name] == pytest.approx(truth[0][name], abs=0.1)
                    assert_dot_drawn(drawn, color, found[name], factor)
            if row.name == "instance segmentation":
                mask = as_large(truth.pages[0], factor).any(axis=2)
                changed = np.abs(drawn[:height, :width] - photo).max(axis=2) > 0
                assert (changed & mask)[6:-6].sum() >= 0.9 * mask.sum()
        case "quadrilateral detection":
            (found,) = said["objects"]
            for wanted, corner in zip(truth[0]["quad"], found["quad"], strict=True):
                assert corner == pytest.approx(wanted, abs=0.1)
                assert_dot_drawn(drawn, distinct_colors(2)[0], corner, factor)
        case "semantic segmentation" | "panoptic segmentation":
            wanted = as_large(truth if row.name.startswith("semantic") else truth.pages[0], factor)
            known = wanted.any(axis=2)
            right = hue_agreement(beneath(drawn, photo)[known], wanted[known]) > 0.97  # segments have shades
            assert right.mean() >= 0.85, "but for a pixel beside each border, where the canvas has another grid"
            shares = {name: (wanted == np.array(color)).all(axis=2).mean() for name, color in COLORS.items()}
            if row.name.startswith("semantic"):
                assert all(said["shares"][name] == pytest.approx(share, abs=0.05) for name, share in shares.items())
        case "depth estimation":
            brightness, depth = beneath(drawn, photo).sum(axis=2), as_large(truth, factor)
            known = depth > 0
            assert np.corrcoef(brightness[known], depth[known])[0, 1] > 0.9
            assert (said["width"], said["height"]) == (WIDTH, HEIGHT)
        case "anomaly detection":
            assert np.ptp(beneath(drawn, photo).reshape(-1, 3), axis=0).max() <= 4, "nothing is strange anywhere"
            assert (said["width"], said["height"]) == (WIDTH, HEIGHT)
        case "autoencoding":
            half = -(-256 // (2 * WIDTH))
            small = np.asarray(
                Image.fromarray(photo.astype(np.uint8)).resize((WIDTH * half, HEIGHT * half), Image.Resampling.NEAREST)
            )
            assert np.array_equal(drawn[: HEIGHT * half, : WIDTH * half], small)
            assert (said["width"], said["height"]) == (WIDTH, HEIGHT)
        case _:  # words below the photo, as it is shown
            assert np.array_equal(drawn[:height, :width], photo)


def test_every_task_is_drawn_here() -> None:
    assert {row.task for row in ROWS} == set(TASKS)
