"""Every rule for annotations that are one picture: semantic maps, depth maps, masks of anomalies, and their sizes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.conversion.file.document import read_document
from services.conversion.finding import Action, Place, Report, Severity
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import UNKNOWN_COLORS_MAX, Colors
from services.conversion.formats.format import MapFile
from services.conversion.formats.interval import Interval
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.raster.png import encode_png
from services.conversion.task import Task

SEMANTIC, DEPTH, ANOMALY = (
    FORMATS[task] for task in (Task.SEMANTIC_SEGMENTATION, Task.DEPTH_ESTIMATION, Task.ANOMALY_DETECTION)
)
PLACE = Place(file="maps/a.png", image="a.jpg")
RED, GREEN, WHITE, GRAY = (255, 0, 0), (0, 255, 0), (255, 255, 255), (7, 7, 7)
VOCABULARY = Colors(names=("cat", "007", "no", "wall"), colors={"cat": RED, "no": WHITE, "wall": GRAY})
RANGE = Interval(low=0.5, high=80)
STATES = None


def png(pixels: Any, **options: Any) -> bytes:
    """Of another library's making."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "PNG", **options)
    return file.getvalue()


def picture(rows: list[str], colors: dict[str, tuple[int, int, int]]) -> NDArray[np.uint8]:
    return np.array([[colors[each] for each in row] for row in rows], np.uint8)


def size_of(pixels: Any) -> ImageSize:
    return ImageSize(width=pixels.shape[1], height=pixels.shape[0])


def read(task_format: Any, content: Any, vocabulary: Any, size: ImageSize, *, about: Any = None) -> tuple[Any, Report]:
    report = Report(findings_max=1_000, lenient=True)
    value = MapFile(suffix=".png", content=content, about=about) if isinstance(content, bytes) else content
    annotation = task_format.read(value, size, PLACE, vocabulary, report)
    if annotation is not None:  # what is written reads as the same
        again = Report(findings_max=1)
        written = task_format.write(annotation, size, vocabulary)
        same = task_format.read(written, size, PLACE, vocabulary, again)
        (field,) = (name for name in ("classes", "levels", "pixels") if hasattr(annotation, name))
        before, after = getattr(annotation, field), getattr(same, field)
        assert not again.findings
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    return annotation, report


def rules(report: Report) -> list[tuple[str, str]]:
    return [(f.rule, f.value) for f in report.findings]


def test_a_semantic_map_says_the_class_of_each_pixel_and_black_is_ignored() -> None:
    pixels = picture(["..cc", ".nnw"], {".": (0, 0, 0), "c": RED, "n": WHITE, "w": GRAY})
    found, report = read(SEMANTIC, png(pixels), VOCABULARY, size_of(pixels))
    assert report.findings == []
    assert found.classes.dtype == np.uint16
    assert found.classes.tolist() == [[0, 0, 1, 1], [0, 3, 3, 4]]
    assert found.names == VOCABULARY.names
    assert found.areas.tolist() == [3, 2, 0, 2, 1]
    assert SEMANTIC.count(found) == 3
    assert SEMANTIC.categories(found) == ["cat", "no", "wall"]


def test_what_is_written_is_a_png_of_three_channels_that_other_libraries_read_alike() -> None:
    pixels = picture(["..cc", ".nnw"], {".": (0, 0, 0), "c": RED, "n": WHITE, "w": GRAY})
    found, _ = read(SEMANTIC, png(pixels), VOCABULARY, size_of(pixels))
    written = SEMANTIC.write(found, size_of(pixels), VOCABULARY)
    assert (written.suffix, written.about) == (".png", None)
    with Image.open(io.BytesIO(written.content)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGBA"])
def test_a_map_may_have_a_palette_be_gray_or_have_alpha_where_its_colours_are_the_same(mode: str) -> None:
    pixels = picture(["..nn", "nn.."], {".": (0, 0, 0), "n": WHITE})
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.quantize(2) if mode == "P" else image.convert(mode)).save(file, "PNG")
    found, report = read(SEMANTIC, file.getvalue(), VOCABULARY, size_of(pixels))
    assert report.findings == []
    assert found.classes.tolist() == [[0, 0, 3, 3], [3, 3, 0, 0]]


def test_a_map_that_is_black_says_nothing_and_that_is_no_finding() -> None:
    for task_format, vocabulary in ((SEMANTIC, VOCABULARY), (DEPTH, RANGE)):
        pixels = np.zeros((2, 3) if task_format is DEPTH else (2, 3, 3), np.uint8)
        found, report = read(task_format, png(pixels), vocabulary, size_of(pixels))
        assert (found, report.findings) == (None, [])


