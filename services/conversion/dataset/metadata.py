"""The metadata of a dataset in the native format: its annotation sets and their vocabularies. Pure: a document in."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.chassis.errors import InvalidArgument, Violation
from services.chassis.image import FULL_RANGE, SIXTEEN_BITS_MAX, ImageRange
from services.chassis.objects.uri import uri_parts
from services.conversion.dataset.refusal import refusal
from services.conversion.file import document
from services.conversion.file.document import SUFFIXES, Document, DocumentError, Value, kind, read_document, shown
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.names import NAME_CHARACTERS_MAX
from services.conversion.task import IMAGES_ALONE, Task

METADATA_NAMES = ("metadata.yaml", "metadata.yml", "metadata.json")
ANNOTATION_SETS_MAX = 64
SHARED_KEYS = ("name", "task", "annotations", "images", "image_range", "category_ids")
"""Of every task. `category_ids`: the numbers of categories in another format, which an export gives back."""
WHOLE_NUMBER = re.compile("[0-9]{1,5}")


@dataclass(frozen=True, kw_only=True)
class AnnotationSet:
    """One annotation set as the metadata declare it. `annotations` is a file, or a folder with a slash at its end."""

    name: str
    task: Task
    metadata: document.Mapping
    annotations: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the metadata say. `images_uri` is empty where the images lie in the dataset's own images/.

    `image_range`: the values of its 16-bit images that are shown black and white.
    """

    sets: tuple[AnnotationSet, ...]
    images_uri: str = ""
    image_range: ImageRange = FULL_RANGE


def read_metadata(content: bytes | None, name: str, report: Report) -> Metadata:
    """The metadata in a file; without one (None) a folder of images can be reconstructed, and so on."""
    if content is None:
        only = AnnotationSet(
            name="", task=Task.AUTOENCODING, metadata=document.Mapping(), annotations="", place=Place(file="")
        )
        return Metadata(sets=(only,))
    place = Place(file=name)
    found = read_file(content, place, report)
    if found is None:
        return Metadata(sets=())
    _report_repeated_metadata(found, place, report)
    parts: Sequence[Value] = found.value if isinstance(found.value, document.List) else [found.value]
    lines = found.value.lines if isinstance(found.value, document.List) else [found.line or 1]
    if not parts or len(parts) > ANNOTATION_SETS_MAX:
        message = f"it lists {len(parts)} annotation sets, but 1 to {ANNOTATION_SETS_MAX} may be"
        report.fail("bad_value", message, place)
        return Metadata(sets=())
    several = isinstance(found.value, document.List)
    sets = [
        _read_set(part, replace(place, line=line), several, report) for part, line in zip(parts, lines, strict=True)
    ]
    declared = tuple(each for each in sets if each is not None)
    for set_name, count in Counter(each.name for each in declared).items():
        if count > 1:
            report.fail("repeated_name", f"{count} annotation sets have the name {set_name!r}", place, value=set_name)
    return Metadata(
        sets=declared,
        images_uri=_images_uri(parts, place, report),
        image_range=_image_range(parts, place, report),
    )


def choose_set(uri: str, metadata: Metadata, name: str, report: Report) -> AnnotationSet:
    """The annotation set of a name; the only one where none is given. `report` is that of the metadata."""
    if report.refuses():
        raise refusal(uri, report)
    sets = metadata.sets
    chosen = next((each for each in sets if each.name == name), None)
    if chosen is None and not name and len(sets) == 1:
        chosen = sets[0]
    if chosen is None:
        names = ", ".join(repr(each.name) for each in sets)
        found = (
            f"is {name!r}, but the dataset has {names}" if name else f"is empty, but the dataset has several: {names}"
        )
        raise InvalidArgument([Violation(field="annotation_set", description=found)])
    return chosen


def read_vocabulary(chosen: AnnotationSet, report: Report) -> Any:
    """The vocabulary of an annotation set, and whether its metadata hold keys that the task does not know."""
    task_format = FORMATS[chosen.task]
    known = (*SHARED_KEYS, *task_format.keys)
    for key, line in chosen.metadata.lines.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"a set for {chosen.task} has {', '.join(known)}"
            message = f"the key {shown(key)!r} is not known, so it is passed over: {hint}"
            report.warn("unknown_key", message, replace(chosen.place, line=line), value=key)
    return task_format.read_vocabulary(chosen.metadata, chosen.place, report)


def repeated_message(repeated: document.RepeatedKey) -> str:
    """What a finding says of a key that stands twice in one mapping."""
    return f"the key {shown(repeated.key)!r} stood on line {repeated.line_first} already: keep one of them"


def read_file(content: bytes, place: Place, report: Report, *, keep: bool = False) -> Document | None:
    """The document in a file of metadata or annotations; None where it cannot be read, which is in the report.

    `keep`: what stands under its keys stays text.
    """
    try:
        return read_document(content, place.file, keep=keep)
    except DocumentError as error:
        report.fail("syntax", f"the file {error}", replace(place, line=error.line))
        return None


