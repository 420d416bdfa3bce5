"""What the heads for objects reach on real images: `python -m tests.bench.objects --only bccd --data FOLDER`.

The images lie in FOLDER and are imported with `sihlai dataset import`, as a team would. Each part says its warnings:
a warning of a dataset that is in order would be a false one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sihlai.conversion.v1 import task_pb2

from runner.report import Level, Line
from runner.tasks import TASKS
from tests.bench.result import Result
from tests.bench.training_data import Folders
from tests.bench.training_run import Run, specification, train


@dataclass(frozen=True, kw_only=True)
class Real:
    """A training on images of the world. `bars` are of metrics; `validation` of what is trained on: by heart."""

    head: Mapping[str, Any]
    folder: str
    datasets: Callable[[Path, Path], tuple[Folders, Folders]]
    """Imports out of the data's folder into another one: what to train on, and what to validate on."""
    size: tuple[int, int]
    batch_size: int
    steps: int
    rate: float
    bars: Mapping[str, float]
    minutes_max: float | None = None
    """Of two idle cores: twice as many of the processor."""
    augmentations: Mapping[str, float] | None = None


def imported(head: Mapping[str, Any], source: Path, folder: Path, *options: str) -> Folders:
    """A dataset in another tool's form, as a trainer reads it."""
    command = [Path(sys.executable).parent / "sihlai", "dataset", "import", source, folder, *options]
    subprocess.run([*command, "--copy-images", "--local"], check=True, stdout=sys.stderr)
    return {"images": str(folder / "images"), "heads": {head["id"]: str(folder)}}


def _splits(source: Path, folder: Path) -> tuple[Folders, Folders]:
    training, test = (
        imported(BCCD.head, source, folder / name, "--format", "pascal-voc", "--split", name)
        for name in ("train", "test")
    )
    return training, test


def _streets(source: Path, folder: Path) -> tuple[Folders, Folders]:
    """The quadrilaterals are in MMOCR's JSON: written as ICDAR's own text files, and imported as these."""
    written = folder / "icdar"
    written.mkdir()
    for each in json.loads((source / "textdet_test.json").read_text())["data_list"]:
        photo = source / each["img_path"]
        shutil.copy(photo, written)
        lines = [
            f"{','.join(str(round(number)) for number in text['polygon'])},{'###' if text['ignore'] else 'text'}\n"
            for text in each["instances"]
        ]
        (written / f"gt_{photo.stem}.txt").write_text("".join(lines))
    found = imported(STREETS.head, written, folder / "native", "--format", "icdar")
    return found, found


def _coco(head: Mapping[str, Any], form: str) -> Callable[[Path, Path], tuple[Folders, Folders]]:
    def datasets(source: Path, folder: Path) -> tuple[Folders, Folders]:
        found = imported(head, source, folder / "native", "--format", form)
        return found, found

    return datasets


LAYERS = {"channels": 64, "level_min": 3}
BCCD = Real(
    head={"id": "cells", "task": "TASK_OBJECT_DETECTION", "object_detection": LAYERS},
    folder="bccd",
    datasets=_splits,
    size=(320, 320),
    batch_size=8,
    steps=600,
    rate=0.003,
    bars={"map_50": 0.70},
    minutes_max=25,
    augmentations={
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "translation": 0.1,
        "zoom": 0.2,
        "brightness": 0.2,
        "contrast": 0.2,
    },
)
STREETS = Real(
    head={
        "id": "texts",
        "task": "TASK_QUADRILATERAL_DETECTION",
        "quadrilateral_detection": {**LAYERS, "level_min": 2},
    },
    folder="icdar2015_toy",
    datasets=_streets,
    size=(256, 448),
    batch_size=5,
    steps=150,
    rate=0.003,
    bars={"map_50": 0.95},
)
PEOPLE = {"id": "people", "task": "TASK_KEYPOINT_DETECTION", "keypoint_detection": LAYERS}
THINGS = {"id": "things", "task": "TASK_INSTANCE_SEGMENTATION", "instance_segmentation": LAYERS}
REAL: Mapping[str, Real] = {
    "bccd": BCCD,
    "streets": STREETS,
    **{
        f"coco-{form}": Real(
            head=head,
            folder="tiny_coco_train",
            datasets=_coco(head, f"coco-{form}"),
            size=(256, 256),
            batch_size=8,
            steps=200,
            rate=0.003,
            bars={},
        )
        for form, head in (("instances", THINGS), ("keypoints", PEOPLE))
    },
}


def learned(name: str, data: Path, folder: Path, steps: int | None = None) -> Iterator[Result]:
    """Import, train, and what was reached; nothing but a sentence where the data is not there."""
    real = REAL[name]
    source = data / real.folder
    if not source.is_dir():
        sys.stderr.write(f"{name} is left out: {source} is not there; --data says where such folders lie\n")
        return
    count = steps or real.steps
    training, validation = real.datasets(source, folder)
    spec = specification(
        heads=[real.head],
        backbone="small",
        size=real.size,
        trainer={
            "iterations_max": count,
            "validations": 1,
            "batch_size": real.batch_size,
            "gradient_clip_norm": 10,
            "adamw": {"learning_rate": real.rate, "weight_decay": 0.05},
        },
        augmentations=real.augmentations,
    )
    began = time.perf_counter()
    run = train(spec, training, validation, folder)
    minutes = (time.perf_counter() - began) / 60
    yield from _results(name, real, run, count, minutes)


def _results(name: str, real: Real, run: Run, steps: int, minutes: float) -> Iterator[Result]:
    said = f"{steps} steps, {minutes:.1f} minutes, load {os.getloadavg()[1]:.0f}"
    head = real.head["id"]
    for metric in TASKS[task_pb2.Task.Value(real.head["task"])].metrics:
        try:
            value = run.last(f"{head}/valid/{metric}")
        except IndexError:  # there is no object of that size
            continue
        bar = f">= {real.bars[metric]}" if metric in real.bars else None
        yield Result(name=f"{name}, {metric}", value=value, unit=said, bar=bar)
    bar = f"<= {2 * real.minutes_max:.0f}" if real.minutes_max else None
    yield Result(name=f"{name}, loop", value=run.seconds(0) / 60, unit=f"minutes of processor, {steps} steps", bar=bar)
    losses = run.all("train/loss")
    share = sum(losses[-10:]) / sum(losses[:10])
    yield Result(name=f"{name}, loss of the last ten steps to that of the first", value=share, unit="", bar="<= 0.8")
    warnings = [each.text for each in run.reports if isinstance(each, Line) and each.level is not Level.INFO]
    yield Result(name=f"{name}, warnings", value=len(warnings), unit="; ".join(warnings), bar="<= 0")
