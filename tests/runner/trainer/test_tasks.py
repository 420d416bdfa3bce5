"""What holds for every task that a head can learn: a row for each, and the same questions to all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from PIL import Image
from sihlai.conversion.v1.task_pb2 import TASK_DEPTH_ESTIMATION, TASK_SEMANTIC_SEGMENTATION
from sihlai.scheduler.v1.job_spec_pb2 import Augmentations
from sihlai.scheduler.v1.job_spec_pb2 import Head as HeadSpecification

from runner.agent.telemetry import capabilities
from runner.report import Outcome as Ending
from runner.tasks import TASKS
from runner.tasks.task import Head
from runner.trainer.image import canvas_from_data, view_of
from runner.trainer.model import Losses, Model, build_model
from runner.trainer.targets import Targets
from runner.trainer.view import View
from services.scheduler.specification import PRIMARY_METRICS, task_name
from tests.runner.trainer.conftest import Workshop, spec_from
from tests.runner.trainer.drawn_annotations import HEIGHT, WIDTH, Pages
from tests.runner.trainer.ideal_outputs import CANVAS
from tests.runner.trainer.task_rows import IMAGES, ROWS, Row, write_head, write_images, written

MAP_ROWS = [row for row in ROWS if TASKS[row.task].opens_files]
PIXEL_ROWS = [row for row in MAP_ROWS if row.task in (TASK_SEMANTIC_SEGMENTATION, TASK_DEPTH_ESTIMATION)]
every_task = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def targets_of(
    row: Row,
    folder: Path,
    wanted: Sequence[Any],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    metadata: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Annotations, read and placed on the canvas; None stays None. `metadata`: in place of the row's own."""
    task = TASKS[row.task]
    read = task.reader(task.vocabulary(metadata or row.metadata), folder)
    view = view_of(*size, CANVAS)
    return [
        None if each is None else task.place(read(written(each, folder, f"map-{number}")), view)
        for number, each in enumerate(wanted)
    ]


def model_of(row: Row, metadata: Mapping[str, Any] | None = None) -> tuple[Model, Head]:
    torch.manual_seed(0)
    spec = spec_from(model={"heads": [row.head_json()]})
    model = build_model(spec.model, [TASKS[row.task].vocabulary(metadata or row.metadata)])
    return model, model.heads["tested"]


def test_every_task_that_can_be_learned_has_a_row_here_and_is_announced() -> None:
    assert {row.task for row in ROWS} == set(TASKS) == set(capabilities.TASKS)
    for number, task in TASKS.items():
        assert task.name == task_name(number)
        assert number not in PRIMARY_METRICS or next(iter(task.metrics)) == PRIMARY_METRICS[number]
    known = {field.name for field in Augmentations.DESCRIPTOR.fields}
    for row in ROWS:
        task = TASKS[row.task]
        assert set(task.unfit_augmentations(task.vocabulary(row.metadata))) <= known


def pictures_for(row: Row, images: int = IMAGES) -> torch.Tensor:
    """Pictures of so many images, as many of each as the task wants."""
    return torch.rand(images * TASKS[row.task].views, 3, CANVAS.height, CANVAS.width)


def cases(row: Row) -> dict[str, tuple[list[Any], tuple[int, int]]]:
    """Batches that ask for trouble: annotations of four images, and the images' size."""
    some = list(row.annotations[:IMAGES])
    found = {
        "plain": (some, (WIDTH, HEIGHT)),
        "one labelled": ([None, some[1], None, None], (WIDTH, HEIGHT)),
        "all of one kind": ([some[0]] * IMAGES, (WIDTH, HEIGHT)),
        "an image alone": (some[:1], (WIDTH, HEIGHT)),
    }
    if row.nothing is not None:
        found["nothing there"] = ([row.nothing] * IMAGES, (WIDTH, HEIGHT))
    if row.ignored is not None:
        found["all ignored"] = ([row.ignored] * IMAGES, (WIDTH, HEIGHT))
        found["some ignored"] = ([row.ignored, *some[1:]], (WIDTH, HEIGHT))
    if row.smaller is not None:
        found["smaller than the image"] = ([row.smaller] * IMAGES, (WIDTH, HEIGHT))
        found["a narrow image"] = ([row.smaller] * IMAGES, (8, 200))
    return found


def assert_finite(losses: Losses, model: Model, case: str) -> None:
    """That a loss and the gradients of all weights that it reaches are numbers."""
    losses.total.backward()
    assert losses.total.isfinite(), case
    assert all(part.dtype == torch.float32 for parts in losses.by_head.values() for part in parts.values()), case
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients, case
    assert all(gradient.isfinite().all() for gradient in gradients), case


