"""Images of a dataset for viewers: page by page with thumbnails and annotations, before or after a conversion.

A dataset is gone through once, and then known for a while: its images, what is said of each in the normalised form,
which categories it has and which rules it breaks. Whoever asks again meanwhile is answered out of memory.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason, SihlaiError, Violation
from services.chassis.image import ImageRange, UnreadableImage, read_image
from services.chassis.objects.store import ObjectFolder
from services.conversion.convert.edge import StepOptions
from services.conversion.convert.plan import plan
from services.conversion.conveyor.conveyor import Conveyor
from services.conversion.conveyor.sink import json_text
from services.conversion.conveyor.work import Works, in_thread, some_at_a_time
from services.conversion.dataset.metadata import choose_set
from services.conversion.dataset.refusal import refusal
from services.conversion.finding import Finding, Place, Report, shortened
from services.conversion.formats import FORMATS
from services.conversion.formats.format import Format, MapFile
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.passes.conversion import Conversion
from services.conversion.passes.page import NOTHING_SHOWN, ImagesPage, ListedImage, Row, Shown
from services.conversion.reader.reader import Reader
from services.conversion.source.place import DatasetSource
from services.conversion.task import Task
from services.split.choice import HeadAnnotations, learned_names, validation_names

FINDINGS_MAX = 100_000
"""Of one dataset that are kept with their images; the rules of all are."""
JPEG_QUALITY = 85
PICTURES_AT_ONCE_MAX = 16


@dataclass(frozen=True, kw_only=True)
class CatalogueLimits:
    """What is answered at once, and what is kept."""

    page_images_max: int
    page_bytes_max: int
    answer_bytes_max: int
    """Of one image alone."""
    side_max: int
    image_bytes_max: int
    """Larger image files are not shown."""
    kept_max: int
    """Datasets that are known at once."""
    seconds_max: float
    """After this long a dataset is looked at again."""
    thumbnail_bytes_max: int
    """All pictures that are kept."""


class Side(StrEnum):
    """Of a split."""

    TRAINING = "training"
    VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class LearnedTask:
    """What one head of a job learns. `end` None: the dataset's annotation set as it is."""

    annotation_set: str
    end: Task | None
    via: tuple[Task, ...]
    options: tuple[StepOptions, ...]


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """One side of the split of a job with these heads; none: it learns what is listed, alone."""

    side: Side
    share: float
    seed: int
    heads: tuple[LearnedTask, ...]


@dataclass(frozen=True, kw_only=True)
class ImagesRequest:
    """Which images. `end` None: the dataset as it is; else what `category` and annotations are of."""

    source: DatasetSource
    annotation_set: str
    end: Task | None = None
    via: tuple[Task, ...] = ()
    options: tuple[StepOptions, ...] = ()
    category: str = ""
    rule: str = ""
    split: SplitRequest | None = None
    begin: int = 0
    fingerprint: str = ""
    """That of the page before: the pages are of one dataset."""
    count: int
    side: int = 0
    """Of thumbnails; 0: none."""

    def key(self) -> str:
        """Equal for requests that look at the same dataset in the same way, with the same rights."""
        return repr((self.source.key(), self.annotation_set, self.end, self.via, self.options))


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A dataset that was gone through. `made`: when, by the clock."""

    task: Task
    fingerprint: str
    images: ObjectFolder
    image_range: ImageRange
    rows: tuple[Row, ...]
    by_name: Mapping[str, int]
    findings: Mapping[str, Sequence[Finding]]
    made: float
    _selections: dict[tuple[str, str, SplitRequest | None], Sequence[int]] = field(default_factory=dict)
    """What was asked for, as positions: pages follow one another."""

    def selection(
        self, category: str, rule: str, split: SplitRequest | None, heads: Sequence[Catalogue]
    ) -> Sequence[int]:
        """The positions of the images with a category, a finding of a rule, and on a side of a split, where given.

        `heads`: the dataset as each head of the split learns it.
        """
        if not category and not rule and split is None:
            return range(len(self.rows))
        found = self._selections.get((category, rule, split))
        if found is None:
            names = None if split is None else _names_of(split, heads)
            found = [
                position
                for position, row in enumerate(self.rows)
                if (not category or category in row.categories)
                and (not rule or any(each.rule == rule for each in self.findings.get(row.entry.name, ())))
                and (names is None or row.entry.name in names)
            ]
            self._selections[category, rule, split] = found
        return found


def _names_of(split: SplitRequest, heads: Sequence[Catalogue]) -> frozenset[str]:
    """By the function that trainers ask."""
    learned = [
        HeadAnnotations(
            task=str(head.task),
            annotations={
                row.entry.name: None if row.text is None else msgspec.json.decode(row.text) for row in head.rows
            },
        )
        for head in heads
    ]
    validated = validation_names(learned, split.share, split.seed)
    return validated if split.side is Side.VALIDATION else learned_names(learned) - validated


@dataclass(frozen=True, kw_only=True)
class CatalogueWriter:
    """A format's annotations as a catalogue keeps them."""

    task_format: Format[Any, Any]

    def read(self, value: Any, size: ImageSize, place: Place, vocabulary: Any, report: Report) -> Any:
        """As the format does."""
        return self.task_format.read(value, size, place, vocabulary, report)

    def write(self, annotation: Any, size: ImageSize, vocabulary: Any) -> tuple[str, tuple[str, ...], int]:
        """The annotation as text, its categories, and how many annotations it is."""
        categories = tuple(dict.fromkeys(self.task_format.categories(annotation)))
        written = self.task_format.write(annotation, size, vocabulary)
        about: Any = {"categories": categories, **(written.about or {})} if isinstance(written, MapFile) else written
        return json_text(about), categories, self.task_format.count(annotation)


