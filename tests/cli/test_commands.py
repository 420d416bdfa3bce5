"""The commands against a system of real processes, with one job that has been trained."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from services.cli.commands import app
from services.cli.supervisor import Stack, StackConfig

ITERATIONS = 40
IMAGES = 40
SPEC = {
    "display_name": "squares and bars",
    "model": {"backbone": {"name": "tiny"}, "heads": [{"id": "shape", "task": "TASK_MULTICLASS_CLASSIFICATION"}]},
    "data": {"height": 16, "width": 16},
    "trainer": {"validations": 2, "batch_size": 8},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares and bars, as a dataset in the native format."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    annotations = {}
    for index in range(IMAGES):
        image = Image.new("L", (16, 16))
        image.paste(255, (4, 4, 12, 12) if index % 2 else (2, 7, 14, 9))
        image.save(folder / "images" / f"{index:02}.png")
        annotations[f"{index:02}.png"] = "square" if index % 2 else "bar"
    metadata = {"task": "multiclass classification", "categories": ["square", "bar"], "annotations": "annotations.yaml"}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    (folder / "annotations.yaml").write_text(yaml.safe_dump(annotations))
    return folder


@pytest.fixture(scope="module")
def stack(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    config = StackConfig(data=tmp_path_factory.mktemp("stack"), allowed_roots=(shapes,), device="cpu")
    with Stack(config, environ=os.environ) as running:
        yield running


@pytest.fixture(scope="module")
def trained(stack: Stack, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What `job submit --follow` said while it trained shapes/first to its end."""
    file = tmp_path_factory.mktemp("spec") / "spec.yaml"
    file.write_text(yaml.safe_dump(SPEC))
    assert sihlai(stack, "project", "create", "shapes", "--training", str(shapes)).exit_code == 0
    words = ("--file", str(file), "--iterations", str(ITERATIONS), "--set", "trainer.seed=3", "--label", "team=a")
    return sihlai(stack, "job", "submit", "shapes/first", *words, "--follow")


