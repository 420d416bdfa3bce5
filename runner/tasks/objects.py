"""Objects as annotations list them: where they are, of what category, and of which nothing is to be learned.

Crowds (objects that were not told apart) and regions of "do not care" are one thing to a head: what is found there is
neither right nor wrong. Evaluations get both as COCO's `iscrowd`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from runner.tasks.task import HOST, Batched, WrongAnnotation
from runner.trainer.view import Floats, View

VISIBLE_SHARE_MIN = 0.2
"""An object of which less is left on the canvas is neither learned nor taken for background."""
OBJECTS_CROWDED = 500
"""Of one image, in the rehearsal of a step."""

Flags: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """The objects of one image, n of them, in pixels of the image; category i is the ith name."""

    boxes: Floats
    """(n, 4): left, top, right, bottom."""
    categories: Integers
    ignored: Flags
    scores: Floats
    """(n,): how likely each is; an annotation's is 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedObjects:
    """The objects of one image on the canvas; `more` has what else the loss needs, by name, n first."""

    boxes: NDArray[np.float32]
    categories: Integers
    ignored: Flags
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def read_list(annotation: Any) -> list[Mapping[str, Any]]:
    """An annotation that is a list of objects. Raises WrongAnnotation."""
    if not isinstance(annotation, list) or not all(isinstance(each, Mapping) for each in annotation):
        raise WrongAnnotation(f"a list of objects was wanted, {annotation!r:.100} was found")
    return annotation


def read_numbers(item: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Floats:
    """The coordinates under a key. Raises WrongAnnotation."""
    try:
        found = np.asarray(item.get(key), np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != shape or not np.isfinite(found).all():
        wanted = " x ".join(map(str, shape))
        raise WrongAnnotation(f"`{key}` must be {wanted} numbers, {item.get(key)!r:.100} was found")
    return found


def read_box(item: Mapping[str, Any]) -> Floats:
    """The `bbox` of an object. Raises WrongAnnotation."""
    box = read_numbers(item, "bbox", (4,))
    if not (box[0] < box[2] and box[1] < box[3]):
        raise WrongAnnotation(f"`bbox` must be left, top, right, bottom, {item.get('bbox')!r:.100} was found")
    return box


def is_ignored(item: Mapping[str, Any]) -> bool:
    """Whether an object is a crowd, or not to be looked at."""
    return bool(item.get("crowd", False) or item.get("ignore", False))


def read_objects(
    items: Sequence[Mapping[str, Any]], index_of: Callable[[Any], int], box_of: Callable[[Mapping[str, Any]], Floats]
) -> Objects:
    """The objects of a list. Raises WrongAnnotation."""
    return Objects(
        boxes=np.array([box_of(each) for each in items], np.float64).reshape(-1, 4),
        categories=np.array([index_of(each.get("category")) for each in items], np.int64),
        ignored=np.array([is_ignored(each) for each in items], np.bool_),
        scores=read_scores(items),
    )


def read_scores(items: Sequence[Mapping[str, Any]]) -> Floats:
    """How likely objects are, where a model has said them."""
    return np.array([float(each.get("score", 1.0)) for each in items], np.float64)


def on_canvas(whole: Floats, ignored: Flags, view: View) -> tuple[NDArray[np.float32], Flags, Flags]:
    """Boxes on the canvas, cut off by it; which of them are ignored now; and which are there at all."""
    seen = np.concatenate([whole[:, :2].clip(min=0), whole[:, 2:].clip(max=[view.canvas_width, view.canvas_height])], 1)
    share = areas_of(seen) / np.maximum(areas_of(whole), np.finfo(np.float64).tiny)
    return seen.astype(np.float32), ignored | (share < VISIBLE_SHARE_MIN), share > 0


def areas_of(boxes: Floats) -> Floats:
    """Of boxes (n, 4); 0 where a box is none."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    found: Floats = sides[:, 0] * sides[:, 1]
    return found


def stacked(placed: Sequence[PlacedObjects]) -> Batched:
    """The objects of several images one after the other; `counts` says how many each image has.

    What is to be ignored is apart: nothing but the boxes of these is wanted, `regions` with `region_counts`.
    """
    boxes = np.concatenate([each.boxes for each in placed])
    ignored = np.concatenate([each.ignored for each in placed])
    owner = np.repeat(np.arange(len(placed)), [len(each.boxes) for each in placed])
    learned = np.flatnonzero(~ignored)

    def of_learned(values: Sequence[NDArray[Any]]) -> torch.Tensor:
        every = np.concatenate(values)
        return torch.from_numpy(every if len(learned) == len(every) else every[learned])

    return {
        "counts": torch.from_numpy(np.bincount(owner[~ignored], minlength=len(placed))),
        "boxes": torch.from_numpy(boxes[learned]),
        "categories": of_learned([each.categories for each in placed]),
        "regions": torch.from_numpy(boxes[ignored]),
        "region_counts": torch.from_numpy(np.bincount(owner[ignored], minlength=len(placed))),
        f"{HOST}boxes": torch.from_numpy(boxes[learned]),
        **{name: of_learned([each.more[name] for each in placed]) for name in placed[0].more},
    }


def crowded_boxes(view: View, count: int = OBJECTS_CROWDED) -> NDArray[np.float32]:
    """Boxes of all sizes all over the canvas."""
    random = np.random.default_rng(0)
    size = np.array([view.canvas_width, view.canvas_height])
    sides = size * random.uniform(0.02, 0.6, (count, 2))
    corners = random.uniform(0, 1, (count, 2)) * (size - sides)
    found: NDArray[np.float32] = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return found


def boxes_in_image(boxes: NDArray[np.float32], view: View) -> Floats:
    """Boxes of the canvas, (n, 4), in the image, cut off by it."""
    left, top, right, bottom = np.moveaxis(boxes.astype(np.float64), -1, 0)
    corners = view.inverse(np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2))
    low, high = corners.min(axis=1), corners.max(axis=1)
    size = [view.width, view.height]
    return np.concatenate([low.clip(0, size), high.clip(0, size)], axis=1)
