"""`sihlai dataset import` and `export`, and `convert --destination`, against a real conversion service."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from sihlai.conversion.v1 import dataset_pb2
from sihlai.conversion.v1.conversion_service_pb2 import ConversionResult, ImportDatasetResponse, WorkProgress
from typer.testing import CliRunner, Result

from services.chassis.endpoints import Endpoints
from services.cli.command.dataset.options import show_work
from services.cli.commands import app
from services.cli.error import CommandError
from services.cli.session import Session
from services.cli.view.output import Output
from services.client.face import AsyncClient
from tests.cli.conversion_process import WAIT_SECONDS, access, conversion_process, until

ANIMALS = {"cat": ("a", "b"), "dog": ("c",)}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 6, "height": 4}],
    "categories": [{"id": 7, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 3], "area": 6, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0},
    ],
}

STANDS = """
import os, signal, sys

chunks = []

def look(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(".chunk"):
        chunks.append(arguments[1])
        if len(chunks) == 2:
            os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(look)
"""
"""Python runs this at its start: a service stands still once it has kept a chunk, however late its end is."""


@pytest.fixture
def standing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command whose own service stands still in the middle of its work."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(STANDS)
    return {"PYTHONPATH": str(folder)}


def invoke(*words: str | Path, environ: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["dataset", *map(str, words)], obj={"SIHLAI_TOKEN": access(), **(environ or {})})


def write_image(path: Path, color: tuple[int, int, int] = (0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def animals(folder: Path) -> Path:
    """A folder of images for each category."""
    for number, (category, names) in enumerate(ANIMALS.items()):
        for name in names:
            write_image(folder / "animals" / category / f"{name}.png", (number, ord(name), 0))
    return folder / "animals"


VOC = "<annotation><filename>{}.png</filename><size><width>6</width><height>4</height></size>{}</annotation>"
VOC_OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object>"


@pytest.fixture(scope="module")
def coco(folder: Path) -> Path:
    """COCO's layout, with an annotation of a category that is not there."""
    write_image(folder / "coco" / "images" / "a.png")
    (folder / "coco" / "annotations").mkdir()
    (folder / "coco" / "annotations" / "instances.json").write_text(json.dumps(COCO))
    return folder / "coco"


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The flag with which commands find a service that runs."""
    with conversion_process(tmp_path_factory.mktemp("service"), root=folder) as address:
        yield "--conversion", address


def test_folders_of_images_become_a_dataset_and_folders_again(
    service: tuple[str, str], animals: Path, folder: Path
) -> None:
    native, again = folder / "native", folder / "again"
    shown = invoke("import", "image-folders", animals, native, "--copy-images", *service)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1] == native.as_uri()
    assert "labelled 3 images in, 3 out" in " ".join(shown.stdout.split())
    inspected = invoke("inspect", native, *service, "--json")
    counts = json.loads(inspected.stdout)["annotation_sets"][0]["categories"]
    assert {each["category"]: each["images"] for each in counts} == {"cat": "2", "dog": "1"}
    shown = invoke("export", "image-folders", native, again, "--copy-images", *service)
    assert shown.exit_code == 0, shown.output
    assert files_in(again) == sorted([*files_in(animals), "report.json"])


@pytest.mark.parametrize("words", [(), ("--format", "auto"), ("--format", "image-folders")])
def test_a_format_is_found_by_itself_or_named(
    animals: Path, folder: Path, service: tuple[str, str], words: tuple[str, ...]
) -> None:
    native = folder / f"found-{'-'.join(words).strip('-')}"
    shown = invoke("import", animals, native, "--copy-images", *words, "--json", *service)
    assert shown.exit_code == 0, shown.stderr
    (result,) = [line["result"] for line in map(json.loads, shown.stdout.splitlines()) if "result" in line]
    assert result["foreign_format"] == "FOREIGN_FORMAT_IMAGE_FOLDERS"


def test_an_import_without_a_destination_is_told(animals: Path, service: tuple[str, str]) -> None:
    shown = invoke("import", animals, *service)
    assert (shown.exit_code, "a source and a destination were wanted" in shown.stderr) == (2, True)


def test_what_is_wrong_with_a_foreign_dataset_is_listed_and_dropped_where_that_is_wanted(
    service: tuple[str, str], coco: Path, folder: Path
) -> None:
    refused = invoke("import", "coco-instances", coco, folder / "strict", *service)
    assert refused.exit_code == 1
    assert "has 1 error, an import with --lenient leaves out what is wrong: " in refused.stderr
    assert not (folder / "strict").exists()
    shown = invoke("import", "coco-instances", coco, folder / "lenient", "--lenient", *service)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("annotations/instances.json")
    assert "(dropped)" in shown.stdout.splitlines()[0]
    told = " ".join(shown.stdout.split())
    assert "annotations 2 in, 1 out" in told
    assert "found 1 error, 0 warnings" in told


def test_an_export_converts_first_and_says_on_which_path(service: tuple[str, str], coco: Path, folder: Path) -> None:
    words = ("--lenient", *service)
    assert invoke("import", "coco-instances", coco, folder / "boxes", *words).exit_code == 0
    quads = folder / "quads"
    shown = invoke("convert", folder / "boxes", "quadrilateral-detection", "--destination", quads, *service)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1] == quads.as_uri()
    assert json.loads((quads / "metadata.json").read_text())["task"] == "quadrilateral detection"
    shown = invoke("export", "yolo-detect", quads, folder / "yolo", "--copy-images", *service, "--json")
    result = [json.loads(line) for line in shown.stdout.splitlines()][-1]["result"]
    assert [step["to"] for step in result["steps"]] == ["TASK_OBJECT_DETECTION"]
    assert any(name.endswith("a.txt") for name in files_in(folder / "yolo"))


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("import", "cocoo", "{animals}", "{new}"), 2, "format is 'cocoo': did you mean coco-"),
        (("import", "pascal", "{animals}", "{new}", "--unannotated", "nul"), 2, "did you mean pascal-voc?"),
        (("import", "pascal-voc", "{animals}", "{new}", "--unannotated", "nul"), 2, "unannotated is 'nul': did you"),
        (("import", "image-folders", "{animals}", "{animals}", "--copy-images"), 1, "{animals}"),
        (("import", "image-folders", "{animals}", "{new}"), 1, "--copy-images is off"),
        (("import", "image-folders", "{animals}", "{new}", "--split", "vall"), 1, "--split is 'vall'"),
        (("import", "image-folders", "{animals}/cat/a.png", "{new}"), 1, "it is a file, name the folder"),
        (("import", "image-folders", "{new}", "{new}-2"), 1, "there is no such folder"),
        (("import", "pascal-voc", "{animals}", "{new}"), 1, "has 1 error: Annotations/: there is no XML file"),
        (("export", "pascal-voc", "{unlabelled}", "{new}"), 1, "and Pascal VOC cannot hold images alone: add one"),
        (("export", "yolo-detect", "{new}", "{new}-2"), 1, "there is no dataset at file://"),
    ],
)
def test_an_error_is_one_sentence_and_nothing_is_written(
    service: tuple[str, str], animals: Path, folder: Path, words: tuple[str, ...], exit_code: int, sentence: str
) -> None:
    places = {"animals": animals, "new": folder / "new", "unlabelled": folder / "unlabelled"}
    write_image(places["unlabelled"] / "images" / "a.png")
    before = files_in(folder)
    result = invoke(*(word.format(**places) for word in words), *service)
    assert result.exit_code == exit_code, result.output
    assert sentence.format(**places) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert files_in(folder) == before


def test_without_a_service_a_command_may_write_where_it_was_told_to(animals: Path, tmp_path: Path) -> None:
    environ = {"SIHLAI_DATA": str(tmp_path / "data")}
    shown = invoke("import", "image-folders", animals, tmp_path / "native", "--copy-images", environ=environ)
    assert shown.exit_code == 0, shown.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "native"]
    assert not [*(tmp_path / "data/conversion").glob(".draft-*"), *(tmp_path / "data/conversion").glob("datasets/*")]
    inside = invoke("import", "image-folders", animals, tmp_path / "data/x", environ=environ)
    assert "where the system keeps its own data" in inside.stderr
    shown = invoke(
        *("convert", tmp_path / "native", "metric-learning"),
        *("--destination", tmp_path / "deeper" / "identities"),
        environ=environ,
    )
    assert shown.exit_code == 0, shown.output
    assert json.loads((tmp_path / "deeper" / "identities" / "metadata.json").read_text())["task"] == "metric learning"


def test_an_interrupted_import_without_a_service_goes_on_where_it_was(tmp_path: Path, standing: dict[str, str]) -> None:
    write_image(tmp_path / "voc/JPEGImages/0.png")
    (tmp_path / "voc/Annotations").mkdir()
    for number in range(1_000):
        objects = 30 * VOC_OBJECT.format("dog" if number == 999 else "cat")
        if number:
            os.link(tmp_path / "voc/JPEGImages/0.png", tmp_path / f"voc/JPEGImages/{number}.png")
        (tmp_path / f"voc/Annotations/{number}.xml").write_text(VOC.format(number, objects))
    words = ["import", "pascal-voc", str(tmp_path / "voc"), str(tmp_path / "native")]
    environ = {"SIHLAI_DATA": str(tmp_path / "data"), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "services.cli", "dataset", *words]
    mine = os.environ | environ | standing
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=mine) as run:
        journal = ".native.part-*/journal/*.chunk"
        assert until(lambda: run.poll() is not None or list(tmp_path.glob(journal)))
        (child,) = psutil.Process(run.pid).children()
        child.kill()
        _, errors = run.communicate(timeout=WAIT_SECONDS)
    assert b"ended by SIGKILL" in errors
    assert not (tmp_path / "native").exists()
    done = min(tmp_path.glob(journal))
    done.write_bytes(done.read_bytes().replace(b'"cat"', b'"dog"'))  # by which it is known again
    shown = invoke(*words, environ=environ)
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "native/annotations.json").read_text())
    assert Counter(each["category"] for boxes in found.values() for each in boxes) == {"dog": 30 * 251, "cat": 30 * 749}
    assert not list(tmp_path.glob(".native.part-*"))


@pytest.mark.parametrize("kind", ["export", "convert"])
def test_an_interrupted_export_or_conversion_without_a_service_goes_on_where_it_was(
    kind: str, tmp_path: Path, standing: dict[str, str]
) -> None:
    source, out = tmp_path / "native", tmp_path / "out"
    write_image(source / "images/0.png")
    for number in range(1, 1_000):
        os.link(source / "images/0.png", source / f"images/{number}.png")
    boxes = [{"category": "cat", "bbox": [1, 1, 3, 3]}] * 30
    metadata = {"task": "object detection", "categories": ["cat", "dog"], "annotations": "boxes.json"}
    (source / "metadata.json").write_text(json.dumps(metadata))
    (source / "boxes.json").write_text(json.dumps({f"{number}.png": boxes for number in range(1_000)}))
    words = {
        "export": ["export", "yolo-detect", str(source), str(out), "--copy-images"],
        "convert": ["convert", str(source), "quadrilateral-detection", "--destination", str(out)],
    }[kind]
    (tmp_path / "temporary").mkdir()
    environ = {"SIHLAI_DATA": str(tmp_path / "data"), "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, "-m", "services.cli", "dataset", *words]
    mine = os.environ | environ | standing
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=mine) as run:
        journal = ".out.part-*/journal/*.chunk"
        assert until(lambda: run.poll() is not None or list(tmp_path.glob(journal)))
        (child,) = psutil.Process(run.pid).children()
        child.kill()
        _, errors = run.communicate(timeout=WAIT_SECONDS)
    assert b"ended by SIGKILL" in errors
    assert not out.exists()
    assert not list((tmp_path / "temporary").rglob("*.chunk"))
    assert not list((tmp_path / "data").rglob("*.chunk"))
    done = min(tmp_path.glob(journal))
    cat, dog = (b"0 0.33", b"1 0.33") if kind == "export" else (b'"cat"', b'"dog"')
    done.write_bytes(done.read_bytes().replace(cat, dog))  # by which it is known again
    shown = invoke(*words, environ=environ)
    assert shown.exit_code == 0, shown.output
    found = "".join(path.read_text() for path in (*out.glob("labels/**/*.txt"), *out.glob("annotations.json")))
    assert (found.count(cat.decode()), found.count(dog.decode())) == (30 * 750, 30 * 250)
    assert kind == "convert" or len(list(out.glob("images/**/*.png"))) == 1_000
    assert not list(tmp_path.glob(".out.part-*"))


def test_an_index_of_images_is_kept_without_a_service(coco: Path, tmp_path: Path) -> None:
    environ = {"SIHLAI_DATA": str(tmp_path / "data"), "HOME": str(tmp_path)}
    for kind in ("import", "export", "inspect"):
        source = coco if kind == "import" else tmp_path / "native"
        words = {
            "import": ["import", "coco-instances", str(source), str(tmp_path / "native"), "--lenient", "--copy-images"],
            "export": ["export", "yolo-detect", str(source), str(tmp_path / "yolo")],
            "inspect": ["inspect", str(source)],
        }[kind]
        shown = invoke(*words, environ=environ)
        assert shown.exit_code == 0, shown.output
    indices = list((tmp_path / "data/conversion/indices").iterdir())
    assert len(indices) == 2, "the import's, and one that export and inspect share"
    for path in indices:
        path.write_bytes(path.read_bytes().replace(b",6,4,", b",7,4,"))  # by which it is known again
    shown = invoke("inspect", tmp_path / "native", "--json", environ=environ)
    assert shown.exit_code == 0, shown.output
    assert '"7' in shown.stdout or ": 7" in shown.stdout, shown.stdout


def test_how_to_look_at_images_that_an_import_left_where_they_were_is_said(coco: Path, tmp_path: Path) -> None:
    environ = {"SIHLAI_DATA": str(tmp_path / "data"), "HOME": str(tmp_path / "home")}
    shown = invoke("import", "coco-instances", coco, tmp_path / "native", "--lenient", environ=environ)
    assert shown.exit_code == 0, shown.output
    refused = invoke("inspect", tmp_path / "native", environ=environ)
    assert f"{(coco / 'images').as_uri()} lies outside the folders" in refused.stderr, refused.output
    assert "--allow-root adds one" in refused.stderr
    assert invoke("inspect", tmp_path / "native", "--allow-root", coco, environ=environ).exit_code == 0


def session(output: Output, folder: Path) -> Session:
    return Session(client=AsyncClient(Endpoints(up=folder)), output=output, environ={})


async def answers(*messages: ImportDatasetResponse) -> AsyncIterator[ImportDatasetResponse]:
    for message in messages:
        yield message


FINDING = ImportDatasetResponse(
    finding=dataset_pb2.Finding(severity=dataset_pb2.SEVERITY_WARNING, rule="lost", message="gone", index=-1)
)
PROGRESS = ImportDatasetResponse(progress=WorkProgress(phase="import", done=1, total=2))
RESULT = ImportDatasetResponse(
    result=ConversionResult(images_in=2, dataset=dataset_pb2.DatasetSource(uri="file:///made"))
)


@pytest.mark.parametrize("as_json", [False, True])
def test_findings_are_lines_and_programs_get_every_answer(tmp_path: Path, as_json: bool) -> None:
    stdout = io.StringIO()
    output = Output(as_json=as_json, stdout=stdout, stderr=io.StringIO())
    asyncio.run(show_work(session(output, tmp_path), "import", answers(PROGRESS, FINDING, RESULT)))
    if as_json:
        lines: list[dict[str, Any]] = [json.loads(line) for line in stdout.getvalue().splitlines()]
        assert [list(line) for line in lines] == [["progress"], ["finding"], ["result"]]
    else:
        first, second, *_, last = stdout.getvalue().splitlines()
        assert first == "warning lost: gone"
        assert second.split() == ["images", "2"]
        assert last == "file:///made"


def test_a_stream_without_a_result_is_no_success(tmp_path: Path) -> None:
    output = Output(as_json=False, stdout=io.StringIO(), stderr=io.StringIO())
    with pytest.raises(CommandError, match="the import ended early"):
        asyncio.run(show_work(session(output, tmp_path), "import", answers(PROGRESS)))