def test_a_colour_that_is_no_category_s_is_ignored_with_one_error_for_all_its_pixels() -> None:
    pixels = picture(["...c", "ggnx", "g..."], {".": (0, 0, 0), "c": RED, "g": GREEN, "n": WHITE, "x": (1, 2, 3)})
    found, report = read(SEMANTIC, png(pixels), VOCABULARY, size_of(pixels))
    assert found.classes.tolist() == [[0, 0, 0, 1], [0, 0, 3, 0], [0, 0, 0, 0]]
    assert rules(report) == [("unknown_color", "#00ff00"), ("unknown_color", "#010203")]
    assert "of 3 pixels, the first at x 0, y 1" in report.findings[0].message
    assert "of 1 pixels, the first at x 3, y 1" in report.findings[1].message
    assert {(f.severity, f.action, f.place) for f in report.findings} == {(Severity.ERROR, Action.DROPPED, PLACE)}


def test_a_map_of_unknown_colours_alone_becomes_null() -> None:
    found, report = read(SEMANTIC, png(np.full((2, 2, 3), 9, np.uint8)), VOCABULARY, ImageSize(width=2, height=2))
    assert (found, rules(report)) == (None, [("unknown_color", "#090909")])
    assert [(d.rule, d.annotations, d.images) for d in report.dropped()] == [("unknown_color", 1, 1)]


def test_thousands_of_unknown_colours_are_told_in_a_few_findings() -> None:
    pixels = np.random.default_rng(1).integers(8, 250, (40, 40, 3), np.uint8)
    found, report = read(SEMANTIC, png(pixels), VOCABULARY, size_of(pixels))
    assert found is None
    assert len(report.findings) == UNKNOWN_COLORS_MAX + 1
    assert len(report.findings) < report.annotations_dropped <= 1600


def test_colours_of_16_bits_are_read_where_they_are_those_of_8() -> None:
    pixels = picture(["c.", "nw"], {".": (0, 0, 0), "c": RED, "n": WHITE, "w": GRAY})
    deep = pixels.astype(np.uint16) * 257
    found, report = read(SEMANTIC, encode_png(deep), VOCABULARY, size_of(pixels))
    assert (found.classes.tolist(), report.findings) == ([[1, 0], [3, 4]], [])
    found, report = read(SEMANTIC, encode_png(deep - (deep > 0)), VOCABULARY, size_of(pixels))
    assert (found, rules(report)) == (None, [("wrong_bit_depth", "")])


# Each case: the width and the height of the map and of the image, and the rule that is broken.
SIZES = {
    "the same": ((640, 480), (640, 480), ""),
    "half": ((320, 240), (640, 480), ""),
    "one pixel": ((1, 1), (640, 480), ""),
    "an image that cannot be halved": ((320, 214), (641, 427), ""),
    "rounded the other way": ((321, 213), (641, 427), ""),
    "one pixel of the map too high": ((20, 16), (640, 480), ""),
    "two pixels of the map too high": ((20, 17), (640, 480), "aspect_ratio"),
    "one pixel of the map too wide": ((21, 15), (640, 480), ""),
    "two pixels of the map too wide": ((22, 15), (640, 480), "aspect_ratio"),
    "square": ((100, 100), (640, 480), "aspect_ratio"),
    "larger": ((641, 481), (640, 480), "map_too_large"),
    "wider": ((641, 480), (640, 480), "map_too_large"),
    "on its side": ((480, 640), (640, 480), "map_too_large"),
    "smaller and on its side": ((120, 160), (640, 480), "aspect_ratio"),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_map_may_be_smaller_than_its_image_within_one_pixel_of_the_map_s_own(case: str) -> None:
    (width, height), (image_width, image_height), rule = SIZES[case]
    for task_format, vocabulary in ((SEMANTIC, VOCABULARY), (DEPTH, RANGE), (ANOMALY, STATES)):
        pixels = np.full((height, width), 255, np.uint8)
        size = ImageSize(width=image_width, height=image_height)
        found, report = read(task_format, png(pixels), vocabulary, size)
        assert [f.rule for f in report.findings] == [rule] * bool(rule)
        assert (found is None) == bool(rule)


def test_a_map_that_fits_only_the_image_as_it_lies_in_its_file_is_an_error_of_its_own() -> None:
    entry = ImageEntry(name="a.jpg", size_bytes=1, etag="", width=480, height=640, orientation=6)
    for width, height in ((640, 480), (320, 240)):
        found, report = read(SEMANTIC, png(np.full((height, width), 255, np.uint8)), VOCABULARY, entry.size)
        assert (found, rules(report)) == (None, [("exif_rotation", f"{width} x {height}")])
    found, report = read(SEMANTIC, png(np.full((320, 240), 255, np.uint8)), VOCABULARY, entry.size)
    assert (found.classes.shape, report.findings) == ((320, 240), [])


def test_a_map_with_an_orientation_of_its_own_is_refused() -> None:
    exif = Image.Exif()
    exif[274] = 6
    found, report = read(
        SEMANTIC, png(np.full((4, 4), 255, np.uint8), exif=exif), VOCABULARY, ImageSize(width=4, height=4)
    )
    assert (found, rules(report)) == (None, [("exif_rotation", "6")])


def damaged(content: bytes) -> bytes:
    middle = content.index(b"IDAT") + 8
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def bomb(content: bytes) -> bytes:
    """Claims 60,000 x 60,000 pixels."""
    return content[:16] + (60_000).to_bytes(4) * 2 + content[24:]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda content: b"", "unreadable_map"),
        (lambda content: b"no picture", "unreadable_map"),
        (lambda content: content[:-20], "truncated_map"),
        (damaged, "unreadable_map"),
        (bomb, "map_too_large"),
    ],
    ids=["empty", "text", "truncated", "damaged", "bomb"],
)
def test_a_file_that_is_no_whole_picture_is_found(change: Any, rule: str) -> None:
    content = png(np.random.default_rng(1).integers(0, 2, (64, 64), np.uint8) * 255)
    for task_format, vocabulary in ((SEMANTIC, VOCABULARY), (DEPTH, RANGE), (ANOMALY, STATES)):
        found, report = read(task_format, change(content), vocabulary, ImageSize(width=64, height=64))
        assert (found, [f.rule for f in report.findings]) == (None, [rule])
        assert report.annotations_dropped == 1


