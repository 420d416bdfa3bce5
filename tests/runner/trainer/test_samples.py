"""What lies beside a checkpoint for whoever wants to see what the model says."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from runner import samples as sheets
from runner.report import CheckpointWritten
from runner.report import Outcome as Ending
from runner.tasks import TASKS
from runner.tasks.regression import Number
from runner.trainer import samples
from runner.trainer.failure import Failure
from runner.trainer.image import view_of
from runner.trainer.samples import HeadTruth, Samples
from tests.runner.trainer.conftest import Workshop, spec_from
from tests.runner.trainer.drawn_annotations import HEIGHT, WIDTH
from tests.runner.trainer.ideal_outputs import CANVAS
from tests.runner.trainer.task_rows import ROWS, write_head, write_images

VIEW = view_of(WIDTH, HEIGHT, CANVAS)
PICTURE = torch.zeros((3, CANVAS.height, CANVAS.width), dtype=torch.uint8)


@pytest.fixture
def checkpoint(workshop: Workshop) -> Path:
    """One of a job with every head there is, after a single step."""
    folder = workshop.folder / "training"
    write_images(folder / "images", ROWS)
    heads = [row.head_json(f"head-{index}") for index, row in enumerate(ROWS)]
    for head, row in zip(heads, ROWS, strict=True):
        write_head(folder / "heads" / head["id"], row)
    training = {
        "images": str(folder / "images"),
        "heads": {head["id"]: str(folder / "heads" / head["id"]) for head in heads},
    }
    spec = spec_from(
        model={"heads": heads}, data={"height": 32, "width": 48}, trainer={"iterations_max": 1, "batch_size": 4}
    )
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
    (written,) = outcome.of(CheckpointWritten)
    return Path(written.folder)


def test_every_head_has_samples_with_truth_prediction_and_picture_and_they_can_be_drawn(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((checkpoint / "samples.json").read_bytes())
    assert found["iteration"] == 1
    assert [image["name"] for image in found["images"]] == [f"{number}.png" for number in range(8)]
    for index, row in enumerate(ROWS):
        entries = {image["name"]: image["heads"].get(f"head-{index}") for image in found["images"]}
        if not TASKS[row.task].images_alone:
            assert all(entries.values()), row.name
        for entry in filter(None, entries.values()):
            assert entry["words"], row.name
            for annotation in (entry["true"], entry["said"]):
                if isinstance(annotation, dict):
                    assert base64.b64decode(found["files"][annotation["map"]])
    picture = Image.open(io.BytesIO(base64.b64decode(found["files"]["0.png.jpg"])))
    assert picture.width / picture.height == pytest.approx(WIDTH / HEIGHT, rel=0.1)
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(
        "sys.argv", ["samples", "--checkpoint", str(checkpoint), "--sheet", str(sheet), "--images", "2"]
    )
    assert sheets.main() == 0
    assert Image.open(sheet).width > 2 * sheets.TILE_PIXELS
    pairs = list(sheets.drawn_pairs(checkpoint, "head-0", 3))
    assert len(pairs) == 3


@pytest.mark.parametrize("place", ["../out.png", "/out.png", "a\\b.png"])
def test_a_file_of_samples_does_not_lead_outside(tmp_path: Path, place: str) -> None:
    files = {place: base64.b64encode(b"x").decode()}
    (tmp_path / "samples.json").write_text(json.dumps({"format": 1, "iteration": 1, "images": [], "files": files}))
    (tmp_path / "config.json").write_text(json.dumps({"spec": {}, "vocabularies": {}}))
    with pytest.raises(Failure, match="is no plain path"):
        list(sheets.drawn_pairs(tmp_path, "", 1))


def gathered(names: list[str]) -> Samples:
    return Samples(names, {"number": HeadTruth(folder=Path(), annotations=dict.fromkeys(names, 1.5))})


def test_samples_are_spread_over_the_images_and_always_the_same() -> None:
    names = [f"{number:03}.png" for number in range(100)]
    chosen = [name for name in names if gathered(names).wants(name)]
    assert len(chosen) == samples.IMAGES_MAX
    assert chosen == [name for name in names if gathered(names).wants(name)]
    gaps = {int(after[:3]) - int(before[:3]) for before, after in itertools.pairwise(chosen)}
    assert gaps == {3, 4}


def test_what_is_no_number_and_what_is_too_much_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gathered(["a.png", "b.png", "c.png"])
    found.add("a.png", "number", Number(value=float("nan")), PICTURE, VIEW)
    found.add("b.png", "number", Number(value=2.0), PICTURE, VIEW)
    monkeypatch.setattr(samples, "FILE_BYTES_MAX", 10)
    found.add("c.png", "number", Number(value=2.0), PICTURE, VIEW)
    content: Any = json.loads(found.content(7))
    (image,) = content["images"]
    assert image["heads"] == {"number": {"true": 1.5, "said": 2.0, "words": "2"}}
    assert (image["width"], image["height"], content["iteration"]) == (WIDTH, HEIGHT, 7)
