"""`sihlai dataset` against a real conversion service: one that runs, and the one that a command starts for itself."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from PIL import Image
from rich.text import Text
from sihlai.conversion.v1 import dataset_pb2
from sihlai.conversion.v1.conversion_service_pb2 import WorkProgress
from typer.testing import CliRunner, Result

from services.cli.commands import app
from services.cli.machine.folder import DataFolder, write_endpoints
from services.cli.view.dataset_table import bar, finding_line, task_name
from services.cli.view.output import Output
from services.cli.view.progress import WorkBar, numbers_text
from tests.cli.conversion_process import WAIT_SECONDS, access, conversion_process, until

METADATA = "task: multiclass classification\ncategories: [cat, dog, emu]\nannotations: labels.yaml\n"
LABELS = "a.png: cat\nb.png: dog\nc.png: dog\nd.png:\n"
IMAGES_MANY = 3_000
"""So many that a command is still at them when it is interrupted."""


def write_dataset(folder: Path, *, labels: str = LABELS, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (6, 4), (number, len(folder.name), 0)).save(folder / "images" / f"{name}.png")
    (folder / "metadata.yaml").write_text(METADATA)
    (folder / "labels.yaml").write_text(labels)
    return folder


def invoke(*words: str | Path, environ: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["dataset", *map(str, words)], obj={"SIHLAI_TOKEN": access(), **(environ or {})})


def found_json(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def sound(folder: Path) -> Path:
    return write_dataset(folder / "sound")


@pytest.fixture(scope="module")
def broken(folder: Path) -> Path:
    return write_dataset(folder / "broken", labels=LABELS.replace("cat", "lion") + "nobody.png: dog\n")


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The flag with which commands find a service that runs."""
    with conversion_process(tmp_path_factory.mktemp("service"), root=folder) as address:
        yield "--conversion", address


def test_tasks_are_listed_with_what_they_look_like_and_where_they_lead(service: tuple[str, str]) -> None:
    shown = invoke("tasks", *service)
    assert shown.exit_code == 0, shown.output
    assert "bbox: [xmin, ymin, xmax, ymax]" in shown.stdout
    assert "categories, colors, [things]" in shown.stdout
    assert "every task also leads to: anomaly detection, autoencoding, view-invariance learning" in shown.stdout
    (found,) = found_json(invoke("tasks", *service, "--json"))
    assert len(found["tasks"]) == 15


def test_a_plan_is_drawn_with_what_each_step_loses(service: tuple[str, str]) -> None:
    shown = invoke("plan", "panoptic-segmentation", "multilabel-classification", *service)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("panoptic segmentation → semantic segmentation → multilabel classification")
    assert "which instance a pixel belongs to" in shown.stdout
    words = ("panoptic segmentation", "multilabel-classification", "--via", "object-detection")
    assert "→ instance segmentation → object detection →" in invoke("plan", *words, *service).stdout


def test_a_plan_may_start_from_a_dataset(service: tuple[str, str], sound: Path) -> None:
    shown = invoke("plan", sound, "metric-learning", *service)
    assert shown.stdout.startswith("multiclass classification → metric learning"), shown.output
    assert "nothing is to be done" in invoke("plan", sound, "multiclass-classification", *service).stdout


def test_an_inspection_shows_counts_sizes_and_the_balance_of_the_categories(
    service: tuple[str, str], sound: Path
) -> None:
    shown = invoke("inspect", sound, *service)
    assert shown.exit_code == 0, shown.output
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    assert lines["6"].startswith("6 \N{MULTIPLICATION SIGN} 4")
    assert lines["labelled"].split()[1:3] == ["3", "75.0%"]
    assert lines["unlabelled"].split()[1:3] == ["1", "25.0%"]
    assert lines["dog"].split()[1:4] == ["2", "2", "66.7%"]
    assert lines["dog"].count("█") == 2 * lines["cat"].count("█") > 0
    assert lines["emu"].split()[1:] == ["0", "0", "0.0%"]
    (found,) = found_json(invoke("inspect", sound, *service, "--json"))
    assert found["fingerprint"] in shown.stdout
    assert [each["category"] for each in found["annotation_sets"][0]["categories"]] == ["cat", "dog", "emu"]


