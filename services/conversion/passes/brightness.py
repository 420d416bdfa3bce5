"""Whether images of 16 bits use their range: cameras of 12 bits and microscopes write them nearly black.

Trainers and pictures scale 16 bits by the whole range, or by the metadata's `image_range`. Some images, spread over the
dataset, are looked into.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from io import BytesIO

import numpy as np
from PIL import Image

from services.chassis.errors import SihlaiError
from services.chassis.image import DECODER_ERRORS, PIXELS_MAX, SIXTEEN_BIT_MODES, ImageRange
from services.chassis.objects.store import ObjectFolder
from services.conversion.conveyor.work import in_thread
from services.conversion.file.header import ImageFormat
from services.conversion.finding import Place, Report
from services.conversion.index import ImageEntry
from services.conversion.picture.exhibit import spread

IMAGES_MAX = 12
"""Images that are looked into."""
IMAGE_BYTES_MAX = 64 * 2**20
"""Larger ones are not."""
USED_SHARE_MIN = 0.25
"""Of what is shown: below it nobody sees much."""
FORMATS = ("PNG", "TIFF")


async def report_brightness(
    images: ObjectFolder, entries: Sequence[ImageEntry], image_range: ImageRange, report: Report, executor: Executor
) -> None:
    """Warn where every 16-bit image that is looked into uses a small part of what is shown.

    What cannot be read is passed over: that is told elsewhere.
    """
    able = [entry for entry in entries if entry.format in (ImageFormat.PNG, ImageFormat.TIFF)]
    small = [entry for entry in able if entry.size_bytes <= IMAGE_BYTES_MAX]
    found: list[tuple[int, int, str]] = []
    for entry in spread(small, IMAGES_MAX):
        try:
            content = await images.read(entry.name)
        except SihlaiError:
            continue
        bounds = await in_thread(executor, _bounds, content)
        if bounds is not None:
            found.append((*bounds, entry.name))
        elif not found:  # the first ones are enough to know that a dataset has 8 bits
            break
        await asyncio.sleep(0)
    if not found:
        return
    low, high = min(each[0] for each in found), max(each[1] for each in found)
    black, white = image_range
    if high - black < USED_SHARE_MIN * (white - black):
        name = found[0][2]
        message = (
            f"{len(found)} images of 16 bits that were looked into have values from {low} to {high}, and {black} to "
            f"{white} are shown, so that they are nearly black for training and in pictures: write "
            f"`image_range: [{low}, {max(high, low + 1)}]`, or what the camera can say, into the metadata"
        )
        report.warn("dark_images", message, Place(file=f"images/{name}", image=name), value=f"{low} to {high}")


def _bounds(content: bytes) -> tuple[int, int] | None:
    """The lowest and the highest value of an image of 16 bits; None for any other."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            if picture.mode not in SIXTEEN_BIT_MODES or picture.width * picture.height > PIXELS_MAX:
                return None
            values = np.asarray(picture)
    except DECODER_ERRORS:
        return None
    return int(values.min()), int(values.max())
