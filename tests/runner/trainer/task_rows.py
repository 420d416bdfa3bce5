"""The table of tasks for tests: a row for each, with a small dataset and what its head must reach on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from sihlai.conversion.v1 import task_pb2

from runner.tasks.task import Outputs, Task
from services.scheduler.specification import task_name
from tests.runner.trainer.drawn_annotations import (
    COLORS,
    HEIGHT,
    POINTS,
    SHADES,
    THINGS,
    WIDTH,
    Pages,
    boxes_of,
    class_map,
    depth_map,
    guided,
    instances_of,
    painted_boxes,
    painted_pages,
    painted_poses,
    painted_quads,
    panoptic_of,
    picture_of,
    poses_of,
    quads_of,
)
from tests.runner.trainer.ideal_outputs import (
    STATES,
    TOKENS,
    ideal_classes,
    ideal_depths,
    ideal_distances,
    ideal_embeddings,
    ideal_instances,
    ideal_panoptic,
    ideal_pictures,
    ideal_points,
    ideal_poses,
    ideal_quads,
    ideal_text,
    one_hot,
    through_sigmoid,
)

IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task: its metadata, annotations as normalised JSON, and what its head must reach."""

    task: task_pb2.Task.ValueType
    metadata: Mapping[str, Any]
    annotations: Sequence[Any]
    """Of eight images; a picture is written as a map."""
    ideal: Callable[[Task, Any], Outputs]
    """The outputs that say exactly what a batch of placed targets says."""
    learned: Mapping[str, float]
    """Metrics on eight images by heart: at least so much, or for errors at most."""
    nothing: Any = None
    """The annotation that says that nothing is there, where there is one."""
    ignored: Any = None
    """A map of which nothing counts."""
    smaller: Any = None
    """A map smaller than its image."""
    lone: tuple[Mapping[str, Any], Any] | None = None
    """Metadata whose vocabulary is one word alone, and an annotation, where there are words."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    perfect: Mapping[str, float] = field(default_factory=dict)
    """What ideal outputs reach where it is not 1, or 0 for errors."""
    loss_falls: float = 1.0
    """By what factor the training loss falls on eight images, for tasks whose metrics say little of it."""
    tolerance: float = 1e-5
    """How far ideal outputs may be off; maps pass through the canvas, whose pixels are not theirs."""
    painted: Callable[[Any, Image.Image], Image.Image] = lambda annotation, picture: guided(annotation, picture)
    """The picture with what is annotated."""

    @property
    def name(self) -> str:
        return task_name(self.task)

    def head_json(self, head_id: str = "tested") -> dict[str, Any]:
        name = self.name.replace(" ", "_").replace("-", "_")
        return {"id": head_id, "task": task_pb2.Task.Name(self.task), name: dict(self.parameters)}


NAMES = ["left", "right", "top", "bottom"]
SIDES = [NAMES[index % 4] for index in range(8)]
ROWS = [
    Row(
        task=task_pb2.TASK_MULTICLASS_CLASSIFICATION,
        metadata={"categories": NAMES},
        annotations=SIDES,
        ideal=lambda task, batched: {"logits": one_hot(batched["index"], 4)},
        learned={"accuracy": 1.0, "f1": 1.0},
        lone=({"categories": ["left"]}, "left"),
    ),
    Row(
        task=task_pb2.TASK_MULTILABEL_CLASSIFICATION,
        metadata={"labels": ["a", "b", "c", "never"]},
        annotations=[["a"], ["b"], ["a", "b"], [], ["c"], ["a", "c"], ["b", "c"], ["a", "b", "c"]],
        ideal=lambda task, batched: {"logits": 60 * (batched["present"] - 0.5)},
        learned={"f1": 1.0, "map": 1.0, "exact_match": 1.0},
        nothing=[],
        lone=({"labels": ["a"]}, ["a"]),
    ),
    Row(
        task=task_pb2.TASK_METRIC_LEARNING,
        metadata={"identities": NAMES},
        annotations=["left", "bottom"] * 4,
        ideal=lambda task, batched: {"embedding": one_hot(batched["index"], 16)},
        learned={"precision_at_1": 1.0},
        lone=({"identities": ["left"]}, "left"),
        parameters={"embedding_size": 16},
    ),
    Row(
        task=task_pb2.TASK_REGRESSION,
        metadata={"range": [-2.0, 6.0]},
        annotations=[-2.0, 6.0, 0.0, 1.0, 2.5, 3, 4.0, 5.25],
        ideal=lambda task, batched: {"output": through_sigmoid(batched["value"], -2, 6)},
        learned={"mae": 0.08},
        trainer={"iterations_max": 240},
    ),
    Row(
        task=task_pb2.TASK_OBJECT_DETECTION,
        metadata={"categories": THINGS},
        annotations=[boxes_of(number) for number in range(8)],
        ideal=lambda task, batched: ideal_points(batched),
        learned={"map_50": 0.99, "map": 0.9},
        nothing=[],
        ignored=[{"category": "cup", "bbox": [0, 0, WIDTH, HEIGHT], "ignore": True}],
        parameters={"channels": 32, "level_min": 2},
        trainer={"iterations_max": 90},
        painted=painted_boxes,
    ),
    Row(
        task=task_pb2.TASK_QUADRILATERAL_DETECTION,
        metadata={"categories": THINGS},
        annotations=[quads_of(number) for number in range(8)],
        ideal=ideal_quads,
        learned={"map_75": 0.95},
        nothing=[],
        ignored=[{"category": "cup", "quad": [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], "crowd": True}],
        parameters={"channels": 32, "level_min": 2},
        trainer={"iterations_max": 160},
        painted=painted_quads,
    ),
    Row(
        task=task_pb2.TASK_KEYPOINT_DETECTION,
        metadata={"keypoints": POINTS, "sigmas": [0.08, 0.08, 0.08], "flip_pairs": [["left", "right"]]},
        annotations=[poses_of(number) for number in range(8)],
        ideal=ideal_poses,
        learned={"ap": 0.95},
        nothing=[],
        ignored=[{"bbox": [0, 0, WIDTH, HEIGHT], "ignore": True}],
        parameters={"channels": 32, "level_min": 2},
        trainer={"iterations_max": 100},
        painted=painted_poses,
    ),
    Row(
        task=task_pb2.TASK_INSTANCE_SEGMENTATION,
        metadata={"categories": THINGS, "colors": {name: list(SHADES[name]) for name in THINGS}},
        annotations=[instances_of(number) for number in range(8)],
        ideal=ideal_instances,
        learned={"map_50": 0.95, "map": 0.8},
        nothing=Pages(pages=(Image.new("RGB", (WIDTH, HEIGHT)),)),
        ignored=Pages(pages=(Image.new("RGB", (WIDTH, HEIGHT), SHADES["cup"]),), about={"crowd": [1]}),
        smaller=instances_of(1, WIDTH // 2, HEIGHT // 2),
        parameters={"channels": 32, "level_min": 2, "mask_level": 1},
        tolerance=0.25,
        trainer={"iterations_max": 130},
        painted=painted_pages,
    ),
    Row(
        task=task_pb2.TASK_PANOPTIC_SEGMENTATION,
        metadata={
            "categories": list(SHADES),
            "colors": {name: list(color) for name, color in SHADES.items()},
            "things": THINGS,
        },
        annotations=[panoptic_of(number) for number in range(8)],
        ideal=ideal_panoptic,
        learned={"pq": 0.8},
        ignored=Pages(pages=(Image.new("RGB", (WIDTH, HEIGHT)), Image.new("L", (WIDTH, HEIGHT)))),
        smaller=panoptic_of(1, WIDTH // 2, HEIGHT // 2),
        parameters={"channels": 32, "level_min": 2, "mask_level": 1},
        tolerance=0.25,
        trainer={"iterations_max": 90},
        painted=painted_pages,
    ),
    Row(
        task=task_pb2.TASK_SEMANTIC_SEGMENTATION,
        metadata={"categories": list(COLORS), "colors": COLORS},
        annotations=[class_map(seed) for seed in range(8)],
        ideal=ideal_classes,
        learned={"mean_iou": 0.98},
        ignored=Image.new("RGB", (WIDTH, HEIGHT)),
        smaller=class_map(1, WIDTH // 2, HEIGHT // 2),
        lone=(
            {"categories": ["sky"], "colors": {"sky": COLORS["sky"]}},
            Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 255)),
        ),
        parameters={"channels": 32, "level_min": 0},
        tolerance=0.13,
    ),
    Row(
        task=task_pb2.TASK_DEPTH_ESTIMATION,
        metadata={"range": [1.0, 5.0]},
        annotations=[depth_map(seed) for seed in range(8)],
        ideal=ideal_depths,
        learned={"rmse": 0.08},
        ignored=Image.new("I;16", (WIDTH, HEIGHT)),
        smaller=depth_map(1, WIDTH // 2, HEIGHT // 2),
        parameters={"channels": 32, "level_min": 0},
        tolerance=0.13,
        trainer={"iterations_max": 240},
    ),
]
ROWS += [
    Row(
        task=task_pb2.TASK_SCENE_TEXT_RECOGNITION,
        metadata={"tokens": TOKENS},
        annotations=[["a"], ["b", "b"], ["a", "long", "c"], [], ["c", "a"], ["long"], ["b", "c", "a"], ["a", "a", "a"]],
        ideal=ideal_text,
        learned={"exact_match": 1.0, "character_error_rate": 0.0},
        nothing=[],
        parameters={"tokens_max": 3, "level_min": 1, "channels": 32},
        trainer={"iterations_max": 200},
    ),
    Row(
        task=task_pb2.TASK_ANOMALY_DETECTION,
        metadata={},
        annotations=STATES,
        ideal=ideal_distances,
        learned={"auroc": 1.0},
        parameters={"channels": 32},
    ),
    Row(
        task=task_pb2.TASK_AUTOENCODING,
        metadata={},
        annotations=["alone"] * 8,
        ideal=ideal_pictures,
        learned={"mse": 0.01},
        perfect={"psnr": 100.0},
        loss_falls=10.0,
        parameters={"channels": 64},
    ),
    Row(
        task=task_pb2.TASK_VIEW_INVARIANCE_LEARNING,
        metadata={},
        annotations=["alone"] * 8,
        ideal=ideal_embeddings,
        learned={"on_diagonal": 0.9, "off_diagonal": 0.2},
        loss_falls=10.0,
        parameters={"embedding_size": 4},
        trainer={"iterations_max": 320, "adamw": {"learning_rate": 0.003}},
    ),
]


def written(annotation: Any, folder: Path, name: str) -> Any:
    """The annotation as annotations.json has it; a picture becomes a file."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    if isinstance(annotation, Pages):
        first, *others = annotation.pages
        path = folder / "annotations" / f"{name}.tiff"
        first.save(path, save_all=True, append_images=others, compression="tiff_adobe_deflate")
        return {"map": f"annotations/{name}.tiff", **annotation.about}
    if not isinstance(annotation, Image.Image):
        return annotation
    path = folder / "annotations" / f"{name}.png"
    annotation.save(path)
    return {"map": f"annotations/{name}.png"}


def write_images(folder: Path, rows: Sequence[Row]) -> None:
    """Eight images on which each map of the rows can be seen."""
    folder.mkdir(parents=True)
    for number in range(8):
        picture = picture_of(number)
        for row in rows:
            picture = row.painted(row.annotations[number], picture)
        picture.save(folder / f"{number}.png")


def write_head(folder: Path, row: Row, labelled: Sequence[int] = range(8)) -> None:
    """A row's metadata and annotations; images that are not named are null."""
    folder.mkdir(parents=True)
    annotations = {
        f"{number}.png": written(annotation, folder, str(number)) if number in labelled else None
        for number, annotation in enumerate(row.annotations)
    }
    (folder / "metadata.json").write_text(json.dumps({"task": row.name, **row.metadata}))
    (folder / "annotations.json").write_text(json.dumps(annotations))
