"""Where a YOLO dataset has its images and labels: `data.yaml` with names and splits, labels beside the images.

data.yaml           names: a list, or a mapping from number to name; train, val, test: folders of images, or files
                    that list them; path: what those are relative to
images/…/a.jpg      its labels lie in labels/…/a.txt: the last folder called images becomes labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from services.chassis.errors import InvalidArgument, Violation
from services.conversion.file import document
from services.conversion.file.document import Document, DocumentError, List, Value, kind, read_document, shown
from services.conversion.finding import Place, Report
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ForeignError,
    ForeignImage,
    ReadRequest,
    Unannotated,
)
from services.conversion.foreign.image_names import inside, is_image, native_images, report_passed_over
from services.conversion.formats.format import Codec
from services.conversion.formats.names import NAMES_MAX, RESERVED_NAMES, Names, is_name
from services.conversion.index import ImageEntry
from services.conversion.task import Task

SPLITS = ("train", "val", "valid", "test")
DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
KNOWN_KEYS = frozenset({"names", "nc", "path", "download", "yaml_file", *SPLITS})


@dataclass(frozen=True, kw_only=True)
class YoloLayout:
    """The images of one split, by name, with the path of each one's labels; empty where there is no such file."""

    description: document.Mapping
    place: Place
    """Of the description."""
    names: Names
    images: tuple[ForeignImage, ...]
    labels: Mapping[str, str]

    def dataset(self, *, task: Task, vocabulary: Any, codec: Codec[Any, Any], missing_is_null: bool) -> ForeignDataset:
        """What the files hold; a file that is missing says that nothing is there, or nothing at all."""

        def annotation(image: ImageEntry) -> ForeignAnnotation | None:
            path = self.labels[image.name]
            if path:
                return ForeignAnnotation(value=None, place=Place(file=path, image=image.name), path=path, suffix=".txt")
            return None if missing_is_null else ForeignAnnotation(value=(), place=Place(file="", image=image.name))

        return ForeignDataset(
            task=task,
            vocabulary=vocabulary,
            codec=codec,
            images=self.images,
            annotation=annotation,
            file_an_image=True,
        )


async def read_layout(files: Files, request: ReadRequest, report: Report, *, known: Sequence[str] = ()) -> YoloLayout:
    """The layout of a split; `known`: keys of the description that a kind of YOLO has beside the usual ones.

    Raises ForeignError, and InvalidArgument where the split is not one of the splits.
    """
    path = _description(files.paths)
    place = Place(file=path)
    try:
        found = await files.in_thread(read_document, await files.read(path), path)
    except DocumentError as error:
        raise ForeignError("syntax", f"the file {error}", replace(place, line=error.line)) from error
    if not isinstance(found.value, document.Mapping):
        raise ForeignError("bad_value", f"the file holds {kind(found.value)}, where a mapping was wanted", place)
    _report_keys(found, place, known, report)
    names = _read_names(found.value, place, report)
    chosen = await _images_of(files, found.value, place, request.split, report)
    images = native_images(chosen)
    labels = {image.name: label for image in images if (label := _labels_of(image.path, files.paths))}
    if request.unannotated is Unannotated.DEFAULT:
        _report_unlabelled(images, labels, report)
    report_passed_over(files.paths, report)
    _report_lone_labels(files.paths, images, labels, report)
    return YoloLayout(
        description=found.value,
        place=place,
        names=names,
        images=images,
        labels={image.name: labels.get(image.name, "") for image in images},
    )


def _description(paths: Mapping[str, int]) -> str:
    found = [path for path in paths if "/" not in path and path.lower().endswith((".yaml", ".yml"))]
    for name in DESCRIPTIONS:
        if name in found:
            return name
    if len(found) != 1:
        problem = f"there are {', '.join(found)}: call one" if found else "there is no YAML file: add"
        raise ForeignError("missing_file", f"{problem} data.yaml with names and splits", Place(file="data.yaml"))
    return found[0]


def _report_keys(found: Document, place: Place, known: Sequence[str], report: Report) -> None:
    for each in found.repeated:
        message = f"the key {shown(each.key)!r} stood on line {each.line_first} already: keep one of them"
        report.fail("repeated_key", message, replace(place, line=each.line), value=each.key)
    assert isinstance(found.value, document.Mapping), "checked by the caller"
    for key, line in found.value.lines.items():
        if key not in KNOWN_KEYS and key not in known:
            message = f"the key {shown(key)!r} is passed over: the native format does not say it"
            report.warn("not_kept", message, replace(place, line=line), value=key)


def _read_names(description: document.Mapping, place: Place, report: Report) -> Names:
    value = description.get("names")
    place = replace(place, line=description.lines.get("names", 0))
    if isinstance(value, document.Mapping):
        numbers = {str(number): name for number, name in enumerate(value.values())}
        if set(value) != set(numbers):
            message = f"`names` must number the classes from 0 to {len(value) - 1}, each once"
            raise ForeignError("bad_value", message, place, value=", ".join(value)[:200])
        names: Sequence[Value] = [value[number] for number in numbers]
    elif isinstance(value, List):
        names = value
    else:
        raise ForeignError("missing_key", "`names` must be a list of the classes' names, or a mapping", place)
    if not 0 < len(names) <= NAMES_MAX:
        raise ForeignError("empty_vocabulary", f"`names` has {len(names)} names, but 1 to {NAMES_MAX} may be", place)
    good = [name for name in names if isinstance(name, str) and is_name(name) and name not in RESERVED_NAMES]
    if len(good) < len(names) or len(set(good)) < len(good):
        message = "`names` must be different names: rename those that are empty, reserved or there twice"
        raise ForeignError("bad_name", message, place, value=", ".join(good)[:200])
    count = description.get("nc")
    if count is not None and count != str(len(good)):
        message = f"`nc` is {shown(count)}, but `names` has {len(good)} names: the names count"
        report.warn("bad_value", message, replace(place, line=description.lines["nc"]), value=shown(count))
    return Names(names=tuple(good))