def test_a_validation_says_where_and_what_and_ends_with_exit_code_1(service: tuple[str, str], broken: Path) -> None:
    shown = invoke("validate", broken, *service)
    assert shown.exit_code == 1
    assert shown.stdout.startswith("labels.yaml:1 a.png error undeclared_category: the category 'lion'")
    assert "labels.yaml:5 nobody.png error annotation_without_image: " in shown.stdout
    assert "(refused)" in shown.stdout
    assert "4 images: 2 errors, 0 warnings" in shown.stdout
    assert shown.stderr == ""
    as_json = [json.loads(line) for line in invoke("validate", broken, *service, "--json").stdout.splitlines()]
    assert as_json[-1]["totals"]["errors"] == "2"
    assert [each["finding"]["line"] for each in as_json if "finding" in each] == [1, 5]
    bounded = invoke("validate", broken, *service, "--findings", "1")
    assert "4 images: 2 errors, 0 warnings; 1 finding not shown" in bounded.stdout


def test_warnings_are_no_failure_and_a_sound_dataset_has_none(
    service: tuple[str, str], sound: Path, folder: Path
) -> None:
    assert "4 images, nothing wrong" in invoke("validate", sound, *service).stdout
    other = write_dataset(folder / "other", labels="a.png: cat\n", names=("a",))
    (other / "images" / "a.png").write_bytes((sound / "images" / "b.png").read_bytes())
    shown = invoke("validate", sound, "--validation", other, *service)
    assert shown.exit_code == 0, shown.output
    assert "images/b.png warning shared_image: " in shown.stdout


def test_a_conversion_tells_counts_and_what_was_dropped_and_ends_with_the_uri(
    service: tuple[str, str], broken: Path
) -> None:
    refused = invoke("convert", broken, "metric-learning", *service)
    assert refused.exit_code == 1
    assert "has 2 errors, `sihlai dataset validate` tells all: " in refused.stderr
    shown = invoke("convert", broken, "metric-learning", "--lenient", *service)
    assert shown.exit_code == 0, shown.output
    assert "multiclass classification → metric learning" in shown.stdout
    told = " ".join(shown.stdout.split())
    assert "annotations 4 in, 2 out" in told
    assert "undeclared_category 1 annotation 1 image" in told
    converted = Path(shown.stdout.splitlines()[-1].removeprefix("file://"))
    assert json.loads((converted / "metadata.json").read_text())["task"] == "metric learning"
    again = found_json(invoke("convert", broken, "metric-learning", "--lenient", *service, "--json"))
    assert again[-1]["result"]["reused"] is True
    assert again[-1]["result"]["dataset"]["uri"] == converted.as_uri()


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("plan", "multilabel-classification", "object-detection"), 1, "can be reached: multilabel classification, "),
        (("plan", "objct-detection", "autoencoding"), 2, "did you mean object-detection"),
        (("convert", "{sound}", "regression"), 1, "no conversion leads from multiclass classification to regression"),
        (("convert", "{sound}", "metric-learning", "--min-pixels", "3"), 1, "semantic segmentation → multilabel"),
        (("inspect", "{sound}-of-nobody"), 1, "there is no dataset at file://"),
        (("inspect", "{sound}", "--conversion", "127.0.0.1:1"), 3, "no answer from conversion at 127.0.0.1:1"),
    ],
)
def test_an_error_is_one_sentence_with_an_exit_code(
    service: tuple[str, str], sound: Path, words: tuple[str, ...], exit_code: int, sentence: str
) -> None:
    given = [word.replace("{sound}", str(sound)) for word in words]
    result = invoke(*given, *(() if "--conversion" in words else service))
    assert result.exit_code == exit_code, result.output
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_credentials_for_a_bucket_come_from_the_environment_and_are_never_shown(service: tuple[str, str]) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "the-key-id", "AWS_REGION": "r" * 5_000}
    result = invoke("inspect", "s3://bucket/prefix", *service, environ=environ)
    assert result.exit_code == 1
    assert "source.credentials.s3.secret_access_key" in result.stderr
    assert "source.region" in result.stderr
    assert "the-key-id" not in result.output


