"""COCO instances as annotation hosts export them: a folder a split, with its images and `_annotations.coco.json`.

Their category 0 is the project, which all others are kinds of, and which nothing is annotated as.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from services.conversion.finding import Place, Report
from services.conversion.foreign.coco.instances import LOST, CocoBoxes, CocoMasks, read_instances
from services.conversion.foreign.coco.sink import CocoSink
from services.conversion.foreign.format import Files, ForeignDataset, ForeignError, ReadRequest, WriteRequest, Writing
from services.conversion.foreign.split import wrong_split
from services.conversion.formats import FORMATS
from services.conversion.task import Task

DOCUMENT = "_annotations.coco.json"
SPLIT = "train"
PROJECT = "objects"
"""What the category above all others is called."""


class CocoHosted:
    """Boxes and masks."""

    name = "COCO hosted"
    tasks: Sequence[Task] = (Task.INSTANCE_SEGMENTATION, Task.OBJECT_DETECTION)
    copies_images = False
    looks_for = f"{DOCUMENT} in a folder of images"

    async def recognises(self, files: Files) -> bool:
        return bool(_documents(files))

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        found = _documents(files)
        if not found:
            raise ForeignError("missing_file", f"there is no {DOCUMENT}", Place(file=f"{SPLIT}/{DOCUMENT}"))
        if request.split not in found and (request.split or len(found) > 1):
            raise wrong_split(request.split, found)
        path = found[request.split] if request.split else next(iter(found.values()))
        content = await files.read(path)
        folder = path.rpartition("/")[0]
        own = {each: size for each, size in files.paths.items() if each.rpartition("/")[0] == folder}
        return await files.in_thread(read_instances, content, path, own, request, report)

    def write(self, request: WriteRequest) -> Writing:
        names = FORMATS[request.task].names(request.vocabulary)
        project = PROJECT
        while project in names:
            project += "-"
        ids = {name: number for number, name in enumerate(names, start=1)}
        categories = [
            {"id": 0, "name": project, "supercategory": "none"},
            *({"id": number, "name": name, "supercategory": project} for name, number in ids.items()),
        ]
        masks = request.task is Task.INSTANCE_SEGMENTATION
        sink = CocoSink(
            request,
            kind="instances",
            categories=categories,
            lost=LOST,
            path=f"{SPLIT}/{DOCUMENT}",
            images=SPLIT,
        )
        if request.category_ids and dict(request.category_ids) != ids:
            sink.losses.add({"category_ids": len(request.category_ids)})
        return Writing(codec=CocoMasks(ids=ids, names={}) if masks else CocoBoxes(ids=ids, names={}), sink=sink)


def _documents(files: Files) -> dict[str, str]:
    """The documents by their parts, which are their folders' names; that of the root has none."""
    found = [path for path in files.paths if PurePosixPath(path).name == DOCUMENT]
    return {PurePosixPath(path).parent.name: path for path in sorted(found)}
