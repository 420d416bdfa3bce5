"""LabelMe: a JSON file an image, beside it or in a folder of their own; labels.txt lists the labels, if it is there."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.file_sink import FileSink
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import is_image
from services.conversion.foreign.labelme.document import VERSION, labelme_flags, read_labelme, write_labelme_shapes
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.shapes.intake import ShapeCodec, ShapedSource, WrittenImage
from services.conversion.foreign.shapes.shape import ShapeKind, ShapesError
from services.conversion.foreign.shapes.tally import TASKS
from services.conversion.foreign.shapes.writing import LOST
from services.conversion.foreign.split import in_split
from services.conversion.formats import FORMATS
from services.conversion.index import ImageEntry
from services.conversion.task import Task

LABELS = "labels.txt"
PLACEHOLDERS = ("__ignore__", "_background_")
"""The first lines of the labels of LabelMe's own examples, which are no categories."""
KEY = b'"shapes"'


class Labelme:
    """Polygons, boxes, masks, points, and flags of the image."""

    name = "LabelMe"
    tasks: Sequence[Task] = TASKS
    copies_images = False
    looks_for = 'a JSON file an image with "shapes" in it'

    async def recognises(self, files: Files) -> bool:
        found = [path for path in files.paths if path.lower().endswith(".json")]
        return bool(found) and b'"imagePath"' in await files.read(found[0]) and KEY in await files.read(found[0])

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        paths = in_split(list(files.paths), request.split)
        found = [path for path in paths if path.lower().endswith(".json")]
        if not found:
            message = "there is no JSON file: LabelMe writes one beside each image"
            raise ForeignError("missing_file", message, Place(file=""))
        images = {str(PurePosixPath(path).with_suffix("")): path for path in paths if is_image(path)}
        source = ShapedSource(place=Place(file=str(PurePosixPath(found[0]).parent)), parse=read_labelme)
        labels: list[str] = []
        flags: dict[str, None] = {}
        if LABELS in files.paths:
            text = (await files.read(LABELS)).decode("utf-8-sig", "replace")
            labels = [line for line in text.splitlines() if line.strip() and line.strip() not in PLACEHOLDERS]

        def take(path: str, content: bytes) -> None:
            place = Place(file=path)
            try:
                named = read_labelme(content).name
            except ShapesError as error:
                report.error(error.rule, f"the file {error}", Place(file=path, image=PurePosixPath(path).stem))
                return
            flags.update(dict.fromkeys(labelme_flags(content)))
            beside = images.get(str(PurePosixPath(path).with_suffix("")), "")
            folder = path.rpartition("/")[0]
            own = f"{folder}/{named}" if folder else named
            name = own if own in files.paths else beside or named
            source.add(WrittenImage(name=name, content=b"", place=place, path=path, suffix=".json"), content, report)

        await files.read_each(found, take, kept=False)  # most hold their whole image, which is passed over
        source.labels = labels or list(flags)
        drawn = {label for kind, used in source.tally.labels.items() if kind is not ShapeKind.POINTS for label in used}
        source.points = [label for label in labels if label not in drawn]
        known = {image.name for image in source.images}
        source.others = [path for path in images.values() if path not in known]
        return await files.in_thread(source.dataset, files.paths, request, report)

    def write(self, request: WriteRequest) -> Writing:
        names = FORMATS[request.task].names(request.vocabulary)
        tags = request.task in (Task.MULTICLASS_CLASSIFICATION, Task.MULTILABEL_CLASSIFICATION)

        def content(image: ImageEntry, written: Fragment) -> bytes:
            labels = {msgspec.json.decode(piece) for piece in written.pieces} if tags else set()
            about = {
                "version": VERSION,
                "flags": {name: name in labels for name in names} if tags else {},
                "shapes": [] if tags else [msgspec.Raw(piece) for piece in written.pieces],
                "imagePath": image.name,
                "imageData": None,
                "imageHeight": image.height,
                "imageWidth": image.width,
            }
            return msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n"

        sink = FileSink(
            labels="",
            images=".",
            suffix=".json",
            content=content,
            losses=Losses(sentences=LOST, file=""),
            others={LABELS: "".join(f"{name}\n" for name in names)},
        )
        codec = ShapeCodec(task=request.task, render=write_labelme_shapes, boxed_points=True, quads=True)
        return Writing(codec=codec, sink=sink)
