"""Trainings, beside the bars of the design: `python -m tests.bench.training [--json] [--only PREFIX]`.

Each line has name, value, unit, bar and ratio. Times are seconds of the processor, of all threads of this process:
others who work on the machine do not count. The ratio is to a bare loop in the same run. Accuracies are after so many
steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from runner.tasks import TASKS
from runner.trainer.augmentation import changes_anything
from runner.trainer.collation import Collation
from runner.trainer.dataset import Example
from runner.trainer.image import canvas_from_data, read_on_canvas, view_of
from runner.trainer.machine import keep_memory_of_steps
from runner.trainer.model import build_model
from runner.trainer.optimizer import build_optimizer
from runner.trainer.order import Order
from runner.trainer.store import ImageStore
from runner.trainer.targets import Targets
from services.scheduler.specification import task_name
from tests.bench import training_data as data
from tests.bench.result import Result
from tests.bench.training_run import Run, specification, train

BARS: Mapping[str, str] = {
    "digits, loop to bare loop": ">= 0.95",
    "digits, wait for data": "<= 0.05",
    "digits, validation accuracy": ">= 0.985",
    "digits, loop": "<= 30",
    "scenes, mean IoU after 400 steps": ">= 0.70",
    "scenes, loop": "<= 180",
    "characters of new alphabets, precision@1": ">= 0.70",
    "characters, loop": "<= 180",
    "640 x 640, decoded and with all augmentations": "<= 40",
    "12 megapixels to 640 x 640": "<= 60",
}
"""By name. Two idle cores have two seconds of the processor in each second: a bar of 90 s of them is one of 180 s."""
OMNIGLOT = Path(__file__).parents[3] / "shared/data/omniglot_small1/images_background_small1.zip"
SEEDS = range(3)
WARM_STEPS = 60
"""Steps before anything is measured: by then every image is in memory."""
EVERYTHING = {
    "horizontal_flip": 0.5,
    "rotation_degrees": 15,
    "translation": 0.1,
    "zoom": 0.2,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.05,
    "gray": 0.1,
    "blur": 0.003,
    "crop": 0.3,
}
PHOTOS = 24
PHOTO_SIZE = (4_000, 3_000)
VOCABULARIES: Mapping[str, Mapping[str, Any]] = {
    "multiclass classification": {"categories": ["a", "b"]},
    "multilabel classification": {"labels": ["a", "b"]},
    "metric learning": {"identities": ["a", "b"]},
    "regression": {"range": [0.0, 1.0]},
    "semantic segmentation": {"categories": ["a", "b"], "colors": {"a": [1, 0, 0], "b": [2, 0, 0]}},
    "object detection": {"categories": ["a", "b"]},
    "quadrilateral detection": {"categories": ["a", "b"]},
    "keypoint detection": {"keypoints": ["a", "b"]},
    "instance segmentation": {"categories": ["a", "b"], "colors": {"a": [1, 0, 0], "b": [2, 0, 0]}},
    "panoptic segmentation": {"categories": ["a", "b"], "colors": {"a": [1, 0, 0], "b": [2, 0, 0]}, "things": ["a"]},
    "depth estimation": {"range": [1.0, 2.0]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line (there is no other form)")
    parser.add_argument("--only", default="", help="only the parts whose name begins so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory_of_steps()  # as the trainer does
    for part in (digits, photos, tasks, scenes, characters):
        if not part.__name__.startswith(arguments.only):
            continue
        with tempfile.TemporaryDirectory(prefix="sihlai-bench-") as folder:
            for result in part(Path(folder)):
                sys.stdout.write(result.line() + "\n")
                sys.stdout.flush()


def result(name: str, value: float, unit: str, ratio: float | None = None) -> Result:
    return Result(name=name, value=value, unit=unit, bar=BARS.get(name), ratio=ratio)


def digits(folder: Path) -> Iterator[Result]:
    """The demo's first job, with three seeds, and the same steps in a bare loop."""
    training = data.digits(folder)
    runs: list[Run] = []
    beside: list[float] = []
    for seed in SEEDS:
        spec = specification(
            heads=[{"id": data.HEAD, "task": "TASK_MULTICLASS_CLASSIFICATION"}],
            backbone="tiny",
            size=(16, 16),
            trainer={
                "iterations_max": 300,
                "validations": 1,
                "batch_size": 64,
                "seed": seed,
                "adamw": {"learning_rate": 0.005},
            },
        )
        runs.append(train(spec, training, None, folder))
        beside.append(train(spec, training, None, folder, bare_step=_bare_step(spec, training)).to_bare(WARM_STEPS))
    accuracies = [run.last(f"{data.HEAD}/valid/accuracy") for run in runs]
    yield result("digits, validation accuracy", statistics.median(accuracies), "median of three seeds")
    yield result("digits, loop", statistics.median(run.seconds(0) for run in runs), "s of processor, 300 steps")
    # The loader's thread has a core of its own, or the wait for data shows that it has not.
    ratio = statistics.median(beside)
    yield result("digits, loop to bare loop", ratio, "of the speed of the bare loop", ratio=ratio)
    waited = statistics.median(run.waited(WARM_STEPS) for run in runs)
    yield result("digits, wait for data", waited, "of the time of a step, decoded images in memory")


