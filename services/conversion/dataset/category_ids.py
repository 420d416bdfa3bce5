"""The metadata key `category_ids`: the numbers that categories had where they came from, for their way back."""

from __future__ import annotations

from dataclasses import replace

from services.conversion.dataset.metadata import AnnotationSet
from services.conversion.file.document import Mapping, shown
from services.conversion.finding import Report

CATEGORY_IDS = "category_ids"
DIGITS_MAX = 15


def read_category_ids(chosen: AnnotationSet, report: Report) -> dict[str, int]:
    """The number of each name; none where the key is missing, or does not hold different whole numbers."""
    value = chosen.metadata.get(CATEGORY_IDS)
    if value is None:
        return {}
    found: dict[str, int] = {}
    if isinstance(value, Mapping):
        for name, text in value.items():
            if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX:
                found[name] = int(text)
    if not isinstance(value, Mapping) or len(found) < len(value) or len(set(found.values())) < len(found):
        message = (
            f"`{CATEGORY_IDS}` must give each category a whole number of its own: it is passed over, others are issued"
        )
        place = replace(chosen.place, line=chosen.metadata.lines.get(CATEGORY_IDS, chosen.place.line))
        report.warn("bad_value", message, place, value=shown(value))
        return {}
    return found
