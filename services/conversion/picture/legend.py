"""What stands below a tile: names with the colours that they were drawn in, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.conversion.formats.colors import Color
from services.conversion.picture.color import IGNORED, category_color


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry. `color` None: words alone. `striped`: half the swatch is bare, as crowds and void are drawn."""

    text: str
    color: Color | None = None
    striped: bool = False


class Labelled(Protocol):
    """What boxes, quadrilaterals, instances and segments share."""

    @property
    def category(self) -> str:
        """The category."""
        ...

    @property
    def crowd(self) -> bool:
        """Whether it is several that were not told apart."""
        ...

    @property
    def ignore(self) -> bool:
        """Whether it is not to be cared for."""
        ...


def colors_of(names: Sequence[str], wanted: Iterable[str], own: Mapping[str, Color]) -> dict[str, Color]:
    """The colours of some names: their own, or by their positions in a vocabulary; in its order."""
    used = set(wanted)
    return {name: own.get(name) or category_color(index) for index, name in enumerate(names) if name in used}


def category_legend(objects: Iterable[Labelled], colors: dict[str, Color]) -> list[Entry]:
    """Categories with the number of their objects, the most frequent first; crowds and what to ignore by themselves."""
    plain: Counter[str] = Counter()
    crowds: Counter[str] = Counter()
    ignored = 0
    for each in objects:
        if each.ignore:
            ignored += 1
        elif each.crowd:
            crowds[each.category] += 1
        else:
            plain[each.category] += 1
    order = {name: position for position, name in enumerate(colors)}
    found = [
        Entry(text=f"{name}: {count}", color=colors[name])
        for name, count in sorted(plain.items(), key=lambda item: (-item[1], order[item[0]]))
    ]
    found += [
        Entry(text=f"{name}, crowd: {count}", color=colors[name], striped=True)
        for name, count in sorted(crowds.items(), key=lambda item: order[item[0]])
    ]
    if ignored:
        found.append(Entry(text=f"to ignore: {ignored}", color=IGNORED))
    return found
