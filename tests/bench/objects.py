"""What the heads for objects reach: `python -m tests.bench.objects [--seeds 3] [--only PREFIX] [--data FOLDER]`.

Each line has name, value, unit, bar and ratio; a metric's value is the median over the seeds, and its unit says the
others. Scenes to train and to validate on are made of other digits; with `--data` there are real images as well. Times
are seconds of the processor, of all threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sihlai.conversion.v1 import task_pb2

from runner.tasks import TASKS
from runner.tasks.average_precision import AveragePrecision, coco_box
from runner.tasks.objects import PlacedObjects
from runner.trainer.model import build_model
from runner.trainer.targets import Targets
from tests.bench.object_scenes import write
from tests.bench.objects_real import REAL, learned
from tests.bench.result import Result
from tests.bench.training_run import specification, train

SCENES, SCENES_HELD_OUT = 1_200, 200
SIZE = (96, 96)
BATCH_SIZE = 16
RATE = 0.003
CHANNELS = 64
AUGMENTATIONS = {"translation": 0.06, "zoom": 0.15, "brightness": 0.2, "contrast": 0.2}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A job of one or more heads, and what it must reach. `bars` are of metrics, `{head}/{metric}`."""

    name: str
    heads: Mapping[str, Mapping[str, Any]]
    bars: Mapping[str, float]
    seconds_max: float
    """Of two idle cores: twice as many of the processor."""
    steps: int = 750
    turned: bool = False