def test_without_a_service_a_command_works_locally_and_only_its_result_stays(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, temporary = tmp_path / "data", tmp_path / "temporary"
    temporary.mkdir()
    access()  # its key, too, is made in a temporary folder
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    # A setting in the environment of the command is none for its own service.
    environ = {"SIHLAI_DATA": str(data), "SIHLAI_CONVERSION_NATS_URL": "nats://127.0.0.1:1"}
    shown = invoke("convert", broken, "multilabel-classification", "--lenient", environ=environ)
    assert shown.exit_code == 0, shown.output
    uri = shown.stdout.splitlines()[-1]
    assert uri.startswith((data / "conversion" / "datasets").as_uri())
    again = invoke("inspect", uri, "--allow-root", broken, environ=environ)
    assert "multilabel classification" in again.stdout, again.output
    assert list(temporary.iterdir()) == []
    assert [
        p for p in psutil.Process().children() if "services.conversion" in p.cmdline() and str(data) in p.cmdline()
    ] == []


def test_the_address_that_a_killed_up_left_behind_is_passed_over(sound: Path, tmp_path: Path) -> None:
    write_endpoints(DataFolder(root=tmp_path), {"conversion": "127.0.0.1:1"})
    shown = invoke("inspect", sound, "--data", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert list((tmp_path / "conversion" / "indices").iterdir()), "the next command need not read the images again"
    (tmp_path / "file").write_text("")
    shown = invoke("inspect", sound, "--data", tmp_path / "file")
    assert shown.exit_code == 0, "where nothing can be kept nothing is"


def test_local_work_leaves_a_running_service_alone(service: tuple[str, str], tmp_path: Path) -> None:
    outside = write_dataset(tmp_path / "outside")
    assert "lies outside the folders" in invoke("inspect", outside, *service).stderr
    assert invoke("inspect", outside, "--local", *service).exit_code == 0


@pytest.fixture(scope="module")
def large(folder: Path) -> Path:
    """Many images, all of them one file."""
    dataset = write_dataset(folder / "large", labels="", names=("a",))
    for number in range(IMAGES_MANY):
        os.link(dataset / "images" / "a.png", dataset / "images" / f"{number}.png")
    return dataset


@pytest.fixture
def started(large: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A command with a service of its own, and that service's process, once it serves."""
    environ = {**os.environ, "TMPDIR": str(tmp_path), "SIHLAI_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "services.cli", "dataset", "validate", str(large)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        try:
            assert until(lambda: list(tmp_path.glob("sihlai-dataset-*/addresses/conversion")))
            (child,) = psutil.Process(process.pid).children()
            yield process, child
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_takes_its_service_and_its_files_along(
    started: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path, number: signal.Signals
) -> None:
    process, child = started
    process.send_signal(number)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    said = [line for line in errors.splitlines() if not line.startswith(("index", "validate"))]
    assert said == ["interrupted: nothing was changed"]
    assert until(lambda: not child.is_running())
    assert list(tmp_path.glob("sihlai-dataset-*")) == []


def test_an_inspection_says_how_far_it_is_and_how_long_it_will_take(
    service: tuple[str, str], sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    assert invoke("inspect", sound, *service).exit_code == 0, "what it reads once, the index, is read"
    monkeypatch.setattr(WorkBar, "show", lambda self, progress: seen.append(progress))
    assert invoke("inspect", sound, *service).exit_code == 0
    assert (seen[-1].phase, seen[-1].total) == ("inspect", 4)
    assert all(each.done <= each.total for each in seen)


def test_a_conversion_says_which_warning(service: tuple[str, str], folder: Path) -> None:
    source = write_dataset(folder / "odd", labels="a.png: [cat]\n")
    (source / "metadata.yaml").write_text(METADATA.replace("multiclass classification", "multilabel classification"))
    (source / "metadata.yaml").write_text((source / "metadata.yaml").read_text().replace("categories", "labels"))
    with (source / "metadata.yaml").open("a") as file:
        file.write("speed: 5\n")
    shown = invoke("convert", source, "autoencoding", *service)
    assert shown.exit_code == 0, shown.output
    assert "1 warning" in shown.stdout
    assert "unknown_key" in shown.stdout
    assert "'speed'" in shown.stdout


def test_the_death_of_a_commands_own_service_is_a_sentence(
    started: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    process, child = started
    child.kill()
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert "the conversion process of this command ended by SIGKILL" in errors
    assert "Traceback" not in errors


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_findings_go_to_standard_output_while_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    plain, terminal = io.StringIO(), Terminal()
    progress = WorkProgress(phase="index", done=500, total=1_000, rate=250.0, time_left=Duration(seconds=2))
    with WorkBar(Output(as_json=False, stdout=plain, stderr=terminal), "validate") as work:
        work.show(progress)
        work.say(Text("a finding"))
    assert plain.getvalue() == "a finding\n"
    assert "500 of 1,000, 250 images/s, 2.0 s left" in terminal.getvalue()
    assert "a finding" not in terminal.getvalue()


def test_short_work_says_nothing_where_no_bar_can_be_drawn() -> None:
    plain, errors = io.StringIO(), io.StringIO()
    with WorkBar(Output(as_json=False, stdout=plain, stderr=errors), "convert") as work:
        work.show(WorkProgress(phase="convert", done=1, total=2))
    assert errors.getvalue() == ""
    assert numbers_text(WorkProgress(done=1, total=2, warnings=1)) == "1 of 2, 1 warning"


def test_what_a_dataset_says_cannot_steer_the_terminal() -> None:
    finding = dataset_pb2.Finding(
        severity=dataset_pb2.SEVERITY_ERROR, rule="bad_name", message="a\x1b[2Jb", file="x\ny.yaml", line=3, index=-1
    )
    assert finding_line(finding).plain == "x\ufffdy.yaml:3 error bad_name: a\ufffd[2Jb"
    assert (
        finding_line(dataset_pb2.Finding(rule="r", message="m", image="a.png", index=2)).plain
        == "a.png[2] finding r: m"
    )
    assert finding_line(dataset_pb2.Finding(rule="r", message="m", index=-1)).plain == "finding r: m"


def test_a_bar_is_drawn_to_an_eighth_of_a_cell_and_something_is_always_seen() -> None:
    assert bar(0.0, 10) == ""
    assert bar(1.0, 3) == "███"
    assert bar(0.5, 3) == "█▌"
    assert bar(0.000_1, 10) == "▏"
    assert len(bar(1.5, 4)) == 4


def test_tasks_are_named_as_the_metadata_name_them() -> None:
    assert task_name(6) == "object detection"
    assert task_name(15) == "view-invariance learning"
    assert task_name(99) == "task 99"


def test_images_are_listed_by_the_side_of_a_split(sound: Path, tmp_path: Path) -> None:
    environ = {"SIHLAI_DATA": str(tmp_path / "data"), "HOME": str(tmp_path)}
    names = {}
    for side in ("training", "validation"):
        (answer,) = found_json(invoke("images", sound, "--split", side, "--share", "0.4", "--json", environ=environ))
        names[side] = [image["name"] for image in answer["images"]]
    assert sorted(names["training"] + names["validation"]) == ["a.png", "b.png", "c.png"], "d.png is unlabelled"
    assert names["validation"]
    alone = invoke("images", sound, "--split", "training", "--head", "autoencoding", "--share", "0.3", environ=environ)
    assert alone.exit_code == 0, alone.output
    assert alone.stdout.count(".png") == 3
    shown = invoke("images", sound, environ=environ)
    assert shown.exit_code == 0, shown.output
    assert "unlabelled" in shown.stdout
    assert "6 x 4" in shown.stdout
    refused = invoke("images", sound, "--split", "test", environ=environ)
    assert refused.exit_code != 0
    assert "training" in refused.output
