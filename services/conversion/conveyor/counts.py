"""What an annotation set holds, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from services.conversion.formats.format import Format


@dataclass(kw_only=True)
class Counts:
    """How many images are in which state, how many annotations there are, and which categories they use."""

    labelled: int = 0
    negative: int = 0
    unlabelled: int = 0
    annotations: int = 0
    images_by_category: Counter[str] = field(default_factory=Counter)
    annotations_by_category: Counter[str] = field(default_factory=Counter)

    def add(self, annotation: Any, task_format: Format[Any, Any]) -> None:
        """Count one image."""
        self.add_state(annotation, task_format)
        if annotation is None:
            return
        categories = task_format.categories(annotation)
        by_category = self.annotations_by_category
        for category in categories:  # Counter.update takes longer for so few
            by_category[category] += 1
        by_category = self.images_by_category
        for category in set(categories):
            by_category[category] += 1

    def add_state(self, annotation: Any, task_format: Format[Any, Any]) -> None:
        """Count one image, and not what is on it."""
        if annotation is None:
            self.unlabelled += 1
            return
        count = task_format.count(annotation)
        if count:
            self.labelled += 1
        else:
            self.negative += 1
        self.annotations += count

    def merge(self, other: Counts) -> None:
        """Count what another has counted."""
        self.labelled += other.labelled
        self.negative += other.negative
        self.unlabelled += other.unlabelled
        self.annotations += other.annotations
        self.images_by_category.update(other.images_by_category)
        self.annotations_by_category.update(other.annotations_by_category)
