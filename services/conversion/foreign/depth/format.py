"""Depth as gray PNGs of 16 bits, one an image: KITTI's in 256ths of a metre, NYU's in millimetres; 0 is not known.

    image/a.png with groundtruth_depth/a.png       KITTI; also …_image_… and …_groundtruth_depth_… in the names
    rgb/a.jpg with depth/a.png                     or rgb_a.jpg and sync_depth_a.png side by side

Natively 1 is the far end of `range` and 65,535 the near one. The range is all that 16 bits can say of the unit, so that
every number of the file has one of its own, and comes back.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import check_size
from services.conversion.foreign.file_sink import FileSink
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
from services.conversion.foreign.split import in_split
from services.conversion.formats.depth_estimation import DepthMap
from services.conversion.formats.format import MapFile
from services.conversion.formats.interval import Interval
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.png import decode_png, encode_png
from services.conversion.task import Task

MAX = 65_535
"""Of 16 bits."""
MAPS, IMAGES = "depth", "rgb"
DEPTH_WORDS = ("groundtruth_depth", "groundtruth", "proj_depth", "sync_depth", "depth")
KITTI_WORDS = ("groundtruth_depth", "groundtruth", "proj_depth")
NYU_WORDS = ("sync_depth",)
OTHERS = ("velodyne_raw", "intrinsics")
"""What lies beside, and is no image to learn from."""
IMAGE_WORDS = ("rgb", "image", "images", "color")
LOST = {
    "scaled": "maps are scaled up to their images, as other tools want them",
    "beyond": "depths are beyond what 16 bits can say, and are left out",
    "rounded": "maps have depths between what the format can say: they are rounded",
}


@dataclass(frozen=True, kw_only=True)
class DepthMaps:
    """One of the two. `unit`: metres of one step; `words`: what tells it apart."""

    name: str
    unit: float
    words: tuple[str, ...]
    tasks: Sequence[Task] = (Task.DEPTH_ESTIMATION,)
    copies_images: bool = False

    @property
    def looks_for(self) -> str:
        return f"PNGs with {' or '.join(self.words)} in their folder or name, and images beside them"

    async def recognises(self, files: Files) -> bool:
        return bool(_pairs(list(files.paths))) and any(
            word in part for path in files.paths if _is_depth(path) for part in path.split("/") for word in self.words
        )

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        report_passed_over(files.paths, report)
        paths = in_split(list(files.paths), request.split)
        pairs = _pairs(paths)
        if not pairs:
            message = "no depth map was found with its image: they lie in folders such as rgb/ and depth/, named alike"
            raise ForeignError("missing_file", message, Place(file=f"{MAPS}/"))
        images = [path for path in paths if _is_picture(path)]
        if len(pairs) < len(images):
            left = next(path for path in images if path not in pairs)
            message = f"{len(images) - len(pairs)} of {len(images)} images have no depth map: they are unlabelled"
            report.warn("no_labels", message, Place(file=left, image=PurePosixPath(left).name))
        native = native_images(images)
        own = {image.name: pairs.get(image.path, "") for image in native}

        def annotation(image: ImageEntry) -> ForeignAnnotation | None:
            path = own[image.name]
            if not path:
                return None
            return ForeignAnnotation(value=None, place=Place(file=path, image=image.name), path=path, suffix=".png")

        return ForeignDataset(
            task=Task.DEPTH_ESTIMATION,
            vocabulary=Interval(low=self.unit, high=MAX * self.unit),
            codec=DepthSteps(unit=self.unit, limits=request.raster_limits),
            images=native,
            annotation=annotation,
            file_an_image=True,
        )

    def write(self, request: WriteRequest) -> Writing:
        sink = FileSink(
            labels=self.words[0],
            images="image" if self.words[0] in KITTI_WORDS else IMAGES,
            suffix=".png",
            content=_content,
            losses=Losses(sentences=LOST, file=f"{MAPS}/"),
        )
        codec = DepthSteps(unit=self.unit, limits=RasterLimits(pixels_max=0, pages_max=0))
        return Writing(codec=codec, sink=sink)


KITTI = DepthMaps(name="KITTI depth", unit=1 / 256, words=KITTI_WORDS)
NYU = DepthMaps(name="NYU depth", unit=0.001, words=NYU_WORDS)


@dataclass(frozen=True, kw_only=True)
class DepthSteps:
    """Maps of depth in steps of a unit."""

    unit: float
    limits: RasterLimits

    def read(
        self, value: MapFile, size: ImageSize, place: Place, vocabulary: Interval, report: Report
    ) -> DepthMap | None:
        try:
            steps = decode_png(value.content, self.limits)
        except RasterError as error:
            report.error(error.rule, f"the map {error}", place)
            return None
        if steps.ndim != 2 or steps.dtype != np.uint16:
            message = "the map is not gray of 16 bits, as depth is written here: save it so"
            report.error("wrong_bit_depth", message, place, value=f"{steps.shape}, {steps.dtype}")
            return None
        height, width = steps.shape
        if not check_size(place, size, width, height, report, annotations=1):
            return None
        levels = np.where(steps > 0, MAX + 1 - steps.astype(np.int32), 0).astype(np.uint16)
        return DepthMap(levels=levels) if levels.any() else None

    def write(self, annotation: DepthMap, size: ImageSize, vocabulary: Interval) -> Fragment:
        levels = annotation.levels.astype(np.uint16)
        top = np.iinfo(annotation.levels.dtype).max
        lost: dict[str, int] = {}
        if levels.shape != (size.height, size.width):
            levels = scaled(levels, size)
            lost["scaled"] = 1
        depths = vocabulary.high - (levels.astype(np.float64) - 1) * (vocabulary.high - vocabulary.low) / (top - 1)
        steps = depths / self.unit
        whole = np.rint(steps)
        known = levels > 0
        sayable = known & (whole >= 1) & (whole <= MAX)
        if (known & ~sayable).any():
            lost["beyond"] = int((known & ~sayable).sum())
        if (np.abs(whole - steps)[sayable] > 1e-6 * MAX).any():
            lost["rounded"] = 1
        return Fragment(pieces=(encode_png(np.where(sayable, whole, 0).astype(np.uint16)),), lost=lost)


def _pairs(paths: Sequence[str]) -> dict[str, str]:
    """The depth map of each image: what is left of their names without the words for image and depth is the same."""
    maps = {_key(path): path for path in paths if _is_depth(path)}
    pictures = [path for path in paths if _is_picture(path)]
    return {path: maps[_key(path)] for path in pictures if _key(path) in maps}


def _is_depth(path: str) -> bool:
    if not path.lower().endswith(".png") or any(word in path for word in OTHERS):
        return False
    file = PurePosixPath(path)
    return any(part in DEPTH_WORDS for part in file.parts[:-1]) or any(word in file.stem for word in DEPTH_WORDS)


def _is_picture(path: str) -> bool:
    return is_image(path) and not _is_depth(path) and not any(word in path for word in OTHERS)


def _key(path: str) -> str:
    """A name without the words for image and depth, which stand between lines."""
    words = "|".join((*DEPTH_WORDS, "sync", "colors", *IMAGE_WORDS))
    return re.sub(rf"(?:^|_)(?:{words})(?=_|$)", "", PurePosixPath(path).stem)


def _content(image: ImageEntry, written: Fragment) -> bytes:
    return written.pieces[0]
