"""Native datasets written for another tool and read again: what our writers make, our readers take without an error."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.chassis.errors import FailedPrecondition
from services.conversion.convert.plan import plan, reachable
from services.conversion.conveyor.chunk import Recipe, convert_chunk
from services.conversion.conveyor.sink import NormalisedWriter
from services.conversion.dataset.metadata import AnnotationSet
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Report
from services.conversion.foreign import FOREIGN_FORMATS
from services.conversion.foreign.format import ForeignFormat, ReadRequest, Unannotated, WriteRequest
from services.conversion.formats import FORMATS
from services.conversion.formats.format import MapFile
from services.conversion.raster.error import RasterLimits
from services.conversion.task import Task
from tests.fuzz.case import Case
from tests.fuzz.memory_files import MemoryFiles, result_of
from tests.fuzz.seed import entry

LIMITS = RasterLimits(pixels_max=2**20, pages_max=64)
"""Of what is decoded: no input needs more."""


def check_export(chosen: AnnotationSet, vocabulary: Any, records: Sequence[RawRecord], *, choice: int) -> list[str]:
    """Write the records in one of the formats that can hold them, which `choice` chooses, and read them again."""
    ways = [
        (foreign, task)
        for foreign in FOREIGN_FORMATS.values()
        for task in foreign.tasks
        if task in reachable(chosen.task) and (task is chosen.task or chosen.task not in foreign.tasks)
    ]
    if not ways:
        return []
    foreign, task = ways[choice % len(ways)]
    way = plan(chosen.task, task)
    steps = tuple((step.start, step.end, options) for step, options in zip(way.steps, way.options, strict=True))
    recipe = Recipe(
        reader=FORMATS[chosen.task],
        source_vocabulary=vocabulary,
        source=chosen.task,
        target=task,
        steps=steps,
        lenient=True,
    )
    images = [record.image for record in records]
    request = WriteRequest(task=task, vocabulary=recipe.target_vocabulary(), category_ids={}, images=images)
    try:
        files, annotations = _written(foreign, request, recipe, records)
    except FailedPrecondition as error:
        return [f"{foreign.name} {error}"]
    return [foreign.name, *_read(foreign, task, files, annotations)]


def _written(foreign: ForeignFormat, request: WriteRequest, recipe: Recipe, records: Sequence[RawRecord]) -> Any:
    """The files, and how many annotations they should hold."""
    writing = foreign.write(request)
    made = convert_chunk(Recipe(**{**vars(recipe), "writer": writing.codec}), records)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writing.sink.begin(folder, request.vocabulary)
        by_name = {image: written for image, _, written in made.written}
        for record in records:
            writing.sink.add(record.image, by_name[record.image.name])
        writing.sink.end()
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    paths = [writing.sink.image_path(record.image) for record in records]
    return files | {path: b"" for path in paths if path}, made.counts_out.annotations


def _read(foreign: ForeignFormat, task: Task, files: Case, annotations: int) -> list[str]:
    if not any(path.endswith((".png", ".jpg")) for path in files):
        return ["no image"]
    report = Report(findings_max=20, lenient=True)
    request = ReadRequest(split="", unannotated=Unannotated.DEFAULT, raster_limits=LIMITS, task=task)
    dataset = result_of(foreign.open(MemoryFiles(files), request, report))
    records = []
    for image in dataset.images:
        found = dataset.annotation(entry(image.name))
        if found is None:
            continue
        value = found.value
        if found.path:
            value = MapFile(suffix=found.suffix, content=files[found.path], about=found.value)
        records.append(RawRecord(image=entry(image.name), annotated=True, value=value, place=found.place))
    recipe = Recipe(
        reader=dataset.codec,
        source_vocabulary=dataset.vocabulary,
        source=dataset.task,
        target=dataset.task,
        writer=NormalisedWriter(FORMATS[dataset.task]),
        lenient=True,
    )
    result = convert_chunk(recipe, records)
    assert not report.errors, report.findings
    assert not result.report.errors, result.report.findings
    assert result.counts_out.annotations <= annotations, "more was read than written"
    return [f"{each.rule}" for each in (*report.findings, *result.report.findings)]