def test_a_file_of_another_kind_than_its_name_says_is_found() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG")
    found, report = read(SEMANTIC, file.getvalue(), VOCABULARY, ImageSize(width=4, height=4))
    assert (found, rules(report)) == (None, [("wrong_extension", "JPEG")])


def test_a_value_where_a_map_was_wanted_is_found() -> None:
    for task_format, vocabulary in ((SEMANTIC, VOCABULARY), (DEPTH, RANGE)):
        found, report = read(task_format, "cat", vocabulary, ImageSize(width=4, height=4))
        assert (found, rules(report)) == (None, [("bad_value", "cat")])


def test_what_stands_beside_a_map_without_objects_is_passed_over_with_a_warning() -> None:
    about = read_document(b"crowd: [1]", "a.yaml").value
    content = png(np.full((2, 2), 255, np.uint8))
    for task_format, vocabulary in ((SEMANTIC, VOCABULARY), (DEPTH, RANGE), (ANOMALY, STATES)):
        found, report = read(task_format, content, vocabulary, ImageSize(width=2, height=2), about=about)
        assert found is not None
        assert [(f.severity, f.rule) for f in report.findings] == [(Severity.WARNING, "needless_sidecar")]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_depth_map_keeps_its_levels(dtype: Any) -> None:
    most = np.iinfo(dtype).max
    levels = np.array([[0, 1, 2], [most // 2, most - 1, most]], dtype)
    found, report = read(DEPTH, png(levels), RANGE, size_of(levels))
    assert report.findings == []
    assert found.levels.dtype == dtype
    assert found.levels.tolist() == levels.tolist()
    assert (DEPTH.count(found), DEPTH.categories(found), DEPTH.names(RANGE)) == (1, (), ())


def test_a_depth_map_is_gray_and_has_8_or_16_bits() -> None:
    found, report = read(DEPTH, png(np.full((2, 2, 3), 9, np.uint8)), RANGE, ImageSize(width=2, height=2))
    assert (found, rules(report)) == (None, [("not_gray", "")])
    found, report = read(DEPTH, png(np.ones((2, 2), np.bool_)), RANGE, ImageSize(width=2, height=2))
    assert (found, rules(report)) == (None, [("wrong_bit_depth", "1")])


def test_a_mask_says_where_an_image_is_anomalous_and_a_black_one_that_it_is_normal() -> None:
    gray = np.array([[0, 1, 255], [0, 0, 0]], np.uint8)
    masks = [gray, np.repeat(gray[:, :, None], 3, axis=2), gray.astype(np.uint16) * 256, gray > 0]
    for mask in masks:
        found, report = read(ANOMALY, png(mask), STATES, ImageSize(width=3, height=2))
        assert report.findings == []
        assert found.pixels.tolist() == [[False, True, True], [False, False, False]]
        assert (ANOMALY.count(found), ANOMALY.categories(found)) == (1, ("anomalous",))
        normal, report = read(ANOMALY, png(np.zeros_like(mask)), STATES, ImageSize(width=3, height=2))
        assert (ANOMALY.categories(normal), report.findings) == (("normal",), [])


def test_anomalies_may_be_values_as_well() -> None:
    report = Report(findings_max=10)
    size = ImageSize(width=3, height=2)
    for value in ("normal", "anomalous"):
        assert ANOMALY.read(value, size, PLACE, STATES, report) == value
        assert ANOMALY.write(value, size, STATES) == value
        assert ANOMALY.categories(value) == (value,)
    assert report.findings == []
    assert ANOMALY.names(STATES) == ("normal", "anomalous")
    assert ANOMALY.read("odd", size, PLACE, STATES, report) is None
    assert rules(report) == [("bad_value", "odd")]
