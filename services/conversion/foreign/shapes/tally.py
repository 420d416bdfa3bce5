"""What a dataset has of shapes: which labels, which kinds, and so which task it can be for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.conversion.finding import Place, Report
from services.conversion.foreign.category_colors import category_colors
from services.conversion.foreign.format import ForeignError
from services.conversion.foreign.keypoint_names import keypoints_of
from services.conversion.foreign.shapes.shape import ShapedImage, ShapeKind
from services.conversion.formats.colors import Color, Colors
from services.conversion.formats.names import NAMES_MAX, RESERVED_NAMES, Names, is_name
from services.conversion.task import Task

K = ShapeKind
KINDS: Mapping[Task, frozenset[ShapeKind]] = {
    Task.INSTANCE_SEGMENTATION: frozenset({K.POLYGON, K.MASK}),
    Task.KEYPOINT_DETECTION: frozenset({K.POINTS}),
    Task.QUADRILATERAL_DETECTION: frozenset({K.QUAD}),
    Task.OBJECT_DETECTION: frozenset({K.BOX}),
    Task.MULTICLASS_CLASSIFICATION: frozenset({K.TAG}),
    Task.MULTILABEL_CLASSIFICATION: frozenset({K.TAG}),
}
"""What each task is read from, the task that says most first; what else it can be made of stands in TAKEN."""
TAKEN: Mapping[Task, frozenset[ShapeKind]] = {
    Task.INSTANCE_SEGMENTATION: frozenset({K.POLYGON, K.MASK, K.QUAD}),
    Task.KEYPOINT_DETECTION: frozenset({K.POINTS, K.BOX}),
    Task.QUADRILATERAL_DETECTION: frozenset({K.QUAD, K.BOX, K.POLYGON}),
    Task.OBJECT_DETECTION: frozenset({K.BOX, K.QUAD, K.POLYGON, K.MASK}),
    Task.MULTICLASS_CLASSIFICATION: frozenset({K.TAG}),
    Task.MULTILABEL_CLASSIFICATION: frozenset({K.TAG}),
}
OBJECTS = frozenset({K.BOX, K.QUAD, K.POLYGON, K.MASK})
"""Shapes of whole objects: one that a task cannot take would be missing from its image."""
TASKS: Sequence[Task] = tuple(KINDS)


@dataclass(kw_only=True)
class Tally:
    """Counts shapes of images as they are read."""

    kinds: Counter[ShapeKind] = field(default_factory=Counter)
    labels: dict[ShapeKind, Counter[str]] = field(default_factory=dict)
    points: dict[str, None] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    tags_max: int = 0
    """Of one image."""

    def add(self, image: ShapedImage) -> None:
        """Count one image."""
        for each in image.shapes:
            self.kinds[each.kind] += 1
            if each.kind is K.OTHER:
                self.others[each.name] += 1
            self.labels.setdefault(each.kind, Counter())[each.label] += 1
            self.points.update(dict.fromkeys(each.points))
        self.tags_max = max(self.tags_max, sum(each.kind is K.TAG for each in image.shapes))
        self.dropped.update(image.dropped)

    def task(self, wanted: Task | None, place: Place) -> Task:
        """The task that is wanted, else the one that says most. Raises ForeignError where there is none."""
        found = [task for task, kinds in KINDS.items() if any(self.kinds[kind] for kind in kinds)]
        if wanted is not None:
            if wanted in TAKEN and (any(self.kinds[kind] for kind in TAKEN[wanted]) or not found):
                return wanted
            names = ", ".join(found) or "no task at all"
            message = f"nothing is said here for {wanted}; what there is, is for {names}"
            raise ForeignError("bad_value", message, place, value=str(wanted))
        if not found:
            return Task.OBJECT_DETECTION
        if found[0] is Task.MULTICLASS_CLASSIFICATION and self.tags_max > 1:
            return Task.MULTILABEL_CLASSIFICATION
        return found[0]

    def vocabulary(
        self, task: Task, declared: Iterable[str], colors: Mapping[str, Color], points: Sequence[str], place: Place
    ) -> Any:
        """That of the task: labels that are declared, in their order, then others that are used, by name.

        Raises ForeignError where there is none that can be used.
        """
        if task is Task.KEYPOINT_DETECTION:
            names = tuple(name for name in dict.fromkeys((*points, *self.points)) if _is_usable(name))
            if not names:
                raise ForeignError("empty_vocabulary", "no point has a name that can be a keypoint's", place)
            return keypoints_of(names)
        used = {label for kind in TAKEN[task] for label in self.labels.get(kind, ())}
        ordered = list(dict.fromkeys(declared))
        names = tuple(name for name in (*ordered, *sorted(used - set(ordered))) if _is_usable(name))
        if not 0 < len(names) <= NAMES_MAX:
            message = f"there are {len(names)} labels that can be categories, but 1 to {NAMES_MAX} may be"
            raise ForeignError("empty_vocabulary", message, place)
        if task is Task.INSTANCE_SEGMENTATION:
            return Colors(names=names, colors=category_colors(names, {n: c for n, c in colors.items() if n in names}))
        return Names(names=names)

    def report(self, task: Task, place: Place, report: Report) -> None:
        """What a dataset says that is left out for the task; single objects that cannot be taken are found later."""
        left = {kind: count for kind, count in self.kinds.items() if kind not in TAKEN[task] and kind not in OBJECTS}
        if task in (Task.MULTICLASS_CLASSIFICATION, Task.MULTILABEL_CLASSIFICATION):
            left |= {kind: self.kinds[kind] for kind in OBJECTS if self.kinds[kind]}
        left.pop(K.OTHER, None)
        for what, count in sorted([*((str(kind), count) for kind, count in left.items()), *self.others.items()]):
            message = f"{count} x {what} left out: {task} does not say it, another task (task: …) may"
            report.warn("not_kept", message, place, value=what)
        for what, count in sorted(self.dropped.items()):
            message = f"{what} of {count} shapes or images is left out: the native format does not say it"
            report.warn("not_kept", message, place, value=what)


def _is_usable(name: str) -> bool:
    return is_name(name) and name not in RESERVED_NAMES
