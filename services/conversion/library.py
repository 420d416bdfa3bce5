"""What the service does, one method a call: plan, inspect, validate, convert.

Long work runs once for all who ask for the same, at most so many at once, and stops when nobody waits for it any more.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason, Violation
from services.conversion.conversion import (
    Conversion,
    ConversionResult,
    check_read,
    check_served,
    digest_of,
    result_from_report,
)
from services.conversion.convert.edge import StepOptions
from services.conversion.dataset import AnnotationSet, Counts, read_vocabulary, records
from services.conversion.finding import Finding, Place, Report
from services.conversion.formats import FORMATS
from services.conversion.plan import Plan, plan, reachable
from services.conversion.reader import Described, Reader
from services.conversion.snapshot import Snapshot
from services.conversion.source import DatasetSource
from services.conversion.store import ResultStore
from services.conversion.task import Task
from services.conversion.work import Meter, Progress, Slots, Tell, Works, in_thread

CHUNK_RECORDS = 2_000
"""Records that a thread looks at before the loop gets a word in: the grain of progress and of cancellation."""
SIZES_MAX = 100
"""Different image sizes that an inspection tells of."""
REFUSAL_FINDINGS_MAX = 3
"""Findings that the error of a refused dataset quotes; ValidateDataset tells all."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """What one annotation set holds. `categories` are in the order of the metadata."""

    name: str
    task: Task
    counts: Counts
    categories: Sequence[str]
    reachable: Sequence[Task]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a dataset holds. `sizes`: (width, height) with the number of images, most frequent first."""

    fingerprint: str
    images: int
    image_bytes: int
    sets: tuple[SetSummary, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]


@dataclass(frozen=True, kw_only=True)
class ValidationTotals:
    """The end of a validation."""

    errors: int
    warnings: int
    omitted: int
    images: int
    rules: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """What is to be converted. An empty `fingerprint` accepts any."""

    source: DatasetSource
    annotation_set: str
    end: Task
    via: tuple[Task, ...] = ()
    options: tuple[StepOptions, ...] = ()
    lenient: bool = False
    fingerprint: str = ""

    def key(self) -> str:
        """Equal for requests that ask for the same with the same rights."""
        parts = (self.source.key(), self.annotation_set, self.end, self.via, self.options, self.lenient)
        return repr((*parts, self.fingerprint))


