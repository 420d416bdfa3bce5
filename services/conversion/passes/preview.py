"""Previews: some images of a dataset with their annotations, and what a conversion would make of them.

Only what is shown is converted. Annotations with errors are left out, and the sheet says how many.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from services.chassis.errors import InvalidArgument, Violation
from services.conversion.convert.edge import StepOptions
from services.conversion.convert.plan import plan
from services.conversion.conveyor.work import in_thread
from services.conversion.dataset.metadata import choose_set
from services.conversion.dataset.refusal import refusal
from services.conversion.dataset.snapshot import Snapshot
from services.conversion.finding import Report, shortened
from services.conversion.index import ImageEntry
from services.conversion.passes.conversion import recipe_of
from services.conversion.picture.exhibit import Selection, choose_entries, select
from services.conversion.picture.gallery import Gallery
from services.conversion.picture.sheet import Picture
from services.conversion.reader.reader import Reader
from services.conversion.source.place import DatasetSource
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class PreviewRequest:
    """What is to be shown. `end` None: the dataset as it is. `images`: by name; none: some of them, spread over it."""

    source: DatasetSource
    annotation_set: str
    end: Task | None = None
    via: tuple[Task, ...] = ()
    options: tuple[StepOptions, ...] = ()
    images_max: int = 0
    """0: as many as a sheet usually shows."""
    images: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A contact sheet, and the images on it in reading order."""

    picture: Picture
    images: tuple[str, ...]


class Previewer:
    """Writes nothing."""

    def __init__(self, *, reader: Reader, gallery: Gallery, executor: Executor, findings_max: int) -> None:
        self._reader = reader
        self._gallery = gallery
        self._executor = executor
        self._findings_max = findings_max

    async def preview(self, request: PreviewRequest) -> Preview:
        """The contact sheet. Raises InvalidArgument for images that the dataset does not have."""
        limits = self._gallery.limits
        report = Report(findings_max=self._findings_max, lenient=True)
        described = await self._reader.describe(request.source, report)
        chosen = choose_set(described.source.uri, described.metadata, request.annotation_set, report)
        way = plan(chosen.task, request.end or chosen.task, via=request.via, options=request.options)
        snapshot = await self._reader.open(described, lambda each: each is chosen, lambda _: None)
        count = min(request.images_max or limits.images_default, limits.images_max)
        named = _named(request, snapshot, limits.images_max)

        def prepare() -> Selection:
            recipe = recipe_of(chosen, way, report)
            annotations = snapshot.contents[chosen.name].annotations(chosen, report)
            if report.refuses():
                raise refusal(snapshot.uri, report)
            entries = named or choose_entries(snapshot.index, annotations, count)
            if not entries:  # every image is broken
                snapshot.report_images(report)
                raise refusal(snapshot.uri, report)
            return select(chosen, annotations, entries, recipe, snapshot.files, snapshot.metadata.image_range)

        selection = await in_thread(self._executor, prepare)
        load = self._reader.load(described, snapshot.contents[chosen.name])
        picture = await self._gallery.draw(selection, self._reader.images(described), load)
        return Preview(picture=picture, images=tuple(record.image.name for record in selection.records))


def _named(request: PreviewRequest, snapshot: Snapshot, images_max: int) -> tuple[ImageEntry, ...]:
    """The images that were asked for, in that order, each once."""
    wanted = dict.fromkeys(request.images)
    if len(wanted) > images_max:
        description = f"names {len(wanted)} images, but a sheet shows at most {images_max}"
        raise InvalidArgument([Violation(field="images", description=description)])
    entries = {entry.name: entry for entry in snapshot.index.images if entry.name in wanted}
    wrong = [
        Violation(field=f"images[{position}]", description=_problem(name, snapshot))
        for position, name in enumerate(request.images)
        if name not in entries
    ]
    if wrong:
        raise InvalidArgument(wrong)
    return tuple(entries[name] for name in wanted)


def _problem(name: str, snapshot: Snapshot) -> str:
    broken = next((entry for entry in snapshot.index.entries if entry.name == name), None)
    if broken is not None:
        return f"is {shortened(name)!r}, which is no image that can be used: {broken.problem}"
    return f"is {shortened(name)!r}, which is not in images/"
