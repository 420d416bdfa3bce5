"""What a split sees of an image's normalised annotation, for every task: its labels, or whose image it is. Pure.

A label is anything that should be learned from and validated on in the same proportion: a category, a state, that an
image is annotated at all, or that it says that nothing is there. Of an annotation that is a map its entry in
annotations.json is seen and the file is not: its categories are known where the entry lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

ANNOTATED = "annotated"
NOTHING = "nothing"
CATEGORY = "category"
SEVERAL = "several"
"""Kinds of labels. SEVERAL: an identity with more than one image, of which one can be found by the other."""
ANOMALOUS = "anomalous"


class Label(NamedTuple):
    """One label of one head; `name` is set for a category alone."""

    head: int
    kind: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """How the annotations of a task are seen."""

    categories: Callable[[Any], Iterable[str] | None] = lambda annotation: None
    """The names in an annotation; None where the task has none, or where they are not known."""
    on_both_sides: bool = False
    """Whether each category that can be on both sides must be, however rare. It is so where an image has a set of
    them: an image more for each is little. Where it has exactly one, a share of each is kept and no more."""
    images_alone: bool = False
    """Whether an image without an annotation is learned from all the same."""
    identities: bool = False
    """Whether an annotation is an identity: all its images go to one side."""
    never_trains: Callable[[Any], bool] = lambda annotation: False
    """Whether an image with this annotation is for validation alone."""


def _objects(annotation: Any) -> list[str]:
    """Crowds count, what is to be ignored does not, as when boxes become labels."""
    return [each["category"] for each in annotation if not each.get("ignore", False)]


def _presence(annotation: Any) -> tuple[str, ...]:
    return ("something",) if annotation else ()


def _map(annotation: Any) -> list[str] | None:
    categories: list[str] | None = annotation.get("categories")
    return categories


def _state(annotation: Any) -> list[str] | tuple[str] | None:
    return _map(annotation) if isinstance(annotation, Mapping) else (annotation,)


def _is_anomalous(annotation: Any) -> bool:
    return annotation is not None and ANOMALOUS in (_state(annotation) or ())


OBJECTS = LabelRule(categories=_objects, on_both_sides=True)
MAPS = LabelRule(categories=_map, on_both_sides=True)
IMAGES_ALONE = LabelRule(images_alone=True)
PLAIN = LabelRule()

RULES: Mapping[str, LabelRule] = {
    "multiclass classification": LabelRule(categories=lambda annotation: (annotation,)),
    "multilabel classification": LabelRule(categories=lambda annotation: annotation, on_both_sides=True),
    "metric learning": LabelRule(identities=True),
    "regression": PLAIN,  # bins of equal counts would move with every image that is added
    "scene text recognition": LabelRule(categories=_presence, on_both_sides=True),
    "object detection": OBJECTS,
    "quadrilateral detection": OBJECTS,
    "keypoint detection": LabelRule(categories=_presence, on_both_sides=True),
    "instance segmentation": MAPS,
    "semantic segmentation": MAPS,
    "panoptic segmentation": MAPS,
    "depth estimation": PLAIN,
    "anomaly detection": LabelRule(categories=_state, images_alone=True, never_trains=_is_anomalous),
    "autoencoding": IMAGES_ALONE,
    "view-invariance learning": IMAGES_ALONE,
}
"""By the task's name in metadata.json."""


def labels_of(head: int, rule: LabelRule, annotation: Any) -> list[Label]:
    """The labels of an image that the head learns from."""
    labels = [Label(head, ANNOTATED)]
    if annotation is None or rule.identities:
        return labels
    categories = rule.categories(annotation)
    if categories is None:
        return labels
    named = {Label(head, CATEGORY, name) for name in categories}
    return [*labels, *sorted(named)] if named else [*labels, Label(head, NOTHING)]
