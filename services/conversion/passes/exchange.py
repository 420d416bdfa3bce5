"""Datasets of other formats: imported into the native one, and exported from it, to a place of the caller's choice.

An import is the foreign records, no step, and the native sink; an export the native records, the steps to the format's
task, and the foreign sink. Either is there whole or not at all, and a repeated one returns what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from services.chassis.errors import FailedPrecondition, InvalidArgument, SihlaiError, Violation
from services.chassis.image import FULL_RANGE
from services.conversion.convert.edge import StepOptions
from services.conversion.convert.plan import Plan, plan
from services.conversion.conveyor.conveyor import Conveyor, Totals
from services.conversion.conveyor.journal import Journal
from services.conversion.conveyor.sink import NormalisedSink, write_json
from services.conversion.conveyor.work import Meter, Progress, Slots, Tell, Works, in_thread
from services.conversion.dataset.category_ids import read_category_ids
from services.conversion.dataset.metadata import METADATA_NAMES, choose_set
from services.conversion.dataset.refusal import refusal
from services.conversion.dataset.snapshot import fingerprint
from services.conversion.finding import Action, Finding, Place, Report
from services.conversion.foreign import AUTO, FOREIGN_FORMATS
from services.conversion.foreign.format import (
    ForeignDataset,
    ForeignError,
    ForeignFormat,
    ForeignImage,
    ForeignSink,
    ReadRequest,
    Unannotated,
    WriteRequest,
)
from services.conversion.foreign.intake import chosen_images, file_versions, freight_of
from services.conversion.foreign.recognition import find_format
from services.conversion.foreign.source import ForeignLimits, ForeignSource
from services.conversion.formats import FORMATS
from services.conversion.index import Index
from services.conversion.passes.conversion import (
    NORMALISED_VERSION,
    Conversion,
    ConversionResult,
    digest_of,
    report_json,
    result_from_report,
)
from services.conversion.passes.copier import Copier, Copy
from services.conversion.passes.examination import progress_teller
from services.conversion.raster.error import RasterLimits
from services.conversion.reader.indexer import Indexer
from services.conversion.reader.reader import Described, Reader
from services.conversion.source.place import Access, DatasetSource
from services.conversion.store.destination import Destination, Destinations
from services.conversion.store.draft import Draft
from services.conversion.store.store import REPORT, ResultStore
from services.conversion.task import Task

EXPORT_LAST = (REPORT,)
"""The last file of an exported dataset."""


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What is to be imported. An empty `split` is enough where the source has one."""

    source: DatasetSource
    format: str
    destination: DatasetSource
    unannotated: Unannotated = Unannotated.DEFAULT
    split: str = ""
    lenient: bool = False
    copy_images: bool = False
    task: Task | None = None
    """What is wanted of a source that says several things."""

    def key(self) -> str:
        """Equal for requests that ask for the same with the same rights."""
        parts = (self.format, self.unannotated, self.split, self.lenient, self.copy_images, self.task)
        return repr((self.source.key(), self.destination.key(), *parts))


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is to be exported, by way of `via`."""

    source: DatasetSource
    annotation_set: str
    format: str
    destination: DatasetSource
    via: tuple[Task, ...] = ()
    options: tuple[StepOptions, ...] = ()
    lenient: bool = False
    copy_images: bool = False

    def key(self) -> str:
        """Equal for requests that ask for the same with the same rights."""
        parts = (self.annotation_set, self.format, self.via, self.options, self.lenient, self.copy_images)
        return repr((self.source.key(), self.destination.key(), *parts))


@dataclass(kw_only=True)
class Exchange:
    """Imports and exports."""

    access: Access
    indexer: Indexer
    reader: Reader
    store: ResultStore
    destinations: Destinations
    conveyor: Conveyor
    slots: Slots
    executor: Executor
    clock: Callable[[], float]
    progress_seconds: float
    findings_max: int
    copier: Copier
    limits: ForeignLimits
    raster_limits: RasterLimits
    _works: Works[ConversionResult] = field(init=False)
    _reports: dict[str, Report] = field(init=False, default_factory=dict)
    """Of work that is under way: all who follow it are told the same findings."""

    def __post_init__(self) -> None:
        self._works = Works(progress_seconds=self.progress_seconds)

    def import_dataset(self, request: ImportRequest) -> AsyncGenerator[Progress | Finding | ConversionResult, None]:
        """Progress and findings, and last the result. Close it to leave."""
        key = f"import {request.key()}"
        return self._follow(key, request.lenient, lambda report, tell: self._import(request, report, tell))

    def export_dataset(self, request: ExportRequest) -> AsyncGenerator[Progress | Finding | ConversionResult, None]:
        """Progress and findings, and last the result. Close it to leave."""
        key = f"export {request.key()}"
        return self._follow(key, request.lenient, lambda report, tell: self._export(request, report, tell))

    async def _follow(
        self, key: str, lenient: bool, start: Callable[[Report, Tell], Coroutine[Any, Any, ConversionResult]]
    ) -> AsyncGenerator[Progress | Finding | ConversionResult, None]:
        # A report ends with its work, be it that the work is cancelled before it has begun.
        self._reports = {each: kept for each, kept in self._reports.items() if self._works.under_way(each)}
        report = self._reports.setdefault(key, Report(findings_max=self.findings_max, lenient=lenient))

        async def work(tell: Tell) -> ConversionResult:
            return await start(report, tell)

        sent = 0
        try:
            async with contextlib.aclosing(self._works.follow(key, work)) as items:
                async for item in items:
                    while sent < len(report.findings):
                        yield report.findings[sent]
                        sent += 1
                    if isinstance(item, ConversionResult):
                        for finding in report.repeated():
                            yield finding
                    yield item
        except SihlaiError:
            for finding in (*report.findings[sent:], *report.repeated()):  # why it is refused
                yield finding
            raise

    async def _import(self, request: ImportRequest, report: Report, tell: Tell) -> ConversionResult:
        async with self.slots.taken(), self.store.using(request.source.uri):
            _check_reach(request)
            destination = self.destinations.open(request.destination)
            await destination.try_out()
            files = ForeignSource(self.access.open(request.source), self.limits, self.executor)
            await files.list(report)
            if request.format == AUTO:
                request = replace(request, format=await find_format(files, report))
            dataset = await self._open(files, request, report)
            images, native = chosen_images(files, dataset, report, split=request.split, copy_images=request.copy_images)
            index = await self._index(files, images, request.source, tell)
            await in_thread(self.executor, index.report, report)
            parts = {**files.parts, **file_versions(files, dataset, index)}
            source_fingerprint = await in_thread(self.executor, fingerprint, index, parts)
            digest = _import_digest(source_fingerprint, files.uri, request)
            way = Plan(start=dataset.task, end=dataset.task, steps=())
            found = await destination.find(digest)
            if found is not None:
                return _result(found, way, destination, digest, reused=True, foreign=request.format)
            sink = NormalisedSink(
                FORMATS[dataset.task],
                images_uri="" if request.copy_images else native,
                index=index,
                fingerprint=source_fingerprint,
                metadata=dataset.metadata,
            )
            images_bytes = sum(entry.size_bytes for entry in index.images) if request.copy_images else 0
            await destination.require_room(digest, images_bytes, self.store.drafts_folder)
            async with destination.draft(digest, self.store) as draft:
                totals = await self._write_natively(files, dataset, index, sink, draft, report, tell)
                if request.copy_images:
                    paths = {image.name: image.path for image in images}
                    copies = [Copy(paths[each.name], f"images/{each.name}", each.size_bytes) for each in index.images]
                    await self.copier.copy(files.folder, copies, draft, tell)
                about = report_json(
                    report, totals, way, source_fingerprint=source_fingerprint, annotation_set="", images=len(images)
                )
                await in_thread(self.executor, write_json, draft.dataset / REPORT, {"digest": digest, **about})
                first = await destination.publish(draft.dataset, digest)
            found = await destination.find(digest)
            assert found is not None, "what was published is there"
            return _result(found, way, destination, digest, reused=not first, foreign=request.format)

    async def _write_natively(
        self,
        files: ForeignSource,
        dataset: ForeignDataset,
        index: Index,
        sink: NormalisedSink,
        draft: Draft,
        report: Report,
        tell: Tell,
    ) -> Totals:
        """Everything but the images and the report. Raises FailedPrecondition where the report refuses the dataset."""
        await in_thread(self.executor, sink.begin, draft.dataset, dataset.vocabulary)
        told = progress_teller(Meter(self.clock), "import", len(index.images), report, tell)
        freight = freight_of(files, dataset, index, report)
        totals = await self.conveyor.carry(freight, report, told, sink=sink, journal=Journal(draft.journal))
        if report.refuses():
            raise _import_refusal(files.uri, report)
        await in_thread(self.executor, sink.end)
        return totals

    async def _export(self, request: ExportRequest, report: Report, tell: Tell) -> ConversionResult:
        async with self.slots.taken(), self.store.using(request.source.uri):
            foreign = FOREIGN_FORMATS[request.format]
            if foreign.copies_images and not request.copy_images:
                description = f"is off, but {foreign.name} are the images themselves: ask for copies"
                raise InvalidArgument([Violation(field="copy_images", description=description)])
            destination = self.destinations.open(request.destination)
            await destination.try_out()
            described = await self.reader.describe(request.source, report)
            if not described.parts and not report.fatal:
                message = f"there is no {METADATA_NAMES[0]}, and {foreign.name} cannot hold images alone: add one"
                report.fail("missing_file", message, Place(file=METADATA_NAMES[0]))
                raise refusal(described.source.uri, report, hint="")
            chosen = choose_set(described.source.uri, described.metadata, request.annotation_set, report)
            way = _way(chosen.task, foreign, request)
            snapshot = await self.reader.open(described, lambda each: each is chosen, tell)
            parts = (digest_of(snapshot, chosen, way, lenient=request.lenient), request.format, request.copy_images)
            digest = hashlib.sha256(repr(parts).encode()).hexdigest()
            found = await destination.find(digest, last=EXPORT_LAST)
            if found is not None:
                return _result(found, way, destination, digest, reused=True)
            conversion = Conversion(snapshot, chosen, way, report)
            load = self.reader.load(described, snapshot.contents[chosen.name])
            images_bytes = sum(each.size_bytes for each in snapshot.index.images) if request.copy_images else 0
            await destination.require_room(digest, images_bytes, self.store.drafts_folder)
            async with destination.draft(digest, self.store) as draft:
                freight = await in_thread(self.executor, conversion.prepare, load)
                asked = WriteRequest(
                    task=way.end,
                    vocabulary=freight.recipe.target_vocabulary(),
                    category_ids=read_category_ids(chosen, report),
                    images=snapshot.index.images,
                )
                writing = foreign.write(asked)
                await in_thread(self.executor, writing.sink.begin, draft.dataset, asked.vocabulary)
                told = progress_teller(Meter(self.clock), "export", len(snapshot.index.images), report, tell)
                freight = replace(freight, recipe=replace(freight.recipe, writer=writing.codec))
                await conversion.run(freight, self.conveyor, writing.sink, told, Journal(draft.journal))
                if report.refuses():
                    raise refusal(described.source.uri, report)
                await in_thread(self.executor, writing.sink.end)
                await self._put_images(request, described, snapshot.index, writing.sink, draft, report, tell)
                await in_thread(self.executor, conversion.finish, draft.dataset, digest)
                first = await destination.publish(draft.dataset, digest, last=EXPORT_LAST)
            found = await destination.find(digest, last=EXPORT_LAST)
            assert found is not None, "what was published is there"
            return _result(found, way, destination, digest, reused=not first)

    async def _open(self, files: ForeignSource, request: ImportRequest, report: Report) -> ForeignDataset:
        """What the files hold. Raises FailedPrecondition where they are no dataset of the format."""
        read = ReadRequest(
            split=request.split, unannotated=request.unannotated, raster_limits=self.raster_limits, task=request.task
        )
        try:
            return await FOREIGN_FORMATS[request.format].open(files, read, report)
        except ForeignError as error:
            report.fail(error.rule, str(error), error.place, value=error.value)
            raise _import_refusal(files.uri, report) from error

    async def _index(
        self, files: ForeignSource, images: tuple[ForeignImage, ...], source: DatasetSource, tell: Tell
    ) -> Index:
        """The images under their native names."""
        listing = files.listing(images)
        found = await self.indexer.index(files.folder, listing, source, tell)
        names = {image.path: image.name for image in images}
        entries = sorted((replace(entry, name=names[entry.name]) for entry in found.entries), key=lambda e: e.name)
        return Index(entries=tuple(entries))

    async def _put_images(
        self,
        request: ExportRequest,
        described: Described,
        index: Index,
        sink: ForeignSink,
        draft: Draft,
        report: Report,
        tell: Tell,
    ) -> None:
        """Copy the images, or say where they belong, and what is not said of them."""
        sink.losses.report(report)
        black, white = shown = described.metadata.image_range
        if shown != FULL_RANGE:
            place = next(iter(described.metadata.sets)).place
            message = (
                f"`image_range: [{black}, {white}]` is left out, as no format but ours says by which values images of "
                "16 bits are shown: scale them where they are read"
            )
            report.warn("not_said", message, place, value="image_range", action=Action.DROPPED)
        copies = [
            Copy(entry.name, path, entry.size_bytes) for entry in index.images if (path := sink.image_path(entry))
        ]
        if request.copy_images:
            await self.copier.copy(self.reader.images(described), copies, draft, tell)
        elif copies:
            where = copies[0].target.rpartition("/")[0]
            message = f"the images are not copied: put {described.images_uri} into {where}/, or ask for copies"
            report.warn("images_not_copied", message, Place(file=f"{where}/"))


def _check_reach(request: ImportRequest) -> None:
    """Images that are not copied are read with the rights of the native dataset, and from its server."""
    source, destination = request.source, request.destination
    servers = [(each.uri.startswith("s3:"), each.endpoint_url, each.region) for each in (source, destination)]
    if source.uri.startswith("s3:") and servers[0] != servers[1] and not request.copy_images:
        description = "is off, but the images lie on another server than the destination: ask for copies"
        raise InvalidArgument([Violation(field="copy_images", description=description)])


def _import_refusal(uri: str, report: Report) -> FailedPrecondition:
    """What is fatal leaves nothing that could be imported without it."""
    return refusal(uri, report, hint="" if report.fatal else "an import with `lenient` leaves out what is wrong")


def _import_digest(source_fingerprint: str, uri: str, request: ImportRequest) -> str:
    """The key of the result: whatever could change it is in here."""
    key = {
        "version": NORMALISED_VERSION,
        "fingerprint": source_fingerprint,
        "images": "" if request.copy_images else uri,
        "format": request.format,
        "unannotated": request.unannotated,
        "split": request.split,
        **({"task": request.task} if request.task is not None else {}),
        "lenient": request.lenient,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _way(start: Task, foreign: ForeignFormat, request: ExportRequest) -> Plan:
    """The path to the best task of the format that there is one to. Raises what `plan` raises."""
    if start in foreign.tasks and not request.via:
        return plan(start, start, options=request.options)
    for task in foreign.tasks[:-1]:
        with contextlib.suppress(SihlaiError):
            return plan(start, task, via=request.via, options=request.options)
    return plan(start, foreign.tasks[-1], via=request.via, options=request.options)


def _result(
    report: Mapping[str, Any], way: Plan, destination: Destination, digest: str, *, reused: bool, foreign: str = ""
) -> ConversionResult:
    found = result_from_report(
        report, way, uri=destination.uri, endpoint_url=destination.endpoint_url, digest=digest, reused=reused
    )
    return replace(found, foreign_format=foreign)