OBJECTS = {"channels": CHANNELS, "level_min": 3}
MASKS = {**OBJECTS, "mask_level": 1}
PROOFS = (
    Proof(
        name="together",
        heads={
            "boxes": {"task": "TASK_OBJECT_DETECTION", "object_detection": OBJECTS},
            "areas": {
                "task": "TASK_SEMANTIC_SEGMENTATION",
                "semantic_segmentation": {"channels": CHANNELS, "level_min": 1},
            },
            "labels": {"task": "TASK_MULTILABEL_CLASSIFICATION"},
        },
        bars={"boxes/map": 0.70, "boxes/map_50": 0.93, "areas/mean_iou": 0.75, "labels/f1": 0.85},
        seconds_max=150,
    ),
    Proof(
        name="instances",
        heads={"instances": {"task": "TASK_INSTANCE_SEGMENTATION", "instance_segmentation": MASKS}},
        bars={"instances/map_50": 0.85},
        seconds_max=200,
        steps=500,
    ),
    Proof(
        name="panoptic",
        heads={"panoptic": {"task": "TASK_PANOPTIC_SEGMENTATION", "panoptic_segmentation": MASKS}},
        bars={"panoptic/pq": 0.60},
        seconds_max=200,
        steps=500,
    ),
    Proof(
        name="quads",
        heads={"quads": {"task": "TASK_QUADRILATERAL_DETECTION", "quadrilateral_detection": OBJECTS}},
        bars={"quads/map_50": 0.85},
        seconds_max=200,
        turned=True,
    ),
    Proof(
        name="corners",
        heads={"corners": {"task": "TASK_KEYPOINT_DETECTION", "keypoint_detection": OBJECTS}},
        bars={"corners/ap": 0.70},
        seconds_max=200,
        turned=True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each kind")
    parser.add_argument("--steps", type=int, help="of each training, else as many as each wants")
    parser.add_argument("--only", default="", help="only the parts whose name begins so")
    parser.add_argument(
        "--data", type=Path, help="where folders of real images lie, such as bccd: these are learned too"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in (dense, evaluation):
        if part.__name__.startswith(arguments.only):
            _tell(part())
    for proof in PROOFS:
        if proof.name.startswith(arguments.only):
            with tempfile.TemporaryDirectory(prefix="sihlai-objects-") as folder:
                _tell(proven(proof, range(arguments.seeds), arguments.steps or proof.steps, Path(folder)))
    for name in REAL if arguments.data else ():
        if name.startswith(arguments.only):
            with tempfile.TemporaryDirectory(prefix="sihlai-objects-") as folder:
                _tell(learned(name, arguments.data, Path(folder), arguments.steps))


def proven(
    proof: Proof,
    seeds: Sequence[int],
    steps: int,
    folder: Path,
    *,
    scenes: int = SCENES,
    held_out: int = SCENES_HELD_OUT,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Result]:
    """Train with each seed, on so many scenes; what was reached, of each seed as soon as it is, and in the middle."""
    made = {"heads": list(proof.heads), "turned": proof.turned}
    training = write(folder / "training", scenes, **made)
    validation = write(folder / "validation", held_out, held_out=True, **made)
    found: dict[str, list[float]] = {}
    seconds = []
    for seed in seeds:
        spec = specification(
            heads=[{"id": head, **given} for head, given in proof.heads.items()],
            backbone="small",
            size=SIZE,
            trainer={
                "iterations_max": steps,
                "validations": 1,
                "batch_size": batch_size,
                "seed": seed,
                "gradient_clip_norm": 10,
                "adamw": {"learning_rate": RATE, "weight_decay": 0.05},
            },
            augmentations=AUGMENTATIONS,
        )
        run = train(spec, training, validation, folder)
        seconds.append(run.seconds(0))
        for head, given in proof.heads.items():
            for metric in TASKS[task_pb2.Task.Value(given["task"])].metrics:
                try:
                    value = run.last(f"{head}/valid/{metric}")
                except IndexError:  # there is no object of that size
                    continue
                found.setdefault(f"{head}/{metric}", []).append(value)
        for metric in proof.bars if len(seeds) > 1 else ():
            yield Result(
                name=f"{proof.name} with seed {seed}, {metric}", value=found[metric][-1], unit=f"{steps} steps"
            )
    for name, values in found.items():
        bar = f">= {proof.bars[name]}" if name in proof.bars else None
        unit = f"{steps} steps; {', '.join(f'{value:.3f}' for value in values)}"
        yield Result(name=f"{proof.name}, {name}", value=statistics.median(values), unit=unit, bar=bar)
    yield Result(
        name=f"{proof.name}, loop",
        value=statistics.median(seconds),
        unit=f"s of processor, {steps} steps",
        bar=f"<= {2 * proof.seconds_max:.0f}",
    )


def dense() -> Iterator[Result]:
    """One step on an image of 640 x 640 with five thousand boxes, and with one, each in a process of its own."""
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_workers=1, max_tasks_per_child=1) as processes:
        one, one_memory = processes.submit(_step, 1).result()
        many, memory = processes.submit(_step, 5_000).result()
    yield Result(name="5,000 boxes in 640 x 640, a step", value=many, unit="s of a core", bar="<= 2", ratio=many / one)
    unit = f"MB at the most, beside {one_memory:.0f} with one box"
    yield Result(name="5,000 boxes in 640 x 640, memory of a whole step", value=memory, unit=unit, bar="<= 500")


def _step(count: int) -> tuple[float, float]:
    """Seconds of a core of the second step with so many boxes; MB by which the first one let the process grow."""
    torch.set_num_threads(1)
    spec = specification(
        heads=[{"id": "boxes", "task": "TASK_OBJECT_DETECTION", "object_detection": {"channels": CHANNELS}}],
        backbone="small",
        size=(640, 640),
        trainer={"batch_size": 1},
    )
    model = build_model(spec.model, [{"categories": ["a", "b"]}])
    random = np.random.default_rng(0)
    low = random.uniform(0, 600, (count, 2))
    boxes = np.concatenate([low, (low + random.uniform(4, 120, (count, 2))).clip(max=640)], axis=1)
    placed = PlacedObjects(
        boxes=boxes.astype(np.float32), categories=random.integers(0, 2, count), ignored=np.zeros(count, np.bool_)
    )
    targets = Targets.of(TASKS[task_pb2.TASK_OBJECT_DETECTION], [placed])
    pictures = torch.rand(1, 3, 640, 640).contiguous(memory_format=torch.channels_last)

    def step() -> float:
        began = time.process_time()
        model.losses(model(pictures), [targets]).total.backward()
        return time.process_time() - began

    before = _memory("VmRSS")
    step()
    grown = _memory("VmHWM") - before
    return step(), grown


def _memory(what: str) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at the most so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def evaluation() -> Iterator[Result]:
    """500 images with 100 boxes each, against ten."""
    random = np.random.default_rng(0)

    def boxes(count: int) -> Any:
        low = random.uniform(0, 400, (count, 2))
        return np.concatenate([low, low + random.uniform(4, 200, (count, 2))], axis=1)

    images = [(boxes(10), boxes(100), random.random(100).tolist()) for _ in range(500)]
    precision = AveragePrecision([str(number) for number in range(10)])
    began = time.process_time()
    for wanted, guesses, scores in images:
        truth = [
            {"category": place % 10, "bbox": coco_box(box), "area": 1.0, "iscrowd": 0}
            for place, box in enumerate(wanted)
        ]
        found = [
            {"category": place % 10, "bbox": coco_box(box), "score": score}
            for place, (box, score) in enumerate(zip(guesses, scores, strict=True))
        ]
        precision.add(600, 600, truth, found)
    precision.values()
    seconds = time.process_time() - began
    yield Result(name="500 images x 100 boxes, evaluated", value=seconds, unit="s of a core", bar="<= 1")


def _tell(results: Iterator[Result]) -> None:
    for result in results:
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
