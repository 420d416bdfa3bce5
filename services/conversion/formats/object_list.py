"""What the tasks whose annotation is a list of objects share: the list, and what every object may say."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from collections.abc import Set as AnySet
from dataclasses import replace
from typing import TypeVar

import msgspec

from services.conversion.file.document import List, Mapping, Value, kind, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.format import Json
from services.conversion.formats.names import FALSE_WORDS, TRUE_WORDS, Names, check_declared
from services.conversion.index import ImageSize

OBJECTS_MAX = 100_000
"""Objects of one image."""

Made = TypeVar("Made")


class RawObject(msgspec.Struct, kw_only=True):  # of a dataclass half of the reading would be the making
    """One object of an image as it is written. What is wrong with it is reported with its place.

    `bad`: there was an error, so that it is dropped; it counts as one, however much is wrong with it.
    """

    item: Mapping
    index: int
    line: int
    size: ImageSize
    place: Place
    report: Report
    bad: bool = False

    def error(self, rule: str, message: str, key: str = "", *, value: str = "") -> None:
        """Something for which the object is dropped."""
        self.report.error(rule, message, self.at(key), index=self.index, value=value, annotations=0 if self.bad else 1)
        self.bad = True

    def warn(self, rule: str, message: str, key: str = "", *, value: str = "") -> None:
        """Something that is perhaps not what was meant; the object stays as it is."""
        self.report.warn(rule, message, self.at(key), index=self.index, value=value)

    def at(self, key: str) -> Place:
        """Where the object stands, or one of its keys."""
        return replace(self.place, line=self.item.lines.get(key, self.line))

    def get(self, key: str) -> Value:
        """The value of a key without which there is no object; null is an error."""
        value = self.item.get(key)
        if value is None:
            found = "is null" if key in self.item else "is missing"
            self.error("missing_key", f"the object's {key!r} {found}: give it, or leave the object out", key)
        return value

    def category(self, vocabulary: Names) -> str:
        """The declared category; where it is none the object is bad."""
        value = self.item.get("category")
        if isinstance(value, str):
            if value not in vocabulary.known:
                annotations = 0 if self.bad else 1
                at = self.at("category")
                check_declared(value, "category", at, self.index, vocabulary, self.report, annotations=annotations)
                self.bad = True
            return value
        if self.get("category") is not None:
            self.error("bad_value", f"'category' is {kind(value)}, but must be a name", "category", value=shown(value))
        return ""

    def flags(self) -> tuple[bool, bool]:
        """`crowd` and `ignore`, which may be left out."""
        item = self.item
        return "crowd" in item and self.flag("crowd"), "ignore" in item and self.flag("ignore")

    def flag(self, key: str) -> bool:
        """One of the two."""
        value = self.item.get(key)
        if value is None or (isinstance(value, str) and value in FALSE_WORDS):
            return False
        if not isinstance(value, str) or value not in TRUE_WORDS:
            self.error("bad_value", f"{key!r} must be true or false, or be left out", key, value=shown(value))
        return True

    def check_keys(self, known: AnySet[str]) -> None:
        """Warn of keys that are passed over."""
        if self.item.keys() <= known:
            return
        for key in self.item:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"an object has {', '.join(sorted(known))}"
                message = f"the key {shown(key)!r} is not known, so it is passed over: {hint}"
                self.warn("unknown_key", message, key, value=key)


def read_objects(
    value: Value,
    size: ImageSize,
    place: Place,
    report: Report,
    read: Callable[[RawObject], Made | None],
    quick: Callable[[Mapping], Made | None] = lambda item: None,
) -> tuple[Made, ...] | None:
    """The objects that are sound. None where there were objects and all were bad: nothing is known of the image.

    `quick`: makes an object of what is as it mostly is, and None of what must be looked at more closely.
    """
    if not isinstance(value, List):
        message = f"the annotation is {kind(value)}, but must be a list of objects, [] where none is there"
        report.error("bad_value", message, place, value=shown(value))
        return None
    if len(value) > OBJECTS_MAX:
        message = f"the image has {len(value)} objects, but at most {OBJECTS_MAX} may be"
        report.error("too_many_objects", message, place, value=str(len(value)), annotations=len(value))
        return None
    found: list[Made] = []
    for index, item in enumerate(value):
        made = quick(item) if type(item) is Mapping and not item.repeated else None
        if made is not None:
            found.append(made)
            continue
        line = value.lines[index]
        if not isinstance(item, Mapping):
            message = f"an object is {kind(item)}, but must be a mapping"
            report.error("bad_value", message, replace(place, line=line), index=index, value=shown(item))
            continue
        if item.repeated:  # of which the report knows already
            report.drop("repeated_key", place.image, 1)
        raw = RawObject(item=item, index=index, line=line, size=size, place=place, report=report, bad=item.repeated)
        each = read(raw)
        if each is not None:
            found.append(each)
    return None if value and not found else tuple(found)


def written_object(category: str, key: str, shape: Json, *, crowd: bool, ignore: bool) -> Json:
    """An object with a category, and under the key where it is."""
    found = {"category": category, key: shape}
    if crowd or ignore:
        found |= written_flags(crowd=crowd, ignore=ignore)
    return found


def written_flags(*, crowd: bool, ignore: bool) -> dict[str, Json]:
    """The flags that are set."""
    flags: dict[str, Json] = {}
    if crowd:
        flags["crowd"] = True
    if ignore:
        flags["ignore"] = True
    return flags
