"""A map as it lies in its file: the picture in it, once it is certain that it can be the image's, or a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.conversion.file.document import shown
from services.conversion.file.header import HeaderError, ImageFormat, Pieces, read_header
from services.conversion.finding import Place, Report
from services.conversion.formats.colors import UNKNOWN_COLORS_MAX, Colors, classes_of_colors, hexadecimal
from services.conversion.formats.format import MapFile
from services.conversion.formats.map_size import MapSizeError, check_map_size
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterError, RasterLimits
from services.conversion.raster.png import Pixels, decode_png
from services.conversion.raster.tiff import Page, read_pages


def open_map(value: Any, size: ImageSize, place: Place, report: Report) -> RawMap | None:
    """The map of an image; None, with an error, where its annotation is no file of its own."""
    if isinstance(value, MapFile):
        return RawMap(file=value, size=size, place=place, report=report)
    message = "the annotation must be a map: `annotations` must name the folder of the maps"
    report.error("bad_value", message, place, value=shown(value))
    return None


@dataclass(kw_only=True, slots=True)
class RawMap:
    """One image's map. What is wrong with it is reported with its place, and then there is no annotation.

    A map is never larger than its image, so that its image's size bounds what is decoded.
    """

    file: MapFile
    size: ImageSize
    place: Place
    report: Report

    def error(self, rule: str, message: str, *, index: int = -1, value: str = "", annotations: int = 1) -> None:
        """Something for which the map is dropped, or `annotations` of it are."""
        self.report.error(rule, message, self.place, index=index, value=value, annotations=annotations)

    def picture(self) -> Pixels | None:
        """The pixels of a PNG: (height, width) where it is gray, (height, width, 3) where it has colours."""
        if not self._fits(ImageFormat.PNG):
            return None
        try:
            return decode_png(self.file.content, self.limits(pages_max=1))
        except RasterError as error:
            self.error(error.rule, f"the file {error}")
            return None

    def pages(self, *, pages_max: int) -> Sequence[Page] | None:
        """The pages of a TIFF, at least one; the first one's size is the image's, or the image's made smaller."""
        if not self._fits(ImageFormat.TIFF):
            return None
        try:
            return read_pages(self.file.content, self.limits(pages_max=pages_max))
        except RasterError as error:
            self.error(error.rule, f"the file {error}")
            return None

    def page_pixels(self, page: Page, index: int) -> Pixels | None:
        """The pixels of one page: (height, width), or (height, width, samples)."""
        try:
            return page.pixels()
        except RasterError as error:
            self.error(error.rule, f"page {index + 1} of the file {error}", index=index)
            return None

    def page_band(self, page: Page, instance: int) -> tuple[int, Pixels] | None:
        """The number of a row, and the rows from there, perhaps none: all others are black. Otherwise as its pixels."""
        try:
            return page.band()
        except RasterError as error:
            self.error(error.rule, f"the page of instance {instance + 1} {error}", index=instance)
            return None

    def classes(self, pixels: NDArray[np.uint8], vocabulary: Colors) -> NDArray[np.uint16]:
        """The classes that colours stand for; unknown colours are 0, with an error each."""
        classes, unknown = classes_of_colors(pixels, vocabulary)
        for each in unknown[:UNKNOWN_COLORS_MAX]:
            name = hexadecimal(each.color)
            message = (
                f"the colour {name} of {each.pixels} pixels, the first at x {each.x}, y {each.y}, is no category's: "
                "declare it in `colors`, or paint them with a category's colour, without smoothing"
            )
            self.error("unknown_color", message, value=name)
        if (more := len(unknown) - UNKNOWN_COLORS_MAX) > 0:
            message = (
                f"{more} other colours, or more, are no category's either: was the map smoothed, or saved with loss?"
            )
            self.error("unknown_color", message, value=f"{more} colours", annotations=more)
        return classes

    def colors(self, pixels: Pixels, index: int = -1) -> NDArray[np.uint8] | None:
        """The pixels as (height, width, 3) of 8 bits, where they can be colours of a vocabulary."""
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, np.newaxis], 3, axis=2)
        if pixels.dtype == np.uint8:
            return pixels
        if (pixels % 257).any():
            message = "the colours have 16 bits a channel, but `colors` have 8: save it with 8"
            self.error("wrong_bit_depth", message, index=index)
            return None
        return (pixels // 257).astype(np.uint8)

    def refuse_about(self) -> None:
        """Say of what stands beside a map of a task that has nothing to say there that it is passed over."""
        if self.file.about is not None:
            message = "what stands beside the map is passed over: only instances and segments are a crowd or ignored"
            self.report.warn("needless_sidecar", message, self.about_place, value=shown(self.file.about))

    @property
    def about_place(self) -> Place:
        """Where `about` stands."""
        return replace(self.place, file=self.file.about_file or self.place.file, line=0)

    def _fits(self, wanted: ImageFormat) -> bool:
        content = self.file.content
        try:
            header = read_header(Pieces(head=content, tail=b"", size_bytes=len(content)))
        except HeaderError as error:
            rule = "truncated_map" if error.truncated else "unreadable_map"
            self.error(rule, f"the map cannot be read, {error}: write it anew")
            return False
        if header.format is not wanted:
            message = (
                f"the file's name ends in {self.file.suffix}, but its content is {header.format}: write a {wanted}"
            )
            self.error("wrong_extension", message, value=str(header.format))
            return False
        if header.orientation != 1:
            message = "the map says an EXIF orientation of its own: turn its pixels instead, and remove it"
            self.error("exif_rotation", message, value=str(header.orientation))
            return False
        try:
            check_map_size(header.width, header.height, self.size)
        except MapSizeError as error:
            self.error(error.rule, str(error), value=f"{header.width} x {header.height}")
            return False
        return True

    def limits(self, *, pages_max: int) -> RasterLimits:
        """What the file may claim."""
        return RasterLimits(pixels_max=self.size.width * self.size.height, pages_max=pages_max)
