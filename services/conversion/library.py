"""What the service does, one method a call: plan, inspect, validate, convert.

Long work runs once for all who ask for the same, at most so many at once, and stops when nobody waits for it any more.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from services.conversion.convert.edge import StepOptions
from services.conversion.convert.plan import Plan, plan
from services.conversion.conveyor.conveyor import Conveyor
from services.conversion.conveyor.journal import Journal
from services.conversion.conveyor.work import Meter, Progress, Slots, Tell, Works, in_thread
from services.conversion.dataset.metadata import AnnotationSet, choose_set
from services.conversion.dataset.refusal import changed, refusal
from services.conversion.dataset.snapshot import Snapshot
from services.conversion.finding import Finding, Report
from services.conversion.passes.catalogue import Cataloguer, ImagesRequest
from services.conversion.passes.conversion import Conversion, ConversionResult, digest_of, result_from_report
from services.conversion.passes.examination import Examiner, Inspection, ValidationTotals, progress_teller
from services.conversion.passes.exchange import Exchange
from services.conversion.passes.page import ImagesPage, ListedImage
from services.conversion.passes.preview import Preview, Previewer, PreviewRequest
from services.conversion.picture.gallery import Gallery
from services.conversion.reader.reader import Described, Reader
from services.conversion.source.place import DatasetSource
from services.conversion.store.destination import Destination, Destinations
from services.conversion.store.draft import Draft
from services.conversion.store.store import ResultStore
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """What is to be converted. An empty `fingerprint` accepts any; no `destination` is the system's own store."""

    source: DatasetSource
    annotation_set: str
    end: Task
    via: tuple[Task, ...] = ()
    options: tuple[StepOptions, ...] = ()
    lenient: bool = False
    fingerprint: str = ""
    destination: DatasetSource | None = None

    def key(self) -> str:
        """Equal for requests that ask for the same with the same rights."""
        destination = self.destination.key() if self.destination is not None else ""
        parts = (self.source.key(), self.annotation_set, self.end, self.via, self.options, self.lenient, destination)
        return repr((*parts, self.fingerprint))


