"""The demo's chapter on three heads: its dataset is what it says, and its checks find what does not hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format
from PIL import Image
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli.demo import learning as demo_scenes
from services.cli.demo.audit import Audit
from services.cli.demo.learning import HEADS, WANTED
from services.cli.demo.scenes import COARSE, CROWD, EMPTY, IGNORED, THINGS, UNANNOTATED, write_scenes
from services.cli.machine.predictor import Prediction
from services.scheduler.specification import violations


@pytest.mark.parametrize("spec", [demo_scenes.SPEC, demo_scenes.ONE_HEAD])
def test_the_jobs_are_sound(spec: dict[str, object]) -> None:
    assert violations(json_format.ParseDict(spec, JobSpec())) == []


def test_boxes_are_those_of_digits_that_can_be_told_apart(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", count=30)
    for index in (*UNANNOTATED, *EMPTY[:2]):
        assert demo_scenes.true_boxes(scenes[index]) == []
    for index in (0, COARSE[0], CROWD, IGNORED):
        scene = scenes[index]
        digits = [segment for segment, _ in scene.seen if segment.category in THINGS]
        left_out = sum(segment.crowd or segment.ignore for segment in digits)
        boxes = demo_scenes.true_boxes(scene)
        assert len(boxes) == len(digits) - left_out
        assert all(right <= scene.width and bottom <= scene.height for _, _, right, bottom in boxes)
    assert max(box[2] for box in demo_scenes.true_boxes(scenes[COARSE[0]])) > scenes[COARSE[0]].width / 2


def test_boxes_overlap_by_what_they_share() -> None:
    assert demo_scenes.overlap((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert demo_scenes.overlap((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert demo_scenes.overlap((0, 0, 4, 4), (5, 5, 6, 6)) == 0


def learned(**changes: float | None) -> list[str]:
    values: dict[str, float | None] = dict.fromkeys(WANTED, 0.9)
    audit = Audit()
    demo_scenes.check_learned(values | {name.replace("__", "/"): value for name, value in changes.items()}, audit)
    return audit.problems


def test_a_head_that_has_learned_nothing_is_found() -> None:
    assert learned() == []
    assert len(learned(areas__valid__pixel_accuracy=0.2)) == 1
    assert len(learned(boxes__valid__map_50=0.1)) == 1
    assert len(learned(boxes__valid__map_50=None)) == 1
    assert len(learned(labels__valid__map=None)) == 1


def test_a_prediction_without_its_picture_or_its_boxes_is_found(tmp_path: Path) -> None:
    scenes = demo_scenes.write_new_scenes(tmp_path / "new")
    picture = tmp_path / "drawn.png"
    Image.new("RGB", (4, 4)).save(picture)

    def problems(drawn: Path, off: float, score: float = 0.9) -> list[str]:
        predictions = []
        for scene in scenes:
            objects = [{"bbox": [side + off for side in box], "score": score} for box in demo_scenes.true_boxes(scene)]
            heads = {head: {"drawn": str(drawn), "objects": objects} for head in HEADS}
            predictions.append(Prediction(image=scene.name, heads=heads, summaries={}, error=None))
        audit = Audit()
        demo_scenes.check_predicted(predictions, scenes, audit)
        return audit.problems

    assert problems(picture, 1.0) == []
    assert len(problems(picture, 40.0)) == 1
    assert len(problems(picture, 0.0, score=0.01)) == 1
    assert len(problems(tmp_path / "missing.png", 1.0)) == 1
