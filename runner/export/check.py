"""Whether an exported model says what PyTorch says, on pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from runner.export.program import PICTURES, Program
from runner.trainer.failure import trainer_failure

DENSE_ERROR_MAX = 1e-4
"""Of numbers, as a share of the largest one, or of 1."""
CLASSES_OFF_MAX = 1e-3
"""The share of whole numbers, such as a pixel's class, that may differ: two are equally likely now and then."""
SCORES = "scores"
LIKELY = 0.05
"""Detections that are less likely are not compared: one more or less at the edge means nothing."""
BATCHES = (1, 5)


def check_onnx(program: Program, path: Path, pictures: torch.Tensor) -> float:
    """Compare an ONNX file with the program, in batches of 1 and 5; the largest error of dense outputs.

    `pictures`: at least one, as the program takes them. Raises Failure where they disagree.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    worst = 0.0
    for batch in BATCHES:
        some = pictures[torch.arange(batch) % len(pictures)]
        with torch.inference_mode():
            wanted = {name: tensor.numpy() for name, tensor in program(some).items()}
        found = dict(zip(names, session.run(None, {PICTURES: some.numpy()}), strict=True))
        if found.keys() != wanted.keys():
            raise trainer_failure(f"the exported model has the outputs {sorted(found)}, {sorted(wanted)} were wanted")
        for head in program.model.heads:
            mine = {name: value for name, value in wanted.items() if name.startswith(f"{head}.")}
            worst = max(worst, compare(mine, {name: found[name] for name in mine}))
    return worst


def compare(wanted: Mapping[str, NDArray[np.generic]], found: Mapping[str, NDArray[np.generic]]) -> float:
    """The outputs of one head: detections as sets, everything else number by number. Raises Failure."""
    scores = next((name for name in wanted if name.rpartition(".")[2] == SCORES), None)
    detections = [name for name in wanted if scores is not None and _beside(wanted[name], wanted[scores])]
    worst = 0.0
    if scores is not None:
        for image in range(len(wanted[scores])):
            _compare_sets(scores, _set(wanted, detections, scores, image), _set(found, detections, scores, image))
    for name in wanted:
        if name not in detections:
            worst = max(worst, _compare_dense(name, wanted[name], found[name]))
    return worst


def _beside(values: NDArray[np.generic], scores: NDArray[np.generic]) -> bool:
    return values.shape[:2] == scores.shape[:2]


def _set(outputs: Mapping[str, NDArray[np.generic]], names: list[str], scores: str, image: int) -> NDArray[np.float64]:
    """Rows of numbers, one for each likely detection."""
    likely = outputs[scores][image] >= LIKELY
    parts = [outputs[name][image][likely].astype(np.float64) for name in sorted(names)]
    return np.concatenate([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], axis=1)


def _compare_sets(name: str, wanted: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    if wanted.shape != found.shape:
        raise trainer_failure(f"{name}: the exported model finds {len(found)} objects, PyTorch {len(wanted)}")
    for row in wanted:
        scale = max(1.0, float(np.abs(row).max()))
        if float(np.abs(found - row).max(axis=1).min()) > max(1.0, scale * DENSE_ERROR_MAX):
            raise trainer_failure(f"{name}: an object that PyTorch finds is not found by the exported model")


def _compare_dense(name: str, wanted: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    if wanted.shape != found.shape:
        raise trainer_failure(f"{name}: the exported model gives {found.shape}, {wanted.shape} was wanted")
    if np.issubdtype(wanted.dtype, np.integer):
        off = float((wanted != found).mean()) if wanted.size else 0.0
        if off > CLASSES_OFF_MAX:
            raise trainer_failure(f"{name}: {off:.2%} of the exported model's numbers are others than PyTorch's")
        return 0.0
    error = float(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max()) if wanted.size else 0.0
    if not error <= DENSE_ERROR_MAX * max(1.0, float(np.abs(wanted.astype(np.float64)).max())):
        raise trainer_failure(f"{name}: the exported model is off by {error:.2g}, at most {DENSE_ERROR_MAX} was wanted")
    return error