async def _images_of(
    files: Files, description: document.Mapping, place: Place, split: str, report: Report
) -> list[str]:
    declared = [key for key in SPLITS if description.get(key) is not None]
    if not split and len({repr(description[key]) for key in declared}) == 1:
        declared = declared[:1]  # one part, whatever it is called
    if not split and len(declared) > 1:
        raise _wrong_split("is empty, but the source has several", declared)
    if split and split not in declared:
        raise _wrong_split(f"is {split!r}", declared)
    if not declared:
        message = "none of `train`, `val` and `test` says where the images are"
        raise ForeignError("missing_key", message, place)
    key = split or declared[0]
    value = description[key]
    parts = value if isinstance(value, List) else [value]
    place = replace(place, line=description.lines[key])
    root = description.get("path")
    found: dict[str, None] = {}
    for part in parts:
        if not isinstance(part, str):
            raise ForeignError("bad_value", f"`{key}` must be a path, or a list of paths", place, value=shown(part))
        found.update(dict.fromkeys(await _images_at(files, part, root if isinstance(root, str) else "", place, report)))
    if not found:
        raise ForeignError("missing_file", f"`{key}` leads to no image", place, value=shown(value))
    return sorted(found)


async def _images_at(files: Files, part: str, root: str, place: Place, report: Report) -> list[str]:
    """The images in a folder, at any depth, or in a list, of which what is missing is reported."""
    for candidate in dict.fromkeys((inside(f"{root}/{part}"), inside(part))):
        if candidate in files.paths and candidate.lower().endswith(".txt"):
            return await _listed(files, candidate, report)
        under = f"{candidate}/" if candidate else ""
        images = [path for path in files.paths if path.startswith(under) and is_image(path)]
        if images:
            return images
    message = f"there are no images at {part!r}: mend the path, relative to the source, or add them"
    report.error("missing_file", message, place, value=part, annotations=0)
    return []


async def _listed(files: Files, path: str, report: Report) -> list[str]:
    folder = path.rpartition("/")[0]
    try:
        lines = (await files.read(path)).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ForeignError("syntax", "the file is not UTF-8: save it as UTF-8", Place(file=path)) from error
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        candidates = (inside(f"{folder}/{name}"), inside(name))
        image = next((each for each in candidates if each in files.paths and is_image(each)), None)
        if image is None:
            message = f"the image {name!r} is listed, but it is not among the files: add it, or leave it out"
            report.error("missing_image", message, Place(file=path, line=number, image=PurePosixPath(name).name))
        else:
            found.append(image)
    return found


def _labels_of(image: str, paths: Mapping[str, int]) -> str:
    """The path of an image's labels, which lie in labels/ or, as some tools write them, beside it; empty: nowhere."""
    beside = str(PurePosixPath(image).with_suffix(".txt"))
    return next((path for path in (_labels_path(image), beside) if path in paths), "")


def _report_unlabelled(images: Sequence[ForeignImage], labels: Mapping[str, str], report: Report) -> None:
    """A missing file says that nothing is there, which is true of some images, and hardly of all."""
    missing = [image for image in images if image.name not in labels]
    if not missing:
        return
    wanted = _labels_path(missing[0].path)
    place = Place(file=wanted, image=missing[0].name)
    if len(missing) == len(images):
        message = (
            f"not one of {len(images)} images has a file of labels: {wanted} was looked for, and beside the image; put "
            "the labels there, or say with `unannotated` that nothing is known, or nothing there"
        )
        report.error("no_labels", message, place, value=wanted, annotations=0)
    else:
        message = (
            f"{len(missing)} of {len(images)} images have no file of labels, so that nothing is there; say with "
            "`unannotated` where nothing is known of them"
        )
        report.warn("no_labels", message, place, value=str(len(missing)))


def _labels_path(image: str) -> str:
    """`images/train/a.jpg` has its labels in `labels/train/a.txt`; outside any images/ they lie beside the image."""
    before, found, after = f"/{image}".rpartition("/images/")
    path = f"{before}/labels/{after}" if found else image
    return str(PurePosixPath(path).with_suffix(".txt")).lstrip("/")


def _report_lone_labels(
    paths: Mapping[str, int], images: Sequence[ForeignImage], labels: Mapping[str, str], report: Report
) -> None:
    """Labels in the folders of this split's labels that belong to no image."""
    folders = {str(PurePosixPath(_labels_path(image.path)).parent) for image in images}
    folders = {folder for folder in folders if "labels" in folder.split("/")}  # beside images lie lists and notes too
    stems = {_labels_path(path) for path in paths if is_image(path)}
    for path in sorted(paths):
        if path.endswith(".txt") and path.rpartition("/")[0] in folders and path not in stems:
            message = "the labels belong to no image: remove the file, or add the image"
            report.error("annotation_without_image", message, Place(file=path, image=PurePosixPath(path).stem))


def _wrong_split(found: str, declared: Sequence[str]) -> InvalidArgument:
    description = f"{found}; there are: {', '.join(declared) or 'none'}"
    return InvalidArgument([Violation(field="split", description=description)])
