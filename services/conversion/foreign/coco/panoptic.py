"""COCO panoptic: a PNG an image, whose colours are segment ids, and a JSON that says what each segment is.

An id is red + 256 green + 65,536 blue; 0 is void. Every id of the map must be in the file, and every one of the file
in the map. Natively the ids are issued anew, from 1 for each image.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing, check_size
from services.conversion.foreign.category_colors import category_colors
from services.conversion.foreign.coco.annotation import UNREADABLE, json_bytes, shown
from services.conversion.foreign.coco.document import (
    CocoCategory,
    CocoContents,
    CocoPanopticAnnotation,
    category_ids,
    choose_document,
    read_categories,
    read_coco,
    read_contents,
)
from services.conversion.foreign.coco.sink import CocoSink, coco_category_ids
from services.conversion.foreign.coco.sniff import is_coco
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import locate
from services.conversion.foreign.scaling import scaled
from services.conversion.formats.colors import Color
from services.conversion.formats.format import MapFile
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.palette import KeyTable, keys_of_pixels
from services.conversion.raster.png import decode_png, encode_png
from services.conversion.raster.runs import bounds_of_many, runs_of_labels
from services.conversion.task import Task

SEGMENTS_MAX = 65_535
"""Of one image: more than a map of 16 bits can number."""
ID_MAX = 2**24 - 1
QUOTED_IDS_MAX = 8
NOTHING_IS_READ = RasterLimits(pixels_max=0, pages_max=0)
LOST = {
    "ignore": "segments to ignore are written with iscrowd 1: COCO has no such thing",
    "scaled": "maps are scaled up to their images, as COCO wants them",
    "things": "categories are written as things: the dataset does not say which are",
}


class RawSegment(msgspec.Struct, gc=False):
    """One of `segments_info`."""

    id: int
    category_id: int
    iscrowd: int | None = 0
    area: float | None = None


_SEGMENTS: msgspec.json.Decoder[list[RawSegment]] = msgspec.json.Decoder(list[RawSegment])


class CocoPanoptic:
    """Maps of segments."""

    name = "COCO panoptic"
    tasks: Sequence[Task] = (Task.PANOPTIC_SEGMENTATION,)
    copies_images = False
    looks_for = 'a JSON file with "images", "categories" and "segments_info", and PNGs'

    async def recognises(self, files: Files) -> bool:
        return await is_coco(files, "panoptic")

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        path = choose_document(files.paths, "panoptic", request.split)
        content = await files.read(path)
        return await files.in_thread(_read_panoptic, content, path, files.paths, request, report)

    def write(self, request: WriteRequest) -> Writing:
        vocabulary: PanopticColors = request.vocabulary
        ids = coco_category_ids(request)
        things = vocabulary.things
        categories = [
            {
                "id": number,
                "name": name,
                "isthing": int(things is None or name in things),
                "color": vocabulary.colors.get(name, (0, 0, 0)),
            }
            for name, number in ids.items()
        ]
        codec = CocoSegments(names={}, ids=ids, limits=NOTHING_IS_READ)
        sink = CocoSink(request, kind="panoptic", categories=categories, lost=LOST)
        if things is None:
            sink.losses.add({"things": len(ids)})
        return Writing(codec=codec, sink=sink)


@dataclass(frozen=True, kw_only=True)
class CocoSegments:
    """Maps of segments. `names` of ids to read, `ids` of names to write."""

    names: Mapping[int, str]
    ids: Mapping[str, int]
    limits: RasterLimits

    def read(
        self, value: MapFile, size: ImageSize, place: Place, vocabulary: PanopticColors, report: Report
    ) -> PanopticMap | None:
        segments = self._read_segments(value.about, place, report)
        if segments is None:
            return None
        keys = self._read_keys(value.content, size, place, report, annotations=len(segments))
        if keys is None:
            return None
        labels, unknown = KeyTable([each.id for each, _ in segments]).indices(keys)
        if unknown:
            quoted = ", ".join(str(each.key) for each in unknown[:QUOTED_IDS_MAX])
            pixels = sum(each.pixels for each in unknown)
            what = f"the map of {place.image} has the ids {quoted}, {pixels} pixels"
            message = f"{what}, which segments_info lacks: declare them, as here they become void"
            report.error("undeclared_segment", message, place, value=quoted, annotations=len(unknown))
        there = _present(labels, len(segments))
        kept = [number for number, (_, segment) in enumerate(segments, start=1) if there[number] and segment.category]
        for number, (raw, segment) in enumerate(segments, start=1):
            if not there[number] and segment.category:
                thing = RawThing(place=place, index=number - 1, report=report)
                message = (
                    f"the segment {raw.id} ({segment.category}) has no pixel in the map of {place.image}: leave it out"
                )
                thing.error("missing_segment", message, value=str(raw.id))
        if len(kept) < len(segments):
            table = np.zeros(len(segments) + 1, np.uint16)
            table[kept] = np.arange(1, len(kept) + 1)
            labels = table[labels]
        if not kept:
            return None
        found = (segments[number - 1][1] for number in kept)
        issued = tuple(
            Segment(category=each.category, id=number, crowd=each.crowd) for number, each in enumerate(found, start=1)
        )
        return PanopticMap(labels=labels, segments=issued)

    def write(self, annotation: PanopticMap, size: ImageSize, vocabulary: PanopticColors) -> Fragment:
        labels, lost = annotation.labels, dict[str, int]()
        if labels.shape != (size.height, size.width):
            labels = scaled(labels, size)
            lost["scaled"] = 1
        runs = runs_of_labels(labels, len(annotation.segments))
        kept = [(number, mask) for number, mask in enumerate(runs, start=1) if mask.starts.size]
        boxes = bounds_of_many([mask for _, mask in kept], height=size.height)
        about = []
        for (number, mask), (xmin, ymin, xmax, ymax) in zip(kept, boxes, strict=True):
            segment = annotation.segments[number - 1]
            about.append(
                {
                    "id": number,
                    "category_id": self.ids[segment.category],
                    "area": mask.area,
                    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    "iscrowd": int(segment.crowd or segment.ignore),
                }
            )
        ignored = sum(each.ignore for each in annotation.segments)
        if ignored:
            lost["ignore"] = ignored
        rgb = np.zeros((*labels.shape, 3), np.uint8)
        rgb[..., 0] = labels & 255
        rgb[..., 1] = labels >> 8
        return Fragment(pieces=(json_bytes(about), encode_png(rgb)), lost=lost)

    def _read_segments(self, about: bytes, place: Place, report: Report) -> list[tuple[RawSegment, Segment]] | None:
        """The segments that can be found in a map; what cannot is reported. None where nothing can be made of any."""
        try:
            segments = _SEGMENTS.decode(about)
        except UNREADABLE as error:
            report.error("bad_value", f"`segments_info` cannot be read: {error}", place, value=shown(about))
            return None
        if len(segments) > SEGMENTS_MAX:
            message = f"the image has {len(segments)} segments, but at most {SEGMENTS_MAX} may be"
            report.error("too_many_segments", message, place, value=str(len(segments)), annotations=len(segments))
            return None
        found: dict[int, tuple[RawSegment, Segment]] = {}
        for index, raw in enumerate(segments):
            thing = RawThing(place=place, index=index, report=report)
            if not 0 < raw.id <= ID_MAX:
                thing.error(
                    "bad_segment", f"the segment id {raw.id} must be 1 to {ID_MAX}: 0 is void", value=str(raw.id)
                )
                continue
            if raw.id in found:
                thing.error(
                    "repeated_segment", f"the segment id {raw.id} stands twice: issue another", value=str(raw.id)
                )
                continue
            category = self.names.get(raw.category_id, "")
            if not category:
                message = f"the segment {raw.id} has the category_id {raw.category_id}, which is none of `categories`"
                thing.error("undeclared_category", message, value=str(raw.category_id))
            found[raw.id] = (raw, Segment(category=category, id=raw.id, crowd=bool(raw.iscrowd)))
        return list(found.values())

    def _read_keys(
        self, content: bytes, size: ImageSize, place: Place, report: Report, *, annotations: int
    ) -> NDArray[np.uint32] | None:
        """The map's ids; None where it cannot be read, or is that of another picture."""
        try:
            pixels = decode_png(content, self.limits)
        except RasterError as error:
            report.error(error.rule, f"the map {error}", place, annotations=annotations)
            return None
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            message = "the map is no RGB picture of 8 bits, whose colours are ids: write it as one"
            report.error("unreadable_map", message, place, annotations=annotations)
            return None
        height, width = pixels.shape[:2]
        if not check_size(place, size, width, height, report, annotations=annotations):
            return None
        return keys_of_pixels(pixels)