@dataclass(kw_only=True)
class Library:
    """Datasets and what can be made of them. `on_converted` hears of each new result: digest, uri, images."""

    reader: Reader
    store: ResultStore
    slots: Slots
    executor: Executor
    clock: Callable[[], float]
    progress_seconds: float
    findings_max: int
    on_converted: Callable[[str, str, int], Awaitable[None]]
    _works: Works[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._works = Works(progress_seconds=self.progress_seconds)

    async def plan(
        self,
        start: Task | DatasetSource,
        annotation_set: str,
        end: Task,
        via: Sequence[Task],
        options: Sequence[StepOptions],
    ) -> tuple[Plan, str]:
        """The path, and the annotation set that it starts from (empty where a task was given)."""
        if isinstance(start, Task):
            return plan(start, end, via=via, options=options), ""
        report = Report(findings_max=self.findings_max)
        described = await self.reader.describe(start, report)
        chosen = _choose(described, annotation_set, report)
        return plan(chosen.task, end, via=via, options=options), chosen.name

    async def inspect(self, source: DatasetSource) -> Inspection:
        """What the dataset holds. Raises FailedPrecondition where it cannot be read at all."""
        inspection: Inspection = await self._works.result(
            f"inspect {source.key()}", lambda tell: self._inspect(source, tell), lambda _: None
        )
        return inspection

    async def validate(
        self, source: DatasetSource, validation: DatasetSource | None, findings_max: int
    ) -> AsyncGenerator[Finding | Progress | ValidationTotals, None]:
        """Findings as they are met, progress between them, the totals last."""
        limit = min(findings_max, self.findings_max) if findings_max else self.findings_max
        report = Report(findings_max=limit)
        sent = 0
        follow = self._works.follow(
            f"validate {uuid.uuid4()}", lambda tell: self._validate(source, validation, report, tell)
        )
        async with contextlib.aclosing(follow) as items:
            async for item in items:
                while sent < len(report.findings):
                    yield report.findings[sent]
                    sent += 1
                yield item

    def convert(self, request: ConversionRequest) -> AsyncGenerator[Progress | ConversionResult, None]:
        """Progress, and last the result; a repeat finds it, and two at once do the work once. Close it to leave."""
        return self._works.follow(f"convert {request.key()}", lambda tell: self._convert(request, tell))

    async def _inspect(self, source: DatasetSource, tell: Tell) -> Inspection:
        async with self.slots.taken():
            report = Report(findings_max=self.findings_max, lenient=True)
            described = await self.reader.describe(source, report)
            for each in described.metadata.sets:
                check_read(each.task)
            snapshot = await self.reader.open(described, lambda _: True, tell)
            snapshot.report_images(report)
            summaries = []
            for chosen in described.metadata.sets:
                counts, names = Counts(), list[str]()
                await self._drive(_count(snapshot, chosen, report, counts, names), snapshot, report, "inspect", tell)
                summaries.append(
                    SetSummary(
                        name=chosen.name,
                        task=chosen.task,
                        counts=counts,
                        categories=names,
                        reachable=reachable(chosen.task),
                    )
                )
            if report.refuses():
                raise _refusal(source.uri, report)
            images = snapshot.index.images
            sizes = Counter((entry.width, entry.height) for entry in images)
            return Inspection(
                fingerprint=snapshot.fingerprint,
                images=len(images),
                image_bytes=sum(entry.size_bytes for entry in images),
                sets=tuple(summaries),
                sizes=tuple(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:SIZES_MAX]),
            )

    async def _validate(
        self, source: DatasetSource, validation: DatasetSource | None, report: Report, tell: Tell
    ) -> ValidationTotals:
        async with self.slots.taken():
            described = await self.reader.describe(source, report)
            for each in described.metadata.sets:
                check_read(each.task)
            snapshot = await self.reader.open(described, lambda _: True, tell)
            snapshot.report_images(report)
            vocabularies: dict[str, Sequence[str]] = {}
            for chosen in described.metadata.sets:
                names = list[str]()
                await self._drive(_count(snapshot, chosen, report, Counts(), names), snapshot, report, "validate", tell)
                vocabularies[chosen.name] = names
            if validation is not None:
                await self._compare(snapshot, vocabularies, validation, report, tell)
            return ValidationTotals(
                errors=report.errors,
                warnings=report.warnings,
                omitted=report.omitted,
                images=snapshot.files,
                rules=dict(report.rules),
            )

    async def _compare(
        self,
        snapshot: Snapshot,
        vocabularies: Mapping[str, Sequence[str]],
        validation: DatasetSource,
        report: Report,
        tell: Tell,
    ) -> None:
        """Compare with the validation dataset: the training vocabulary rules, and no image may be in both."""
        own = Report(findings_max=1)
        described = await self.reader.describe(validation, own, "validation_source")
        other = await self.reader.open(described, lambda _: False, tell)
        place = Place(file="")
        for each in described.metadata.sets:
            same = next((s for s in snapshot.metadata.sets if (s.name, s.task) == (each.name, each.task)), None)
            if same is None:
                message = (
                    f"the validation dataset's annotation set {each.name!r} for {each.task} has no counterpart here"
                )
                report.warn("unmatched_annotation_set", message, place, value=each.name)
            elif each.task is not Task.METRIC_LEARNING:  # validation has other identities, and should
                check_read(each.task)
                names = FORMATS[each.task].names(read_vocabulary(each, own))
                for name in sorted(set(names) - set(vocabularies[same.name])):
                    message = (
                        f"{name!r} is declared in the validation dataset, but not here: declare it, or leave it out"
                    )
                    report.error("unknown_in_training", message, same.place, value=name, annotations=0)
        if own.refuses():
            message = f"the validation dataset's metadata are wrong: {own.findings[0]}"
            report.fail("validation_dataset", message, place)
        names_by_etag = {entry.etag: entry.name for entry in other.index.images}
        for entry in snapshot.index.images:
            if entry.etag in names_by_etag:
                message = f"the image is also in the validation dataset, as {names_by_etag[entry.etag]}"
                report.warn("shared_image", message, Place(file=f"images/{entry.name}", image=entry.name))

    async def _convert(self, request: ConversionRequest, tell: Tell) -> ConversionResult:
        async with self.slots.taken():
            report = Report(findings_max=self.findings_max, lenient=request.lenient)
            described = await self.reader.describe(request.source, report)
            chosen = _choose(described, request.annotation_set, report)
            way = plan(chosen.task, request.end, via=request.via, options=request.options)
            check_served(way)
            snapshot = await self.reader.open(described, lambda each: each is chosen, tell)
            if request.fingerprint and request.fingerprint != snapshot.fingerprint:
                raise _changed(request, snapshot.fingerprint)
            digest = digest_of(snapshot, chosen, way, lenient=request.lenient)
            found = await self.store.find(digest)
            if found is not None:
                return self._result(found, way, digest, reused=True)
            async with self.store.draft() as draft:
                conversion = Conversion(snapshot, chosen, way, report, draft)
                await self._drive(conversion.run(), snapshot, report, "convert", tell)
                if report.refuses():
                    raise _refusal(request.source.uri, report)
                await in_thread(self.executor, conversion.finish)
                first = await self.store.publish(draft, digest, self.executor)
            found = await self.store.find(digest)
            assert found is not None, "what was published is there"
            result = self._result(found, way, digest, reused=not first)
            if first:
                await self.on_converted(digest, result.uri, result.images_in)
            return result

    def _result(self, report: Mapping[str, Any], way: Plan, digest: str, *, reused: bool) -> ConversionResult:
        return result_from_report(
            report,
            way,
            uri=self.store.dataset_uri(digest),
            endpoint_url=self.store.endpoint_url,
            digest=digest,
            reused=reused,
        )

    async def _drive(self, steps: Iterator[int], snapshot: Snapshot, report: Report, phase: str, tell: Tell) -> None:
        """Run a pass to its end in a thread, chunk by chunk; a cancelled call ends it at the next one."""
        meter = Meter(self.clock)
        total = len(snapshot.index.images)
        tell(meter.measure(phase, 0, total, report.warnings))
        while done := await in_thread(self.executor, lambda: list(islice(steps, CHUNK_RECORDS))):
            tell(meter.measure(phase, done[-1], total, report.warnings))