@every_task
def test_losses_and_gradients_are_finite_whatever_a_batch_holds(row: Row, tmp_path: Path) -> None:
    for case, (wanted, size) in cases(row).items():
        model, _ = model_of(row)
        targets = Targets.of(TASKS[row.task], targets_of(row, tmp_path, wanted, size))
        assert_finite(model.losses(model(pictures_for(row, len(wanted)), len(wanted)), [targets]), model, case)
    if row.lone is not None:
        metadata, annotation = row.lone
        model, _ = model_of(row, metadata)
        targets = Targets.of(TASKS[row.task], targets_of(row, tmp_path, [annotation] * IMAGES, metadata=metadata))
        assert_finite(model.losses(model(pictures_for(row)), [targets]), model, "a vocabulary of one word")


@every_task
def test_a_head_that_nothing_of_a_batch_is_annotated_for_leaves_it_to_the_others(row: Row, tmp_path: Path) -> None:
    other = ROWS[0]
    spec = spec_from(model={"heads": [row.head_json(), other.head_json("other")]})
    vocabularies = [TASKS[each.task].vocabulary(each.metadata) for each in (row, other)]
    torch.manual_seed(0)
    model = build_model(spec.model, vocabularies)
    annotated = Targets.of(TASKS[other.task], targets_of(other, tmp_path, other.annotations[:IMAGES]))
    losses = model.losses(model(pictures_for(row), IMAGES), [None, annotated])
    assert list(losses.by_head) == ["other"]
    assert_finite(losses, model, "all null")
    assert all(parameter.grad is None for parameter in model.heads["tested"].parameters())


@every_task
def test_an_image_alone_is_understood_where_the_coarsest_level_is_one_pixel(row: Row) -> None:
    head = row.head_json()
    (parameters,) = (value for value in head.values() if isinstance(value, dict))
    if "channels" in parameters:
        parameters["channels"] = 8
    spec = spec_from(model={"backbone": {"name": "small"}, "heads": [head]}, data={"height": 32, "width": 32})
    torch.manual_seed(0)
    model = build_model(spec.model, [TASKS[row.task].vocabulary(row.metadata)]).eval()
    view = view_of(32, 32, canvas_from_data(spec.data))
    with torch.inference_mode():
        decoded = model.decoded(model(torch.rand(1, 3, 32, 32)))["tested"]
    (prediction,) = model.heads["tested"].predictions(decoded, [view])
    assert prediction.summary()


@every_task
def test_a_batch_without_any_annotation_has_no_targets(row: Row) -> None:
    assert Targets.of(TASKS[row.task], [None] * IMAGES) is None


@every_task
def test_an_image_without_an_annotation_gets_no_gradient_and_changes_no_loss(row: Row, tmp_path: Path) -> None:
    model, head = model_of(row)
    placed = targets_of(row, tmp_path, row.annotations[:IMAGES])
    views = TASKS[row.task].views
    labelled = [row for row in range(IMAGES * views) if row % 2 == 0]
    channels = {0: 3, **model.neck.out_channels}
    features = {
        level: torch.rand(IMAGES * views, count, CANVAS.height >> level, CANVAS.width >> level, requires_grad=True)
        for level, count in channels.items()
    }
    some = Targets.of(TASKS[row.task], [placed[0], None, placed[2], None])
    losses = model.losses({"tested": head(features)}, [some])
    losses.total.backward()
    touched = 0
    for found in features.values():
        if found.grad is not None:
            assert not found.grad[1::2].any()
            touched += int(found.grad[::2].any())
    assert touched
    alone = {level: found[labelled].detach() for level, found in features.items()}
    both = Targets.of(TASKS[row.task], [placed[0], placed[2]])
    torch.testing.assert_close(model.losses({"tested": head(alone)}, [both]).total, losses.total)


@every_task
def test_half_precision_outputs_are_compared_in_full(row: Row, tmp_path: Path) -> None:
    model, _ = model_of(row)
    targets = Targets.of(TASKS[row.task], targets_of(row, tmp_path, row.annotations[:IMAGES]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pictures = pictures_for(row)
        outputs = model(pictures)
        coarsest = model.neck(model.backbone(pictures))[max(model.neck.out_channels)]
        losses = model.losses(outputs, [targets])
    assert coarsest.dtype == torch.bfloat16
    assert losses.total.dtype == torch.float32


def fitted(annotation: Any, size: tuple[int, int]) -> Any:
    """A map has the shape of its image."""
    if isinstance(annotation, Pages):
        return annotation.resized(size)
    return annotation.resize(size, Image.Resampling.NEAREST) if isinstance(annotation, Image.Image) else annotation


@every_task
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 31)])
def test_ideal_outputs_decode_to_their_targets(row: Row, size: tuple[int, int], tmp_path: Path) -> None:
    for name, value, ideal in ideal_metrics(row, size, tmp_path):
        assert value == pytest.approx(ideal, abs=row.tolerance), name


@pytest.mark.parametrize("row", PIXEL_ROWS, ids=[row.name for row in PIXEL_ROWS])
@pytest.mark.parametrize("size", [(24, 16), (24, 10), (6, 16)])
def test_ideal_maps_are_exact_where_each_pixel_covers_whole_ones_of_the_canvas(
    row: Row, size: tuple[int, int], tmp_path: Path
) -> None:
    matrix = view_of(*size, CANVAS).matrix
    assert matrix[0] == matrix[4] == 2
    for name, value, ideal in ideal_metrics(row, size, tmp_path):
        assert value == pytest.approx(ideal, abs=1e-5), name


