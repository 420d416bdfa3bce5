"""The table of tasks for tests: a row for each, with a small dataset and what its head must reach on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from sihlai.conversion.v1 import task_pb2

from runner.tasks import dynamic_mask, quadrilateral_detection
from runner.tasks.task import Outputs, Task
from runner.trainer.image import Canvas
from services.scheduler.specification import task_name

CANVAS = Canvas(height=32, width=48, centered=True, fill=0.0, enlarge=True)
IMAGES = 4
WIDTH, HEIGHT = 40, 30
COLORS = {"sky": [0, 0, 255], "ground": [0, 255, 0], "wall": [255, 0, 0]}


def class_map(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Three areas and an ignored border."""
    colors = np.zeros((height, width, 3), np.uint8)
    split = width // 3 + seed % 5
    colors[:, :split], colors[: height // 2, split:], colors[height // 2 :, split:] = COLORS.values()
    colors[:1] = 0
    return Image.fromarray(colors)


def depth_map(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A slope of 16 bits whose first row is ignored."""
    waves = np.sin(np.linspace(0, 3, width) + seed)[None] + np.cos(np.linspace(0, 2, height) + seed)[:, None]
    levels = (waves / 4 + 0.5) * 65_000 + 1
    levels[0] = 0
    return Image.fromarray(levels.astype(np.uint16))


@dataclass(frozen=True, kw_only=True)
class Pages:
    """A map of several pages, and what stands beside it."""

    pages: tuple[Image.Image, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def resized(self, size: tuple[int, int]) -> Pages:
        pages = tuple(page.resize(size, Image.Resampling.NEAREST) for page in self.pages)
        return Pages(pages=pages, about=self.about)


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


def one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    return 30.0 * torch.nn.functional.one_hot(index, count).float()


def through_sigmoid(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    share = (values - low) / (high - low)
    return torch.logit((share + 0.05) / 1.1)


def ideal_classes(task: Task, batched: Any) -> Outputs:
    classes = batched["classes"].long()
    return {"logits": one_hot((classes - 1).clamp(min=0), len(COLORS)).permute(0, 3, 1, 2)}


def ideal_depths(task: Task, batched: Any) -> Outputs:
    """What the map does not say is as in the row below: a pixel of the canvas may lie in both."""
    depths = batched["depth"]
    depths = torch.where(depths.isnan(), depths.roll(-1, dims=1), depths)
    return {"output": through_sigmoid(depths.nan_to_num(1), 1, 5)}


def boxes_of(number: int) -> list[dict[str, Any]]:
    """One to three objects of two categories, which overlap a little in some images."""
    random = np.random.default_rng(number)
    boxes: list[Any] = []
    while len(boxes) < 1 + number % 3:
        sides = random.uniform(8, 20, 2)
        low = random.uniform(0, 1, 2) * ((WIDTH, HEIGHT) - sides)
        inside = [np.minimum(low + sides, other[2:]) - np.maximum(low, other[:2]) for other in boxes]
        if all(each.clip(min=0).prod() < 0.3 * sides.prod() for each in inside):
            boxes.append(np.concatenate([low, low + sides]))
    return [{"category": THINGS[index % 2], "bbox": box.tolist()} for index, box in enumerate(boxes)]


def painted_boxes(annotation: Any, picture: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    for each in annotation:
        left, top, right, bottom = each["bbox"]
        pen.rectangle((left, top, right - 1, bottom - 1), fill=SHADES[each["category"]])
    return picture


def quads_of(number: int) -> list[dict[str, Any]]:
    """The boxes of an image, turned; in every other image they go the other way around."""
    found = []
    for index, each in enumerate(boxes_of(number)):
        left, top, right, bottom = each["bbox"]
        across, down = (left + right) / 2, (top + bottom) / 2
        angle = 0.5 * number + index
        corners = [(-0.4, -0.3), (0.4, -0.3), (0.45, 0.35), (-0.4, 0.3)][:: -1 if number % 2 else 1]
        turned = [(x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)) for x, y in corners]
        quad = [[float(across + (right - left) * x), float(down + (bottom - top) * y)] for x, y in turned]
        found.append({"category": each["category"], "quad": quad})
    return found


def painted_quads(annotation: Any, picture: Image.Image) -> Image.Image:
    """With a dot at the first corner and a smaller one at the second: their order can be seen."""
    pen = ImageDraw.Draw(picture)
    for each in annotation:
        pen.polygon([tuple(corner) for corner in each["quad"]], fill=SHADES[each["category"]])
        for (x, y), radius in zip(each["quad"], (1.5, 0.7), strict=False):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255))
    return picture


def ideal_quads(task: Task, batched: Any) -> Outputs:
    low, high = batched["boxes"].view(-1, 2, 2).unbind(dim=1)
    shares = (batched["corners"] - ((low + high) / 2)[:, None]) / (high - low)[:, None]
    return ideal_points(batched, (shares - torch.tensor(quadrilateral_detection.BOX_CORNERS)).flatten(1))


POINTS = ["top", "left", "right"]


def poses_of(number: int) -> list[dict[str, Any]]:
    """Objects with keypoints of which some are not there; in some images one has a box alone."""
    found: list[dict[str, Any]] = []
    for index, each in enumerate(boxes_of(number)):
        left, top, right, bottom = each["bbox"]
        width, height = right - left, bottom - top
        places = [(0.5, 0.1), (0.1, 0.8), (0.9, 0.7)]
        points = {
            name: [float(left + width * x), float(top + height * y)]
            for name, (x, y) in zip(POINTS, places, strict=True)
            if (number, name) != (3, "right")
        }
        bare = number == 5 and index == 1
        found.append({**({} if bare else points), "bbox": each["bbox"], "area": 0.6 * width * height})
    return found


def painted_poses(annotation: Any, picture: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    for each in annotation:
        left, top, right, bottom = each["bbox"]
        pen.rectangle((left, top, right - 1, bottom - 1), fill=(90, 90, 90))
        for name, color in zip(POINTS, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
            if name in each:
                x, y = each[name]
                pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=color)
    return picture


def ideal_poses(task: Task, batched: Any) -> Outputs:
    low, high = batched["boxes"].view(-1, 2, 2).unbind(dim=1)
    shares = (batched["places"] - ((low + high) / 2)[:, None]) / (high - low)[:, None]
    shares = shares * batched["told"][:, None, None]  # where nothing is known, somewhere inside
    there = 60 * (batched["present"].float() - 0.5)
    return ideal_points(batched, torch.cat([shares.flatten(1), there], dim=1), 1)


def instances_of(number: int, width: int = WIDTH, height: int = HEIGHT) -> Pages:
    """Ellipses in the boxes of an image, one page each."""
    pages = []
    for each in boxes_of(number):
        left, top, right, bottom = each["bbox"]
        page = Image.new("RGB", (WIDTH, HEIGHT))
        ImageDraw.Draw(page).ellipse((left, top, right, bottom), fill=SHADES[each["category"]])
        pages.append(page.resize((width, height), Image.Resampling.NEAREST))
    return Pages(pages=tuple(pages))


def painted_pages(annotation: Any, picture: Image.Image) -> Image.Image:
    for page in annotation.pages:
        if page.mode == "RGB":
            picture.paste(page, mask=Image.fromarray(np.asarray(page).any(axis=2)))
    return picture


def ideal_instances(task: Task, batched: Any) -> Outputs:
    """The first eight objects have a map of features each, from which their weights read them."""
    images, most = len(batched["counts"]), int(batched["counts"].max())
    size = (CANVAS.height >> 1, CANVAS.width >> 1)
    features = torch.zeros(images, dynamic_mask.FEATURES, *size)
    weights = torch.zeros(len(batched["boxes"]), dynamic_mask.WEIGHTS)
    wide = dynamic_mask.FEATURES + dynamic_mask.PLACES
    at = 0
    assert most <= dynamic_mask.FEATURES
    for image, count in enumerate(batched["counts"].tolist()):
        covered = dynamic_mask.coverage(batched["masks"][at : at + count], *size, 2)
        features[image, :count] = covered
        for place in range(count):
            weights[at + place, place] = 1.0  # the first unit of the first layer looks at its map
            weights[at + place, wide * 8 + 8] = 1.0
            weights[at + place, wide * 8 + 8 + 64 + 8] = 60.0
            weights[at + place, -1] = -30.0
        at += count
    return {**ideal_points(batched, weights), "features": features}


def panoptic_of(number: int, width: int = WIDTH, height: int = HEIGHT) -> Pages:
    """The ellipses of an image on a floor, below a wall, with a border of which nobody says what it is."""
    colors, ids = Image.new("RGB", (WIDTH, HEIGHT), SHADES["wall"]), Image.new("L", (WIDTH, HEIGHT), 0)
    ImageDraw.Draw(colors).rectangle((0, 14, WIDTH, HEIGHT), fill=SHADES["floor"])
    for index, each in enumerate(boxes_of(number), start=1):
        left, top, right, bottom = each["bbox"]
        ImageDraw.Draw(colors).ellipse((left, top, right, bottom), fill=SHADES[each["category"]])
        ImageDraw.Draw(ids).ellipse((left, top, right, bottom), fill=index)
    ImageDraw.Draw(colors).rectangle((0, 0, WIDTH, 1), fill=(0, 0, 0))
    pages = (colors, ids)
    return Pages(pages=tuple(page.resize((width, height), Image.Resampling.NEAREST) for page in pages))


def ideal_panoptic(task: Task, batched: Any) -> Outputs:
    semantic = one_hot((batched["classes"].long() - 1).clamp(min=0), 4).permute(0, 3, 1, 2)
    return {**ideal_instances(task, batched), "semantic": semantic}


def ideal_points(batched: Any, extras: torch.Tensor | None = None, categories: int = 2) -> dict[str, torch.Tensor]:
    """The nth object of an image is said by the nth point of level 2; all others say nothing. `extras`: by object."""
    images = len(batched["counts"])
    outputs = {}
    for level in (2, 3):
        size = (CANVAS.height >> level, CANVAS.width >> level)
        outputs[f"scores_{level}"] = torch.full((images, categories, *size), -30.0)
        outputs[f"boxes_{level}"] = torch.zeros(images, 4, *size)
        if extras is not None:
            outputs[f"extras_{level}"] = torch.zeros(images, extras.shape[1], *size)
    at = 0
    for image, count in enumerate(batched["counts"].tolist()):
        for point in range(count):
            row, column = divmod(point, CANVAS.width >> 2)
            low, high = batched["boxes"][at].view(2, 2)
            shift = (low + high) / 2 / 4 - torch.tensor([column + 0.5, row + 0.5])
            outputs["scores_2"][image, batched["categories"][at], row, column] = 30.0
            outputs["boxes_2"][image, :, row, column] = torch.cat([shift, ((high - low) / 20).log()])
            if extras is not None:
                outputs["extras_2"][image, :, row, column] = extras[at]
            at += 1
    return outputs


NAMES = ["left", "right", "top", "bottom"]
THINGS = ["cup", "plate"]
SHADES = {"cup": (255, 40, 40), "plate": (40, 60, 255), "floor": (40, 200, 40), "wall": (200, 200, 40)}
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
        trainer={"iterations_max": 100},
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


def ideal_text(task: Task, batched: Any) -> Outputs:
    """A token in every other column."""
    columns = torch.zeros(len(batched["said"]), 2 * batched["said"].shape[1] + 1, dtype=torch.int64)
    columns[:, 1::2] = batched["said"]
    return {"logits": one_hot(columns, 1 + len(TOKENS))}


def ideal_pictures(task: Task, batched: Any) -> Outputs:
    picture = torch.rand(batched["inside"].shape)[:, None].repeat(1, 3, 1, 1)
    return {"again": picture, "picture": picture}


def ideal_distances(task: Task, batched: Any) -> Outputs:
    strange = torch.tensor([state == "anomalous" for state in STATES]).float()
    return {"distance": strange[:, None, None].repeat(1, CANVAS.height, CANVAS.width)}


def ideal_embeddings(task: Task, batched: Any) -> Outputs:
    """Four numbers that say nothing of each other."""
    bits = torch.arange(8)[:, None] >> torch.arange(3) & 1
    signs = 1.0 - 2 * bits
    return {"embedding": torch.cat([signs, signs.prod(dim=1, keepdim=True)], dim=1)}


TOKENS = ["a", "b", "c", "long"]
STATES = ["normal", "normal", "normal", "normal", "anomalous", "anomalous", None, "anomalous"]
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


def picture_of(number: int) -> Image.Image:
    """An image that no other of the eight looks like, with some structure at every place."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def guided(annotation: Any, picture: Image.Image) -> Image.Image:
    """The picture of an image; a map shines through, as it does in real images."""
    if not isinstance(annotation, Image.Image):
        return picture
    shown = annotation if annotation.mode == "RGB" else Image.fromarray((np.asarray(annotation) >> 8).astype(np.uint8))
    return Image.blend(picture, shown.convert("RGB").resize((WIDTH, HEIGHT)), 0.6)


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
