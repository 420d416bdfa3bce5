"""A dataset in the native format: its metadata, its annotation sets, its records. Pure: documents and an index in.

Of every image and annotation set three things can be known: nothing (missing or null), that nothing is there ([]), or
what is there. They are kept apart everywhere.
"""

from __future__ import annotations

import difflib
import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from services.chassis.errors import InvalidArgument, Violation
from services.chassis.object_uri import uri_parts
from services.conversion import document
from services.conversion.chunk import RawRecord
from services.conversion.document import SUFFIXES, Document, DocumentError, Value, kind, read_document, shown
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.formats.names import NAME_CHARACTERS_MAX
from services.conversion.index import Index
from services.conversion.refusal import refusal
from services.conversion.task import IMAGES_ALONE, Task

METADATA_NAMES = ("metadata.yaml", "metadata.yml", "metadata.json")
ANNOTATION_SETS_MAX = 64
SHARED_KEYS = ("name", "task", "annotations", "images", "category_ids")
"""Of every task. `category_ids`: the numbers of categories in another format, which an export gives back."""


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
    """What the metadata say. `images_uri` is empty where the images lie in the dataset's own images/."""

    sets: tuple[AnnotationSet, ...]
    images_uri: str = ""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A value with its place, or, where there is a `path`, a map's file with the value that stands beside it.

    `refused`: something about it is wrong and in the report already, so that it counts as null.
    """

    value: Value
    place: Place
    refused: bool = False
    path: str = ""
    suffix: str = ""
    size_bytes: int = 0
    about_file: str = ""
    """Where the value stands, if that is not `path`."""

    @property
    def given(self) -> bool:
        """Whether it is more than null."""
        return self.value is not None or bool(self.path)


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The annotations of one set as they are written, by image name, or by the image's stem."""

    values: Mapping[str, Located]
    by_stem: bool


def read_metadata(content: bytes | None, name: str, report: Report) -> Metadata:
    """The metadata in a file; without one (None) a folder of images can be reconstructed, and so on."""
    if content is None:
        only = AnnotationSet(
            name="", task=Task.AUTOENCODING, metadata=document.Mapping(), annotations="", place=Place(file="")
        )
        return Metadata(sets=(only,))
    place = Place(file=name)
    found = _read(content, place, report)
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
    return Metadata(sets=declared, images_uri=_images_uri(parts, place, report))


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


def read_annotation_file(content: bytes, name: str, report: Report) -> Annotations:
    """The annotations in one file: a mapping from image file name to annotation."""
    place = Place(file=name)
    found = _read(content, place, report)
    if found is None or found.value is None:
        return Annotations(values={}, by_stem=False)
    if not isinstance(found.value, document.Mapping):
        message = f"it holds {kind(found.value)}, but must hold a mapping from image file name to annotation"
        report.fail("bad_value", message, replace(place, line=found.line))
        return Annotations(values={}, by_stem=False)
    repeated = set()
    for each in found.repeated:
        image = each.path[0] if each.path else each.key
        annotation = found.value.get(image) if each.path else None
        if _report_repeated(each, each.path[1:], annotation, replace(place, image=image), report):
            repeated.add(image)
    lines = found.value.lines
    values = {
        key: Located(value=value, place=Place(file=name, line=lines[key], image=key), refused=key in repeated)
        for key, value in found.value.items()
    }
    return Annotations(values=values, by_stem=False)


def read_annotation_folder(contents: Mapping[str, bytes], outside: Sequence[str], report: Report) -> Annotations:
    """The annotations in a folder: path to content, each file named by its image's stem. `outside` leads out of it."""
    values: dict[str, Located] = {}
    for path in outside:
        place = Place(file=path, image=PurePosixPath(path).stem)
        report.error("leads_outside", "it is a link out of the dataset: put the file there", place)
        values[place.image] = Located(value=None, place=place, refused=True, path=path)
    for path, content in sorted(contents.items()):
        name = PurePosixPath(path)
        place = Place(file=path, image=name.stem)
        if name.suffix.lower() not in SUFFIXES:
            message = f"it ends in {name.suffix or 'nothing'!r}, but annotations end in {', '.join(SUFFIXES)}"
            report.error("wrong_extension", message, place)
            continue
        if name.stem in values:
            other = values[name.stem]
            message = f"{other.place.file} has the same stem, so that neither counts: keep one of them"
            report.error("repeated_stem", message, place, value=name.stem)
            values[name.stem] = replace(other, refused=True)
            continue
        try:
            found = read_document(content, name.name)
        except DocumentError as error:
            report.error("syntax", f"the file {error}", replace(place, line=error.line))
            values[name.stem] = Located(value=None, place=place)
            continue
        line = replace(place, line=found.line or 1)
        spoilt = [_report_repeated(each, each.path, found.value, place, report) for each in found.repeated]
        values[name.stem] = Located(value=found.value, place=line, refused=any(spoilt))
    return Annotations(values=values, by_stem=True)