def _present(labels: NDArray[np.uint16], count: int) -> NDArray[np.bool_]:
    """Which of the labels 0 to `count` a map has; looks only at where runs begin, which is a third of the time."""
    flat = labels.reshape(-1)
    there = np.zeros(count + 1, np.bool_)
    there[flat[np.flatnonzero(flat[1:] != flat[:-1]) + 1]] = True
    there[flat[0]] = True
    return there


def _read_panoptic(
    content: bytes, path: str, paths: Mapping[str, int], request: ReadRequest, report: Report
) -> ForeignDataset:
    document = read_coco(content, "panoptic", path)
    names = read_categories(document, path, report)
    own = path[: -len(".json")] + "/"  # images may be PNG, with the names of their maps
    contents = read_contents(document, path, {p: size for p, size in paths.items() if not p.startswith(own)}, report)
    maps = _find_maps(contents, path, paths, report)

    def annotation(image: ImageEntry) -> ForeignAnnotation | None:
        _, annotations, place = contents.of(image)
        if not annotations or annotations[0].file_name not in maps:
            return None
        found = maps[annotations[0].file_name]
        about = bytes(annotations[0].segments_info)
        return ForeignAnnotation(value=about, place=Place(file=found, image=place.image), path=found, suffix=".png")

    ordered = tuple(names.values())
    things = [names[each.id] for each in document.categories if each.isthing in (1, True)]
    declared = any(each.isthing in (0, 1) for each in document.categories)
    return ForeignDataset(
        task=Task.PANOPTIC_SEGMENTATION,
        vocabulary=PanopticColors(
            names=ordered,
            colors=category_colors(ordered, _given_colors(document.categories)),
            things=frozenset(things) if declared else None,
        ),
        codec=CocoSegments(names=names, ids={}, limits=request.raster_limits),
        images=contents.images,
        annotation=annotation,
        metadata=category_ids(names),
        file_an_image=True,
    )


