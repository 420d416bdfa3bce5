"""Draws contact sheets: reads some images and maps of a dataset, and turns their records into one picture.

What cannot be read is a tile that says so. One sheet needs the memory of a few images, whatever the dataset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from services.chassis.errors import SihlaiError
from services.chassis.objects.store import ObjectFolder, ObjectNotFound
from services.conversion.conveyor.conveyor import Load
from services.conversion.conveyor.work import in_thread, some_at_a_time
from services.conversion.dataset.record import RawRecord
from services.conversion.formats.format import MapFile
from services.conversion.picture.exhibit import Selection, exhibit_of, page_of, tiles_an_image
from services.conversion.picture.sheet import Exhibit, Layout, Picture, encode, layout_of

CONTACT_SHEET = "contact_sheet"
IMAGES_AT_ONCE = 2
"""Images of one sheet that are read and drawn at once: a large one takes half a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class GalleryLimits:
    """What one sheet may show and weigh."""

    images_default: int
    images_max: int
    image_bytes_max: int
    """Larger images are not shown."""
    sheet_bytes_max: int
    seconds_max: float
    """A conversion waits so long for its sheet, then goes without."""


class Gallery:
    """Draws in threads of the executor."""

    def __init__(self, *, limits: GalleryLimits, executor: Executor) -> None:
        self.limits = limits
        self._executor = executor

    async def draw(self, selection: Selection, images: ObjectFolder, load: Load | None) -> Picture:
        """The contact sheet of a selection, in its order. `images`: their folder; `load` reads maps."""
        recipe, records = selection.recipe, selection.records
        layout = layout_of(len(records), tiles_an_image(recipe))
        exhibits: dict[str, Exhibit] = {}

        async def show(record: RawRecord) -> None:
            image = await self._read(record, images)
            if record.path and load is not None:
                try:
                    record = await _with_map(record, load)
                except SihlaiError as error:
                    record, image = replace(record, value=None), error.message
            exhibits[record.image.name] = await in_thread(
                self._executor, exhibit_of, recipe, record, image, layout, selection.image_range
            )

        await some_at_a_time((show(record) for record in records), IMAGES_AT_ONCE)
        shown = [exhibits[record.image.name] for record in records]
        return await in_thread(self._executor, self._picture, selection, shown, layout)

    async def add_to(self, folder: Path, selection: Selection, images: ObjectFolder, load: Load | None) -> str:
        """Draw the contact sheet of a conversion into the folder of its result; return the file's name.

        Empty where it takes too long: a conversion waits for nothing that it can do without.
        """
        try:
            async with asyncio.timeout(self.limits.seconds_max):
                picture = await self.draw(selection, images, load)
        except TimeoutError:
            return ""
        name = CONTACT_SHEET + picture.suffix
        await in_thread(self._executor, (folder / name).write_bytes, picture.content)
        return name

    async def _read(self, record: RawRecord, images: ObjectFolder) -> bytes | str:
        """The image's content, or why it is not shown."""
        entry = record.image
        if entry.size_bytes > self.limits.image_bytes_max:
            return f"it has {entry.size_bytes} bytes, and at most {self.limits.image_bytes_max} are shown"
        try:
            return await images.read(entry.name)
        except ObjectNotFound:
            return "it is not there any more"
        except SihlaiError as error:
            return error.message

    def _picture(self, selection: Selection, exhibits: Sequence[Exhibit], layout: Layout) -> Picture:
        return encode(page_of(selection, exhibits, layout), self.limits.sheet_bytes_max)


async def _with_map(record: RawRecord, load: Load) -> RawRecord:
    content = await load(record)
    file = MapFile(suffix=record.suffix, content=content, about=record.value, about_file=record.about_file)
    return replace(record, value=file)