def photos(folder: Path) -> Iterator[Result]:
    """What an image costs before a model sees it; the best of several batches, and of several photos."""
    spec = specification(
        heads=[{"id": "photo", "task": "TASK_MULTICLASS_CLASSIFICATION"}],
        backbone="tiny",
        size=(640, 640),
        trainer={"batch_size": 8},
        augmentations=EVERYTHING,
    )
    assert changes_anything(spec.data.augmentations)
    data.photos(folder / "medium", (640, 640), PHOTOS)
    examples = [Example(name=f"{number}.jpg", targets=(0,)) for number in range(PHOTOS)]
    canvas = canvas_from_data(spec.data)
    store = ImageStore(folder / "medium" / "images", [each.name for each in examples], canvas, cache_bytes_max=0)
    device = torch.device("cpu")
    loader = Collation(examples, spec.model.heads, store).training_loader(
        Order(examples, 1, 8, 0), augmentations=spec.data.augmentations, seed=0, iterations=range(9), threads=0
    )
    with loader:
        seconds = min(_measured(lambda: next(loader).on_device(device))[0] for _ in range(9))
    images = 8
    yield result("640 x 640, decoded and with all augmentations", 1_000 * seconds / images, "ms of a core an image")
    data.photos(folder / "large", PHOTO_SIZE, 4)
    paths = sorted((folder / "large" / "images").iterdir())
    seconds = min(_measured(lambda path=path: read_on_canvas(path, canvas))[0] for path in paths * 2)  # type: ignore[misc] # a default is bound
    yield result("12 megapixels to 640 x 640", 1_000 * seconds, "ms of a core an image")


def tasks(folder: Path) -> Iterator[Result]:
    """Images that each task's model learns from in a second of one core; `small`, 96 x 128, crowded targets."""
    for number, task in TASKS.items():
        name = task_name(number)
        spec = specification(
            heads=[{"id": "tested", "task": number}], backbone="small", size=(96, 128), trainer={"batch_size": 16}
        )
        vocabulary = task.vocabulary({"task": name, **VOCABULARIES[name]})
        model = build_model(spec.model, [vocabulary])
        canvas = canvas_from_data(spec.data)
        crowded = task.crowded(vocabulary, view_of(canvas.width, canvas.height, canvas))
        targets = Targets.of(task, [crowded] * 16)
        pictures = torch.rand(16, 3, 96, 128).contiguous(memory_format=torch.channels_last)

        def step(model: Any = model, pictures: torch.Tensor = pictures, targets: Any = targets) -> None:
            model.losses(model(pictures), [targets]).total.backward()

        step()
        seconds, _ = _measured(lambda step=step: [step() for _ in range(4)])  # type: ignore[misc] # a default is bound
        yield result(f"{name}, learning", 64 / seconds, "images a second of one core")


def scenes(folder: Path) -> Iterator[Result]:
    """Class maps of digit scenes."""
    training, validation = data.scenes(folder / "training", 1_200), data.scenes(folder / "validation", 200, flat=1)
    only = {"heads": {"areas": training["heads"]["areas"]}}
    spec = specification(
        heads=[
            {
                "id": "areas",
                "task": "TASK_SEMANTIC_SEGMENTATION",
                "semantic_segmentation": {"channels": 64, "level_min": 1},
            }
        ],
        backbone="small",
        size=(96, 128),
        trainer={"iterations_max": 400, "validations": 2, "batch_size": 16, "adamw": {"learning_rate": 0.005}},
    )
    run = train(spec, {**training, **only}, validation, folder)
    yield result("scenes, mean IoU after 400 steps", run.last("areas/valid/mean_iou"), "classes in truth or prediction")
    yield result("scenes, loop", run.seconds(0), "s of processor, 400 steps")


def characters(folder: Path) -> Iterator[Result]:
    """Handwritten characters of alphabets that were never seen, found by each other."""
    if not OMNIGLOT.is_file():
        sys.stderr.write(f"the characters are left out: {OMNIGLOT} is not there\n")
        return
    training, validation = data.omniglot(OMNIGLOT, folder)
    spec = specification(
        heads=[{"id": "character", "task": "TASK_METRIC_LEARNING"}],
        backbone="tiny",
        size=(32, 32),
        trainer={"iterations_max": 600, "validations": 3, "batch_size": 64, "adamw": {"learning_rate": 0.005}},
        augmentations={"rotation_degrees": 10, "translation": 0.1, "zoom": 0.15},
    )
    run = train(spec, training, validation, folder)
    yield result("characters of new alphabets, precision@1", run.last("character/valid/precision_at_1"), "600 steps")
    yield result("characters, loop", run.seconds(0), "s of processor, 600 steps")


def _bare_step(spec: Any, training: data.Folders) -> Callable[[], None]:
    """A step of the same model and optimizer on images that are tensors already: nothing measured, nothing told."""
    random = torch.Generator().manual_seed(0)
    categories = [str(number) for number in range(10)]
    model = build_model(spec.model, [{"categories": categories}])
    optimizer = build_optimizer(model, spec.trainer)
    canvas = canvas_from_data(spec.data)
    paths = sorted(Path(training["images"]).iterdir())
    images = torch.stack([read_on_canvas(path, canvas)[0] for path in paths])
    labels = torch.arange(len(paths)) % len(categories)

    def step() -> None:
        chosen = torch.randint(0, len(paths), (spec.trainer.batch_size,), generator=random)
        optimizer.zero_grad()
        pictures = (images[chosen].float() / 255).contiguous(memory_format=torch.channels_last)
        logits = model(pictures)[data.HEAD]["logits"]
        loss = functional.cross_entropy(logits, labels[chosen])
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def _measured(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and what was made."""
    began = time.process_time()
    made = function()
    return time.process_time() - began, made


if __name__ == "__main__":
    main()