def _find_maps(
    contents: CocoContents[CocoPanopticAnnotation], path: str, paths: Mapping[str, int], report: Report
) -> dict[str, str]:
    """The paths of the maps. A missing one, and several for one image, are errors."""
    known = {about.id: name for name, about in contents.by_name.items()}
    wanted = [each.file_name for number in known for each in contents.annotations.get(number, ())]
    images = {image.path for image in contents.images}
    pngs = {each: size for each, size in paths.items() if each.lower().endswith(".png") and each not in images}
    maps = locate(wanted, pngs, preferred=path[: -len(".json")] + "/")
    for number, name in known.items():
        annotations = contents.annotations.get(number, ())
        place = Place(file=path, image=name)
        if len(annotations) > 1:
            message = f"the image has {len(annotations)} maps, but must have one"
            report.error("repeated_image", message, place, value=name, annotations=len(annotations))
            for each in annotations:
                maps.pop(each.file_name, None)
        elif annotations and annotations[0].file_name not in maps:
            message = f"the map {annotations[0].file_name} is not among the files: add it"
            report.error("missing_file", message, place, value=annotations[0].file_name)
    return maps


def _given_colors(categories: Sequence[CocoCategory]) -> dict[str, Color]:
    return {each.name: each.rgb for each in categories if each.rgb is not None}