def _count(
    snapshot: Snapshot, chosen: AnnotationSet, report: Report, counts: Counts, names: list[str]
) -> Iterator[int]:
    """Look at every record of one annotation set; fills `counts` and `names`."""
    task_format = FORMATS[chosen.task]
    vocabulary = read_vocabulary(chosen, report)
    names += task_format.names(vocabulary)
    annotations = snapshot.contents[chosen.name].annotations(chosen, report)
    found = records(chosen, vocabulary, annotations, snapshot.index, snapshot.refused, report)
    for done, record in enumerate(found, start=1):
        counts.add(record.annotation, task_format)
        yield done


def _choose(described: Described, name: str, report: Report) -> AnnotationSet:
    """The annotation set of a name; the only one where none is given."""
    if report.refuses():
        raise _refusal(described.source.uri, report)
    sets = described.metadata.sets
    chosen = next((each for each in sets if each.name == name), None)
    if chosen is None and not name and len(sets) == 1:
        chosen = sets[0]
    if chosen is None:
        names = ", ".join(repr(each.name) for each in sets)
        found = (
            f"is {name!r}, but the dataset has {names}" if name else f"is empty, but the dataset has several: {names}"
        )
        raise InvalidArgument([Violation(field="annotation_set", description=found)])
    return chosen


def _refusal(uri: str, report: Report) -> FailedPrecondition:
    errors = [each for each in report.findings if each.severity == "error"][:REFUSAL_FINDINGS_MAX]
    quoted = "; ".join(str(each) for each in errors)
    more = f"; and {report.errors - len(errors)} more" if report.errors > len(errors) else ""
    message = f"the dataset at {uri} has {report.errors} errors, ValidateDataset lists them: {quoted}{more}"
    metadata = {"uri": uri, "errors": str(report.errors), "warnings": str(report.warnings)}
    metadata |= {f"finding_{number}": str(each) for number, each in enumerate(errors, start=1)}
    return FailedPrecondition(Reason.DATASET_INVALID, message, metadata)


def _changed(request: ConversionRequest, found: str) -> FailedPrecondition:
    message = (
        f"the dataset at {request.source.uri} was recorded with the fingerprint {request.fingerprint}, but has {found} "
        "now: it changed since"
    )
    return FailedPrecondition(Reason.DATASET_CHANGED, message, {"recorded": request.fingerprint, "found": found})
