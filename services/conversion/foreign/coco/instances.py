"""COCO instances: boxes and masks, in and out.

Masks are rasterised by COCO's own rule, and written as RLE, which says every mask exactly; polygons could not. A
document of boxes alone is object detection.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.box import RawThing
from services.conversion.foreign.category_colors import category_colors
from services.conversion.foreign.coco.annotation import (
    UNREADABLE,
    RawAnnotation,
    RawImage,
    annotations_of,
    check_image,
    holds_no_number,
    is_absent,
    json_bytes,
    read_area,
    read_box,
    read_category,
    read_flag,
    read_numbers,
    read_polygons,
    shown,
)
from services.conversion.foreign.coco.document import (
    category_ids,
    choose_document,
    read_categories,
    read_coco,
    read_contents,
    report_repeated_ids,
)
from services.conversion.foreign.coco.sink import CocoSink, coco_category_ids
from services.conversion.foreign.coco.sniff import is_coco
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.scaling import scaled_runs
from services.conversion.formats.colors import Colors
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.names import Names
from services.conversion.formats.number import NUMBER_MAX, written
from services.conversion.formats.object_detection import Box, Boxes
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError
from services.conversion.raster.polygon import rle_of_polygons
from services.conversion.raster.rle import decode_rle, decode_rles, encode_rle, encode_rles, runs_of_counts
from services.conversion.raster.runs import Bounds, Runs, bounds_of_many
from services.conversion.task import Task

BOX_DIFFERENCE_PIXELS_MAX = 2.0
"""COCO's boxes are those of the polygons, with fractions; masks end at whole pixels."""
BOX_DIFFERENCE_SHARE_MAX = 0.1
"""The thin tips of a polygon cover no pixel."""
FACTOR_MAX = 2.0
"""So many times larger or smaller may a mask be than its `area`, before anyone is told."""
FEW_PIXELS = 16
"""In small masks a pixel more or less is much."""
IGNORE = ',"ignore":1'


class Rle(msgspec.Struct):
    """A mask as COCO counts it, as a text or as a list."""

    size: list[int]
    counts: str | list[int]


_RLE: msgspec.json.Decoder[Rle] = msgspec.json.Decoder(Rle)
LOST = {
    "category_ids": "numbers of categories are others: here they go from 1, in order",
    "ignore": "regions to ignore are written with iscrowd 1 and ignore 1: COCO has no such thing",
    "scaled": "masks are scaled up to their images, as COCO wants them",
}


class CocoInstances:
    """Boxes and masks."""

    name = "COCO instances"
    tasks: Sequence[Task] = (Task.INSTANCE_SEGMENTATION, Task.OBJECT_DETECTION)
    copies_images = False
    looks_for = 'a JSON file with "images", "categories" and "annotations" that have boxes or masks'

    async def recognises(self, files: Files) -> bool:
        return await is_coco(files, "instances")

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        path = choose_document(files.paths, "instances", request.split)
        content = await files.read(path)
        return await files.in_thread(read_instances, content, path, files.paths, request, report)

    def write(self, request: WriteRequest) -> Writing:
        ids = coco_category_ids(request)
        masks = request.task is Task.INSTANCE_SEGMENTATION
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        return Writing(
            codec=CocoMasks(ids=ids, names={}) if masks else CocoBoxes(ids=ids, names={}),
            sink=CocoSink(request, kind="instances", categories=categories, lost=LOST),
        )


def read_instances(
    content: bytes, path: str, paths: Mapping[str, int], request: ReadRequest, report: Report
) -> ForeignDataset:
    """What a document of instances holds."""
    document = read_coco(content, "instances", path)
    names = read_categories(document, path, report)
    report_repeated_ids(document.annotations, path, report)
    contents = read_contents(document, path, paths, report)
    masks = any(not is_absent(each.segmentation) for each in document.annotations)
    if request.task is Task.OBJECT_DETECTION:
        masks = False
    ordered = tuple(names.values())
    return ForeignDataset(
        task=Task.INSTANCE_SEGMENTATION if masks else Task.OBJECT_DETECTION,
        vocabulary=Colors(names=ordered, colors=category_colors(ordered)) if masks else Names(names=ordered),
        codec=CocoMasks(names=names, ids={}) if masks else CocoBoxes(names=names, ids={}),
        images=contents.images,
        annotation=annotations_of(contents, request.unannotated),
        metadata=category_ids(names),
    )


