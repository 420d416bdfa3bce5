"""What stands beside a map, in `<stem>.yaml`: which of its objects are a crowd, and which are to be ignored.

A sidecar that cannot be understood leaves its map without a meaning: a crowd that is taken for an object is worse than
no annotation. What it says of objects that are not on the map is left out, with an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from services.conversion.file import document
from services.conversion.file.document import Value, kind, shown
from services.conversion.finding import Action, Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.number import shown_numbers

KEYS = ("crowd", "ignore")

Key = TypeVar("Key", bound=Hashable)


class SidecarError(Exception):
    """An item names no object, whatever the map; the message says what was wanted."""


@dataclass(frozen=True, kw_only=True)
class Sidecar(Generic[Key]):
    """The objects of one map that are a crowd, and those that are to be ignored."""

    crowd: frozenset[Key] = frozenset()
    ignore: frozenset[Key] = frozenset()


def read_sidecar(
    about: Value,
    place: Place,
    report: Report,
    *,
    read_item: Callable[[Value], Key],
    known: Collection[Key],
    annotations: int,
) -> Sidecar[Key] | None:
    """What a sidecar says; None where it cannot be understood, for which all `annotations` of the map are dropped.

    `read_item` raises SidecarError. `known` are the objects of the map.
    """
    if about is None:
        return Sidecar()
    if not isinstance(about, document.Mapping):
        message = f"what stands beside the map is {kind(about)}, but must be a mapping with `crowd` and `ignore`"
        report.error("bad_value", message, place, value=shown(about), annotations=annotations)
        return None
    for key, line in about.lines.items():
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"beside a map stand {' and '.join(KEYS)}"
            message = f"the key {shown(key)!r} is not known, so it is passed over: {hint}"
            report.warn("unknown_key", message, replace(place, line=line), value=key)
    found: dict[str, frozenset[Key]] = {}
    for key in KEYS:
        keys = _read_list(about, key, place, report, read_item, annotations)
        if keys is None:
            return None
        found[key] = _check_known(keys, key, known, place, report)
    return Sidecar(crowd=found["crowd"], ignore=found["ignore"])


def write_sidecar(crowd: Sequence[Json], ignore: Sequence[Json]) -> Mapping[str, Json] | None:
    """The pair of `read_sidecar`; None where there is nothing to say."""
    found: dict[str, Json] = {}
    if crowd:
        found["crowd"] = crowd
    if ignore:
        found["ignore"] = ignore
    return found or None


def _read_list(
    about: document.Mapping,
    key: str,
    place: Place,
    report: Report,
    read_item: Callable[[Value], Key],
    annotations: int,
) -> dict[Key, int] | None:
    """The objects under a key, each with its line."""
    value = about.get(key)
    if value is None:
        return {}
    place = replace(place, line=about.lines[key])
    if not isinstance(value, document.List):
        message = f"{key!r} is {kind(value)}, but must be a list"
        report.error("bad_value", message, place, value=shown(value), annotations=annotations)
        return None
    found: dict[Key, int] = {}
    for index, (item, line) in enumerate(zip(value, value.lines, strict=True)):
        at = replace(place, line=line)
        try:
            each = read_item(item)
        except SidecarError as error:
            message = f"an item of {key!r} is no object of a map: {error}"
            report.error("bad_value", message, at, index=index, value=shown_numbers(item), annotations=annotations)
            return None
        if each in found:
            message = f"{_shown_key(each)} stands twice in {key!r}: it counts once"
            report.warn("repeated_item", message, at, index=index, value=_shown_key(each), action=Action.REPAIRED)
        else:
            found[each] = line
    return found


def _check_known(
    keys: Mapping[Key, int], key: str, known: Collection[Key], place: Place, report: Report
) -> frozenset[Key]:
    for each, line in keys.items():
        if each not in known:
            message = f"{_shown_key(each)} in {key!r} names nothing on the map: mend it, or leave it out"
            at = replace(place, line=line)
            report.error("names_nothing", message, at, value=_shown_key(each), annotations=0)
    return frozenset(each for each in keys if each in known)


def _shown_key(key: Hashable) -> str:
    return f"[{', '.join(map(str, key))}]" if isinstance(key, tuple) else str(key)
