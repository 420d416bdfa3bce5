"""Looks at whole datasets without writing anything: what they hold, and everything that is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from services.chassis.errors import FailedPrecondition
from services.conversion.convert.plan import reachable
from services.conversion.conveyor.chunk import Recipe
from services.conversion.conveyor.conveyor import Conveyor, Freight, Totals
from services.conversion.conveyor.counts import Counts
from services.conversion.conveyor.work import Meter, Tell, in_thread
from services.conversion.dataset.metadata import AnnotationSet, read_vocabulary
from services.conversion.dataset.refusal import refusal
from services.conversion.dataset.snapshot import Snapshot
from services.conversion.finding import Place, Report
from services.conversion.formats import FORMATS
from services.conversion.passes.brightness import report_brightness
from services.conversion.passes.conversion import freight_of
from services.conversion.reader.reader import Described, Reader
from services.conversion.source.place import DatasetSource
from services.conversion.task import Task

SIZES_MAX = 100
"""Different image sizes that an inspection tells of."""
VALIDATION_PREFIX = "validation: "
"""Before the files of findings about the validation dataset."""


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
    """The end of a validation, of both datasets where there are two."""

    errors: int
    warnings: int
    omitted: int
    images: int
    rules: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A dataset that was looked at, with what its annotation sets hold."""

    snapshot: Snapshot
    sets: tuple[SetSummary, ...]


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Reads every annotation of every set once."""

    reader: Reader
    conveyor: Conveyor
    executor: Executor
    clock: Callable[[], float]

    async def inspect(self, source: DatasetSource, report: Report, tell: Tell) -> Inspection:
        """What the dataset holds. Raises FailedPrecondition where the report refuses it."""
        looked = await self._look(source, report, tell, phase="inspect")
        if report.refuses():
            raise refusal(source.uri, report)
        return await in_thread(self.executor, _inspection, looked)

    async def validate(
        self, source: DatasetSource, validation: DatasetSource | None, report: Report, tell: Tell
    ) -> ValidationTotals:
        """Everything that is wrong, into the report."""
        looked = await self._look(source, report, tell, phase="validate")
        images = looked.snapshot.files
        if validation is not None:
            own = Report(findings_max=report.findings_max)
            other = await self._look(
                validation, own, tell, phase="validate the validation dataset", field_name="validation_source"
            )
            report.merge(own, prefix=VALIDATION_PREFIX)
            images += other.snapshot.files
            await in_thread(self.executor, _compare, looked, other, report)
        return ValidationTotals(
            errors=report.errors,
            warnings=report.warnings,
            omitted=report.omitted,
            images=images,
            rules=dict(report.rules),
        )

    async def _look(
        self, source: DatasetSource, report: Report, tell: Tell, *, phase: str, field_name: str = "source"
    ) -> Looked:
        described = await self.reader.describe(source, report, field_name)
        try:
            snapshot = await self.reader.open(described, lambda _: True, tell)
        except FailedPrecondition as error:
            if not report.fatal:
                raise
            # Metadata that cannot be understood may be why: they may say where the images are.
            raise refusal(source.uri, report, hint="") from error
        await in_thread(self.executor, snapshot.report_images, report)
        shown = described.metadata.image_range
        await report_brightness(self.reader.images(described), snapshot.index.images, shown, report, self.executor)
        summaries = [
            await self._look_at_set(described, snapshot, each, report, tell, phase) for each in described.metadata.sets
        ]
        return Looked(snapshot=snapshot, sets=tuple(summaries))

    async def _look_at_set(
        self, described: Described, snapshot: Snapshot, chosen: AnnotationSet, report: Report, tell: Tell, phase: str
    ) -> SetSummary:
        load = self.reader.load(described, snapshot.contents[chosen.name])

        def prepare() -> Freight:
            task_format = FORMATS[chosen.task]
            recipe = Recipe(
                reader=task_format,
                source_vocabulary=read_vocabulary(chosen, report),
                source=chosen.task,
                target=chosen.task,
                lenient=report.lenient,
                findings_max=report.findings_max,
            )
            annotations = snapshot.contents[chosen.name].annotations(chosen, report)
            return freight_of(snapshot, chosen, annotations, recipe, report, load)

        freight = await in_thread(self.executor, prepare)
        totals = await self.conveyor.carry(
            freight, report, progress_teller(Meter(self.clock), phase, len(snapshot.index.images), report, tell)
        )
        return SetSummary(
            name=chosen.name,
            task=chosen.task,
            counts=totals.counts_in,
            categories=FORMATS[chosen.task].names(freight.recipe.source_vocabulary),
            reachable=reachable(chosen.task),
        )


def progress_teller(meter: Meter, phase: str, total: int, report: Report, tell: Tell) -> Callable[[Totals], None]:
    """Tells of a pass what the conveyor tells of its chunks; begins with nothing done."""
    tell(meter.measure(phase, 0, total, report.warnings))
    return lambda totals: tell(meter.measure(phase, totals.images, total, report.warnings))


def _inspection(looked: Looked) -> Inspection:
    """What an inspection tells of a dataset. Looks at every image."""
    images = looked.snapshot.index.images
    sizes = Counter((entry.width, entry.height) for entry in images)
    return Inspection(
        fingerprint=looked.snapshot.fingerprint,
        images=len(images),
        image_bytes=sum(entry.size_bytes for entry in images),
        sets=looked.sets,
        sizes=tuple(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:SIZES_MAX]),
    )


def _compare(training: Looked, validation: Looked, report: Report) -> None:
    """The training vocabulary rules, and no image may be in both."""
    place = Place(file=VALIDATION_PREFIX.rstrip(": "))
    places = {each.name: each.place for each in training.snapshot.metadata.sets}
    for each in validation.sets:
        found = _counterpart(each, training.sets, validation.sets)
        if found is None:
            message = f"the validation dataset's annotation set {each.name!r} for {each.task} has no counterpart here"
            report.warn("unmatched_annotation_set", message, place, value=each.name)
        elif each.task is Task.METRIC_LEARNING:  # validation has other identities, and should
            _compare_identities(found, each, places[found.name], report)
        else:
            for name in sorted(set(each.categories) - set(found.categories)):
                message = f"{name!r} is declared in the validation dataset, but not here: declare it, or leave it out"
                report.error("unknown_in_training", message, places[found.name], value=name, annotations=0)
    names_by_etag = {entry.etag: entry.name for entry in validation.snapshot.index.images}
    for entry in training.snapshot.index.images:
        if entry.etag in names_by_etag:
            message = f"the image is also in the validation dataset, as {names_by_etag[entry.etag]}"
            report.warn("shared_image", message, Place(file=f"images/{entry.name}", image=entry.name))


def _counterpart(
    each: SetSummary, training: Sequence[SetSummary], validation: Sequence[SetSummary]
) -> SetSummary | None:
    """The training set of the same name and task; or of the task alone, where both datasets have one for it."""
    same_task = [other for other in training if other.task is each.task]
    named = next((other for other in same_task if other.name == each.name), None)
    alone = len(same_task) == 1 and sum(other.task is each.task for other in validation) == 1
    return named or (same_task[0] if alone else None)


def _compare_identities(training: SetSummary, validation: SetSummary, place: Place, report: Report) -> None:
    """As identities they may differ; as categories, which a conversion makes of them, they hardly should."""
    alone = set(training.categories) ^ set(validation.categories)
    if alone:
        message = (
            f"{len(alone)} identities are only in one of training and validation: right for metric learning, but as "
            "categories of multiclass classification they would be learned in vain, or never"
        )
        report.warn("unshared_identities", message, place, value=", ".join(sorted(alone)))