@dataclass(frozen=True, kw_only=True)
class CocoBoxes:
    """Boxes without masks. `names` of ids to read, `ids` of names to write."""

    names: Mapping[int, str]
    ids: Mapping[str, int]

    def read(self, value: RawImage, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Boxes | None:
        if not check_image(value, size, place, report):
            return None
        found: list[Box] = []
        for index, raw in enumerate(value.annotations):
            thing = RawThing(place=place, index=index, report=report)
            category = read_category(thing, raw, self.names)
            box = read_box(thing, _with_box(raw), size)
            crowd, ignore = read_flag(thing, raw.iscrowd, "iscrowd"), read_flag(thing, raw.ignore, "ignore")
            if not thing.bad and box is not None:
                found.append(Box(category=category, bbox=box, crowd=crowd, ignore=ignore))
        return None if value.annotations and not found else tuple(found)

    def write(self, annotation: Boxes, size: ImageSize, vocabulary: Names) -> Fragment:
        pieces = []
        for each in annotation:
            xmin, ymin, xmax, ymax = each.bbox
            about = {
                "category_id": self.ids[each.category],
                "bbox": [written(number) for number in (xmin, ymin, xmax - xmin, ymax - ymin)],
                "area": written((xmax - xmin) * (ymax - ymin)),
                "iscrowd": int(each.crowd or each.ignore),
            }
            pieces.append(json_bytes({**about, "ignore": 1} if each.ignore else about))
        ignored = sum(each.ignore for each in annotation)
        return Fragment(pieces=tuple(pieces), lost={"ignore": ignored} if ignored else {})


@dataclass(frozen=True, kw_only=True)
class CocoMasks:
    """Masks. `names` of ids to read, `ids` of names to write."""

    names: Mapping[int, str]
    ids: Mapping[str, int]

    def read(
        self, value: RawImage, size: ImageSize, place: Place, vocabulary: Colors, report: Report
    ) -> InstanceMap | None:
        if not check_image(value, size, place, report):
            return None
        drawn: list[_Drawn] = []
        for index, raw in enumerate(value.annotations):
            thing = RawThing(place=place, index=index, report=report)
            category = read_category(thing, raw, self.names)
            text = _read_segmentation(thing, raw, size)
            crowd, ignore = read_flag(thing, raw.iscrowd, "iscrowd"), read_flag(thing, raw.ignore, "ignore")
            if not thing.bad:
                drawn.append(_Drawn(thing=thing, raw=raw, text=text, category=category, crowd=crowd, ignore=ignore))
        found = _decoded(drawn, size)
        bounds = bounds_of_many([each.mask for _, each in found], height=size.height)
        for (each, instance), bound in zip(found, bounds, strict=True):
            _compare(each.thing, each.raw, instance.mask, bound)
        if value.annotations and not found:
            return None
        return InstanceMap(width=size.width, height=size.height, instances=tuple(instance for _, instance in found))

    def write(self, annotation: InstanceMap, size: ImageSize, vocabulary: Colors) -> Fragment:
        height, width = size.height, size.width
        masks = [each.mask for each in annotation.instances]
        lost: dict[str, int] = {}
        if masks and (annotation.height, annotation.width) != (height, width):
            masks = scaled_runs(masks, annotation.width, annotation.height, size)
            lost["scaled"] = len(masks)
        texts = encode_rles(masks, height=height, width=width)
        pieces = []
        for each, mask, text, bounds in zip(
            annotation.instances, masks, texts, bounds_of_many(masks, height=height), strict=True
        ):
            xmin, ymin, xmax, ymax = bounds
            # By hand, as numbers and RLE need no escapes but the backslash: this is most of what an export writes.
            counts = text.decode().replace("\\", "\\\\")
            piece = (
                f'{{"category_id":{self.ids[each.category]},"segmentation":{{"size":[{height},{width}],'
                f'"counts":"{counts}"}},"area":{mask.area},"bbox":[{xmin},{ymin},{xmax - xmin},{ymax - ymin}],'
                f'"iscrowd":{int(each.crowd or each.ignore)}{IGNORE if each.ignore else ""}}}'
            )
            pieces.append(piece.encode())
        ignored = sum(each.ignore for each in annotation.instances)
        if ignored:
            lost["ignore"] = ignored
        return Fragment(pieces=tuple(pieces), lost=lost)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """An annotation that is sound so far; its mask is still text."""

    thing: RawThing
    raw: RawAnnotation
    text: bytes
    category: str
    crowd: bool
    ignore: bool


def _with_box(raw: RawAnnotation) -> RawAnnotation:
    """The annotation with the box of its polygons, where it has no other."""
    if not is_absent(raw.bbox) or is_absent(raw.segmentation):
        return raw
    numbers = [number for polygon in read_polygons(raw.segmentation) or () for number in polygon]
    if len(numbers) < 6 or len(numbers) % 2:
        return raw
    left, top = min(numbers[::2]), min(numbers[1::2])
    return replace(raw, bbox=json_bytes([left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top]))


def _decoded(drawn: Sequence[_Drawn], size: ImageSize) -> list[tuple[_Drawn, Instance]]:
    """Those whose mask is sound. Empty ones are bad: nothing would be there."""
    found = []
    for each, mask in zip(drawn, _masks(drawn, size), strict=True):
        if mask is not None and not mask.starts.size:
            message = "the segmentation covers no pixel: leave the annotation out"
            each.thing.error("no_area", message, value=shown(each.raw.segmentation))
        elif mask is not None:
            instance = Instance(category=each.category, mask=mask, crowd=each.crowd, ignore=each.ignore)
            found.append((each, instance))
    return found


def _masks(drawn: Sequence[_Drawn], size: ImageSize) -> list[Runs | None]:
    """All at once, which takes a fraction of the time; only where one is bad it is looked for. None is a bad one."""
    height, width = size.height, size.width
    try:
        return [*decode_rles([each.text for each in drawn], height=height, width=width)]
    except RasterError:
        masks: list[Runs | None] = []
        for each in drawn:
            try:
                masks.append(decode_rle(each.text, height=height, width=width))
            except RasterError as error:
                each.thing.error("bad_segmentation", f"the segmentation {error}", value=shown(each.raw.segmentation))
                masks.append(None)
        return masks


def _read_segmentation(thing: RawThing, raw: RawAnnotation, size: ImageSize) -> bytes:
    """A segmentation as an RLE's text, which nobody has looked into where the file says it so."""
    if is_absent(raw.segmentation):
        message = (
            "the annotation has no segmentation, where others have: give one, leave the annotation out, or import the "
            "boxes of all (task: object detection)"
        )
        thing.error("missing_key", message)
        return b""
    try:
        return (
            _read_polygons(thing, raw, size)
            if raw.segmentation.lstrip().startswith(b"[")
            else _read_rle(thing, raw, size)
        )
    except RasterError as error:
        thing.error("bad_segmentation", f"the segmentation {error}", value=shown(raw.segmentation))
        return b""


def _read_polygons(thing: RawThing, raw: RawAnnotation, size: ImageSize) -> bytes:
    polygons = read_polygons(raw.segmentation)
    if polygons is None and holds_no_number(raw.segmentation):
        thing.error("not_finite", "the segmentation holds what is no number: mend it", value=shown(raw.segmentation))
        return b""
    if polygons is None:
        thing.error("bad_segmentation", "the segmentation is no list of polygons", value=shown(raw.segmentation))
        return b""
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            message = f"a polygon has {len(polygon)} numbers, but must have x and y of at least three corners"
            thing.error("wrong_coordinate_count", message, value=shown(raw.segmentation))
            return b""
        if min(polygon) < -NUMBER_MAX or max(polygon) > NUMBER_MAX:
            message = f"a polygon has a number beyond {NUMBER_MAX:g}"
            thing.error("number_too_large", message, value=shown(raw.segmentation))
            return b""
    return rle_of_polygons(polygons, height=size.height, width=size.width)


def _read_rle(thing: RawThing, raw: RawAnnotation, size: ImageSize) -> bytes:
    try:
        rle = _RLE.decode(raw.segmentation)
    except UNREADABLE:
        message = "the segmentation is neither a list of polygons nor an RLE with size and counts"
        thing.error("bad_segmentation", message, value=shown(raw.segmentation))
        return b""
    if rle.size != [size.height, size.width]:
        message = f"the segmentation is for a map of {rle.size}, where [{size.height}, {size.width}] was wanted"
        thing.error("bad_segmentation", message, value=shown(raw.segmentation))
        return b""
    if isinstance(rle.counts, list):
        runs = runs_of_counts(rle.counts, height=size.height, width=size.width)
        return encode_rle(runs, height=size.height, width=size.width)
    return rle.counts.encode()


def _compare(thing: RawThing, raw: RawAnnotation, mask: Runs, bounds: Bounds) -> None:
    """Warn where box or area are not those of the mask, which is what counts."""
    if not is_absent(raw.bbox):
        box = read_numbers(raw.bbox) or []
        wanted = (bounds[0], bounds[1], bounds[2] - bounds[0], bounds[3] - bounds[1])
        allowed = BOX_DIFFERENCE_PIXELS_MAX + BOX_DIFFERENCE_SHARE_MAX * max(wanted[2:])
        if len(box) != 4 or not max(abs(a - b) for a, b in zip(box, wanted, strict=True)) <= allowed:
            message = f"the bbox is not that of the mask, which is {list(wanted)}: the mask counts"
            thing.warn("box_mismatch", message, value=shown(raw.bbox))
    area = read_area(thing, raw)
    if area is not None and max(area, mask.area) > FACTOR_MAX * min(area, mask.area) + FEW_PIXELS:
        message = f"the area is not that of the mask, which has {mask.area} pixels: the mask counts"
        thing.warn("area_mismatch", message, value=str(raw.area))
