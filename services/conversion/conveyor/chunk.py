"""A chunk of records on its way: read, converted step by step, written. Pure: the same in a thread and in a process.

A recipe says what is done to every record; it and the records can be pickled, and a chunk's result depends on nothing
else, so that no result depends on how many workers there are or which of them was first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.conversion.convert import EDGES
from services.conversion.convert.edge import Edge, Step, StepOptions
from services.conversion.conveyor.counts import Counts
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Report
from services.conversion.formats import FORMATS
from services.conversion.formats.format import Codec, MapFile
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to every record. `writer` None: it is only looked at and counted."""

    reader: Codec[Any, Any]
    source_vocabulary: Any
    source: Task
    target: Task
    steps: tuple[tuple[Task, Task, StepOptions | None], ...] = ()
    """Edges by their ends, each with its options: an edge's function cannot be pickled."""
    writer: Codec[Any, Any] | None = None
    lenient: bool = False
    findings_max: int = 1_000
    """Of one chunk."""

    def make_steps(self) -> list[Step]:
        """The steps at work on this source."""
        steps: list[Step] = []
        vocabulary = self.source_vocabulary
        for start, end, options in self.steps:
            steps.append(edge_between(start, end).step(vocabulary, options))
            vocabulary = steps[-1].vocabulary
        return steps

    def target_vocabulary(self) -> Any:
        """The vocabulary of what is written."""
        steps = self.make_steps()
        return steps[-1].vocabulary if steps else self.source_vocabulary


@dataclass(kw_only=True)
class ChunkResult:
    """What became of a chunk. `written`: image name, whether it was annotated, and what is written (None: null)."""

    written: tuple[tuple[str, bool, Any], ...] = ()
    counts_in: Counts = field(default_factory=Counts)
    counts_out: Counts = field(default_factory=Counts)
    """Without the categories."""
    dropped_by_steps: int = 0
    """Annotations; the rest of what the report has dropped was dropped while reading."""
    report: Report


def convert_chunk(recipe: Recipe, records: Sequence[RawRecord]) -> ChunkResult:
    """Read, convert and write record after record, all steps of the path in one pass."""
    report = Report(findings_max=recipe.findings_max, lenient=recipe.lenient)
    result = ChunkResult(report=report)
    steps = recipe.make_steps()
    target_vocabulary = steps[-1].vocabulary if steps else recipe.source_vocabulary
    reader, writer, source_vocabulary = recipe.reader, recipe.writer, recipe.source_vocabulary
    source_format, target_format = FORMATS[recipe.source], FORMATS[recipe.target]
    has_names = bool(target_format.names(target_vocabulary))
    counts_in, counts_out = result.counts_in, result.counts_out
    written: list[tuple[str, bool, Any]] = []
    for record in records:
        size, place = record.image.size, record.place
        annotation = None
        if record.value is not None:
            annotation = reader.read(record.value, size, place, source_vocabulary, report)
        counts_in.add(annotation, source_format)
        dropped_before = report.annotations_dropped
        for step in steps:
            if annotation is None:  # null stays null, whatever the steps
                break
            annotation = step.convert(annotation, size, place, report)
        result.dropped_by_steps += report.annotations_dropped - dropped_before
        counts_out.add_state(annotation, target_format)
        value = None
        if annotation is not None and writer is not None:
            value = writer.write(annotation, size, target_vocabulary)
            if isinstance(value, MapFile) and has_names:
                value = replace(value, categories=tuple(sorted(set(target_format.categories(annotation)))))
        written.append((record.image.name, record.annotated, value))
    result.written = tuple(written)
    return result


def edge_between(start: Task, end: Task) -> Edge:
    """The edge of the graph from one task to another; there is one."""
    return next(edge for edge in EDGES if edge.start is start and edge.end is end)
