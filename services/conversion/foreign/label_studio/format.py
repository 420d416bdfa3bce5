"""Label Studio: a JSON of tasks, the images, and `config.xml` with the labels in order where it is there."""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import quote
from xml.sax.saxutils import quoteattr, unescape

import msgspec

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.document_sink import DocumentSink
from services.conversion.foreign.format import Files, ForeignDataset, ForeignError, ReadRequest, WriteRequest, Writing
from services.conversion.foreign.image_names import is_image
from services.conversion.foreign.label_studio.document import (
    read_task,
    read_tasks,
    without_upload_prefix,
    write_regions,
)
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.shapes.intake import ShapeCodec, ShapedSource, WrittenImage
from services.conversion.foreign.shapes.shape import ShapesError
from services.conversion.foreign.shapes.tally import TASKS
from services.conversion.foreign.shapes.writing import LOST
from services.conversion.foreign.split import in_split
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Colors, hexadecimal
from services.conversion.index import ImageEntry
from services.conversion.task import Task

DOCUMENT, CONFIG, IMAGES = "tasks.json", "config.xml", "images"
ELEMENTS = {
    Task.INSTANCE_SEGMENTATION: "BrushLabels",
    Task.KEYPOINT_DETECTION: "KeyPointLabels",
    Task.QUADRILATERAL_DETECTION: "PolygonLabels",
    Task.OBJECT_DETECTION: "RectangleLabels",
    Task.MULTICLASS_CLASSIFICATION: "Choices",
    Task.MULTILABEL_CLASSIFICATION: "Choices",
}
"""What the labels of a task's regions are called in a configuration."""
KEYS = (b'"annotations"', b'"completions"')
_LABEL = re.compile(r"""<(?:Label|Choice)\b[^>]*?\bvalue\s*=\s*(?:"([^"]*)"|'([^']*)')""")


class LabelStudio:
    """Rectangles, polygons, brushes, points and choices."""

    name = "Label Studio"
    tasks: Sequence[Task] = TASKS
    copies_images = False
    looks_for = 'a JSON list of tasks with "data" and "annotations"'

    async def recognises(self, files: Files) -> bool:
        for path in _documents(files):
            head = (await files.head(path)).lstrip(b"\xef\xbb\xbf \t\r\n")
            if head.startswith(b"[") and b'"result"' in head and any(key in head for key in KEYS):
                return True
        return False

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        found = in_split(_documents(files), request.split)
        if len(found) != 1:
            problem = f"there are {', '.join(found[:5])}: keep one" if found else "there is no JSON file"
            raise ForeignError("missing_file", f"{problem}, such as {DOCUMENT}", Place(file=DOCUMENT))
        path = found[0]
        content = await files.read(path)
        config = (await files.read(CONFIG)).decode("utf-8-sig", "replace") if CONFIG in files.paths else ""
        return await files.in_thread(_open, content, path, config, files, request, report)

    def write(self, request: WriteRequest) -> Writing:
        sink = DocumentSink(
            path=DOCUMENT,
            images=IMAGES,
            head=b"[",
            between=b",",
            tail=b"\n]\n",
            item=_item,
            losses=Losses(sentences=LOST, file=DOCUMENT),
            others={CONFIG: _config(request)},
        )
        codec = ShapeCodec(task=request.task, render=write_regions, boxed_points=True, box_all=True)
        return Writing(codec=codec, sink=sink)


def _documents(files: Files) -> list[str]:
    return [path for path in files.paths if path.lower().endswith(".json")]


def _open(content: bytes, path: str, config: str, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
    place = Place(file=path)
    try:
        tasks = read_tasks(content)
    except ShapesError as error:
        raise ForeignError(error.rule, f"the file {error}", place) from error
    labels = [unescape(double or single, {"&quot;": '"'}) for double, single in _LABEL.findall(config)]
    source = ShapedSource(place=place, parse=read_task, labels=labels, points=labels, preferred=f"{IMAGES}/")
    names = {PurePosixPath(image).name for image in files.paths if is_image(image)}
    for number, task in enumerate(tasks):
        try:
            name = read_task(task).name
        except ShapesError as error:
            report.error(error.rule, f"the task {number} {error}", place, index=number)
            continue
        if PurePosixPath(name).name not in names:
            name = without_upload_prefix(name)
        source.add(WrittenImage(name=name, content=task, place=place), task, report)
    return source.dataset(files.paths, request, report)


def _config(request: WriteRequest) -> str:
    vocabulary = request.vocabulary
    colors = vocabulary.colors if isinstance(vocabulary, Colors) else {}
    element = ELEMENTS[request.task]
    item = "Choice" if element == "Choices" else "Label"
    many = ' choice="multiple"' if request.task is Task.MULTILABEL_CLASSIFICATION else ""
    labels = "".join(
        f"    <{item} value={quoteattr(name)}"
        + (f' background="{hexadecimal(colors[name])}"' if name in colors else "")
        + "/>\n"
        for name in FORMATS[request.task].names(vocabulary)
    )
    kind = "choices" if element == "Choices" else element.lower()
    box = '  <Rectangle name="rectanglelabels" toName="image"/>\n' if element == "KeyPointLabels" else ""
    return (
        f'<View>\n  <Image name="image" value="$image"/>\n{box}'
        f'  <{element} name="{kind}" toName="image"{many}>\n{labels}  </{element}>\n</View>\n'
    )


def _item(image: ImageEntry, number: int, written: Fragment) -> bytes:
    about = {
        "id": number + 1,
        "data": {"image": f"/data/local-files/?d={quote(f'{IMAGES}/{image.name}')}"},
        "annotations": [
            {"id": number + 1, "was_cancelled": False, "result": [msgspec.Raw(piece) for piece in written.pieces]}
        ],
        "predictions": [],
    }
    return b"\n" + msgspec.json.encode(about)
