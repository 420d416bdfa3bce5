"""CVAT for images: `annotations.xml` with all images and what is drawn on them, and the images in images/."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.cvat.document import CvatDocument, read_cvat, read_cvat_image, write_cvat_shapes
from services.conversion.foreign.document_sink import DocumentSink
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.shapes.intake import ShapeCodec, ShapedSource, WrittenImage
from services.conversion.foreign.shapes.shape import ShapesError
from services.conversion.foreign.shapes.tally import TASKS
from services.conversion.foreign.shapes.writing import INSTANCE, LOST
from services.conversion.foreign.split import wrong_split
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Colors, hexadecimal
from services.conversion.index import ImageEntry
from services.conversion.task import Task

DOCUMENT, IMAGES = "annotations.xml", "images"
HEAD = b"<annotations"
TYPES = {
    Task.INSTANCE_SEGMENTATION: "mask",
    Task.KEYPOINT_DETECTION: "skeleton",
    Task.QUADRILATERAL_DETECTION: "polygon",
    Task.OBJECT_DETECTION: "rectangle",
    Task.MULTICLASS_CLASSIFICATION: "tag",
    Task.MULTILABEL_CLASSIFICATION: "tag",
}
"""What CVAT calls the shapes of a task."""


class Cvat:
    """Boxes, polygons, masks, points and tags."""

    name = "CVAT"
    tasks: Sequence[Task] = TASKS
    copies_images = False
    looks_for = "an XML file that begins with <annotations>, as CVAT for images writes it"

    async def recognises(self, files: Files) -> bool:
        return any([HEAD in await files.head(path) for path in _documents(files)])

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        found = _documents(files)
        if len(found) > 1 and request.split:
            found = [path for path in found if request.split in path] or found
        if len(found) != 1:
            problem = f"there are {', '.join(found[:5])}: name one with `split`" if found else "there is no XML file"
            raise ForeignError("missing_file", f"{problem}, such as {DOCUMENT}", Place(file=DOCUMENT))
        path = found[0]
        content = await files.read(path)
        return await files.in_thread(_open, content, path, files, request, report)

    def write(self, request: WriteRequest) -> Writing:
        codec = ShapeCodec(task=request.task, render=write_cvat_shapes)
        sink = DocumentSink(
            path=DOCUMENT,
            images=IMAGES,
            head=_head(request).encode(),
            between=b"",
            tail=b"</annotations>\n",
            item=_item,
            losses=Losses(sentences=LOST, file=DOCUMENT),
        )
        return Writing(codec=codec, sink=sink)


def _documents(files: Files) -> list[str]:
    return [path for path in files.paths if path.lower().endswith(".xml") and path.count("/") <= 1]


def _open(content: bytes, path: str, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
    place = Place(file=path)
    try:
        document: CvatDocument = read_cvat(content)
    except ShapesError as error:
        raise ForeignError(error.rule, f"the file {error}", place) from error
    subsets = sorted({subset for _, subset, _ in document.images})
    if request.split and len(subsets) > 1 and request.split not in subsets:
        raise wrong_split(request.split, subsets)
    source = ShapedSource(
        place=place,
        parse=read_cvat_image,
        labels=document.labels,
        colors=document.colors,
        points=document.points,
        preferred=f"{IMAGES}/",
    )
    for name, subset, element in document.images:
        if not request.split or len(subsets) < 2 or subset == request.split:
            source.add(WrittenImage(name=name, content=element, place=place), element, report)
    return source.dataset(files.paths, request, report)


def _head(request: WriteRequest) -> str:
    vocabulary = request.vocabulary
    names = FORMATS[request.task].names(vocabulary)
    colors = vocabulary.colors if isinstance(vocabulary, Colors) else {}
    kind = TYPES[request.task]

    def label(name: str, kind: str, parent: str = "") -> str:
        color = f"<color>{hexadecimal(colors[name])}</color>" if name in colors else ""
        above = f"<parent>{escape(parent)}</parent>" if parent else ""
        return f"<label><name>{escape(name)}</name>{color}<type>{kind}</type><attributes></attributes>{above}</label>\n"

    if request.task is Task.KEYPOINT_DETECTION:
        labels = label(INSTANCE, kind) + "".join(label(name, "points", INSTANCE) for name in names)
    else:
        labels = "".join(label(name, kind) for name in names)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta><task><name>sihlai</name><labels>\n{labels}</labels></task></meta>\n"
    )


def _item(image: ImageEntry, number: int, written: Fragment) -> bytes:
    head = f'<image id="{number}" name={quoteattr(image.name)} width="{image.width}" height="{image.height}">\n'
    return head.encode() + b"".join(b"  " + piece + b"\n" for piece in written.pieces) + b"</image>\n"
