"""Vocabularies that are lists of names, as most tasks have: categories, labels, identities."""

from __future__ import annotations

import difflib
from collections.abc import Set as AnySet
from dataclasses import dataclass, field, replace

from services.conversion.file.document import List, Mapping, Value, kind, shown
from services.conversion.finding import Action, Place, Report

NAMES_MAX = 200_000
NAME_CHARACTERS_MAX = 200
SUGGESTIONS_MAX = 50
"""Nearest names are looked for this often in a pass: the search is slow in long vocabularies."""
RESERVED_NAMES = frozenset({"area", "bbox", "crowd", "ignore"})
"""What objects say beside their names: no category of objects and no keypoint is called so."""
TRUE_WORDS = frozenset({"true", "True", "TRUE"})
FALSE_WORDS = frozenset({"false", "False", "FALSE"})


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names in the order in which they were declared. `ordered`: the order has a meaning."""

    names: tuple[str, ...]
    ordered: bool = False
    known: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", frozenset(self.names))


def is_name(text: str) -> bool:
    """Whether a text can be a name."""
    return bool(text.strip()) and len(text) <= NAME_CHARACTERS_MAX and text.isprintable()


def read_names(
    metadata: Mapping, key: str, place: Place, report: Report, *, reserved: AnySet[str] = frozenset()
) -> Names:
    """The names under a metadata key. A repeated one is dropped with an error, anything else that is wrong fails."""
    place = replace(place, line=metadata.lines.get(key, place.line))
    if key not in metadata:
        report.fail("missing_key", f"the key {key!r} is missing: list the names there", place)
        return Names(names=())
    value = metadata[key]
    if not isinstance(value, List):
        report.fail("bad_value", f"{key!r} is {kind(value)}, but must be a list of names", place, value=shown(value))
        return Names(names=())
    if not value:
        report.fail("empty_vocabulary", f"{key!r} is empty, but must list at least one name", place)
    if len(value) > NAMES_MAX:
        report.fail("too_many_names", f"{key!r} lists {len(value)} names, but at most {NAMES_MAX} may be", place)
        return Names(names=())
    first_lines: dict[str, int] = {}
    for name, line in zip(value, value.lines, strict=True):
        at = replace(place, line=line)
        if not isinstance(name, str) or not is_name(name):
            wanted = f"a name of 1 to {NAME_CHARACTERS_MAX} printable characters"
            report.fail("bad_name", f"an entry of {key!r} is no name: {wanted} was wanted", at, value=shown(name))
        elif name in reserved:
            message = f"{name!r} in {key!r} is reserved for what objects say beside their names: choose another name"
            report.fail("reserved_name", message, at, value=name)
        elif name in first_lines:
            message = f"{name!r} stands twice in {key!r}, first on line {first_lines[name]}: name it once"
            report.error("repeated_category", message, at, value=name, annotations=0)
        else:
            first_lines[name] = line
    return Names(names=tuple(first_lines))


def read_flag(metadata: Mapping, key: str, place: Place, report: Report) -> bool:
    """A flag that may be left out."""
    value = metadata.get(key)
    if value is None or (isinstance(value, str) and value in FALSE_WORDS):
        return False
    if isinstance(value, str) and value in TRUE_WORDS:
        return True
    place = replace(place, line=metadata.lines[key])
    report.fail("bad_value", f"{key!r} must be true or false", place, value=shown(value))
    return False


def read_one(value: Value, what: str, place: Place, vocabulary: Names, report: Report) -> str | None:
    """An annotation that is one name of the vocabulary."""
    if isinstance(value, List) and not value:
        message = f"[] says that nothing is there, but an image has one {what}: give it, or null where it is not known"
        report.error("empty_annotation", message, place, value="[]", annotations=0)
        return None
    if not isinstance(value, str):
        report.error("bad_value", f"the annotation is {kind(value)}, but must be one {what}", place, value=shown(value))
        return None
    return value if check_declared(value, what, place, -1, vocabulary, report) else None


def read_set(value: Value, what: str, place: Place, vocabulary: Names, report: Report) -> tuple[str, ...] | None:
    """An annotation that is a list of names, each once, in the order in which it has them; empty says that none is."""
    if not isinstance(value, List):
        message = f"the annotation is {kind(value)}, but must be a list of {what}s: write [{shown(value)}]"
        report.error("bad_value", message, place, value=shown(value))
        return None
    found: dict[str, None] = {}
    for index, (item, line) in enumerate(zip(value, value.lines, strict=True)):
        at = replace(place, line=line)
        if not isinstance(item, str):
            message = f"an item is {kind(item)}, but must be a {what}"
            report.error("bad_value", message, at, index=index, value=shown(item))
        elif item in found:
            message = f"{item!r} stands twice for this image: it counts once"
            report.warn("repeated_label", message, at, index=index, value=item, action=Action.REPAIRED)
        elif check_declared(item, what, at, index, vocabulary, report):
            found[item] = None
    # All items were bad: nothing is known of the image, which is not the same as nothing being there.
    return None if value and not found else tuple(found)


def check_declared(
    name: str, what: str, place: Place, index: int, vocabulary: Names, report: Report, *, annotations: int = 1
) -> bool:
    """Whether the name is in the vocabulary; where it is not, an error for which `annotations` are dropped."""
    if name in vocabulary.known:
        return True
    rule = "undeclared_category"
    message = f"the {what} {shown(name)!r} is not declared in the metadata{_nearest(name, vocabulary, rule, report)}"
    report.error(rule, message, place, index=index, value=name, annotations=annotations)
    return False


def _nearest(name: str, vocabulary: Names, rule: str, report: Report) -> str:
    if report.rules[rule] >= SUGGESTIONS_MAX:
        return ""
    close = difflib.get_close_matches(name, vocabulary.names, n=1)
    return f", did you mean {close[0]!r}?" if close else ": declare it, or mend it"