@dataclass(kw_only=True)
class Library:
    """Datasets and what can be made of them. `on_converted` hears of each new result: digest, uri, images."""

    reader: Reader
    store: ResultStore
    destinations: Destinations
    conveyor: Conveyor
    gallery: Gallery
    exchange: Exchange
    cataloguer: Cataloguer
    slots: Slots
    executor: Executor
    clock: Callable[[], float]
    progress_seconds: float
    findings_max: int
    on_converted: Callable[[str, str, int], Awaitable[None]]
    _works: Works[Any] = field(init=False)
    _examiner: Examiner = field(init=False)
    _previewer: Previewer = field(init=False)

    def __post_init__(self) -> None:
        self._works = Works(progress_seconds=self.progress_seconds)
        self._examiner = Examiner(reader=self.reader, conveyor=self.conveyor, executor=self.executor, clock=self.clock)
        self._previewer = Previewer(
            reader=self.reader, gallery=self.gallery, executor=self.executor, findings_max=self.findings_max
        )

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
        chosen = choose_set(described.source.uri, described.metadata, annotation_set, report)
        return plan(chosen.task, end, via=via, options=options), chosen.name

    async def inspect(self, source: DatasetSource) -> Inspection:
        """What the dataset holds. Raises FailedPrecondition where it cannot be read at all."""
        async with contextlib.aclosing(self.stream_inspection(source)) as items:
            async for item in items:
                if isinstance(item, Inspection):
                    return item
        raise AssertionError("an inspection ends with its result or an error")

    def stream_inspection(self, source: DatasetSource) -> AsyncGenerator[Progress | Inspection, None]:
        """Progress, and last what the dataset holds. Close it to leave. Raises as `inspect` does."""

        async def work(tell: Tell) -> Inspection:
            async with self.slots.taken(), self.store.using(source.uri):
                report = Report(findings_max=self.findings_max, lenient=True)
                return await self._examiner.inspect(source, report, tell)

        return self._works.follow(f"inspect {source.key()}", work)

    async def validate(
        self, source: DatasetSource, validation: DatasetSource | None, findings_max: int
    ) -> AsyncGenerator[Finding | Progress | ValidationTotals, None]:
        """Findings as they are met, progress between them, the totals last."""
        limit = min(findings_max, self.findings_max) if findings_max else self.findings_max
        report = Report(findings_max=limit)

        async def work(tell: Tell) -> ValidationTotals:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(self.slots.taken())
                for each in (source, validation):
                    if each is not None:
                        await stack.enter_async_context(self.store.using(each.uri))
                return await self._examiner.validate(source, validation, report, tell)

        sent = 0
        async with contextlib.aclosing(self._works.follow(f"validate {uuid.uuid4()}", work)) as items:
            async for item in items:
                while sent < len(report.findings):
                    yield report.findings[sent]
                    sent += 1
                yield item

    async def preview(self, request: PreviewRequest) -> Preview:
        """A contact sheet of some images. Raises FailedPrecondition where the dataset cannot be read at all."""
        async with self.slots.taken(), self.store.using(request.source.uri):
            return await self._previewer.preview(request)

    async def images(self, request: ImagesRequest) -> ImagesPage:
        """A page of a dataset's images. Raises FailedPrecondition where the dataset cannot be read at all."""
        async with self.slots.taken(), self.store.using(request.source.uri):
            return await self.cataloguer.images(request)

    async def image(self, request: ImagesRequest, name: str) -> ListedImage:
        """One image of a dataset."""
        async with self.slots.taken(), self.store.using(request.source.uri):
            return await self.cataloguer.image(request, name)

    def convert(self, request: ConversionRequest) -> AsyncGenerator[Progress | ConversionResult, None]:
        """Progress, and last the result; a repeat finds it, and two at once do the work once. Close it to leave."""
        return self._works.follow(f"convert {request.key()}", lambda tell: self._convert(request, tell))

    async def _convert(self, request: ConversionRequest, tell: Tell) -> ConversionResult:
        async with self.slots.taken(), self.store.using(request.source.uri):
            report = Report(findings_max=self.findings_max, lenient=request.lenient)
            destination = self.destinations.open(request.destination) if request.destination is not None else None
            if destination is not None:
                await destination.try_out()
            described = await self.reader.describe(request.source, report)
            chosen = choose_set(described.source.uri, described.metadata, request.annotation_set, report)
            way = plan(chosen.task, request.end, via=request.via, options=request.options)
            snapshot = await self.reader.open(described, lambda each: each is chosen, tell)
            if request.fingerprint and request.fingerprint != snapshot.fingerprint:
                raise changed(request.source.uri, request.fingerprint, snapshot.fingerprint)
            digest = digest_of(snapshot, chosen, way, lenient=request.lenient)
            target = destination or self.store
            async with self.store.using(self.store.dataset_uri(digest)):
                found = await target.find(digest)
                if found is not None:
                    return self._result(found, way, destination, digest, reused=True)
                if destination is not None:
                    await destination.require_room(digest, 0, self.store.drafts_folder)
                async with self._draft(digest, destination) as draft:
                    conversion = Conversion(snapshot, chosen, way, report)
                    sheet = await self._write(conversion, described, snapshot, chosen, report, draft, tell)
                    await in_thread(self.executor, conversion.finish, draft.dataset, digest, sheet)
                    first = await self._publish(draft, digest, destination)
                found = await target.find(digest)
            assert found is not None, "what was published is there"
            result = self._result(found, way, destination, digest, reused=not first)
            if first:
                await self.on_converted(digest, result.uri, result.images_in)
            return result

    async def _write(
        self,
        conversion: Conversion,
        described: Described,
        snapshot: Snapshot,
        chosen: AnnotationSet,
        report: Report,
        draft: Draft,
        tell: Tell,
    ) -> str:
        """Everything but the report; returns the name of the contact sheet, empty where there is none.

        Raises FailedPrecondition where the report refuses the dataset.
        """
        load = self.reader.load(described, snapshot.contents[chosen.name])
        freight = await in_thread(self.executor, conversion.prepare, load)
        sink = conversion.sink()
        await in_thread(self.executor, sink.begin, draft.dataset, freight.recipe.target_vocabulary())
        told = progress_teller(Meter(self.clock), "convert", len(snapshot.index.images), report, tell)
        await conversion.run(freight, self.conveyor, sink, told, Journal(draft.journal))
        if report.refuses():
            raise refusal(described.source.uri, report)
        await in_thread(self.executor, sink.end)
        samples = self.gallery.limits.images_default
        selection = await in_thread(self.executor, conversion.selection, freight.recipe, samples)
        if selection is None:
            return ""
        return await self.gallery.add_to(draft.dataset, selection, self.reader.images(described), load)

    def _draft(self, digest: str, destination: Destination | None) -> contextlib.AbstractAsyncContextManager[Draft]:
        if destination is None:
            return self.store.draft(digest, self.executor)
        return destination.draft(digest, self.store)

    async def _publish(self, draft: Draft, digest: str, destination: Destination | None) -> bool:
        if destination is None:
            return await self.store.publish(draft, digest, self.executor)
        return await destination.publish(draft.dataset, digest)

    def _result(
        self, report: Mapping[str, Any], way: Plan, destination: Destination | None, digest: str, *, reused: bool
    ) -> ConversionResult:
        return result_from_report(
            report,
            way,
            uri=destination.uri if destination is not None else self.store.dataset_uri(digest),
            endpoint_url=destination.endpoint_url if destination is not None else self.store.endpoint_url,
            digest=digest,
            reused=reused,
        )