def raw_records(
    chosen: AnnotationSet, annotations: Annotations, index: Index, refused: Mapping[str, str], report: Report
) -> Iterator[RawRecord]:
    """Every usable image by name, with its annotation; what belongs to no image is reported at the end.

    `refused`: files of images/ that are not in the index, with the rule that each broke.
    """
    taken: set[str] = set()
    stems = Counter(stem_of(entry.name) for entry in index.images)
    for entry in index.images:
        key = stem_of(entry.name) if annotations.by_stem else entry.name
        first = key not in taken
        taken.add(key)
        located = annotations.values.get(key)
        if located is None or not located.given:
            place = Place(file=chosen.annotations, image=entry.name)
            yield RawRecord(image=entry, annotated=False, value=None, place=place)
            continue
        place = located.place if not annotations.by_stem else replace(located.place, image=entry.name)
        repeated_stem = annotations.by_stem and stems[key] > 1
        if repeated_stem and first:
            message = f"{stems[key]} images have the stem {key!r}, so that it belongs to none: rename them"
            report.error("repeated_stem", message, place, value=key)
        if repeated_stem or located.refused:
            yield RawRecord(image=entry, annotated=True, value=None, place=place)
            continue
        yield RawRecord(
            image=entry,
            annotated=True,
            value=located.value,
            place=place,
            path=located.path,
            suffix=located.suffix,
            size_bytes=located.size_bytes,
            about_file=located.about_file,
        )
    if not annotations.by_stem:
        _report_repeated_stems(stems, report)
    gone = {**refused, **index.broken}
    if annotations.by_stem:
        gone = {stem_of(name): rule for name, rule in gone.items()}
    for key, located in annotations.values.items():
        if key not in taken:
            _report_without_image(key, located, gone, stems, report)


def stem_of(name: str) -> str:
    """A file's name without its extension. (PurePosixPath takes ten times as long.)"""
    return posixpath.splitext(name)[0]


def fingerprint(index: Index, parts: Mapping[str, str]) -> str:
    """sha256 over the sorted index and the content hash (hexadecimal) of each file of metadata and annotations."""
    digest = hashlib.sha256()
    for entry in sorted(index.entries, key=lambda entry: entry.name):
        fields = (entry.name, entry.size_bytes, entry.etag, entry.width, entry.height, entry.orientation)
        digest.update(("image\0" + "\0".join(map(str, fields)) + "\n").encode())
    for path, content_hash in sorted(parts.items()):
        digest.update(f"file\0{path}\0{content_hash}\n".encode())
    return digest.hexdigest()


def repeated_message(repeated: document.RepeatedKey) -> str:
    """What a finding says of a key that stands twice in one mapping."""
    return f"the key {shown(repeated.key)!r} stood on line {repeated.line_first} already: keep one of them"


def _read(content: bytes, place: Place, report: Report) -> Document | None:
    try:
        return read_document(content, place.file)
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


def _at(place: Place, metadata: document.Mapping, key: str) -> Place:
    return replace(place, line=metadata.lines.get(key, place.line))


def _report_repeated_metadata(found: Document, place: Place, report: Report) -> None:
    for each in found.repeated:
        report.fail("repeated_key", repeated_message(each), replace(place, line=each.line), value=each.key)


def _report_repeated(
    repeated: document.RepeatedKey, path: Sequence[str], annotation: Value, place: Place, report: Report
) -> bool:
    """Report a repeated key at a path in an image's annotation; return whether nothing of that can be trusted.

    In a list it is one object that cannot be: what reads the object drops it, and counts it as dropped.
    """
    in_object = bool(path) and isinstance(annotation, document.List)
    at, index = replace(place, line=repeated.line), int(path[0]) if in_object else -1
    message, annotations = repeated_message(repeated), 0 if in_object else 1
    report.error("repeated_key", message, at, index=index, value=repeated.key, annotations=annotations)
    return not in_object


def _report_repeated_stems(stems: Counter[str], report: Report) -> None:
    for stem in sorted(stem for stem, count in stems.items() if count > 1):
        message = f"{stems[stem]} images have the stem {stem!r}: other formats could not tell them apart"
        report.warn("repeated_stem", message, Place(file=f"images/{stem}.*"), value=stem)


def _report_without_image(
    key: str, located: Located, gone: Mapping[str, str], stems: Counter[str], report: Report
) -> None:
    annotations = int(located.given)
    if key in gone:  # its image is broken, which the index has reported
        report.drop(gone[key], key, annotations)
    elif "/" in key or "\\" in key or key in (".", "..") or not key.isprintable():
        message = "an image's name is a plain file name in images/, without a folder: mend it"
        report.error("leads_outside", message, located.place, value=key, annotations=annotations)
    else:
        hint = ": write the name with its extension" if key in stems else ""
        message = f"there is no image {shown(key)!r} in images/{hint or ': remove the annotation, or add the image'}"
        report.error("annotation_without_image", message, located.place, value=key, annotations=annotations)
