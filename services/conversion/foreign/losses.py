"""The account of what a foreign format cannot say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.conversion.finding import Action, Place, Report


@dataclass(kw_only=True)
class Losses:
    """Counts what a format could not say. `sentences`: for each kind what became of it, to follow a number."""

    sentences: Mapping[str, str]
    file: str
    images_left_out: int = 0
    """Without an annotation."""
    _annotations: Counter[str] = field(default_factory=Counter)
    _images: Counter[str] = field(default_factory=Counter)

    def add(self, lost: Mapping[str, int]) -> None:
        """Of one image."""
        for kind, count in lost.items():
            self._annotations[kind] += count
            self._images[kind] += 1

    def report(self, report: Report) -> None:
        """A warning for each kind, with its counts: one for each image would bury the rest."""
        place = Place(file=self.file)
        for kind, count in sorted(self._annotations.items()):
            images = self._images[kind]
            message = f"in {images} image{'' if images == 1 else 's'} {count} {self.sentences[kind]}"
            report.warn("not_said", message, place, value=kind, action=Action.REPAIRED)
        if self.images_left_out:
            left_out = "1 image is" if self.images_left_out == 1 else f"{self.images_left_out} images are"
            message = f"{left_out} left out for want of an annotation: no format but ours says that nothing is known"
            report.warn("not_said", message, place, value="null", action=Action.DROPPED)
