"""The demo's chapter on several heads: one dataset of panoptic scenes, one job that learns three tasks of it.

From the panoptic maps conversion makes what each head learns: boxes, class maps and labels. What the model then says of
scenes that it never saw is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from services.cli.demo.audit import Audit
from services.cli.demo.scenes import THINGS, Scene, write_scenes
from services.cli.machine.predictor import Prediction

PROJECT = "projects/scenes"
JOB = "three-heads"
SCENES = 240
SCENES_NEW = 6
SEED_NEW = 1798
BOXES, AREAS, LABELS = "boxes", "areas", "labels"
HEADS = (BOXES, AREAS, LABELS)
MEASURED = f"{AREAS}/valid/pixel_accuracy"
PRECISION = f"{BOXES}/valid/map_50"
WANTED = (MEASURED, f"{AREAS}/valid/mean_iou", PRECISION, f"{BOXES}/valid/map", f"{LABELS}/valid/map")
PRECISION_MIN = 0.3
"""Of the boxes of the validation scenes, at an overlap of a half; a model that guesses has 0.02."""
ACCURACY_MIN = 0.75
"""Of the pixels of the validation scenes."""
FOUND_MIN = 0.5
"""Share of the digits of new scenes that a box lies on."""
SCORE_MIN = 0.1
OVERLAP_MIN = 0.5
SPEC: dict[str, Any] = {
    "display_name": "one model, three heads",
    "model": {
        "backbone": {"name": "small"},
        "heads": [
            {"id": BOXES, "task": "TASK_OBJECT_DETECTION", "object_detection": {"channels": 48, "level_min": 2}},
            {
                "id": AREAS,
                "task": "TASK_SEMANTIC_SEGMENTATION",
                "semantic_segmentation": {"channels": 48, "level_min": 1},
            },
            {"id": LABELS, "task": "TASK_MULTILABEL_CLASSIFICATION"},
        ],
    },
    "data": {"height": 48, "width": 64, "augmentations": {"translation": 0.05, "brightness": 0.2}},
    "trainer": {
        "iterations_max": 150,
        "validations": 4,
        "batch_size": 16,
        "gradient_clip_norm": 10,
        "adamw": {"learning_rate": 0.006},
        "selection_metric": f"{BOXES}/map_50",
    },
}
ONE_HEAD: dict[str, Any] = {
    **SPEC,
    "display_name": "the same model, one head",
    "model": {**SPEC["model"], "heads": SPEC["model"]["heads"][1:2]},
    "trainer": {**SPEC["trainer"], "iterations_max": 50, "validations": 2, "selection_metric": f"{AREAS}/mean_iou"},
}


def write_training_scenes(folder: Path) -> list[Scene]:
    """Scenes in the native format, as panoptic maps."""
    return write_scenes(folder, count=SCENES)


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """A row for each scene: what each head says."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("scene", *HEADS):
        table.add_column(column, overflow="fold")
    for each in predictions:
        table.add_row(escape(Path(each.image).name), *(escape(each.summaries.get(head, "")) for head in HEADS))
    return table


def check_learned(values: Mapping[str, float | None], audit: Audit) -> None:
    """`values`: the last ones by series; what each head must have learned."""
    problems = []
    for series, least, what in (
        (MEASURED, ACCURACY_MIN, "a pixel accuracy"),
        (PRECISION, PRECISION_MIN, "an average precision of the boxes"),
    ):
        value = values[series]
        if value is None or value < least:
            problems.append(f"wanted {what} of at least {least}, found {value}")
    if values[f"{LABELS}/valid/map"] is None:
        problems.append("wanted a mean average precision of the labels, found none")
    shown = ", ".join(
        f"{name.replace('/valid/', ' ')} {value:.3f}" for name, value in values.items() if value is not None
    )
    audit.check("one model has learned three tasks", found=shown, problem="; ".join(problems))


def check_predicted(predictions: Sequence[Prediction], scenes: Sequence[Scene], audit: Audit) -> None:
    """Each new scene has a picture for each head, and most of its digits have a box."""
    missing = [
        f"{Path(each.image).name} of {head}"
        for each in predictions
        for head in HEADS
        if not Path(str(each.heads.get(head, {}).get("drawn", "nowhere"))).is_file()
    ]
    wanted = {scene.name: true_boxes(scene) for scene in scenes}
    count = hits = 0
    for each in predictions:
        said = [item["bbox"] for item in each.heads[BOXES]["objects"] if item["score"] >= SCORE_MIN]
        for box in wanted[Path(each.image).name]:
            count += 1
            hits += any(overlap(box, other) >= OVERLAP_MIN for other in said)
    share = hits / max(count, 1)
    problems = [f"no picture of {', '.join(missing)}"] if missing else []
    if not count or share < FOUND_MIN:
        problems.append(f"wanted a box on at least {FOUND_MIN:.0%} of {count} digits, found one on {share:.0%}")
    audit.check(
        "the downloaded model draws what it sees on new scenes",
        found=f"{len(predictions)} scenes, {len(HEADS)} pictures each; boxes on {hits} of {count} digits",
        problem="; ".join(problems),
    )


def true_boxes(scene: Scene) -> list[tuple[float, ...]]:
    """Boxes of the digits that can be seen one by one, as left, top, right, bottom in pixels of the image."""
    boxes = []
    for segment, mask in scene.seen:
        if segment.category in THINGS and not (segment.crowd or segment.ignore):
            rows, columns = (np.flatnonzero(np.any(mask, axis=axis)) for axis in (1, 0))
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            boxes.append(tuple(float(scene.scale * edge) for edge in edges))
    return boxes


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return inside / max(sum(areas) - inside, 1e-9)


def write_new_scenes(folder: Path) -> list[Scene]:
    """Scenes that no training has seen."""
    return write_scenes(folder, count=SCENES_NEW, seed=SEED_NEW)
