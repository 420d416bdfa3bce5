"""Datumaro: `annotations/<subset>.json` and the images in images/<subset>/, or in images/."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import msgspec

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.datumaro.document import (
    colors_of,
    item_parser,
    labels_of,
    points_of,
    read_datumaro,
    write_datumaro_shapes,
)
from services.conversion.foreign.document_sink import DocumentSink
from services.conversion.foreign.format import Files, ForeignDataset, ForeignError, ReadRequest, WriteRequest, Writing
from services.conversion.foreign.image_names import is_image
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.shapes.intake import ShapeCodec, ShapedSource, WrittenImage
from services.conversion.foreign.shapes.shape import ShapesError
from services.conversion.foreign.shapes.tally import TASKS
from services.conversion.foreign.shapes.writing import INSTANCE, LOST
from services.conversion.foreign.split import wrong_split
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Colors
from services.conversion.index import ImageEntry
from services.conversion.task import Task

SUBSET = "train"
DOCUMENT, IMAGES = f"annotations/{SUBSET}.json", f"images/{SUBSET}"
KEYS = (b'"categories"', b'"infos"', b'"dm_format_version"', b'"media_type"')
VERSION, IMAGE_MEDIA = "1.0", 2


class Datumaro:
    """Boxes, polygons, masks, points and labels."""

    name = "Datumaro"
    tasks: Sequence[Task] = TASKS
    copies_images = False
    looks_for = 'a JSON file in annotations/ with "dm_format_version", or "infos" beside "categories"'

    async def recognises(self, files: Files) -> bool:
        heads = [await files.head(path) for path in _documents(files)[:1]]
        return any(KEYS[2] in head or (KEYS[1] in head and KEYS[0] in head) for head in heads)

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        found = _documents(files)
        if not found:
            message = "there is no JSON file in annotations/, one a subset"
            raise ForeignError("missing_file", message, Place(file="annotations/"))
        subsets = {PurePosixPath(path).stem: path for path in found}
        if request.split not in subsets and (request.split or len(subsets) > 1):
            raise wrong_split(request.split, subsets)
        path = subsets[request.split] if request.split else found[0]
        content = await files.read(path)
        return await files.in_thread(_open, content, path, files, request, report)

    def write(self, request: WriteRequest) -> Writing:
        keypoints = request.task is Task.KEYPOINT_DETECTION
        names = FORMATS[request.task].names(request.vocabulary)
        labels = (INSTANCE,) if keypoints else tuple(names)
        render = partial(
            write_datumaro_shapes,
            labels={name: number for number, name in enumerate(labels)},
            points=tuple(names) if keypoints else (),
        )
        sink = DocumentSink(
            path=DOCUMENT,
            images=IMAGES,
            head=_head(request, labels),
            between=b",",
            tail=b"\n]}\n",
            item=_item,
            losses=Losses(sentences=LOST, file=DOCUMENT),
        )
        return Writing(codec=ShapeCodec(task=request.task, render=render, boxed_points=True), sink=sink)


def _documents(files: Files) -> list[str]:
    return [
        path
        for path in files.paths
        if path.endswith(".json") and f"/{path}".rpartition("/")[0].endswith("/annotations")
    ]


def _open(content: bytes, path: str, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
    place = Place(file=path)
    try:
        document = read_datumaro(content)
    except ShapesError as error:
        raise ForeignError(error.rule, f"the file {error}", place) from error
    labels, points = labels_of(document), points_of(document)
    parse = item_parser(labels, points)
    subset = PurePosixPath(path).stem
    root = path.removesuffix(f"annotations/{subset}.json")
    source = ShapedSource(
        place=place,
        parse=parse,
        labels=[label for label in labels if label],
        colors=colors_of(document),
        points=[name for names in points.values() for name in names],
        preferred=f"{root}images/{subset}/",
    )
    by_stem = {str(PurePosixPath(image).with_suffix("")): image for image in files.paths if is_image(image)}
    for number, raw in enumerate(document.items):
        text = bytes(raw)
        try:
            name = parse(text).name
        except ShapesError as error:
            report.error(error.rule, f"the item {number} {error}", place, index=number)
            continue
        name = by_stem.get(f"{source.preferred}{name}", name)  # an id is a path without its ending
        source.add(WrittenImage(name=name, content=text, place=place), text, report)
    return source.dataset(files.paths, request, report)


def _head(request: WriteRequest, labels: Sequence[str]) -> bytes:
    categories: dict[str, Any] = {
        "label": {
            "labels": [{"name": name, "parent": "", "attributes": []} for name in labels],
            "label_groups": [],
            "attributes": [],
        }
    }
    vocabulary = request.vocabulary
    if isinstance(vocabulary, Colors):
        colors = [(number, vocabulary.colors.get(name)) for number, name in enumerate(labels)]
        categories["mask"] = {
            "colormap": [{"label_id": number, "r": c[0], "g": c[1], "b": c[2]} for number, c in colors if c is not None]
        }
    if request.task is Task.KEYPOINT_DETECTION:
        names = FORMATS[request.task].names(vocabulary)
        categories["points"] = {"items": [{"label_id": 0, "labels": names, "joints": []}]}
    about = {"dm_format_version": VERSION, "media_type": IMAGE_MEDIA, "infos": {}, "categories": categories}
    return msgspec.json.encode(about)[:-1] + b',"items":['


def _item(image: ImageEntry, number: int, written: Fragment) -> bytes:
    about = {
        "id": PurePosixPath(image.name).stem,
        "annotations": [msgspec.Raw(piece) for piece in written.pieces],
        "attr": {"frame": number},
        "image": {"path": image.name, "size": [image.height, image.width]},
    }
    return b"\n" + msgspec.json.encode(about)
