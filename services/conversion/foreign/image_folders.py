"""Image folders: one folder of images a category.

    <category>/a.jpg            or <split>/<category>/a.jpg with the splits train, val, valid, validation and test
    <alphabet>/<letter>/a.jpg   a category of two folders: `alphabet/letter`

Categories are sorted by name. An image in no folder is unlabelled.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason, Violation
from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import is_image, native_images, report_passed_over
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.split import SPLITS
from services.conversion.formats.names import NAMES_MAX, Names, is_name
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task

DOCUMENTS = (".json", ".xml", ".txt", ".csv", ".yaml", ".yml")
"""Ends of files that say something of images."""
NO_CATEGORIES = frozenset(
    {"ground_truth", "depth", "sync_depth", "groundtruth_depth", "proj_depth", "masks", "segmentationclass", "gtfine"}
)
"""Folders, in lower case, of maps: those beside them are no categories either."""
NAMED_MAX = 5
"""Folders that a finding names."""
FOLDER_BYTES_MAX = 255
"""Of one folder's name, in most file systems."""
LOST = {
    "unused": "categories have no image, and so no folder",
    "order": "categories have an order with a meaning, which folders do not say",
}


class ImageFolders:
    """One category an image."""

    name = "image folders"
    tasks: Sequence[Task] = (Task.MULTICLASS_CLASSIFICATION,)
    copies_images = True
    looks_for = "nothing but images in at least two folders"

    async def recognises(self, files: Files) -> bool:
        images = [path for path in files.paths if is_image(path)]
        others = [path for path in files.paths if not is_image(path) and path.lower().endswith(DOCUMENTS)]
        folders = {path.rpartition("/")[0] for path in images}
        named = {part.lower() for folder in folders for part in folder.split("/")}
        return bool(images) and not others and len(folders) > 1 and "" not in folders and not named & NO_CATEGORIES

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        paths = [path for path in files.paths if is_image(path)]
        if not paths:
            raise ForeignError(
                "missing_file",
                "there is no image in any folder: give one whose folders are the categories; archives are not opened",
                Place(file=""),
            )
        report_passed_over(files.paths, report)
        paths, prefix = _in_split(paths, request.split, report)
        categories = {path: str(PurePosixPath(path.removeprefix(prefix)).parent) for path in paths}
        names = tuple(sorted({category for category in categories.values() if category != "."}))
        if not 0 < len(names) <= NAMES_MAX:
            message = f"there are {len(names)} folders with images, but 1 to {NAMES_MAX} may be, one a category"
            raise ForeignError("empty_vocabulary", message, Place(file=prefix))
        bad = next((name for name in names if not is_name(name)), None)
        if bad is not None:
            raise ForeignError("bad_name", "the folder's name cannot be a category's: rename it", Place(file=bad))
        _report_alike(names, report)
        if len(names) == 1:
            message = f"all images have one category, that of the only folder: is {names[0]!r} one?"
            report.warn("one_category", message, Place(file=f"{prefix}{names[0]}/"), value=names[0])
        images = native_images(paths)
        by_name = {image.name: categories[image.path] for image in images}
        places = {image.name: Place(file=image.path, image=image.name) for image in images}
        for image in images:
            if by_name[image.name] == ".":
                message = "the image lies in no folder, so that it has no category: it is unlabelled"
                report.warn("image_without_category", message, places[image.name])

        def annotation(image: ImageEntry) -> ForeignAnnotation | None:
            category = by_name[image.name]
            return None if category == "." else ForeignAnnotation(value=category, place=places[image.name])

        return ForeignDataset(
            task=Task.MULTICLASS_CLASSIFICATION,
            vocabulary=Names(names=names),
            codec=FolderName(),
            images=images,
            annotation=annotation,
        )

    def write(self, request: WriteRequest) -> Writing:
        vocabulary: Names = request.vocabulary
        for name in vocabulary.names:
            parts = name.split("/")
            if "\\" in name or any(p in ("", ".", "..") or len(p.encode()) > FOLDER_BYTES_MAX for p in parts):
                message = f"the category {name!r} cannot be a folder's name: rename it, or choose another format"
                raise FailedPrecondition(Reason.DATASET_INVALID, message, {"category": name})
        return Writing(codec=FolderName(), sink=FolderSink())


@dataclass(frozen=True, kw_only=True)
class FolderName:
    """The folder is the category."""

    def read(self, value: str, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> str | None:
        return value

    def write(self, annotation: str, size: ImageSize, vocabulary: Names) -> Fragment:
        return Fragment(pieces=(annotation.encode(),))


class FolderSink:
    """Knows where each image belongs; whoever copies them asks."""

    def __init__(self) -> None:
        self.losses = Losses(sentences=LOST, file="")
        self._names = Names(names=())
        self._folders: dict[str, str] = {}

    def begin(self, folder: Path, vocabulary: Names) -> None:
        """Nothing is written but images."""
        self._names = vocabulary

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image with its category."""
        if written is None:
            self.losses.images_left_out += 1
            return
        self._folders[image.name] = written.pieces[0].decode()

    def end(self) -> None:
        """Account for what folders do not say."""
        unused = len(self._names.known - set(self._folders.values()))
        for kind, count in (("unused", unused), ("order", len(self._names.names) * self._names.ordered)):
            if count:
                self.losses.add({kind: count})

    def image_path(self, image: ImageEntry) -> str:
        """In the category's folder."""
        return f"{self._folders[image.name]}/{image.name}" if image.name in self._folders else ""


def _in_split(paths: Sequence[str], split: str, report: Report) -> tuple[list[str], str]:
    """The images of a split, and the folder that it is; all and none where there are no splits."""
    tops = {path.split("/")[0] for path in paths if path.count("/") > 1}
    splits = sorted(tops) if all(top.lower() in SPLITS for top in tops) else []
    if splits:
        for stray in (path for path in paths if path.split("/")[0] not in tops):
            message = f"the image lies beside {', '.join(splits)}, so that it belongs to no part: move it into one"
            report.warn("image_without_category", message, Place(file=stray, image=PurePosixPath(stray).name))
    if split:
        wanted = split.strip("/").lower()
        prefix = next((f"{top}/" for top in splits if top.lower() == wanted), f"{split.strip('/')}/")
        chosen = [path for path in paths if path.startswith(prefix)]
        if not chosen:
            raise _wrong_split(f"is {split!r}", splits)
        return chosen, prefix
    if len(splits) > 1:
        raise _wrong_split("is empty, but the source has several", splits)
    prefix = f"{splits[0]}/" if splits else ""
    return [path for path in paths if path.startswith(prefix)], prefix


def _report_alike(names: Sequence[str], report: Report) -> None:
    """Folders of the same names under every folder above are perhaps parts of the dataset, and no categories."""
    below: dict[str, set[str]] = {}
    for name in names:
        top, slash, rest = name.partition("/")
        below.setdefault(top, set()).update([rest] if slash else [])
    if len(below) > 1 and len(set(map(frozenset, below.values()))) == 1 and all(below.values()):
        message = (
            f"the folders {', '.join(sorted(below)[:NAMED_MAX])} all hold folders of the same names, and each of those "
            "is a category of its own: if they are parts of the dataset, import each with its own source"
        )
        report.warn("folders_alike", message, Place(file=f"{min(below)}/"), value=", ".join(sorted(below)))


def _wrong_split(found: str, splits: Sequence[str]) -> InvalidArgument:
    description = f"{found}; there are: {', '.join(splits) or 'none'}"
    return InvalidArgument([Violation(field="split", description=description)])
