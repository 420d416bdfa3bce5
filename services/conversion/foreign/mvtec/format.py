"""MVTec AD: folders of good and of defective images, with masks of the defects.

    train/good/000.png                                      normal
    test/good/000.png                                       normal
    test/<defect>/000.png, ground_truth/<defect>/000_mask.png   anomalous where the mask is not black

Natively a part has masks throughout, or states (`normal`, `anomalous`) where no mask is there. Which defect it is goes.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import check_size
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
from services.conversion.foreign.scaling import scaled
from services.conversion.foreign.split import wrong_split
from services.conversion.formats.anomaly_detection import ANOMALOUS, NORMAL, Anomaly, AnomalyMask
from services.conversion.formats.format import MapFile
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.png import decode_png, encode_png
from services.conversion.task import Task

TRAIN, TEST, MASKS, GOOD, DEFECT = "train", "test", "ground_truth", "good", "defect"
MASK_END = "_mask"
NOTHING_IS_READ = RasterLimits(pixels_max=0, pages_max=0)
LOST: Mapping[str, str] = {"scaled": "masks are scaled up to their images, as other tools want them"}


class MvtecAd:
    """Normal and anomalous images."""

    name = "MVTec AD"
    tasks: Sequence[Task] = (Task.ANOMALY_DETECTION,)
    copies_images = True
    looks_for = f"{TRAIN}/{GOOD}/ or {TEST}/{GOOD}/ with images, and {MASKS}/ or {TEST}/<defect>/"

    async def recognises(self, files: Files) -> bool:
        folders = {path.rpartition("/")[0] for path in files.paths}
        good = any(folder.endswith((f"{TRAIN}/{GOOD}", f"{TEST}/{GOOD}")) for folder in folders)
        return good and any(f"{MASKS}/" in f"{folder}/" or f"{TRAIN}/{GOOD}" in folder for folder in folders)

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        report_passed_over(files.paths, report)
        images = [path for path in files.paths if is_image(path) and _part(path)]
        parts = sorted({_root(path) for path in images})
        if request.split:
            chosen = [part for part in parts if f"/{part}".endswith(f"/{request.split.strip('/')}")]
        else:
            chosen = parts
        if not images:
            message = f"there is no image in {TRAIN}/{GOOD}/ or {TEST}/: that is how MVTec AD is laid out"
            raise ForeignError("missing_file", message, Place(file=f"{TEST}/"))
        if len(chosen) != 1:
            raise wrong_split(request.split, parts)
        part = chosen[0]
        root = part.removesuffix(TRAIN).removesuffix(TEST)
        own = [path for path in images if _root(path) == part]
        masks = {path: _mask_of(path, root, files.paths) for path in own if _defect(path, part) != GOOD}
        masked = any(masks.values())
        if masked:
            for path in (path for path, mask in masks.items() if not mask):
                message = f"the image is defective, and has no mask in {root}{MASKS}/: it is unlabelled; add the mask"
                report.error("missing_file", message, Place(file=path, image=PurePosixPath(path).name))
        native = native_images(own)
        paths = {image.name: image.path for image in native}

        def annotation(image: ImageEntry) -> ForeignAnnotation | None:
            path = paths[image.name]
            place = Place(file=path, image=image.name)
            if path not in masks:
                return ForeignAnnotation(value=NO_DEFECT if masked else NORMAL, place=place)
            mask = masks[path]
            if masked and mask:
                return ForeignAnnotation(value=None, place=Place(file=mask, image=image.name), path=mask, suffix=".png")
            return None if masked else ForeignAnnotation(value=ANOMALOUS, place=place)

        return ForeignDataset(
            task=Task.ANOMALY_DETECTION,
            vocabulary=None,
            codec=DefectMasks(limits=request.raster_limits),
            images=native,
            annotation=annotation,
            file_an_image=masked,
        )

    def write(self, request: WriteRequest) -> Writing:
        return Writing(codec=DefectMasks(limits=NOTHING_IS_READ), sink=MvtecSink())


NO_DEFECT = "no defect"
"""What is said of a good image where others have masks: natively it has a black one."""


@dataclass(frozen=True, kw_only=True)
class DefectMasks:
    """Masks and states."""

    limits: RasterLimits

    def read(
        self, value: MapFile | str, size: ImageSize, place: Place, vocabulary: None, report: Report
    ) -> Anomaly | None:
        if value == NO_DEFECT:
            return AnomalyMask(pixels=np.zeros((size.height, size.width), np.bool_))
        if isinstance(value, str):
            return value
        try:
            pixels = decode_png(value.content, self.limits)
        except RasterError as error:
            report.error(error.rule, f"the mask {error}", place)
            return None
        height, width = pixels.shape[:2]
        if not check_size(place, size, width, height, report, annotations=1):
            return None
        return AnomalyMask(pixels=np.atleast_3d(pixels).astype(np.bool_).max(axis=2))

    def write(self, annotation: Anomaly, size: ImageSize, vocabulary: None) -> Fragment:
        state = annotation.state if isinstance(annotation, AnomalyMask) else annotation
        pieces = [state.encode()]
        if not isinstance(annotation, AnomalyMask) or state == NORMAL:
            return Fragment(pieces=tuple(pieces))
        pixels = scaled(annotation.pixels, size)
        pieces.append(encode_png(pixels * np.uint8(255)))
        return Fragment(pieces=tuple(pieces), lost={"scaled": 1} if pixels.shape != annotation.pixels.shape else {})


class MvtecSink:
    """Masks are written as they come; where the images go is known once all are: good ones alone are there to train."""

    def __init__(self) -> None:
        self.losses = Losses(sentences=LOST, file=f"{TEST}/")
        self._folder = Path()
        self._states: dict[str, str] = {}
        self._defective = False
        self._stems: set[str] = set()

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Nothing is written before there is a mask."""
        self._folder = folder

    def add(self, image: ImageEntry, written: Fragment | None) -> None:
        """One image. Raises FailedPrecondition where another one's mask has its name."""
        if written is None:
            self.losses.images_left_out += 1
            return
        self.losses.add(written.lost)
        self._states[image.name] = written.pieces[0].decode()
        self._defective |= self._states[image.name] == ANOMALOUS
        for content in written.pieces[1:]:
            stem = PurePosixPath(image.name).stem
            if stem in self._stems:
                message = f"two images have the stem {stem!r}, so that their masks would have one name: rename one"
                raise FailedPrecondition(Reason.DATASET_INVALID, message, {"stem": stem})
            self._stems.add(stem)
            path = self._folder / MASKS / DEFECT / f"{stem}{MASK_END}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def end(self) -> None:
        """Every mask is written."""

    def image_path(self, image: ImageEntry) -> str:
        """By its state; good ones belong to the test where there is something to be told apart."""
        state = self._states.get(image.name)
        if state is None:
            return ""
        part = TEST if self._defective else TRAIN
        return f"{part}/{GOOD if state == NORMAL else DEFECT}/{image.name}"


def _part(path: str) -> bool:
    """Whether a file lies in a folder of a part."""
    return len(_folders(path)) > 1 and _folders(path)[-2] in (TRAIN, TEST)


def _folders(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts[:-1]


def _root(path: str) -> str:
    """The folder of the part that a file lies in."""
    return "/".join(_folders(path)[:-1])


def _defect(path: str, part: str) -> str:
    return path.removeprefix(f"{part}/").partition("/")[0]


def _mask_of(path: str, root: str, paths: Mapping[str, int]) -> str:
    """The mask of a defective image; empty where there is none."""
    file = PurePosixPath(path)
    folder = f"{root}{MASKS}/{_folders(path)[-1]}/"
    return next((mask for end in (MASK_END, "") if (mask := f"{folder}{file.stem}{end}.png") in paths), "")