def sihlai(stack: Stack, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--data", str(stack.config.data)], obj={})


def found_json(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_a_submitted_job_can_be_followed_to_its_end(trained: Result) -> None:
    assert trained.exit_code == 0, trained.output
    assert "shapes/first is completed" in trained.stderr
    assert "trainer" in trained.stdout


def test_projects_and_jobs_are_listed_and_shown_for_people_and_for_programs(stack: Stack, trained: Result) -> None:
    assert "shapes" in sihlai(stack, "project", "list").stdout
    assert "file://" in sihlai(stack, "project", "show", "shapes").stdout
    assert "completed" in sihlai(stack, "job", "list", "shapes").stdout
    assert "squares and bars" in sihlai(stack, "job", "show", "shapes/first").stdout
    job = found_json(sihlai(stack, "job", "show", "shapes/first", "--json"))["job"]
    assert isinstance(job, dict)
    assert job["state"] == "JOB_STATE_COMPLETED"
    assert job["spec"]["trainer"]["seed"] == "3"
    assert job["spec"]["labels"] == {"team": "a"}
    assert found_json(sihlai(stack, "job", "list", "--state", "failed", "--json"))["jobs"] == []
    assert len(found_json(sihlai(stack, "job", "list", "--label", "team=a", "--json"))["jobs"]) == 1  # type: ignore[arg-type]


def test_logs_can_be_filtered_and_read_as_json_with_a_cursor(stack: Stack, trained: Result) -> None:
    everything = sihlai(stack, "logs", "shapes/first")
    assert everything.exit_code == 0, everything.output
    assert len(sihlai(stack, "logs", "shapes/first", "--tail", "2").stdout.splitlines()) == 2
    assert sihlai(stack, "logs", "shapes/first", "--contains", "no line has this text").stdout == ""
    answers = [json.loads(line) for line in sihlai(stack, "logs", "shapes/first", "-f", "--json").stdout.splitlines()]
    assert "ended" in answers[-1]
    lines = [line for answer in answers for line in answer.get("batch", {}).get("lines", ())]
    assert len(lines) == len(everything.stdout.splitlines())
    after = sihlai(stack, "logs", "shapes/first", "--cursor", answers[0]["cursor"]).stdout.splitlines()
    assert len(after) == len(lines) - len(answers[0].get("batch", {}).get("lines", ()))


def test_series_are_shown_as_a_table_with_curves(stack: Stack, trained: Result) -> None:
    shown = sihlai(stack, "metrics", "show", "shapes/first")
    assert shown.exit_code == 0, shown.output
    assert "train/loss" in shown.stdout
    assert "shape/valid/accuracy" in shown.stdout
    assert "┤" in shown.stdout
    watched = sihlai(stack, "metrics", "watch", "shapes/first", "train/loss")
    assert f"step {ITERATIONS}: train/loss" in watched.stdout
    assert "completed" in watched.stderr


def test_what_conversions_made_of_a_jobs_dataset_is_shown_and_its_sheets_are_written(
    stack: Stack, trained: Result, tmp_path: Path
) -> None:
    assert "sihlai job conversions shapes/first" in sihlai(stack, "job", "show", "shapes/first").stderr
    shown = sihlai(stack, "job", "conversions", "shapes/first", "--sheets", str(tmp_path / "sheets"))
    assert shown.exit_code == 0, shown.output
    (row,) = [line for line in shown.stdout.splitlines() if line.startswith("shape ")]
    for cell in ("training", "as annotated", f"{IMAGES} → {IMAGES} of {IMAGES}", "nothing"):
        assert cell in row
    report = found_json(sihlai(stack, "job", "conversions", "shapes/first", "--json"))
    assert (report["head"], report["split"], report["findings"]) == ("shape", "DATASET_SPLIT_TRAINING", [])
    result = report["result"]
    assert isinstance(result, dict)
    assert result["labelled_out"] == str(IMAGES)
    sheets = [path.name for path in (tmp_path / "sheets").glob("*")]
    assert sheets == ([f"shape-training{Path(result['contact_sheet']).suffix}"] if result["contact_sheet"] else [])


def test_a_resumed_job_is_compared_with_its_source(stack: Stack, trained: Result) -> None:
    words = ("--id", "second", "--set", f"trainer.iterations_max={2 * ITERATIONS}", "--follow")
    resumed = sihlai(stack, "job", "resume", "shapes/first", *words)
    assert resumed.exit_code == 0, resumed.output
    compared = sihlai(stack, "metrics", "compare", "shapes/first", "shapes/second")
    assert compared.exit_code == 0, compared.output
    assert "trainer.iterations_max" in compared.stdout
    assert "best values" in compared.stdout
    assert "━━ shapes/first" in compared.stdout


def test_a_checkpoint_is_downloaded_goes_on_where_it_broke_off_and_is_verified(
    stack: Stack, trained: Result, tmp_path: Path
) -> None:
    assert "shapes/first" in sihlai(stack, "checkpoint", "list", "shapes/first").stdout
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = sihlai(stack, "checkpoint", "download", "shapes/first/final", "--to", str(whole))
    assert first.exit_code == 0, first.output
    model = (whole / "model.safetensors").read_bytes()
    listed = found_json(sihlai(stack, "checkpoint", "list", "shapes/first", "--json"))["checkpoints"]
    assert isinstance(listed, list)
    file = next(file for file in listed[0]["files"] if file["name"] == "model.safetensors")

    broken.mkdir()
    part = broken / f".model.safetensors.{file['sha256'][:16]}.part"
    part.write_bytes(model[: len(model) // 2])
    again = sihlai(stack, "checkpoint", "download", "shapes/first/final", "--to", str(broken), "--file", file["name"])
    assert again.exit_code == 0, again.output
    assert (broken / "model.safetensors").read_bytes() == model
    assert not part.exists()

    part.write_bytes(b"x" * len(model))
    (broken / "model.safetensors").unlink()
    wrong = sihlai(stack, "checkpoint", "download", "shapes/first/final", "--to", str(broken), "--file", file["name"])
    assert wrong.exit_code == 1
    assert "sha256" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("job", "show", "shapes/nobody"), 1, "nobody"),
        (("job", "show", "Shapes"), 2, "digits/first"),
        (("job", "submit", "shapes", "--set", "trainer.batchsize=1"), 2, "did you mean batch_size"),
        (("logs", "shapes/nobody"), 1, "nobody"),
        (("checkpoint", "download", "shapes/first/best", "--file", "x"), 1, "no file x"),
        (("job", "list", "--scheduler", "127.0.0.1:1"), 3, "no answer from scheduler at 127.0.0.1:1"),
    ],
)
def test_an_error_is_one_sentence_with_an_exit_code(
    stack: Stack, trained: Result, words: tuple[str, ...], exit_code: int, sentence: str
) -> None:
    result = sihlai(stack, *words)
    assert result.exit_code == exit_code, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_all_wrong_fields_are_listed_at_once(stack: Stack, trained: Result) -> None:
    words = ("--task", "multiclass-classification", "--set", "trainer.batch_size=-1", "--set", "trainer.validations=-2")
    result = sihlai(stack, "job", "submit", "shapes", *words)
    assert result.exit_code == 1
    assert "2 fields are wrong" in result.stderr
    assert "trainer.batch_size" in result.stderr
    assert "trainer.validations" in result.stderr
    as_json = sihlai(stack, "job", "submit", "shapes", *words, "--json")
    assert len(json.loads(as_json.stderr)["error"]["violations"]) == 2
