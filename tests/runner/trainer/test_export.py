"""Exported models: what PyTorch says, in other programs; and images in folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from sihlai.conversion.v1 import task_pb2

from runner.export.__main__ import _pictures, export
from runner.export.check import compare
from runner.export.excerpt import excerpt, function_of
from runner.export.metadata import KEY
from runner.export.program import Program
from runner.predict import Predictor
from runner.report import Outcome as Ending
from runner.tasks import TASKS
from runner.tasks.semantic_segmentation import Segmentation
from runner.trainer.failure import Failure
from runner.trainer.image import canvas_from_data, read_on_canvas
from tests.runner.trainer.conftest import Workshop, spec_from
from tests.runner.trainer.drawn_annotations import picture_of
from tests.runner.trainer.task_rows import ROWS, Row, write_head, write_images

BY_TASK = {row.task: row for row in ROWS}
EXPORTED = {
    "side": BY_TASK[task_pb2.TASK_MULTICLASS_CLASSIFICATION],
    "areas": BY_TASK[task_pb2.TASK_SEMANTIC_SEGMENTATION],
    "things": BY_TASK[task_pb2.TASK_OBJECT_DETECTION],
    "words": BY_TASK[task_pb2.TASK_SCENE_TEXT_RECOGNITION],
    "labels": BY_TASK[task_pb2.TASK_MULTILABEL_CLASSIFICATION],
    "corners": BY_TASK[task_pb2.TASK_QUADRILATERAL_DETECTION],
    "poses": BY_TASK[task_pb2.TASK_KEYPOINT_DETECTION],
    "number": BY_TASK[task_pb2.TASK_REGRESSION],
    "depth": BY_TASK[task_pb2.TASK_DEPTH_ESTIMATION],
    "odd": BY_TASK[task_pb2.TASK_ANOMALY_DETECTION],
    "again": BY_TASK[task_pb2.TASK_AUTOENCODING],
}
LIKELY = 0.05
EXAMPLE_NEEDS = ("onnxruntime", "numpy", "pillow")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with every head that is exported, trained for a moment."""
    return trained(Workshop(folder=tmp_path_factory.mktemp("export")), EXPORTED, iterations=60)


def trained(workshop: Workshop, heads: Mapping[str, Row], *, iterations: int) -> Path:
    """The folder of a model with these heads."""
    folder = workshop.folder / "training"
    write_images(folder / "images", list(heads.values()))
    for head_id, row in heads.items():
        write_head(folder / head_id, row)
    training = {"images": str(folder / "images"), "heads": {each: str(folder / each) for each in heads}}
    spec = spec_from(
        model={"heads": [row.head_json(head_id) for head_id, row in heads.items()]},
        data={"height": 32, "width": 48, "image_range": {"black": 1_000, "white": 4_095}},
        trainer={"iterations_max": iterations, "batch_size": 8, "adamw": {"learning_rate": 0.005}},
    )
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
    return outcome.checkpoint_folder / str(iterations)


@pytest.fixture
def bare_python(tmp_path: Path) -> list[str]:
    """A Python that has what the example needs, and nothing else: above all no torch."""
    site = tmp_path / "site-packages"
    site.mkdir()
    for name in EXAMPLE_NEEDS:
        files = metadata.files(name)
        assert files is not None
        for top in {file.parts[0] for file in files if file.parts[0] != ".."}:
            (site / top).symlink_to(Path(str(files[0].locate())).parents[len(files[0].parts) - 1] / top)
    start = f"import runpy, sys; sys.path.append({str(site)!r}); sys.argv = sys.argv[1:]"
    return [sys.executable, "-I", "-S", "-c", start + "; runpy.run_path(sys.argv[0], run_name='__main__')"]


