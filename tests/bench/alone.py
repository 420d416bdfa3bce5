"""What text, and images alone, come to: `python -m tests.bench.alone [--seeds 3] [--only PREFIX] [--steps-share 1]`.

Each line has name, value, unit, bar and ratio; of several seeds the median, and the unit says the others. What is
validated on is made of digits that training never saw. Times are seconds of the processor, of all threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from runner.report import CheckpointWritten
from runner.trainer.checkpoint import read_config, read_weights
from runner.trainer.image import BYTE_MAX, canvas_from_data, read_on_canvas
from runner.trainer.model import Model, build_model
from services.cli.demo.scenes import write_scenes
from tests.bench.result import Result
from tests.bench.training_data import write_head
from tests.bench.training_run import Run, specification, train

DIGITS_TRAINED = 1_200
"""Of 1,797; the others are for validation alone."""
TENTH = 10
"""One in so many digits keeps its label."""
PIXEL_MAX = 16


def digit_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = load_digits()
    return (data.images * (255 / PIXEL_MAX)).round().astype(np.uint8), data.target.astype(np.int64)


def hard_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits that are smaller, somewhere, turned by up to 30 degrees, and in noise; the same ones each time.

    Of the others a random network's features already tell 97 % by their neighbours, of these about 60 %.
    """
    images, labels = digit_images()
    random = np.random.default_rng(1)
    found = []
    for image in images:
        left, top = (int(each) for each in random.integers(0, 5, 2))
        canvas = Image.new("L", (16, 16))
        canvas.paste(Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC), (left, top))
        turned = canvas.rotate(float(random.uniform(-30, 30)), Image.Resampling.BICUBIC)
        noisy = np.asarray(turned, np.float32) + random.normal(0, 30, (16, 16))
        found.append(noisy.clip(0, 255).round().astype(np.uint8))
    return np.stack(found), labels


def write_strips(folder: Path, count: int, digits: Sequence[int], seed: int) -> Mapping[str, Any]:
    """Strips of 3 to 7 digits, for one head."""
    random = np.random.default_rng(seed)
    images, labels = digit_images()
    (folder / "images").mkdir(parents=True)
    annotations = {}
    for number in range(count):
        chosen = random.choice(digits, random.integers(3, 8))
        strip = np.zeros((16, 112), np.uint8)
        left = 0
        for each in chosen:
            left += int(random.integers(0, 3))
            top = int(random.integers(0, 3))
            side = int(random.integers(12, 15))
            digit = np.asarray(Image.fromarray(images[each]).resize((side, side), Image.Resampling.BICUBIC))
            right, bottom = min(left + side, 112), min(top + side, 16)
            seen = digit[: bottom - top, : right - left]
            strip[top:bottom, left:right] = np.maximum(strip[top:bottom, left:right], seen)
            left += side - 1
        name = f"{number:05}.png"
        Image.fromarray(strip).save(folder / "images" / name)
        annotations[name] = [str(labels[each]) for each in chosen]
    metadata = {"task": "scene text recognition", "tokens": [str(number) for number in range(10)]}
    return {"images": str(folder / "images"), "heads": {"text": write_head(folder / "text", metadata, annotations)}}


def damaged(image: Image.Image, random: Generator) -> Image.Image:
    """A copy with a blot or a scratch."""
    found = image.convert("RGB")
    pen = ImageDraw.Draw(found)
    x, y = (float(random.uniform(0.2, 0.8) * side) for side in found.size)
    color = tuple(int(value) for value in random.integers(0, 256, 3))
    if random.random() < 0.5:
        along, across = random.uniform(5, 11, 2)
        pen.ellipse((x - along, y - across, x + along, y + across), fill=color)
    else:
        angle, length = random.uniform(0, np.pi), random.uniform(15, 35)
        far = (x + length * np.cos(angle), y + length * np.sin(angle))
        pen.line((x, y, *far), fill=color, width=int(random.integers(2, 5)))
    return found


def write_surfaces(folder: Path, count: int, seed: int, *, damage: bool) -> Mapping[str, Any]:
    """Scenes; with `damage` every other one has a blot or a scratch and is labelled so."""
    random = np.random.default_rng(seed)
    write_scenes(folder / "made", count=count, seed=seed)
    annotations = {}
    for number, path in enumerate(sorted((folder / "made" / "images").iterdir())):
        strange = damage and number % 2 == 1
        if strange:
            damaged(Image.open(path), random).save(path)
        annotations[path.name] = ("anomalous" if strange else "normal") if damage else None
    head = write_head(folder / "surface", {"task": "anomaly detection"}, annotations)
    return {"images": str(folder / "made" / "images"), "heads": {"surface": head}}


