"""The commands against a system of real processes, with one job that has been trained."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from services.cli.commands import app
from services.cli.machine.supervisor import Stack, StackConfig
from services.client.name import job_name

ITERATIONS = 40
IMAGES = 40
START_SECONDS = 240.0
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
    config = StackConfig(
        data=tmp_path_factory.mktemp("stack"), allowed_roots=(shapes,), device="cpu", start_seconds_max=START_SECONDS
    )
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
    assert "no points yet" not in watched.stdout
    assert "completed" in watched.stderr


def test_all_points_are_written_into_a_file(stack: Stack, trained: Result, tmp_path: Path) -> None:
    printed = sihlai(stack, "metrics", "export", "shapes/first", "train/loss")
    assert printed.exit_code == 0, printed.output
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert {row["name"] for row in rows} == {"train/loss"}
    assert int(rows[-1]["step"]) == ITERATIONS
    table, arrow = tmp_path / "points.csv", tmp_path / "points.arrow"
    assert sihlai(stack, "metrics", "export", "shapes/first", "train/loss", "--to", str(table)).exit_code == 0
    assert table.read_text() == printed.stdout
    told = found_json(sihlai(stack, "metrics", "export", "shapes/first", "--to", str(arrow), "--json"))
    assert told == {"file": str(arrow), "size_bytes": arrow.stat().st_size}
    assert "shape/valid/accuracy" in pa.ipc.open_stream(arrow.read_bytes()).read_all()["name"].to_pylist()
    wrong = sihlai(stack, "metrics", "export", "shapes/first", "--to", str(tmp_path / "points.txt"))
    assert (wrong.exit_code, (tmp_path / "points.txt").exists()) == (2, False)
    assert ".csv" in wrong.stderr


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
    assert sihlai(stack, "metrics", "watch", "shapes/second").exit_code == 0  # to its last point
    compared = sihlai(stack, "metrics", "compare", "shapes/first", "shapes/second")
    assert compared.exit_code == 0, compared.output
    assert "trainer.iterations_max" in compared.stdout
    assert "** shapes/first   ++ shapes/second" in compared.stdout, "without colours marks tell them apart"
    rows = [line.split()[0] for line in compared.stdout.partition("best values")[2].splitlines() if line.strip()]
    assert rows[1:4] == ["shape/valid/accuracy", "train/loss", "valid/loss"], (
        "what checkpoints are chosen by comes first"
    )


def test_a_checkpoint_is_evaluated_with_metrics_samples_and_a_card_and_compared_like_any_job(
    stack: Stack, trained: Result, shapes: Path, tmp_path: Path
) -> None:
    words = ("--id", "again", "--name", "once more", "--follow")
    again = sihlai(stack, "job", "evaluate", "shapes/first/final", *words)
    assert again.exit_code == 0, again.output
    assert f"shapes/again is completed, {ITERATIONS} of {ITERATIONS}\n" in again.stderr, "it reached no limit"
    assert "evaluates" in sihlai(stack, "job", "show", "shapes/again").stdout
    whole = sihlai(stack, "job", "evaluate", "shapes/first", "--dataset", str(shapes), "--id", "whole", "--follow")
    assert whole.exit_code == 0, whole.output
    assert f"on {IMAGES} images" in sihlai(stack, "logs", "shapes/whole").stdout
    for job in ("shapes/again", "shapes/whole"):  # to the last point, which may come after the job's end
        assert sihlai(stack, "metrics", "watch", job).exit_code == 0
    compared = sihlai(stack, "metrics", "compare", "shapes/first", "shapes/again", "shapes/whole")
    assert compared.exit_code == 0, compared.output
    best = compared.stdout.partition("best values")[2]
    (row,) = [line.split() for line in best.splitlines() if line.startswith("shape/valid/accuracy")]
    assert row.count("at") == 3, f"each of the three jobs has its value at a step: {best}"
    sheet = tmp_path / "sheet.png"
    assert sihlai(stack, "job", "samples", "shapes/whole", "--to", str(sheet)).exit_code == 0
    assert sheet.stat().st_size
    files = sihlai(stack, "checkpoint", "download", "shapes/whole", "--to", str(tmp_path / "kept"))
    assert files.exit_code == 0, files.output
    assert "An evaluation of projects/shapes/jobs/first" in (tmp_path / "kept" / "card.md").read_text()


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


def test_a_runner_is_listed_drained_and_taken_back(stack: Stack, trained: Result) -> None:
    assert "local-1" in sihlai(stack, "runner", "list").stdout
    (runner,) = runners(stack)
    assert (runner["name"], runner["draining"], runner["capabilities"]["problem"]) == ("runners/local-1", False, "")
    drained = sihlai(stack, "runner", "drain", "local-1")
    assert drained.exit_code == 0, drained.output
    assert "it is drained" in drained.stdout
    assert runners(stack)[0]["draining"] is True
    assert "it is drained" not in sihlai(stack, "runner", "undrain", "local-1").stdout
    assert runners(stack)[0]["draining"] is False


def runners(stack: Stack) -> list[dict[str, Any]]:
    found = found_json(sihlai(stack, "runner", "list", "--json"))["runners"]
    assert isinstance(found, list)
    return found


def test_an_ended_job_is_waited_for_and_watched_at_once(stack: Stack, trained: Result) -> None:
    waited = sihlai(stack, "job", "wait", "shapes/first", "--timeout", "60")
    assert waited.exit_code == 0, waited.output
    assert "completed" in waited.stdout
    (line,) = sihlai(stack, "job", "watch", "shapes/first").stdout.splitlines()
    assert f"shapes/first  completed, step {ITERATIONS} of {ITERATIONS}, checkpoint {ITERATIONS}" in line
    (job,) = [
        json.loads(each)["job"] for each in sihlai(stack, "job", "wait", "shapes/first", "--json").stdout.splitlines()
    ]
    assert job["state"] == "JOB_STATE_COMPLETED"


def test_what_is_listed_comes_in_the_format_that_is_asked_for(stack: Stack, trained: Result) -> None:
    assert "shapes/first" in sihlai(stack, "job", "list", "shapes", "-o", "name").stdout.splitlines()
    lines = sihlai(stack, "job", "list", "shapes", "-o", "jsonl").stdout.splitlines()
    assert "projects/shapes/jobs/first" in [json.loads(line)["name"] for line in lines]
    rows = list(csv.DictReader(io.StringIO(sihlai(stack, "job", "list", "shapes", "-o", "csv").stdout)))
    assert {row["spec.trainer.batch_size"] for row in rows} == {"8"}
    whole = yaml.safe_load(sihlai(stack, "job", "show", "shapes/first", "-o", "yaml").stdout)
    assert whole["job"]["spec"]["labels"] == {"team": "a"}
    table = sihlai(
        stack, "job", "list", "shapes", "--columns", "job,backbone", "--sort", "-took", "--since", "1h"
    ).stdout
    assert table.splitlines()[0].split() == ["job", "backbone"]
    assert "shapes/first" in table
    few = sihlai(stack, "job", "list", "shapes", "--columns", "job,backbone", "-o", "csv").stdout.splitlines()
    assert (few[0], few[-1]) == ("job,backbone", "shapes/first,tiny")
    assert "there are job, state" in sihlai(stack, "job", "list", "--columns", "nothing").stderr
    assert json.loads(sihlai(stack, "status", "--json").stdout)["runners"][0]["name"] == "runners/local-1"
    assert "shapes/first" in sihlai(stack, "status").stdout


def test_the_newest_job_has_a_short_name(stack: Stack, trained: Result) -> None:
    (newest,) = sihlai(stack, "job", "list", "shapes", "--limit", "1", "-o", "name", "-q").stdout.splitlines()
    shown = found_json(sihlai(stack, "job", "show", "shapes/@last", "--json"))["job"]
    assert isinstance(shown, dict)
    assert shown["name"] == job_name(newest)
    assert sihlai(stack, "checkpoint", "list", "@last").exit_code == 0


def test_any_method_can_be_called(stack: Stack, trained: Result) -> None:
    assert {"JobService.GetJob", "TokenService.CreateToken"} <= {*sihlai(stack, "api").stdout.splitlines()}
    answer = found_json(sihlai(stack, "api", "JobService.GetJob", "name=projects/shapes/jobs/first"))
    assert isinstance(answer["job"], dict)
    tail = sihlai(stack, "api", "LogService.TailLogs", "job=projects/shapes/jobs/first", "tail_last=1").stdout
    assert [list(json.loads(line))[-1] for line in tail.splitlines()] == ["batch", "caught_up"]
    wrong = sihlai(stack, "api", "JobService.GetJobb")
    assert (wrong.exit_code, "did you mean JobService.GetJob?" in wrong.stderr) == (2, True)


def test_a_specification_can_be_looked_at_before_it_is_submitted(stack: Stack, trained: Result) -> None:
    words = ("submit", "shapes", "-", "--iterations", "7", "--dry-run")
    shown = CliRunner().invoke(
        app, ["job", *words, "--data", str(stack.config.data)], obj={}, input=yaml.safe_dump(SPEC)
    )
    assert shown.exit_code == 0, shown.output
    spec = yaml.safe_load(shown.stdout)
    assert spec["trainer"] == {"iterations_max": "7", "validations": 2, "batch_size": 8}
    before = sihlai(stack, "job", "list", "shapes", "-o", "name").stdout
    again = CliRunner().invoke(
        app, ["job", "submit", "shapes", "-", "--dry-run", "--data", str(stack.config.data)], obj={}, input=shown.stdout
    )
    assert yaml.safe_load(again.stdout) == spec
    assert sihlai(stack, "job", "list", "shapes", "-o", "name").stdout == before


def test_a_folder_that_is_not_there_is_no_dataset(stack: Stack, tmp_path: Path) -> None:
    made = sihlai(stack, "project", "create", "nowhere", "--training", str(tmp_path / "nowhere"))
    assert (made.exit_code, "there is no folder" in made.stderr) == (1, True)
    assert sihlai(stack, "project", "show", "nowhere").exit_code == 1


def test_the_services_tell_their_versions(stack: Stack) -> None:
    found = found_json(sihlai(stack, "version", "--json"))
    assert set(found) == {"command", "scheduler", "metrics", "conversion"}
    assert len(set(found.values())) == 1


def test_a_job_that_nobody_takes_is_not_waited_for_for_ever(stack: Stack, shapes: Path) -> None:
    assert sihlai(stack, "project", "create", "alone", "--training", str(shapes)).exit_code == 0
    words = ("--task", "multiclass-classification", "--backbone", "tiny", "--set", "resources.gpus=1")
    submitted = sihlai(stack, "job", "submit", "alone/x", *words)
    assert submitted.exit_code == 0, submitted.output
    waited = sihlai(stack, "job", "wait", "alone/x", "--timeout", "0.5")
    assert waited.exit_code == 1
    assert "alone/x" in waited.stderr


def test_a_project_is_changed_and_deleted(stack: Stack, shapes: Path) -> None:
    assert sihlai(stack, "project", "create", "brief", "--training", str(shapes)).exit_code == 0
    changed = sihlai(stack, "project", "update", "brief", "--name", "for a moment", "--validation", str(shapes))
    assert changed.exit_code == 0, changed.output
    project = found_json(sihlai(stack, "project", "show", "brief", "--json"))["project"]
    assert isinstance(project, dict)
    assert (project["display_name"], project["validation_dataset"]["uri"]) == ("for a moment", shapes.as_uri())
    assert sihlai(stack, "project", "update", "brief", "--no-validation").exit_code == 0
    assert "split from training" in sihlai(stack, "project", "show", "brief").stdout
    assert "nothing is to be changed" in sihlai(stack, "project", "update", "brief").stderr
    assert "say --yes" in sihlai(stack, "project", "delete", "brief").stderr
    assert sihlai(stack, "project", "delete", "brief", "--yes").stdout == "deleted brief\n"
    assert sihlai(stack, "project", "show", "brief").exit_code == 1


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("job", "show", "shapes/nobody"), 1, "nobody"),
        (("job", "show", "Shapes"), 2, "digits/first"),
        (("job", "submit", "shapes", "--set", "trainer.batchsize=1"), 2, "did you mean batch_size"),
        (("logs", "shapes/nobody"), 1, "nobody"),
        (("checkpoint", "download", "shapes/first/best", "--file", "x"), 1, "no file x"),
        (("job", "wait", "shapes/nobody"), 1, "nobody"),
        (("runner", "drain", "nobody"), 1, "runners/nobody does not exist"),
        (("runner", "drain", "No/Body"), 2, "gpu-1"),
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


def test_a_model_predicts_from_the_store_and_from_a_folder(
    stack: Stack, trained: Result, shapes: Path, tmp_path: Path
) -> None:
    assert trained.exit_code == 0
    torn = tmp_path / "torn.png"
    torn.write_text("torn")
    images = [str(shapes / "images" / name) for name in ("00.png", "01.png")]
    drawn = tmp_path / "drawn"
    named = sihlai(stack, "predict", "shapes/first/final", *images, "--draw", str(drawn), "--device", "cpu", "--json")
    assert named.exit_code == 0, named.stderr
    found = [json.loads(line) for line in named.stdout.splitlines()]
    assert [each["image"] for each in found] == images
    assert [each["heads"]["shape"]["category"] for each in found] == ["bar", "square"]
    for each in found:
        with Image.open(each["heads"]["shape"]["drawn"]) as picture:
            assert picture.width >= 256
    folder = str(tmp_path / "model")
    assert sihlai(stack, "checkpoint", "download", "shapes/first/final", "--to", folder).exit_code == 0
    table = sihlai(stack, "predict", folder, images[0], str(torn), "--device", "cpu")
    assert table.exit_code == 1
    assert "bar" in table.stdout
    assert "cannot be decoded" in table.stdout
    wrong = sihlai(stack, "predict", str(tmp_path), images[0])
    assert wrong.exit_code == 1
    assert "is no model: a checkpoint's model.safetensors and config.json were wanted in it" in wrong.stderr
    (Path(folder) / "model.safetensors").write_bytes(b"torn")
    damaged = sihlai(stack, "predict", folder, images[0], "--device", "cpu")
    assert damaged.exit_code == 1
    assert "model.safetensors of the checkpoint cannot be read" in damaged.stderr


def test_a_folder_is_predicted_whole_and_a_model_is_exported_by_its_name(
    stack: Stack, trained: Result, shapes: Path, tmp_path: Path
) -> None:
    assert trained.exit_code == 0
    whole = sihlai(stack, "predict", "shapes/first", str(shapes / "images"), "--device", "cpu", "--json")
    assert whole.exit_code == 0, whole.stderr
    found = [json.loads(line)["image"] for line in whole.stdout.splitlines()]
    assert found == [str(shapes / "images" / f"{index:02}.png") for index in range(IMAGES)]
    empty = sihlai(stack, "predict", "shapes/first", str(tmp_path))
    assert empty.exit_code == 1
    assert f"there is no image below {tmp_path}" in " ".join(empty.stderr.split())
    target = tmp_path / "shapes.safetensors"
    told = sihlai(stack, "model", "export", "shapes/first/best", "--format", "safetensors", "--to", str(target))
    assert told.exit_code == 0, told.stderr
    assert target.stat().st_size > 100_000
    card = sihlai(
        stack, "checkpoint", "download", "shapes/first/final", "--to", str(tmp_path / "card"), "--file", "card.md"
    )
    assert card.exit_code == 0, card.stderr
    assert "multiclass classification" in (tmp_path / "card" / "card.md").read_text()


def test_samples_are_told_and_drawn_truth_beside_prediction(stack: Stack, trained: Result, tmp_path: Path) -> None:
    assert trained.exit_code == 0
    told = sihlai(stack, "job", "samples", "shapes/first", "--json")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["images"]
    assert all(image["heads"]["shape"]["true"] in ("bar", "square") for image in found["images"])
    sheet = tmp_path / "sheet.png"
    drawn = sihlai(stack, "job", "samples", "shapes/first", "--to", str(sheet), "--images", "3")
    assert drawn.exit_code == 0, drawn.stderr
    with Image.open(sheet) as picture:
        assert picture.width >= 512
    none = sihlai(stack, "job", "samples", "shapes/first", "--iteration", "3")
    assert none.exit_code == 1
    assert "has no checkpoint with samples after step 3" in none.stderr
    strange = sihlai(stack, "job", "samples", "shapes/first", "--head", "nobody")
    assert strange.exit_code == 1
    assert "has no sample of nobody" in strange.stderr