class _Rows:
    """The sink of a pass: keeps a row an image. Names of categories are kept once."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._categories: dict[tuple[str, ...], tuple[str, ...]] = {}

    def begin(self, folder: Path, vocabulary: Any) -> None:
        """Nothing is written."""

    def add(self, image: ImageEntry, written: Any) -> None:
        """One image."""
        if written is None:
            self.rows.append(Row(entry=image, text=None))
            return
        text, categories, count = written
        shared = self._categories.setdefault(categories, categories)
        self.rows.append(Row(entry=image, text=text, categories=shared, count=count))

    def end(self) -> None:
        """Nothing is written."""


class Cataloguer:
    """Goes through datasets, and keeps some of them and some of their pictures."""

    def __init__(
        self,
        *,
        reader: Reader,
        conveyor: Conveyor,
        executor: Executor,
        limits: CatalogueLimits,
        clock: Callable[[], float],
        progress_seconds: float,
    ) -> None:
        self._reader = reader
        self._conveyor = conveyor
        self._executor = executor
        self.limits = limits
        self._clock = clock
        self._works: Works[Catalogue] = Works(progress_seconds=progress_seconds)
        self._kept: OrderedDict[str, Catalogue] = OrderedDict()
        self._pictures: OrderedDict[tuple[str, str, str, int], Shown] = OrderedDict()
        self._picture_bytes = 0

    async def images(self, request: ImagesRequest) -> ImagesPage:
        """A page. Raises InvalidArgument for a category that is none, FailedPrecondition where the dataset changed."""
        catalogue = await self._catalogue(request)
        if request.fingerprint and request.fingerprint != catalogue.fingerprint:
            message = f"the dataset at {request.source.uri} changed since the page before: begin with the first one"
            raise FailedPrecondition(Reason.DATASET_CHANGED, message, {"uri": request.source.uri})
        heads = [catalogue]
        if request.split is not None and request.split.heads:
            heads = [await self._catalogue(replace(request, **vars(head))) for head in request.split.heads]
        positions = await in_thread(
            self._executor, catalogue.selection, request.category, request.rule, request.split, heads
        )
        chosen = positions[request.begin : request.begin + request.count]
        images = await self._fitting(catalogue, request, [catalogue.rows[position] for position in chosen])
        end = request.begin + len(images)
        return ImagesPage(
            images=tuple(images),
            task=catalogue.task,
            fingerprint=catalogue.fingerprint,
            total=len(positions),
            next_begin=end if end < len(positions) else None,
        )

    async def _fitting(self, catalogue: Catalogue, request: ImagesRequest, rows: Sequence[Row]) -> list[ListedImage]:
        """The first images that fit on a page together, at least one. Only a few pictures are made in vain."""
        page: list[ListedImage] = []
        bytes_left = self.limits.page_bytes_max
        for start in range(0, len(rows), PICTURES_AT_ONCE_MAX):
            some = rows[start : start + PICTURES_AT_ONCE_MAX]
            for image in await self._listed(catalogue, request, some):
                bytes_left -= image.size_bytes
                if page and bytes_left < 0:
                    return page
                page.append(image)
        return page

    async def _listed(self, catalogue: Catalogue, request: ImagesRequest, rows: Sequence[Row]) -> list[ListedImage]:
        """The images, each small enough for a page."""
        pictures: dict[str, Shown] = {}
        if request.side:

            async def show(entry: ImageEntry) -> None:
                pictures[entry.name] = await self._picture(catalogue, request.source, entry, request.side)

            await some_at_a_time((show(row.entry) for row in rows), PICTURES_AT_ONCE_MAX)
        return [
            ListedImage(
                row=row,
                shown=pictures.get(row.entry.name, NOTHING_SHOWN),
                findings=catalogue.findings.get(row.entry.name, ()),
            ).fitted(self.limits.page_bytes_max)
            for row in rows
        ]

    async def image(self, request: ImagesRequest, name: str) -> ListedImage:
        """One image with its picture, `request.side` at most. Raises InvalidArgument where there is no such image."""
        catalogue = await self._catalogue(request)
        position = catalogue.by_name.get(name)
        if position is None:
            description = f"is {shortened(name)!r}, which is no image of the dataset that can be used"
            raise InvalidArgument([Violation(field="image", description=description)])
        row = catalogue.rows[position]
        side = request.side or self.limits.side_max
        shown = await self._picture(catalogue, request.source, row.entry, side)
        return ListedImage(row=row, shown=shown).fitted(self.limits.answer_bytes_max)

    async def _catalogue(self, request: ImagesRequest) -> Catalogue:
        key = request.key()
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept.made < self.limits.seconds_max:
            self._kept.move_to_end(key)
            return kept
        found = await self._works.result(key, lambda tell: self._go_through(request, tell), lambda _: None)
        self._kept[key] = found
        self._kept.move_to_end(key)
        while len(self._kept) > self.limits.kept_max:
            self._kept.popitem(last=False)
        return found

    async def _go_through(self, request: ImagesRequest, tell: Any) -> Catalogue:
        report = Report(findings_max=FINDINGS_MAX, lenient=True, shared=False)
        described = await self._reader.describe(request.source, report)
        chosen = choose_set(described.source.uri, described.metadata, request.annotation_set, report)
        way = plan(chosen.task, request.end or chosen.task, via=request.via, options=request.options)
        snapshot = await self._reader.open(described, lambda each: each is chosen, tell)
        conversion = Conversion(snapshot, chosen, way, report)
        load = self._reader.load(described, snapshot.contents[chosen.name])
        freight = await in_thread(self._executor, conversion.prepare, load)
        if report.fatal:
            raise refusal(request.source.uri, report)
        writer = CatalogueWriter(task_format=FORMATS[way.end])
        sink = _Rows()
        await conversion.run(
            replace(freight, recipe=replace(freight.recipe, writer=writer)), self._conveyor, sink, lambda _: None
        )
        by_image: dict[str, list[Finding]] = defaultdict(list)
        for finding in report.findings:
            if finding.place.image:
                by_image[finding.place.image].append(finding)
        return Catalogue(
            task=way.end,
            fingerprint=snapshot.fingerprint,
            images=self._reader.images(described),
            image_range=described.metadata.image_range,
            rows=tuple(sink.rows),
            by_name={row.entry.name: position for position, row in enumerate(sink.rows)},
            findings=by_image,
            made=self._clock(),
        )

    async def _picture(self, catalogue: Catalogue, source: DatasetSource, entry: ImageEntry, side: int) -> Shown:
        key = (f"{source.key()} {catalogue.images.uri} {catalogue.image_range}", entry.name, entry.etag, side)
        kept = self._pictures.get(key)
        if kept is not None:
            self._pictures.move_to_end(key)
            return kept
        if entry.size_bytes > self.limits.image_bytes_max:
            found = f"it has {entry.size_bytes} bytes, and at most {self.limits.image_bytes_max} are shown"
            return Shown(problem=found)
        try:
            content = await catalogue.images.read(entry.name)
        except SihlaiError as error:
            return Shown(problem=error.message)
        shown = await in_thread(self._executor, _drawn, content, side, catalogue.image_range)
        self._pictures[key] = shown
        self._picture_bytes += len(shown.content)
        while self._picture_bytes > self.limits.thumbnail_bytes_max and self._pictures:
            _, gone = self._pictures.popitem(last=False)
            self._picture_bytes -= len(gone.content)
        return shown


def _drawn(content: bytes, side: int, image_range: ImageRange) -> Shown:
    """The picture as it is shown, no side longer than that: as a JPEG."""
    try:
        picture = read_image(content, side_min=side, image_range=image_range)
    except UnreadableImage as error:
        return Shown(problem=str(error))
    factor = min(1.0, side / max(picture.size))
    if factor < 1.0:
        width, height = (max(1, round(length * factor)) for length in picture.size)
        picture = picture.resize((width, height), reducing_gap=2.0)
    file = BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return Shown(content=file.getvalue(), media_type="image/jpeg", width=picture.width, height=picture.height)
