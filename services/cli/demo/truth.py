"""What each conversion of the scenes must give, and what the converted datasets hold.

What is wanted follows from how the scenes were composed; what is found is read from the files with Pillow. Neither
knows how the service converts, and both are compared exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from sihlai.conversion.v1 import task_pb2

from services.cli.demo.scenes import THINGS, Scene, Segment

NAMED_MAX = 3
"""How many images a problem names."""
NO_COLOR = "a colour of no category"


@dataclass(frozen=True, kw_only=True, order=True)
class Region:
    """Pixels of a map that belong together. Equal where they are the same pixels of maps of the same size."""

    category: str
    flags: tuple[str, ...] = ()
    """`crowd`, `ignore`, or none of them."""
    pixels: int
    shape: tuple[int, ...] = field(repr=False)
    where: bytes = field(repr=False)


class Converted:
    """A converted dataset on this machine, in the normalised form."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text())
        self.annotations: dict[str, Any] = json.loads((folder / "annotations.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One task's comparison. Both functions give None for null, else a sorted list of what an image has."""

    task: task_pb2.Task.ValueType
    noun: str
    wanted: Callable[[Scene], list[Any] | None]
    found: Callable[[Converted, Any], list[Any]]


def compare(kind: Kind, converted: Converted, scenes: Sequence[Scene]) -> tuple[str, list[str]]:
    """Compare image by image: what there is in words, and what does not hold."""
    wanted = {scene.name: kind.wanted(scene) for scene in scenes}
    problems = [f"{name} is there, but no such scene" for name in sorted(converted.annotations.keys() - wanted.keys())]
    for name, each in wanted.items():
        if name not in converted.annotations:
            problems.append(f"{name} is missing")
            continue
        value = converted.annotations[name]
        found = None if value is None else kind.found(converted, value)
        if found != each:
            problems.append(f"{name}: wanted {_shown(each)}, found {_shown(found)}")
    if len(problems) > NAMED_MAX:
        problems[NAMED_MAX:] = [f"and {len(problems) - NAMED_MAX} more images"]
    known = [each for each in wanted.values() if each is not None]
    count = sum(map(len, known))
    negative = sum(not each for each in known)
    summary = f"{count} {kind.noun} in {len(known) - negative} scenes"
    nothing = f", nothing in {negative}" if negative else ""
    return f"{summary}{nothing}, {len(wanted) - len(known)} unlabelled", problems


def wanted_semantic(scene: Scene) -> list[Any] | None:
    """The pixels of each class, things and stuff alike, but for what is to be ignored."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for segment, mask in _cared_for(scene):
        masks[segment.category] = masks.get(segment.category, np.zeros_like(mask)) | mask
    return sorted(_region(category, mask) for category, mask in masks.items()) or None


def found_semantic(converted: Converted, value: Any) -> list[Any]:
    """The pixels of each class in a map of colours."""
    with Image.open(converted.folder / value["map"]) as image:
        return sorted(_regions(converted, np.asarray(image.convert("RGB"))))


def wanted_instances(scene: Scene) -> list[Any] | None:
    """Each thing with all its pixels."""
    if not scene.seen:
        return None
    return sorted(
        _region(segment.category, mask, _flags(segment.crowd, segment.ignore))
        for segment, mask in scene.seen
        if segment.category in THINGS
    )


def found_instances(converted: Converted, value: Any) -> list[Any]:
    """Each page's pixels; a black page has none."""
    with Image.open(converted.folder / value["map"]) as image:
        pages = [np.asarray(page.convert("RGB")) for page in ImageSequence.Iterator(image)]
    crowds, ignored = value.get("crowd", []), value.get("ignore", [])
    return sorted(
        region
        for number, page in enumerate(pages, start=1)
        for region in _regions(converted, page, _flags(number in crowds, number in ignored))
    )


def wanted_boxes(scene: Scene) -> list[Any] | None:
    """Each thing's category, its box in pixels of the image, and its flags."""
    if not scene.seen:
        return None
    found = []
    for segment, mask in scene.seen:
        if segment.category in THINGS:
            columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            sides = tuple(scene.scale * int(side) for side in box)
            found.append((segment.category, sides, _flags(segment.crowd, segment.ignore)))
    return sorted(found)


def found_boxes(converted: Converted, value: Any) -> list[Any]:
    """Each object's category, box and flags."""
    return sorted((each["category"], tuple(each["bbox"]), _flags_of(each)) for each in value)


def wanted_quads(scene: Scene) -> list[Any] | None:
    """The boxes' corners, clockwise from the top left."""
    boxes = wanted_boxes(scene)
    if boxes is None:
        return None
    return sorted(
        (category, ((xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax)), flags)
        for category, (xmin, ymin, xmax, ymax), flags in boxes
    )


def found_quads(converted: Converted, value: Any) -> list[Any]:
    """Each object's category, corners in their order, and flags."""
    return sorted((each["category"], tuple(map(tuple, each["quad"])), _flags_of(each)) for each in value)


def wanted_labels(scene: Scene) -> list[Any] | None:
    """The classes of which a pixel is there, stuff too: the shortest path leads by way of the classes' map."""
    return sorted({segment.category for segment, _ in _cared_for(scene)}) or None


def found_labels(converted: Converted, value: Any) -> list[Any]:
    """The labels."""
    return sorted(value)


KINDS = (
    Kind(
        task=task_pb2.TASK_SEMANTIC_SEGMENTATION, noun="areas of classes", wanted=wanted_semantic, found=found_semantic
    ),
    Kind(task=task_pb2.TASK_INSTANCE_SEGMENTATION, noun="masks", wanted=wanted_instances, found=found_instances),
    Kind(task=task_pb2.TASK_OBJECT_DETECTION, noun="boxes", wanted=wanted_boxes, found=found_boxes),
    Kind(task=task_pb2.TASK_QUADRILATERAL_DETECTION, noun="quads", wanted=wanted_quads, found=found_quads),
    Kind(task=task_pb2.TASK_MULTILABEL_CLASSIFICATION, noun="labels", wanted=wanted_labels, found=found_labels),
)


def _cared_for(scene: Scene) -> list[tuple[Segment, NDArray[np.bool_]]]:
    return [(segment, mask) for segment, mask in scene.seen if not segment.ignore]


def _flags(crowd: bool, ignore: bool) -> tuple[str, ...]:
    return ("crowd",) * crowd + ("ignore",) * ignore


def _flags_of(item: dict[str, Any]) -> tuple[str, ...]:
    return _flags(item.get("crowd", False), item.get("ignore", False))


def _region(category: str, mask: NDArray[np.bool_], flags: tuple[str, ...] = ()) -> Region:
    where = np.packbits(mask).tobytes()
    return Region(category=category, flags=flags, pixels=int(mask.sum()), shape=mask.shape, where=where)


def _regions(converted: Converted, page: NDArray[np.uint8], flags: tuple[str, ...] = ()) -> list[Region]:
    """The pixels of each colour but black, and those that no category has."""
    rest = np.asarray(page.any(axis=2))
    found = []
    for category, color in converted.metadata["colors"].items():
        mask = (page == np.array(color)).all(axis=2)
        rest &= ~mask
        found.append(_region(category, mask, flags))
    return [region for region in (*found, _region(NO_COLOR, rest, flags)) if region.pixels]


def _shown(annotation: list[Any] | None) -> str:
    if annotation is None:
        return "null"
    return "; ".join(
        " ".join((each.category, f"{each.pixels} px", *each.flags)) if isinstance(each, Region) else str(each)
        for each in annotation
    ).join("[]")
