"""`sihlai dataset preview`: the picture file that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from services.cli.command.dataset.preview import default_path, with_suffix, write_picture
from services.cli.commands import app
from services.cli.error import CommandError

METADATA = "task: object detection\ncategories: [cat]\nannotations: boxes.yaml\n"


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["dataset", "preview", *map(str, words)], obj={})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "cats"
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (60, 40), (10, 120, 90)).save(folder / "images" / f"{name}.png")
    (folder / "metadata.yaml").write_text(METADATA)
    (folder / "boxes.yaml").write_text("a.png: [{category: cat, bbox: [5, 5, 30, 30]}]\nb.png: []\n")
    return folder


def test_a_sheet_is_written_without_any_service_running(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--local", "--to", "multilabel-classification", "--via", "quadrilateral-detection", "--image", "a.png")
    shown = invoke(dataset, *words)
    assert shown.exit_code == 0, shown.output
    path = Path(shown.stdout.strip())
    assert path == Path("cats-preview.png")
    assert Image.open(path).format == "PNG"
    first = path.read_bytes()

    refused = invoke(dataset, "--local")
    assert refused.exit_code == 1
    assert "cats-preview.png is there already" in refused.output
    assert path.read_bytes() == first

    replaced = invoke(dataset, "--local", "--force", "--images", "2", "--json")
    assert replaced.exit_code == 0, replaced.output
    about: dict[str, Any] = json.loads(replaced.stdout)
    assert about == {"path": "cats-preview.png", "media_type": "image/png", "images": ["a.png", "b.png"]}
    assert path.read_bytes() != first


def test_what_cannot_be_shown_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet"
    for words, problem in (
        (("--image", "nobody.png"), "'nobody.png', which is not in images/"),
        (("--to", "flying"), "flying"),
    ):
        shown = invoke(dataset, "--local", "--file", output, *words)
        assert shown.exit_code in (1, 2)
        assert problem in shown.output
    assert not list(tmp_path.glob("sheet*"))


@pytest.mark.parametrize(
    ("given", "suffix", "expected"),
    [
        ("sheet.png", ".png", "sheet.png"),
        ("sheet.PNG", ".png", "sheet.PNG"),
        ("sheet.jpeg", ".jpg", "sheet.jpeg"),
        ("sheet.png", ".jpg", "sheet.jpg"),
        ("sheet", ".jpg", "sheet.jpg"),
        ("cats.v2", ".png", "cats.v2.png"),
    ],
)
def test_a_file_ends_in_what_it_is(given: str, suffix: str, expected: str) -> None:
    assert with_suffix(Path(given), suffix) == Path(expected)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///data/my%20cats/", "my cats-preview"),
        ("s3://bucket/some/cats", "cats-preview"),
        ("s3://bucket", "bucket-preview"),
    ],
)
def test_a_sheet_is_named_after_its_dataset(uri: str, expected: str) -> None:
    assert default_path(uri) == Path(expected)


def test_a_file_that_is_there_is_replaced_only_if_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_picture(path, b"first", force=False)
    with pytest.raises(CommandError, match="--force"):
        write_picture(path, b"second", force=False)
    assert path.read_bytes() == b"first"
    write_picture(path, b"third", force=True)
    assert path.read_bytes() == b"third"