def write_digits(
    folder: Path,
    digits: Sequence[int],
    *,
    labelled: Sequence[int] = (),
    made: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
) -> Mapping[str, Any]:
    """Digits for two heads: `alone`, and `digit` for which only some have their label. `made`: other pictures."""
    images, labels = made or digit_images()
    (folder / "images").mkdir(parents=True)
    known = set(labelled)
    annotations = {}
    for each in digits:
        Image.fromarray(images[each]).save(folder / "images" / f"{each:05}.png")
        annotations[f"{each:05}.png"] = str(labels[each]) if each in known else None
    categories = {"task": "multiclass classification", "categories": [str(number) for number in range(10)]}
    heads = {
        "digit": write_head(folder / "digit", categories, annotations),
        "alone": write_head(folder / "alone", {"task": "view-invariance learning"}, dict.fromkeys(annotations)),
    }
    return {"images": str(folder / "images"), "heads": heads}


def without(folders: Mapping[str, Any], *heads: str) -> dict[str, Any]:
    kept = {name: path for name, path in folders["heads"].items() if name not in heads}
    return {"images": folders["images"], "heads": kept}


def split(seed: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(seed).permutation(len(load_digits().target)).tolist()
    return order[:DIGITS_TRAINED], order[DIGITS_TRAINED:]


def trainer(steps: int, seed: int, batch_size: int, rate: float = 0.003) -> dict[str, Any]:
    return {
        "iterations_max": steps,
        "batch_size": batch_size,
        "validations": 1,
        "seed": seed,
        "adamw": {"learning_rate": rate},
    }


def sized(count: int, share: float) -> int:
    """Images of a dataset; the short form of a proof has a few."""
    return max(40, int(count * min(1.0, share * 10)))


def strips(folder: Path, seed: int, share: float) -> dict[str, float]:
    known, unseen = split(seed)
    training = write_strips(folder / "training", sized(2_000, share), known, seed)
    validation = write_strips(folder / "validation", sized(300, share), unseen, seed + 1)
    head = {"id": "text", "task": "TASK_SCENE_TEXT_RECOGNITION", "scene_text_recognition": TEXT}
    spec = specification(
        heads=[head], backbone="tiny", size=(16, 112), trainer=trainer(max(2, int(600 * share)), seed, 32)
    )
    run = train(spec, training, validation, folder)
    return {
        "exact match": run.last("text/valid/exact_match"),
        "character error rate": run.last("text/valid/character_error_rate"),
        "processor": run.seconds(0),
    }


TEXT = {"tokens_max": 7, "level_min": 1, "channels": 64}


def surfaces(folder: Path, seed: int, share: float) -> dict[str, float]:
    training = write_surfaces(folder / "training", sized(400, share), seed, damage=False)
    validation = write_surfaces(folder / "validation", sized(120, share), seed + 1_000, damage=True)
    head = {"id": "surface", "task": "TASK_ANOMALY_DETECTION", "anomaly_detection": {"channels": 64}}
    spec = specification(
        heads=[head], backbone="small", size=(96, 128), trainer=trainer(max(2, int(400 * share)), seed, 16)
    )
    run = train(spec, training, validation, folder)
    return {"AUROC": run.last("surface/valid/auroc"), "processor": run.seconds(0)}


def invariance(folder: Path, seed: int, share: float) -> dict[str, float]:
    known, unseen = split(seed)
    made = hard_digits()
    training = without(write_digits(folder / "training", known, made=made), "digit")
    validation = without(write_digits(folder / "validation", unseen, made=made), "digit")
    spec = specification(
        heads=[ALONE],
        backbone="tiny",
        size=(16, 16),
        trainer=trainer(max(2, int(800 * share)), seed, 128),
        augmentations={"translation": 0.1, "rotation_degrees": 15},
    )
    run = train(spec, training, validation, folder)
    learned, fresh = neighbours(run, known, unseen, folder, seed)
    return {
        "on the diagonal": run.last("alone/valid/on_diagonal"),
        "off the diagonal": run.last("alone/valid/off_diagonal"),
        "neighbours": 100 * learned,
        "neighbours, of a random network": 100 * fresh,
        "neighbours, points better": 100 * (learned - fresh),
        "processor": run.seconds(0),
    }


ALONE = {"id": "alone", "task": "TASK_VIEW_INVARIANCE_LEARNING", "view_invariance_learning": {"embedding_size": 16}}
"""Pictures of 16 pixels differ in few ways: of 64 numbers, different ones agreed by 0.14 at best."""


def neighbours(run: Run, known: Sequence[int], unseen: Sequence[int], folder: Path, seed: int) -> tuple[float, float]:
    """Accuracy of the five nearest neighbours on pooled features: learned ones, and a random network's."""
    written = [each for each in run.reports if isinstance(each, CheckpointWritten)][-1]
    spec, vocabularies = read_config(Path(written.folder))
    torch.manual_seed(seed)
    model = build_model(spec.model, vocabularies).eval()
    _, labels = digit_images()
    accuracies = []
    for weights in (read_weights(Path(written.folder)), None):
        if weights is not None:
            model.load_state_dict(weights)
        else:
            torch.manual_seed(seed + 1)
            model = build_model(spec.model, vocabularies).eval()
        canvas = canvas_from_data(spec.data)
        found = []
        for name, digits in (("training", known), ("validation", unseen)):
            paths = [folder / name / "images" / f"{each:05}.png" for each in digits]
            pictures = torch.stack([read_on_canvas(path, canvas)[0] for path in paths]).float().div_(BYTE_MAX)
            found.append(pooled(model, pictures))
        classifier = KNeighborsClassifier(5, metric="cosine").fit(found[0], labels[list(known)])
        accuracies.append(float(classifier.score(found[1], labels[list(unseen)])))
    return accuracies[0], accuracies[1]


def pooled(model: Model, pictures: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        features = model.neck(model.backbone((pictures - model._mean) / model._deviation))
    found: NDArray[np.float32] = features[max(features)].mean(dim=(2, 3)).numpy()
    return found


def tenth(folder: Path, seed: int, share: float) -> dict[str, float]:
    """A tenth of the labels, with and without a head that learns from all images alone.

    With such a head all images are seen, and labels one time in ten: sampling is balanced, so that both see as many.
    """
    known, unseen = split(seed)
    made = hard_digits()
    training = write_digits(folder / "training", known, labelled=known[::TENTH], made=made)
    validation = write_digits(folder / "validation", unseen, labelled=unseen, made=made)
    digit = {"id": "digit", "task": "TASK_MULTICLASS_CLASSIFICATION"}
    accuracies = {}
    began = time.process_time()
    for name, heads in (("without", [digit]), ("with", [digit, {**ALONE, "loss_weight": 0.3}])):
        spec = specification(
            heads=heads,
            backbone="tiny",
            size=(16, 16),
            trainer=trainer(max(2, int(600 * share)), seed, 64),
            augmentations={"translation": 0.1, "rotation_degrees": 15},
        )
        spec.data.balanced_sampling = True
        left_out = () if name == "with" else ("alone",)
        run = train(spec, without(training, *left_out), without(validation, *left_out), folder)
        accuracies[name] = 100 * run.last("digit/valid/accuracy")
    return {
        "accuracy without": accuracies["without"],
        "accuracy with": accuracies["with"],
        "difference": accuracies["with"] - accuracies["without"],
        "processor": time.process_time() - began,
    }


PROOFS = {
    "strips": (strips, {"exact match": ">= 0.8", "character error rate": "<= 0.05", "processor": "<= 240"}),
    "surfaces": (surfaces, {"AUROC": ">= 0.85"}),
    "invariance": (
        invariance,
        {"on the diagonal": ">= 0.9", "off the diagonal": "<= 0.1", "neighbours, points better": ">= 5"},
    ),
    "tenth": (tenth, {}),
}
UNITS = {"processor": "s", "difference": "points"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.alone", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="else one, and five where differences are told")
    parser.add_argument("--only", default="", help="proofs whose name begins so")
    parser.add_argument("--steps-share", type=float, default=1.0, help="a share of the steps, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    missed = False
    for name in PROOFS:
        if name.startswith(arguments.only):
            for result in results(name, arguments.seeds or (5 if name == "tenth" else 3), arguments.steps_share):
                sys.stdout.write(result.line() + "\n")
                sys.stdout.flush()
                missed |= result.holds is False
    return int(missed)


def results(name: str, seeds: int, share: float) -> Iterator[Result]:
    proof, bars = PROOFS[name]
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="sihlai-proof-") as folder:
            found.append(proof(Path(folder), seed, share))
    for metric in found[0]:
        values = [each[metric] for each in found]
        spread = ", ".join(f"{value:.4g}" for value in values)
        unit = f"{UNITS.get(metric, '')} median of {seeds}: {spread}"
        if name == "tenth" and seeds > 1:
            unit += f"; mean {statistics.fmean(values):.2f}, deviation {statistics.stdev(values):.2f}"
        yield Result(name=f"{name}: {metric}", value=statistics.median(values), unit=unit.strip(), bar=bars.get(metric))


if __name__ == "__main__":
    sys.exit(main())
