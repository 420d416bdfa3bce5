"""Images of 16 bits are seen by the range of their dataset's metadata, in training and by whoever predicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sihlai.scheduler.v1.job_spec_pb2 import ImageRange

from runner.report import Outcome as Ending
from runner.trainer.checkpoint import read_config
from runner.trainer.image import canvas_from_data, read_on_canvas
from tests.runner.trainer.conftest import Workshop, spec_from


def in_sixteen_bits(folder: Path) -> None:
    """The same pictures, each in the lowest 4,095 of 65,535 values."""
    for path in folder.iterdir():
        values = np.asarray(Image.open(path).convert("L"), np.uint16)
        Image.fromarray(values * 16).save(path)


def test_a_model_sees_images_by_the_range_that_it_was_trained_with(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    plain = {path.name: Image.open(path).convert("L") for path in Path(training["images"]).iterdir()}
    in_sixteen_bits(Path(training["images"]))
    metadata = Path(training["heads"]["side"]) / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"image_range": [0, 4_080]}))
    spec = spec_from(trainer={"iterations_max": 4})
    outcome = workshop.run(workshop.write_attempt(training, spec))
    assert outcome.ended.outcome is Ending.COMPLETED
    kept, _ = read_config(outcome.checkpoint_folder / "4")
    assert kept.data.image_range == ImageRange(black=0, white=4_080)
    canvas = canvas_from_data(kept.data)
    for name, picture in plain.items():
        path = Path(training["images"]) / name
        eight = workshop.folder / "eight.png"
        picture.save(eight)
        assert torch.equal(read_on_canvas(path, canvas)[0], read_on_canvas(eight, canvas)[0])


def test_a_job_says_another_range_than_the_dataset(workshop: Workshop, halves: dict[str, str]) -> None:
    training = workshop.write_dataset({"side": halves})
    metadata = Path(training["heads"]["side"]) / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"image_range": [0, 4_080]}))
    spec = spec_from(trainer={"iterations_max": 2}, data={"image_range": {"black": 100}})
    outcome = workshop.run(workshop.write_attempt(training, spec))
    kept, _ = read_config(outcome.checkpoint_folder / "2")
    assert canvas_from_data(kept.data).image_range == (100, 65_535)