def ideal_metrics(row: Row, size: tuple[int, int], folder: Path) -> list[tuple[str, float, float]]:
    """Metrics of outputs that say what the targets say, for images of a size: name, value and what it should be."""
    task = TASKS[row.task]
    read = task.reader(task.vocabulary(row.metadata), folder)
    view = view_of(*size, CANVAS)
    _, head = model_of(row)
    targets = [read(written(fitted(each, size), folder, f"map-{n}")) for n, each in enumerate(row.annotations)]
    placed = [task.place(target, view) for target in targets]
    outputs = row.ideal(task, task.batch([each for each in placed if each is not None]))
    predictions = head.predictions(head.decode(outputs), [view] * len(targets))
    evaluation = head.evaluation()
    for prediction, target in zip(predictions, targets, strict=True):
        evaluation.add(prediction if task.views == 1 else (prediction,) * task.views, target, view)
    found = {each.name: each.value for each in evaluation.values() if not each.context}
    assert set(found) <= set(task.metrics)
    return [(name, value, row.perfect.get(name, 1.0 if task.metrics[name] else 0.0)) for name, value in found.items()]


@every_task
def test_a_prediction_is_json_words_and_a_picture(row: Row) -> None:
    model, head = model_of(row)
    view = View(width=50, height=20, canvas_width=48, canvas_height=32, matrix=(0.96, 0, 0, 0, 0.95, 6))
    with torch.inference_mode():
        decoded = model.eval().decoded(model(torch.rand(1, 3, CANVAS.height, CANVAS.width)))["tested"]
    (prediction,) = head.predictions(decoded, [view])
    assert json.loads(json.dumps(prediction.to_json(), allow_nan=False))
    assert prediction.summary()
    drawn = prediction.draw(Image.new("RGB", (50, 20), (90, 90, 90)))
    assert drawn.mode == "RGB"
    assert drawn.width >= 256
    assert (prediction.map_file() is not None) is TASKS[row.task].opens_files


@pytest.mark.parametrize("row", MAP_ROWS, ids=[row.name for row in MAP_ROWS])
def test_the_map_of_a_prediction_is_an_annotation_that_says_the_same(row: Row, tmp_path: Path) -> None:
    task = TASKS[row.task]
    read = task.reader(task.vocabulary(row.metadata), tmp_path)
    view = View(width=50, height=20, canvas_width=48, canvas_height=32, matrix=(0.96, 0, 0, 0, 0.95, 6))
    target = read(written(fitted(row.annotations[0], (50, 20)), tmp_path, "map"))
    _, head = model_of(row)
    outputs = row.ideal(task, task.batch([task.place(target, view)]))
    (prediction,) = head.predictions(head.decode(outputs), [view])
    content = prediction.map_file()
    assert content is not None
    path = tmp_path / "annotations" / f"again{prediction.map_suffix}"
    path.write_bytes(content)
    evaluation = head.evaluation()
    evaluation.add(prediction, read({"map": f"annotations/{path.name}"}), view)
    primary = evaluation.values()[0]
    assert primary.value == pytest.approx(1.0 if task.metrics[primary.name] else 0.0, abs=1e-3)


@every_task
def test_a_new_evaluation_has_no_metric(row: Row) -> None:
    _, head = model_of(row)
    assert head.evaluation().values() == []
    assert head.evaluation().text() == []


@every_task
def test_eight_images_are_learned_by_heart(row: Row, workshop: Workshop) -> None:
    folder = workshop.folder / "training"
    write_images(folder / "images", [row])
    write_head(folder / "heads", row)
    training = {"images": str(folder / "images"), "heads": {"tested": str(folder / "heads")}}
    spec = spec_from(
        model={"heads": [row.head_json()]},
        data={"height": HEIGHT, "width": WIDTH},
        trainer={"iterations_max": 120, "batch_size": 8, "adamw": {"learning_rate": 0.01}, **row.trainer},
    )
    outcome = workshop.run(workshop.write_attempt(training, spec, validation=training))
    assert outcome.ended.outcome is Ending.COMPLETED, outcome.ended.message
    for name, wanted in row.learned.items():
        (value,) = outcome.series(f"tested/valid/{name}").values()
        if TASKS[row.task].metrics[name]:
            assert value >= wanted, name
        else:
            assert value <= wanted, name
    losses = list(outcome.series("tested/train/loss").values())
    assert sum(losses[-20:]) / 20 * row.loss_falls <= losses[0]


def test_a_head_of_the_specification_is_read_as_json() -> None:
    for row in ROWS:
        head = json_format.ParseDict(row.head_json(), HeadSpecification())
        assert head.WhichOneof("parameters") == row.name.replace(" ", "_").replace("-", "_")
