"""The annotations of a dataset in the native format, and its records. Pure: documents and an index in.

Of every image and annotation set three things can be known: nothing (missing or null), that nothing is there ([]), or
what is there. They are kept apart everywhere.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from services.conversion.dataset.metadata import AnnotationSet, read_file, repeated_message
from services.conversion.dataset.record import RawRecord
from services.conversion.file import document
from services.conversion.file.document import SUFFIXES, DocumentError, Entry, Kept, Value, kind, read_document, shown
from services.conversion.finding import Place, Report
from services.conversion.index import Index


@dataclass(frozen=True, kw_only=True)
class Located:
    """A value with its place, or, where there is a `path`, a map's file with the value that stands beside it.

    `refused`: something about it is wrong and in the report already, so that it counts as null.
    """

    kept: Entry
    """The value, or its text."""
    place: Place
    refused: bool = False
    path: str = ""
    suffix: str = ""
    size_bytes: int = 0
    about_file: str = ""
    """Where the value stands, if that is not `path`."""

    @property
    def value(self) -> Value:
        """Read each time where it was kept as text."""
        return self.kept.value() if isinstance(self.kept, Kept) else self.kept

    @property
    def given(self) -> bool:
        """Whether it is more than null."""
        return self.kept is not None or bool(self.path)

    @property
    def empty(self) -> bool:
        """Whether it is a list with nothing in it, and no map: nothing is there."""
        return isinstance(self.kept, document.List) and not self.kept and not self.path


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The annotations of one set as they are written, by image name, or by the image's stem."""

    values: AnyMapping[str, Located]
    by_stem: bool


def read_annotation_file(content: bytes, name: str, report: Report) -> Annotations:
    """The annotations in one file: a mapping from image file name to annotation."""
    place = Place(file=name)
    found = read_file(content, place, report, keep=True)
    if found is None or found.value is None:
        return Annotations(values={}, by_stem=False)
    if not isinstance(found.value, document.Mapping):
        message = f"it holds {kind(found.value)}, but must hold a mapping from image file name to annotation"
        report.fail("bad_value", message, replace(place, line=found.line))
        return Annotations(values={}, by_stem=False)
    values = _FileValues(name, found.value)
    repeated = set()
    for each in found.repeated:
        image = each.path[0] if each.path else each.key
        annotation = values[image].value if each.path else None
        if _report_repeated(each, each.path[1:], annotation, replace(place, image=image), report):
            repeated.add(image)
    values.refused = frozenset(repeated)
    return Annotations(values=values, by_stem=False)


class _FileValues(AnyMapping[str, Located]):
    """The values of a file by image, each described when it is asked for: a file may hold a million.

    `refused`: the images whose values cannot be trusted.
    """

    def __init__(self, file: str, root: document.Mapping) -> None:
        self._file = file
        self._root: AnyMapping[str, Entry] = root
        self._lines = root.lines
        self.refused: frozenset[str] = frozenset()

    def __getitem__(self, image: str) -> Located:
        place = Place(file=self._file, line=self._lines[image], image=image)
        return Located(kept=self._root[image], place=place, refused=image in self.refused)

    def __iter__(self) -> Iterator[str]:
        return iter(self._root)

    def __len__(self) -> int:
        return len(self._root)


def read_annotation_folder(contents: AnyMapping[str, bytes], outside: Sequence[str], report: Report) -> Annotations:
    """The annotations in a folder: path to content, each file named by its image's stem. `outside` leads out of it."""
    values: dict[str, Located] = {}
    for path in outside:
        place = Place(file=path, image=PurePosixPath(path).stem)
        report.error("leads_outside", "it is a link out of the dataset: put the file there", place)
        values[place.image] = Located(kept=None, place=place, refused=True, path=path)
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
            values[name.stem] = Located(kept=None, place=place)
            continue
        line = replace(place, line=found.line or 1)
        spoilt = [_report_repeated(each, each.path, found.value, place, report) for each in found.repeated]
        large = isinstance(found.value, (document.List, document.Mapping)) and found.value
        kept = _kept(content, name.name) if large else found.value
        values[name.stem] = Located(kept=kept, place=line, refused=any(spoilt))
    return Annotations(values=values, by_stem=True)


def _kept(content: bytes, name: str) -> Kept:
    return Kept(lambda *_: read_document(content, name).value, 0, len(content), 1, 0)


def raw_records(
    chosen: AnnotationSet, annotations: Annotations, index: Index, refused: AnyMapping[str, str], report: Report
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
    key: str, located: Located, gone: AnyMapping[str, str], stems: Counter[str], report: Report
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
