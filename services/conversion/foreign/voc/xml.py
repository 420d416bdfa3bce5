"""Pascal VOC's XML as values. Nothing in a file is ever expanded or fetched: entities and DTDs are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, ParseError
from xml.parsers.expat import ExpatError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from services.conversion.finding import Place
from services.conversion.foreign.format import ForeignError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
OBJECTS_MAX = 100_000
FLAGS = ("truncated", "occluded")
FALSE_WORDS = ("0", "", "false", "no", "unspecified")
FLAG_WORDS = {**dict.fromkeys(FALSE_WORDS, False), **dict.fromkeys(("1", "true", "yes"), True)}
"""What a flag may be, in lower case."""
_OBJECT = re.compile(rb"<object[\s>]")


@dataclass(frozen=True, kw_only=True, slots=True)
class VocObject:
    """One object as it is written. `problem`: why it has no box."""

    name: str
    corners: tuple[str, str, str, str]
    difficult: bool
    problem: str = ""
    line: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What is said of it beside that, which the native format does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocFile:
    """One file. Width and height are 0 where it does not say."""

    width: int = 0
    height: int = 0
    objects: tuple[VocObject, ...] = ()


def read_voc(content: bytes) -> VocFile:
    """The objects in a file. Raises ForeignError where it is none of VOC's."""
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except ParseError as error:
        line = error.position[0] if error.position else 0
        raise ForeignError("syntax", f"is not XML: {error}", Place(file="", line=line)) from error
    except DefusedXmlException as error:
        raise ForeignError("syntax", "declares a DTD or entities: leave them out", Place(file="")) from error
    except (ValueError, LookupError, ExpatError) as error:  # an encoding that nobody knows
        raise ForeignError("syntax", f"is not XML: {error}", Place(file="")) from error
    if root.tag != "annotation":
        raise ForeignError("syntax", f"holds <{root.tag[:40]}>, where <annotation> was wanted", Place(file=""))
    objects = root.findall("object")
    deeper = sum(1 for _ in root.iter("object")) - len(objects)
    if deeper:
        problem = f"has {deeper} <object> that do not stand in <annotation> itself: move them there"
        raise ForeignError("bad_value", problem, Place(file=""))
    if len(objects) > OBJECTS_MAX:
        problem = f"has {len(objects)} objects, but at most {OBJECTS_MAX} may be"
        raise ForeignError("too_many_objects", problem, Place(file=""))
    return VocFile(
        width=_whole(root.findtext("size/width")),
        height=_whole(root.findtext("size/height")),
        objects=tuple(
            each
            for element, line in zip(objects, _lines(content, len(objects)), strict=True)
            for each in _read_objects(element, line)
        ),
    )


def _lines(content: bytes, count: int) -> list[int]:
    """The line of each object, from 1, as the parser does not tell; 0 where a comment or the encoding hides them."""
    found: list[int] = []
    line, position = 1, 0
    for match in _OBJECT.finditer(content):
        line += content.count(b"\n", position, match.start())
        position = match.start()
        found.append(line)
    return found if len(found) == count else [0] * count


def _read_objects(element: Element, line: int) -> list[VocObject]:
    """What an <object> says: one object, or as many as it has boxes."""
    boxes: list[Element | None] = [*element.findall("bndbox")]
    return [_read_object(element, box, line) for box in boxes or [None]]


def _read_object(element: Element, box: Element | None, line: int) -> VocObject:
    name = (element.findtext("name") or "").strip()
    texts = {key: (box.findtext(key) or "") if box is not None else "" for key in CORNERS}
    missing = [key for key, text in texts.items() if not text.strip()]
    problem = ""
    if not name:
        problem = "the object has no <name>: give it, or leave the object out"
    elif missing:
        problem = f"the object has no <{missing[0]}> in <bndbox>: give it, or leave the object out"
    difficult = (element.findtext("difficult") or "0").strip().lower()
    if difficult not in FLAG_WORDS:
        problem = f"<difficult> is {difficult[:40]!r}, but must be 0 or 1: mend it, or leave it out"
    dropped = {flag: 1 for flag in FLAGS if (element.findtext(flag) or "0").strip().lower() not in FALSE_WORDS}
    if (element.findtext("pose") or "Unspecified").strip().lower() not in ("unspecified", ""):
        dropped["pose"] = 1
    for part in ("part", "polygon", "attributes", "actions"):
        if element.find(part) is not None:
            dropped[part] = 1
    return VocObject(
        name=name,
        corners=(texts["xmin"], texts["ymin"], texts["xmax"], texts["ymax"]),
        difficult=FLAG_WORDS.get(difficult, False),
        problem=problem,
        line=line,
        dropped=dropped,
    )


def _whole(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
