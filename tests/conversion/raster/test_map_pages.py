"""Every rule for annotations of several pages, instances and panoptic maps, and for what stands beside them."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.conversion.file.document import read_document
from services.conversion.finding import Action, Place, Report, Severity
from services.conversion.formats import FORMATS, instance_segmentation
from services.conversion.formats.colors import Colors
from services.conversion.formats.format import MapFile
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageSize
from services.conversion.raster.runs import mask_of_runs
from services.conversion.task import Task

INSTANCE, PANOPTIC = FORMATS[Task.INSTANCE_SEGMENTATION], FORMATS[Task.PANOPTIC_SEGMENTATION]
PLACE = Place(file="maps/a.tiff", image="a.jpg")
COLORS = {"cat": (255, 0, 0), "no": (255, 255, 255), "wall": (7, 7, 7)}
VOCABULARY = Colors(names=("cat", "007", "no", "wall"), colors=COLORS)
PAINT = {".": (0, 0, 0), "c": COLORS["cat"], "n": COLORS["no"], "w": COLORS["wall"], "?": (1, 2, 3), "!": (0, 9, 0)}
SIZE = ImageSize(width=4, height=2)
ERROR, WARNING = Severity.ERROR, Severity.WARNING


def picture(*rows: str) -> NDArray[np.uint8]:
    return np.array([[PAINT[each] for each in row] for row in rows], np.uint8)


def tiff(pages: list[Any], *, planar: bool = False) -> bytes:
    """Pages (height, width) or (height, width, samples), not compressed."""
    content = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for page in map(np.asarray, pages):
        height, width, samples = (*page.shape, 1)[:3]
        planes = [page[..., each] for each in range(samples)] if planar and samples > 1 else [page]
        offsets = []
        for plane in planes:
            offsets.append(len(content))
            content += np.ascontiguousarray(plane).astype(page.dtype.newbyteorder("<")).tobytes()
        bits = [8 * page.dtype.itemsize] * samples
        counts = [plane.nbytes for plane in planes]
        tags = [
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, bits),
            (259, 3, [1]),
            (262, 3, [2 if samples >= 3 else 1]),
            (273, 4, offsets),
            (277, 3, [samples]),
            (278, 4, [height]),
            (279, 4, counts),
            (284, 3, [2 if len(planes) > 1 else 1]),
            *([(338, 3, [2] * (samples % 2 == 0))] if samples in (2, 4) else []),
        ]
        entries = []
        for tag, kind, values in tags:
            data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(data) > 4:
                content += bytes(len(content) % 2)
                data, start = struct.pack("<I", len(content)), data
                content += start
            entries.append(struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0"))
        content += bytes(len(content) % 2)
        content[link : link + 4] = struct.pack("<I", len(content))
        content += struct.pack("<H", len(entries)) + b"".join(entries)
        link = len(content)
        content += bytes(4)
    return bytes(content)


def yaml(text: str) -> Any:
    return read_document(text.encode(), "a.yaml").value if text else None


def read(
    task_format: Any, content: bytes, vocabulary: Any, about: str = "", size: ImageSize = SIZE
) -> tuple[Any, Report]:
    report = Report(findings_max=1_000, lenient=True)
    file = MapFile(suffix=".tiff", content=content, about=yaml(about), about_file="maps/a.yaml")
    annotation = task_format.read(file, size, PLACE, vocabulary, report)
    if annotation is not None:  # what is written reads as the same
        again = Report(findings_max=1)
        assert shown(read_again(task_format, annotation, size, vocabulary, again)) == shown(annotation)
        assert not again.findings
    return annotation, report


def read_again(task_format: Any, annotation: Any, size: ImageSize, vocabulary: Any, report: Report) -> Any:
    written = task_format.write(annotation, size, vocabulary)
    about = None if written.about is None else read_document(json.dumps(written.about).encode(), "a.json").value
    file = MapFile(suffix=written.suffix, content=written.content, about=about)
    return task_format.read(file, size, PLACE, vocabulary, report)


def shown(annotation: Any) -> Any:
    """Something that can be compared, and read."""
    if isinstance(annotation, PanopticMap):
        return annotation.segments, annotation.labels.tolist()
    if isinstance(annotation, InstanceMap):
        sizes = {"height": annotation.height, "width": annotation.width}
        return [
            (each.category, each.crowd, each.ignore, mask_of_runs(each.mask, **sizes).astype(int).tolist())
            for each in annotation.instances
        ]
    return annotation


def found_in(report: Report) -> list[tuple[Severity, str, int, int, str]]:
    return [(f.severity, f.rule, f.place.line, f.index, f.value) for f in report.findings]


INSTANCES = [picture("cc..", "c..."), picture("...n", "...n"), picture(".cc.", ".c.c")]
MASKS = [
    ("cat", False, False, [[1, 1, 0, 0], [1, 0, 0, 0]]),
    ("no", False, False, [[0, 0, 0, 1], [0, 0, 0, 1]]),
    ("cat", False, False, [[0, 1, 1, 0], [0, 1, 0, 1]]),
]


@pytest.mark.parametrize(
    "pages",
    [
        tiff(INSTANCES),
        tiff(INSTANCES, planar=True),
        tiff([page[..., channel] for page in INSTANCES for channel in range(3)]),
        tiff([INSTANCES[0], *(INSTANCES[1][..., channel] for channel in range(3)), INSTANCES[2]]),
        tiff([page.astype(np.uint16) * 257 for page in INSTANCES]),
    ],
    ids=["interleaved", "planar", "gray", "mixed", "16 bits"],
)
def test_each_page_is_an_instance_whose_masks_may_overlap(pages: bytes) -> None:
    found, report = read(INSTANCE, pages, VOCABULARY)
    assert report.findings == []
    assert shown(found) == MASKS
    assert (found.width, found.height) == (4, 2)
    assert (INSTANCE.count(found), INSTANCE.categories(found)) == (3, ["cat", "no", "cat"])


def test_what_is_written_is_a_page_for_each_instance_that_other_libraries_read_alike() -> None:
    found, _ = read(INSTANCE, tiff(INSTANCES), VOCABULARY, "{crowd: [2], ignore: [1, 3]}")
    written = INSTANCE.write(found, SIZE, VOCABULARY)
    assert (written.suffix, written.about) == (".tiff", {"crowd": [2], "ignore": [1, 3]})
    with Image.open(io.BytesIO(written.content)) as image:
        assert image.n_frames == 3
        for number, page in enumerate(INSTANCES):
            image.seek(number)
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), page)


def test_one_black_page_says_that_nothing_is_there() -> None:
    black = picture("....", "....")
    for pages in ([black], [black[..., 0]] * 3):
        found, report = read(INSTANCE, tiff(pages), VOCABULARY)
        assert (found, report.findings) == (InstanceMap(width=4, height=2, instances=()), [])
        assert INSTANCE.count(found) == 0


def test_a_black_page_among_others_is_left_out_and_keeps_its_number() -> None:
    pages = [INSTANCES[0], picture("....", "...."), INSTANCES[1]]
    found, report = read(INSTANCE, tiff(pages), VOCABULARY, "crowd: [3]")
    assert [(each.category, each.crowd) for each in found.instances] == [("cat", False), ("no", True)]
    assert found_in(report) == [(WARNING, "empty_page", 0, 1, "")]
    assert report.findings[0].action is Action.DROPPED
    assert [(d.rule, d.annotations) for d in report.dropped()] == [("empty_page", 1)]
    found, report = read(INSTANCE, tiff([pages[1]] * 2), VOCABULARY)
    assert (found.instances, [f.rule for f in report.findings]) == ((), ["empty_page"] * 2)


def test_what_stands_beside_instances_names_their_pages_from_1() -> None:
    gray = tiff([page[..., channel] for page in INSTANCES for channel in range(3)])
    for pages in (tiff(INSTANCES), gray):
        found, report = read(INSTANCE, pages, VOCABULARY, "crowd: [3, 1]\nignore:\n- 3\n")
        assert report.findings == []
        assert [(each.crowd, each.ignore) for each in found.instances] == [(True, False), (False, False), (True, True)]


BAD_PAGES: dict[str, tuple[bytes, list[str] | None, list[tuple[Severity, str, int, int, str]]]] = {
    "an unknown colour": (
        tiff([INSTANCES[0], picture("..?.", "..?!"), INSTANCES[1]]),
        ["cat", "no"],
        [(ERROR, "unknown_color", 0, 1, "#010203")],
    ),
    "a known and an unknown colour": (
        tiff([picture("cc?.", "...."), INSTANCES[1]]),
        ["no"],
        [(ERROR, "unknown_color", 0, 0, "#010203")],
    ),
    "two known colours": (
        tiff([INSTANCES[1], picture("cc.w", "....")]),
        ["no"],
        [(ERROR, "mixed_colors", 0, 1, "")],
    ),
    "another size": (
        tiff([INSTANCES[0], picture("nn.", "n.."), INSTANCES[1]]),
        ["cat", "no"],
        [(ERROR, "page_size", 0, 1, "")],
    ),
    "all bad": (
        tiff([picture("?...", "...."), picture("nc..", "....")]),
        None,
        [(ERROR, "unknown_color", 0, 0, "#010203"), (ERROR, "mixed_colors", 0, 1, "")],
    ),
    "bad and black": (
        tiff([picture("?...", "...."), picture("....", "....")]),
        None,
        [(ERROR, "unknown_color", 0, 0, "#010203")],
    ),
    "two gray pages": (
        tiff([INSTANCES[0][..., 0]] * 2),
        None,
        [(ERROR, "wrong_pages", 0, 0, "")],
    ),
    "four gray pages": (
        tiff([INSTANCES[0][..., 0]] * 4),
        None,
        [(ERROR, "wrong_pages", 0, 3, "")],
    ),
    "two gray pages before one of colours": (
        tiff([INSTANCES[0][..., 0], INSTANCES[0][..., 1], INSTANCES[0]]),
        None,
        [(ERROR, "wrong_pages", 0, 0, "")],
    ),
    "another shape than the image": (
        tiff([np.zeros((4, 4, 3), np.uint8)]),
        None,
        [(ERROR, "map_too_large", 0, -1, "4 x 4")],
    ),
    "a truncated file": (tiff(INSTANCES)[:-30], None, [(ERROR, "truncated_map", 0, -1, "")]),
    "no file at all": (b"", None, [(ERROR, "unreadable_map", 0, -1, "")]),
    "colours of 16 bits that 8 cannot say": (
        tiff([INSTANCES[0].astype(np.uint16) * 256, INSTANCES[1].astype(np.uint16) * 257]),
        ["no"],
        [(ERROR, "wrong_bit_depth", 0, 0, "")],
    ),
}


@pytest.mark.parametrize("case", BAD_PAGES)
def test_a_bad_page_is_dropped_and_where_all_are_nothing_is_known(case: str) -> None:
    content, left, expected = BAD_PAGES[case]
    found, report = read(INSTANCE, content, VOCABULARY)
    assert (None if found is None else [each.category for each in found.instances]) == left
    assert found_in(report) == expected
    assert report.annotations_dropped == len([each for each in expected if each[0] is ERROR])


def test_the_names_of_two_categories_on_one_page_are_told() -> None:
    _, report = read(INSTANCE, tiff([picture("cc.w", "....")]), VOCABULARY)
    assert "'cat' and 'wall'" in report.findings[0].message


# Colours, then ids.
PANOPTIC_MAP = [picture("ccn.", "wcn."), np.array([[0, 300, 2, 2], [0, 0, 0, 9]], np.uint16)]
SEGMENTS = [("cat", 0), ("cat", 300), ("no", 0), ("no", 2), ("wall", 0)]
LABELS = [[1, 2, 4, 0], [5, 1, 3, 0]]
THINGS = PanopticColors(names=VOCABULARY.names, colors=COLORS, things=frozenset({"cat"}))


@pytest.mark.parametrize("planar", [False, True])
def test_pairs_of_colour_and_id_are_segments_and_black_is_void_whatever_the_id(planar: bool) -> None:
    found, report = read(PANOPTIC, tiff(PANOPTIC_MAP, planar=planar), THINGS)
    assert report.findings == []
    assert [(each.category, each.id) for each in found.segments] == SEGMENTS
    assert found.labels.dtype == np.uint16
    assert found.labels.tolist() == LABELS
    assert PANOPTIC.count(found) == 5
    assert PANOPTIC.categories(found) == ["cat", "cat", "no", "no", "wall"]


def test_ids_of_8_bits_stay_so() -> None:
    pages = [PANOPTIC_MAP[0], np.array([[255, 3, 2, 2], [0, 255, 0, 9]], np.uint8)]
    found, _ = read(PANOPTIC, tiff(pages), THINGS)
    assert [(each.category, each.id) for each in found.segments[:2]] == [("cat", 3), ("cat", 255)]
    for ids, mode in ((pages, "L"), (PANOPTIC_MAP, "I;16")):
        found, _ = read(PANOPTIC, tiff(ids), THINGS)
        written = PANOPTIC.write(found, SIZE, THINGS)
        with Image.open(io.BytesIO(written.content)) as image:
            assert (image.n_frames, image.mode) == (2, "RGB")
            assert np.array_equal(np.asarray(image), pages[0])
            image.seek(1)
            assert image.mode == mode
            assert np.array_equal(np.asarray(image) * (found.labels > 0), ids[1] * (found.labels > 0))


def test_what_stands_beside_a_panoptic_map_names_segments_by_category_and_id() -> None:
    about = "crowd:\n- [cat, 300]\n- [no, 0]\nignore: [[wall, 0], [cat, 300]]\n"
    found, report = read(PANOPTIC, tiff(PANOPTIC_MAP), THINGS, about)
    assert report.findings == []
    assert found.segments == (
        Segment(category="cat", id=0),
        Segment(category="cat", id=300, crowd=True, ignore=True),
        Segment(category="no", id=0, crowd=True),
        Segment(category="no", id=2),
        Segment(category="wall", id=0, ignore=True),
    )
    written = PANOPTIC.write(found, SIZE, THINGS)
    assert written.about == {"crowd": [["cat", 300], ["no", 0]], "ignore": [["cat", 300], ["wall", 0]]}


def test_a_panoptic_map_that_is_void_says_nothing() -> None:
    pages = [picture("....", "...."), PANOPTIC_MAP[1]]
    found, report = read(PANOPTIC, tiff(pages), THINGS)
    assert (found, report.findings) == (None, [])


COLOR_PAGE, IDS = PANOPTIC_MAP
BAD_MAPS: dict[str, tuple[bytes, list[tuple[Severity, str, int, int, str]]]] = {
    "one page": (tiff([COLOR_PAGE]), [(ERROR, "wrong_pages", 0, -1, "[3]")]),
    "the other order": (tiff([IDS, COLOR_PAGE]), [(ERROR, "wrong_pages", 0, -1, "[1, 3]")]),
    "two pages of ids": (tiff([IDS, IDS]), [(ERROR, "wrong_pages", 0, -1, "[1, 1]")]),
    "two pages of colours": (tiff([COLOR_PAGE, COLOR_PAGE]), [(ERROR, "wrong_pages", 0, -1, "[3, 3]")]),
    "pages of two sizes": (tiff([COLOR_PAGE, IDS[:, :3]]), [(ERROR, "page_size", 0, 1, "4 x 2 and 3 x 2")]),
    "colours of 16 bits": (
        tiff([COLOR_PAGE.astype(np.uint16) * 256, IDS]),
        [(ERROR, "wrong_bit_depth", 0, 0, "")],
    ),
    "an unknown colour alone": (
        tiff([picture("????", "????"), IDS]),
        [(ERROR, "unknown_color", 0, -1, "#010203")],
    ),
    "another shape than the image": (
        tiff([COLOR_PAGE.repeat(2, axis=0), IDS.repeat(2, axis=0)]),
        [(ERROR, "map_too_large", 0, -1, "4 x 4")],
    ),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_a_panoptic_map_with_wrong_pages_is_dropped(case: str) -> None:
    content, expected = BAD_MAPS[case]
    found, report = read(PANOPTIC, content, THINGS)
    assert (found, found_in(report)) == (None, expected)
    assert report.annotations_dropped == 1


def test_three_pages_are_too_many_for_a_panoptic_map() -> None:
    found, report = read(PANOPTIC, tiff([*PANOPTIC_MAP, IDS]), THINGS)
    assert found is None
    assert [(f.severity, f.rule) for f in report.findings] == [(ERROR, "too_many_pages")]


def test_ids_of_32_bits_do_not_fit() -> None:
    found, report = read(PANOPTIC, tiff([COLOR_PAGE, IDS.astype(np.uint32)]), THINGS)
    assert found is None
    assert [f.severity for f in report.findings] == [ERROR]


def test_the_pixels_of_an_unknown_colour_become_void() -> None:
    pages = [picture("cc??", "w?n."), IDS]
    found, report = read(PANOPTIC, tiff(pages), THINGS)
    assert found.labels.tolist() == [[1, 2, 0, 0], [4, 0, 3, 0]]
    assert found_in(report) == [(ERROR, "unknown_color", 0, -1, "#010203")]


def test_an_instance_s_colour_may_be_gray_and_so_may_its_page_s_neighbours() -> None:
    found, report = read(INSTANCE, tiff([picture("ww..", "....")]), VOCABULARY)
    (only,) = found.instances
    assert only == Instance(category="wall", mask=only.mask)
    assert report.findings == []


def test_maps_of_pages_may_be_smaller_than_their_image() -> None:
    size = ImageSize(width=8, height=5)
    for task_format, pages, vocabulary in ((INSTANCE, INSTANCES, VOCABULARY), (PANOPTIC, PANOPTIC_MAP, THINGS)):
        found, report = read(task_format, tiff(pages), vocabulary, size=size)
        assert found is not None
        assert report.findings == []


def test_a_file_of_few_bytes_cannot_claim_more_pixels_than_can_be_looked_at_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instance_segmentation, "PAINTED_PIXELS_MAX", 2 * 4 * 2)
    found, report = read(INSTANCE, tiff(INSTANCES), VOCABULARY)
    assert (found, found_in(report)) == (None, [(ERROR, "too_many_pixels", 0, -1, "24")])
    assert report.annotations_dropped == 3
    black = picture("....", "....")
    found, report = read(INSTANCE, tiff([INSTANCES[0], black, black, INSTANCES[1]]), VOCABULARY)
    assert len(found.instances) == 2
