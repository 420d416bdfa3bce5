"""`sihlai predict` for every task there is: what a model sees of upright, turned and narrow images, in every form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from runner import predict
from runner.tasks import TASKS
from services.cli.commands import app
from tests.runner.trainer.conftest import Workshop, spec_from
from tests.runner.trainer.drawn_annotations import picture_of
from tests.runner.trainer.task_rows import ROWS, write_head, write_images

ORIENTATION_TAG = 274
SIDEWAYS = 6
"""Stored a quarter turn against the clock of how it is shown."""
HEADS = [f"head-{index}" for index in range(len(ROWS))]
MAPS = [head for head, row in zip(HEADS, ROWS, strict=True) if TASKS[row.task].opens_files]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with a head for every task, hardly trained."""
    workshop = Workshop(folder=tmp_path_factory.mktemp("model"))
    folder = workshop.folder / "training"
    write_images(folder / "images", ROWS)
    for head, row in zip(HEADS, ROWS, strict=True):
        write_head(folder / head, row)
    training = {"images": str(folder / "images"), "heads": {head: str(folder / head) for head in HEADS}}
    spec = spec_from(
        model={"heads": [row.head_json(head) for head, row in zip(HEADS, ROWS, strict=True)]},
        data={"height": 32, "width": 48},
        trainer={"iterations_max": 1, "batch_size": 2},
    )
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    return outcome.checkpoint_folder / "1"


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Upright, the same stored sideways with a word on how it is shown, and one that is narrow."""
    upright = picture_of(11).resize((60, 45))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = SIDEWAYS
    paths = {name: tmp_path / f"{name}.png" for name in ("upright", "sideways", "narrow")}
    upright.save(paths["upright"])
    upright.transpose(Image.Transpose.ROTATE_90).save(paths["sideways"], exif=exif)
    picture_of(12).resize((9, 120)).save(paths["narrow"])
    return paths


def size_of(described: dict[str, Any], wanted: tuple[int, int]) -> tuple[int, int]:
    """The size that a head's JSON names; objects name none."""
    return (described["width"], described["height"]) if "width" in described else wanted


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> list[dict[str, Any]]:
    """What the process behind the command says, in this process."""
    monkeypatch.setattr("sys.argv", ["predict", *map(str, words), "--device", "cpu", "--json"])
    assert predict.main() == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_and_pictures_are_those_of_the_image_as_it_is_shown(
    model: Path,
    images: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--checkpoint", model, "--draw", tmp_path / "drawn")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, path in images.items():  # one by one: the last bit depends on an image's place in its batch
        (answer,) = said(capsys, monkeypatch, *words, path)
        assert (answer["image"], answer["error"]) == (str(path), None)
        assert list(answer["heads"]) == list(answer["summaries"]) == HEADS
        found[name] = answer["heads"]
    for head in HEADS:
        upright, sideways = (
            {key: value for key, value in found[name][head].items() if key not in ("drawn", "map")}
            for name in ("upright", "sideways")
        )
        assert upright == sideways
        drawn = {name: Path(found[name][head]["drawn"]) for name in images}
        assert drawn["upright"].read_bytes() == drawn["sideways"].read_bytes()
        for path in drawn.values():
            with Image.open(path) as picture:
                assert max(picture.size) >= 256
        for name, size in (("upright", (60, 45)), ("sideways", (60, 45)), ("narrow", (9, 120))):
            assert ("map" in found[name][head]) == (head in MAPS)
            if head in MAPS:
                assert size_of(found[name][head], size) == size
                with Image.open(found[name][head]["map"]) as written:
                    assert written.size == size


def test_a_photo_at_a_reduced_scale_is_drawn_on_in_full(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = SIDEWAYS
    file = io.BytesIO()
    picture_of(13).resize((400, 640)).save(file, "JPEG", exif=exif)
    path = tmp_path / "photo.jpg"
    path.write_bytes(file.getvalue())
    (found,) = said(capsys, monkeypatch, "--checkpoint", model, "--draw", tmp_path / "drawn", path)
    for head in MAPS:
        assert size_of(found["heads"][head], (640, 400)) == (640, 400)
        with Image.open(found["heads"][head]["drawn"]) as picture, Image.open(found["heads"][head]["map"]) as written:
            assert written.size == (640, 400)
            assert picture.width >= 640
            assert len(np.unique(np.asarray(picture)[:400, :640])) > 1


def test_people_see_a_line_for_every_head_and_where_it_is_drawn(
    model: Path, images: dict[str, Path], tmp_path: Path
) -> None:
    drawn = tmp_path / "drawn"
    words = ["predict", str(model), str(images["upright"]), "--draw", str(drawn), "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--data", str(tmp_path)], obj={})
    assert result.exit_code == 0, result.output
    for head in HEADS:
        assert f"  {head}  " in result.stdout
        assert (drawn / f"upright.{head}.png").is_file()