def _read_set(value: Value, place: Place, several: bool, report: Report) -> AnnotationSet | None:
    if not isinstance(value, document.Mapping):
        wanted = "a mapping with `task`, the task's vocabulary and `annotations`"
        report.fail("bad_value", f"it holds {kind(value)}, but must hold {wanted}", place, value=shown(value))
        return None
    task = _read_task(value, place, report)
    name = value.get("name")
    if name is None and not several:
        name = ""
    if not isinstance(name, str) or len(name) > NAME_CHARACTERS_MAX or not name.isprintable() or (several and not name):
        wanted = f"1 to {NAME_CHARACTERS_MAX} printable characters"
        message = f"`name` must be {wanted}: each annotation set of a list has a name of its own"
        report.fail("bad_name", message, _at(place, value, "name"), value=shown(name))
        return None
    if task is None:
        return None
    annotations = _read_annotations_path(value, task, place, report)
    if annotations is None:
        return None
    return AnnotationSet(name=name, task=task, metadata=value, annotations=annotations, place=place)


def _read_task(metadata: document.Mapping, place: Place, report: Report) -> Task | None:
    value = metadata.get("task")
    if isinstance(value, str) and value in set(Task):
        return Task(value)
    close = difflib.get_close_matches(shown(value), list(Task), n=1, cutoff=0)
    found = "is missing" if "task" not in metadata else f"is {shown(value)!r}, which is no task"
    message = f"`task` {found}: did you mean {str(close[0])!r}?" if value else f"`task` {found}: name one of the tasks"
    report.fail("unknown_task", message, _at(place, metadata, "task"), value=shown(value))
    return None


def _read_annotations_path(metadata: document.Mapping, task: Task, place: Place, report: Report) -> str | None:
    value = metadata.get("annotations")
    if value is None:
        if task in IMAGES_ALONE:
            return ""
        message = "`annotations` is missing: name the file, or the folder, that holds them"
        report.fail("missing_key", message, _at(place, metadata, "annotations"))
        return None
    at = _at(place, metadata, "annotations")
    if not isinstance(value, str) or not value.strip("/"):
        report.fail("bad_value", f"`annotations` is {kind(value)}, but must name a file or a folder", at)
        return None
    parts = value.rstrip("/").split("/")
    if value.startswith("/") or not value.isprintable() or "\\" in value or any(p in ("", ".", "..") for p in parts):
        message = "`annotations` must be a path inside the dataset, without '.', '..' and backslashes"
        report.fail("leads_outside", message, at, value=value)
        return None
    folder = value.endswith("/") or not value.lower().endswith(SUFFIXES)
    return value.rstrip("/") + ("/" if folder else "")


def _images_uri(parts: Sequence[Value], place: Place, report: Report) -> str:
    """Where the images are: all annotation sets must say the same."""
    found: dict[str, Place] = {}
    for part in parts:
        if not isinstance(part, document.Mapping) or part.get("images") is None:
            continue
        value, at = part["images"], _at(place, part, "images")
        if not isinstance(value, str):
            report.fail("bad_value", f"`images` is {kind(value)}, but must be a uri", at)
            continue
        try:
            uri_parts(value)
        except InvalidArgument as error:  # which says what may be quoted: a uri can hold a secret
            report.fail("bad_value", f"`images` {error.violations[0].description}", at)
        else:
            found.setdefault(value.rstrip("/"), at)
    if len(found) > 1:
        report.fail("bad_value", "`images` differs between the annotation sets, which share one set of images", place)
    return next(iter(found), "")


def _image_range(parts: Sequence[Value], place: Place, report: Report) -> ImageRange:
    """By what values 16-bit images are shown: all annotation sets must say the same."""
    found: dict[ImageRange, Place] = {}
    for part in parts:
        if not isinstance(part, document.Mapping) or part.get("image_range") is None:
            continue
        value, at = part["image_range"], _at(place, part, "image_range")
        texts = value if isinstance(value, document.List) else []
        numbers = [int(text) for text in texts if isinstance(text, str) and WHOLE_NUMBER.fullmatch(text)]
        if len(texts) != 2 or len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= SIXTEEN_BITS_MAX:
            wanted = f"[lo, hi], two whole numbers from 0 to {SIXTEEN_BITS_MAX}, the values that are black and white"
            report.fail("bad_value", f"`image_range` must be {wanted}", at, value=shown(value))
        else:
            found.setdefault((numbers[0], numbers[1]), at)
    if len(found) > 1:
        report.fail("bad_value", "`image_range` differs between the annotation sets, which share their images", place)
    return next(iter(found), FULL_RANGE)


def _at(place: Place, metadata: document.Mapping, key: str) -> Place:
    return replace(place, line=metadata.lines.get(key, place.line))


def _report_repeated_metadata(found: Document, place: Place, report: Report) -> None:
    for each in found.repeated:
        report.fail("repeated_key", repeated_message(each), replace(place, line=each.line), value=each.key)