def test_a_python_without_torch_says_what_predict_says(
    checkpoint: Path, tmp_path: Path, bare_python: list[str]
) -> None:
    photos = []
    for number, size in enumerate([(40, 30), (90, 31), (33, 70)]):
        photos.append(tmp_path / f"{number}.png")
        picture_of(number).resize(size).save(photos[-1])
    turned = Image.Exif()
    turned[274] = 6
    photos.append(tmp_path / "large.jpg")
    picture_of(4).resize((400, 300)).save(photos[-1], exif=turned)
    photos.append(tmp_path / "camera.png")  # of 12 bits
    gray = np.asarray(picture_of(2).convert("L"), np.uint16)
    Image.fromarray(1_000 + gray * 12).save(photos[-1])
    said = export(checkpoint, "onnx", tmp_path / "model.onnx", photos)
    assert said["checked_on"] == "5 images"
    assert isinstance(said["dense_error_max"], float)
    assert said["dense_error_max"] <= 1e-4
    example = Path(str(said["example"]))
    text = example.read_text()
    assert "def keypoint_detection" in text
    assert "def metric_learning" not in text, "it is for the model's own heads"

    none = subprocess.run([*bare_python[:-1], "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in none.stderr
    predictor = Predictor(checkpoint, "cpu")
    objects = 0
    for path, wanted in zip(photos, predictor.predict(photos), strict=True):
        call = [*bare_python, str(example), str(tmp_path / "model.onnx"), str(path)]
        answer = subprocess.run(call, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
        lines = [json.loads(line) for line in answer.stdout.splitlines()]
        found = {head: answer for line in lines for head, answer in line.items()}
        assert set(found) == set(EXPORTED)
        objects += sum(each["score"] >= LIKELY for each in found["things"]["objects"])
        for head, prediction in wanted.heads.items():
            told = json.loads(json.dumps(prediction.to_json()))
            assert near(found[head], told), f"{path.name}, {head}: {found[head]}, but predict says {told}"
    assert objects, "nothing was compared of boxes"


def near(found: Any, wanted: Any) -> bool:
    """Whether it is the same JSON with nearly the same numbers; objects are sets, without what is hardly there."""
    if isinstance(wanted, dict):
        return set(found) == set(wanted) and all(near(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list) and any(isinstance(each, dict) for each in wanted):
        found, wanted = ([each for each in side if each.get("score", 1) >= LIKELY] for side in (found, wanted))
        return len(found) == len(wanted) and all(any(near(each, other) for each in found) for other in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(near, found, wanted))
    if isinstance(wanted, float):
        return bool(found == pytest.approx(wanted, rel=5e-3, abs=5e-3))
    return bool(found == wanted)


def test_an_example_for_one_task_has_its_function_and_what_that_calls_alone() -> None:
    names = {"back", "shown", "in_photo", "boxes_of", *map(function_of, (task.name for task in TASKS.values()))}

    def functions(*tasks: str) -> set[str]:
        text = excerpt(tasks)
        compile(text, "example", "exec")
        return {name for name in names if f"def {name}(" in text}

    assert functions("regression") == {"regression"}
    assert functions("object detection") == {"object_detection", "boxes_of", "back"}
    assert functions("semantic segmentation") == {"semantic_segmentation", "in_photo", "shown"}
    assert functions(*(task.name for task in TASKS.values())) == names
    lines = excerpt(["multiclass classification"]).partition("import json")[2].splitlines()
    assert len([line for line in lines if line and not line.startswith(("import", "from"))]) <= 30


def test_without_images_an_export_is_compared_on_the_samples_of_its_training(checkpoint: Path, tmp_path: Path) -> None:
    program = Program(checkpoint)
    pictures, what = _pictures(program, checkpoint, [])
    assert what == "samples of the training"
    wanted, _ = read_on_canvas(
        checkpoint.parents[2] / "training" / "images" / "0.png", canvas_from_data(program.spec.data)
    )
    assert pictures.shape == (8, 3, 32, 48)
    assert (pictures[0] * 255 - wanted).abs().mean() < 12, "as JPEG keeps it"
    shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("samples.json"))
    assert _pictures(program, tmp_path / "bare", [])[1] == "made-up pictures"


def test_what_is_not_in_the_file_is_said_in_it(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, "safetensors", tmp_path / "model.safetensors", [])
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        about = json.loads(file.metadata()[KEY])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — it is no mapping
    program = Program(checkpoint)
    assert all(torch.equal(weights[name], tensor) for name, tensor in program.model.state_dict().items())
    assert "collapse" in about["heads"]["words"]["left_out"]
    assert about["letterbox"] == {"height": 32, "width": 48, "centered": True, "fill": 0.0, "enlarge": True}
    assert about["heads"]["areas"]["outputs"] == {"areas.classes": [32, 48]}
    assert about["heads"]["areas"]["vocabulary"]["categories"] == ["sky", "ground", "wall"]


def test_a_program_of_torch_takes_batches_of_any_size(workshop: Workshop, tmp_path: Path) -> None:
    heads = {head_id: EXPORTED[head_id] for head_id in ("side", "areas", "things", "words")}
    checkpoint = trained(workshop, heads, iterations=10)
    export(checkpoint, "pt2", tmp_path / "model.pt2", [])
    extra = {f"{KEY}.json": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra[f"{KEY}.json"])["heads"].keys() == heads.keys()
    program = Program(checkpoint)
    for images in (1, 5):
        pictures = torch.rand(images, 3, 32, 48)
        with torch.inference_mode():
            wanted, found = program(pictures), module(pictures)
        for head_id in heads:
            mine = {name: value.numpy() for name, value in wanted.items() if name.startswith(f"{head_id}.")}
            assert compare(mine, {name: found[name].numpy() for name in mine}) <= 1e-4


def test_an_export_that_disagrees_is_refused() -> None:
    dense = {"head.depth": np.zeros((1, 4, 4), np.float32)}
    assert compare(dense, dense) == 0
    with pytest.raises(Failure, match=r"off by 0\.01"):
        compare(dense, {"head.depth": dense["head.depth"] + np.float32(0.01)})
    boxes = {
        "head.boxes": np.array([[[0, 0, 5, 5], [9, 9, 20, 20]]], np.float32),
        "head.scores": np.array([[0.9, 0.9]], np.float32),
    }
    turned = {name: value[:, ::-1] for name, value in boxes.items()}
    assert compare(boxes, turned) == 0  # of equal scores either may be the first
    with pytest.raises(Failure, match="is not found"):
        compare(boxes, {**boxes, "head.boxes": boxes["head.boxes"] + np.float32(4)})
    with pytest.raises(Failure, match="finds 1 objects, PyTorch 2"):
        compare(boxes, {**boxes, "head.scores": np.array([[0.9, 0.0]], np.float32)})


def test_what_cannot_be_read_leaves_predictions_in_order_and_their_batches_full(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for number in range(9):
        paths.append(tmp_path / f"{number}.png")
        picture_of(number).save(paths[-1])
    for number in (1, 2, 7):
        paths[number].write_text("torn")
    monkeypatch.setattr("runner.predict.BATCH_SIZE_MAX", 4)
    predictor = Predictor(checkpoint, "cpu")
    sizes: list[int] = []
    monkeypatch.setattr(predictor._model, "forward", _noted(predictor._model.forward, sizes))
    found = list(predictor.predict(paths))
    assert [each.image for each in found] == paths
    assert [each.error is not None for each in found] == [number in (1, 2, 7) for number in range(9)]
    assert sizes == [4, 2]
    assert isinstance(found[0].heads["areas"], Segmentation)


def _noted(forward: Any, sizes: list[int]) -> Any:
    def noted(pictures: torch.Tensor) -> Any:
        sizes.append(len(pictures))
        return forward(pictures)

    return noted
