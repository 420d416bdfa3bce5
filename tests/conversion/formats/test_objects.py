"""Every rule for annotations that are values in documents: what is kept, what is found, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from services.conversion.dataset.annotations import raw_records, read_annotation_file
from services.conversion.dataset.metadata import read_metadata, read_vocabulary
from services.conversion.file.document import read_document
from services.conversion.finding import Action, Place, Report, Severity
from services.conversion.formats import FORMATS
from services.conversion.formats.keypoint_detection import Instance
from services.conversion.formats.number import NUMBER_MAX
from services.conversion.formats.object_detection import Box
from services.conversion.formats.quadrilateral_detection import Quad
from services.conversion.formats.scene_text_recognition import TOKENS_MAX
from services.conversion.index import ImageEntry, Index

ERROR, WARNING = Severity.ERROR, Severity.WARNING
DETECTION = "task: object detection\ncategories: [cat, '007', no]\n"
QUADS = "task: quadrilateral detection\ncategories: [text]\n"
KEYPOINTS = "task: keypoint detection\nkeypoints: [nose, left eye, right eye]\n"
REGRESSION = "task: regression\nrange: [-1.5, 1e1]\n"
TEXT = "task: scene text recognition\ntokens: abcß\n"


def read(metadata: str, annotation: str, *, lenient: bool = True, size: tuple[int, int] = (100, 80)) -> Any:
    """The annotation of the only image, a.png of 100 x 80, and the report. The annotation begins on line 2."""
    report = Report(findings_max=1_000, lenient=lenient)
    declared = read_metadata((metadata + "annotations: labels.yaml\n").encode(), "metadata.yaml", report)
    assert not report.findings
    vocabulary = read_vocabulary(declared.sets[0], report)
    annotations = read_annotation_file(f"a.png:\n{annotation}\n".encode(), "labels.yaml", report)
    entry = ImageEntry(name="a.png", size_bytes=1, etag="1", width=size[0], height=size[1], format="PNG")
    (record,) = raw_records(declared.sets[0], annotations, Index(entries=(entry,)), {}, report)
    task_format = FORMATS[declared.sets[0].task]
    annotation = None
    if record.value is not None:
        annotation = task_format.read(record.value, entry.size, record.place, vocabulary, report)
    if annotation is not None:  # what is written reads as the same
        assert read_again(task_format, vocabulary, annotation, entry) == annotation
    return annotation, report


def read_again(task_format: Any, vocabulary: Any, annotation: Any, entry: ImageEntry) -> Any:

    report = Report(findings_max=10)
    written = json.dumps(
        {
            "vocabulary": task_format.write_vocabulary(vocabulary),
            "a": task_format.write(annotation, entry.size, vocabulary),
        }
    )
    value: Any = read_document(written.encode(), "x.json").value
    same = task_format.read_vocabulary(value["vocabulary"], Place(file="x.json"), report)
    assert same == vocabulary
    return task_format.read(value["a"], entry.size, Place(file="x.json"), same, report)


def box(numbers: str, **others: str) -> str:
    return "- {category: cat, bbox: " + numbers + "".join(f", {key}: {value}" for key, value in others.items()) + "}"


def quad(numbers: str) -> str:
    return "- {category: text, quad: " + numbers + "}"


SOUND = {
    "boxes": (
        DETECTION,
        "- {category: cat, bbox: [1, 2.5, 30, 4e1]}\n- category: 007\n  bbox:\n  - 0\n  - 0.0\n  - 100\n  - +80\n"
        "- {category: no, bbox: [5, 5, 6, 6], crowd: true, ignore: false}\n"
        "- {category: no, bbox: [.5, 5., 6, 6], ignore: True, crowd: null}",
        (
            Box(category="cat", bbox=(1, 2.5, 30, 40)),
            Box(category="007", bbox=(0, 0, 100, 80)),
            Box(category="no", bbox=(5, 5, 6, 6), crowd=True),
            Box(category="no", bbox=(0.5, 5, 6, 6), ignore=True),
        ),
    ),
    "a box that is rounded over the edge": (
        DETECTION,
        box("[0, 0, 100.004, 80]"),
        (Box(category="cat", bbox=(0, 0, 100.004, 80)),),
    ),
    "no boxes": (DETECTION, "  []", ()),
    "unlabelled boxes": (DETECTION, "  null", None),
    "quads in the order that they have": (
        QUADS,
        quad("[[9, 1], [9, 5], [1, 5], [1, 1]]")
        + "\n- {category: text, ignore: true, crowd: true, quad: [[1, 1], [9, 1], [9, 5.5], [1, 5]]}",
        (
            Quad(category="text", quad=((9, 1), (9, 5), (1, 5), (1, 1))),
            Quad(category="text", quad=((1, 1), (9, 1), (9, 5.5), (1, 5)), crowd=True, ignore=True),
        ),
    ),
    "a quad that turns the other way": (
        QUADS,
        quad("[[1, 1], [1, 5], [9, 5], [9, 1]]"),
        (Quad(category="text", quad=((1, 1), (1, 5), (9, 5), (9, 1))),),
    ),
    "a quad with two corners in one": (
        QUADS,
        quad("[[1, 1], [1, 1], [9, 5], [1, 5]]"),
        (Quad(category="text", quad=((1, 1), (1, 1), (9, 5), (1, 5))),),
    ),
    "no quads": (QUADS, "  []", ()),
    "keypoints": (
        KEYPOINTS,
        "- {left eye: [1, 2], nose: null}\n- {right eye: [3, 4.5], bbox: [0, 0, 9, 9], area: 7.5, crowd: true}\n"
        "- {bbox: [1, 1, 2, 2], ignore: true}",
        (
            Instance(points={"left eye": (1, 2), "nose": None}),
            Instance(points={"right eye": (3, 4.5)}, bbox=(0, 0, 9, 9), area=7.5, crowd=True),
            Instance(points={}, bbox=(1, 1, 2, 2), ignore=True),
        ),
    ),
    "a keypoint in the corner": (KEYPOINTS, "- {nose: [0, 0.5]}", (Instance(points={"nose": (0, 0.5)}),)),
    "no keypoints": (KEYPOINTS, "  []", ()),
    "a number": (REGRESSION, "  -1.50", -1.5),
    "an unlabelled number": (REGRESSION, "  ~", None),
    "a text": (TEXT, "  abß", ("a", "b", "ß")),
    "a text of tokens": (TEXT, "- a\n- a", ("a", "a")),
    "no text": (TEXT, "  []", ()),
    "no text in another way": (TEXT, "  ''", ()),
    "a text of words": (
        "task: scene text recognition\ntokens: [th, e, 'null']\n",
        "  [e, th, 'null']",
        ("e", "th", "null"),
    ),
}


@pytest.mark.parametrize("case", SOUND)
def test_what_is_sound_is_read_as_it_stands_and_written_so_that_it_reads_the_same(case: str) -> None:
    metadata, annotation, expected = SOUND[case]
    found, report = read(metadata, annotation)
    assert (found, report.findings) == (expected, [])


# Each case: metadata, annotation, what is left in lenient, and what is found: (severity, rule, line, index, value).
Expected = list[tuple[Severity, str, int, int, str]]
BAD: dict[str, tuple[str, str, Any, Expected]] = {
    "boxes that are text": (DETECTION, "  cat", None, [(ERROR, "bad_value", 1, -1, "cat")]),
    "a box that is a list": (DETECTION, "- [1, 2]", None, [(ERROR, "bad_value", 2, 0, "2 items")]),
    "a box that is null": (DETECTION, "- null", None, [(ERROR, "bad_value", 2, 0, "null")]),
    "no category": (DETECTION, "- {bbox: [1, 1, 3, 3]}", None, [(ERROR, "missing_key", 2, 0, "")]),
    "a null category": (
        DETECTION,
        "- bbox: [1, 1, 3, 3]\n  category:",
        None,
        [(ERROR, "missing_key", 3, 0, "")],
    ),
    "a category that is a list": (
        DETECTION,
        "- {bbox: [1, 1, 3, 3], category: [cat]}",
        None,
        [(ERROR, "bad_value", 2, 0, "1 items")],
    ),
    "an undeclared category": (
        DETECTION,
        "- bbox: [1, 1, 3, 3]\n  category: cow",
        None,
        [(ERROR, "undeclared_category", 3, 0, "cow")],
    ),
    "no bbox": (DETECTION, "- {category: cat}", None, [(ERROR, "missing_key", 2, 0, "")]),
    "a bbox that is text": (DETECTION, box("'1234'"), None, [(ERROR, "wrong_coordinate_count", 2, 0, "1234")]),
    "a bbox that is a mapping": (
        DETECTION,
        box("{1: a, 2: b, 3: c, 4: d}"),
        None,
        [(ERROR, "wrong_coordinate_count", 2, 0, "4 keys")],
    ),
    "three coordinates": (DETECTION, box("[1, 2, 3]"), None, [(ERROR, "wrong_coordinate_count", 2, 0, "[1, 2, 3]")]),
    "five coordinates": (
        DETECTION,
        box("[1, 2, 3, 4, 5]"),
        None,
        [(ERROR, "wrong_coordinate_count", 2, 0, "[1, 2, 3, 4, 5]")],
    ),
    "a word": (DETECTION, box("[1, 2, x, 4]"), None, [(ERROR, "bad_value", 2, 0, "[1, 2, x, 4]")]),
    "a null coordinate": (DETECTION, box("[1, 2, null, 4]"), None, [(ERROR, "bad_value", 2, 0, "[1, 2, null, 4]")]),
    "a list for a coordinate": (DETECTION, box("[1, 2, [3], 4]"), None, [(ERROR, "bad_value", 2, 0, "[1, 2, [3], 4]")]),
    "an underscore": (DETECTION, box("[1, 2, 1_0, 4]"), None, [(ERROR, "bad_value", 2, 0, "[1, 2, 1_0, 4]")]),
    "other digits": (DETECTION, box("[1, 2, ٣, 4]"), None, [(ERROR, "bad_value", 2, 0, "[1, 2, ٣, 4]")]),
    "hexadecimal": (DETECTION, box("[1, 2, 0x1F, 40]"), None, [(ERROR, "bad_value", 2, 0, "[1, 2, 0x1F, 40]")]),
    "yaml's not a number": (DETECTION, box("[1, 2, .nan, 4]"), None, [(ERROR, "not_finite", 2, 0, "[1, 2, .nan, 4]")]),
    "python's not a number": (DETECTION, box("[nan, 2, 3, 4]"), None, [(ERROR, "not_finite", 2, 0, "[nan, 2, 3, 4]")]),
    "infinity": (DETECTION, box("[1, 2, .inf, 4]"), None, [(ERROR, "not_finite", 2, 0, "[1, 2, .inf, 4]")]),
    "minus infinity": (
        DETECTION,
        box("[-Infinity, 2, 3, 4]"),
        None,
        [(ERROR, "not_finite", 2, 0, "[-Infinity, 2, 3, 4]")],
    ),
    "a number too large": (
        DETECTION,
        box("[1, 2, 1e99, 4]"),
        None,
        [(ERROR, "number_too_large", 2, 0, "[1, 2, 1e99, 4]")],
    ),
    "no width": (DETECTION, box("[5, 5, 5, 9]"), None, [(ERROR, "no_area", 2, 0, "[5, 5, 5, 9]")]),
    "no height": (DETECTION, box("[5, 5, 9, 5.0]"), None, [(ERROR, "no_area", 2, 0, "[5, 5, 9, 5.0]")]),
    "reversed": (
        DETECTION,
        box("[50, 50, 10, 60]"),
        None,
        [
            (ERROR, "reversed_box", 2, 0, "[50, 50, 10, 60]"),
        ],
    ),
    "reversed and like xywh": (
        DETECTION,
        box("[50, 40, 10, 30]"),
        None,
        [
            (ERROR, "reversed_box", 2, 0, "[50, 40, 10, 30]"),
            (WARNING, "looks_like_xywh", 2, 0, "[50, 40, 10, 30]"),
        ],
    ),
    "right of the image": (
        DETECTION,
        box("[100, 0, 110, 9]"),
        None,
        [(ERROR, "outside_image", 2, 0, "[100, 0, 110, 9]")],
    ),
    "above the image": (DETECTION, box("[1, -9, 9, 0]"), None, [(ERROR, "outside_image", 2, 0, "[1, -9, 9, 0]")]),
    "in part outside": (
        DETECTION,
        box("[-5, 0, 9, 81]"),
        (Box(category="cat", bbox=(-5, 0, 9, 81)),),
        [(WARNING, "partly_outside_image", 2, 0, "[-5, 0, 9, 81]")],
    ),
    "fractions": (
        DETECTION,
        box("[0.25, 0, 0.5, 1]"),
        (Box(category="cat", bbox=(0.25, 0, 0.5, 1)),),
        [(WARNING, "looks_like_fractions", 2, 0, "[0.25, 0, 0.5, 1]")],
    ),
    "a flag that is none": (DETECTION, box("[1, 1, 2, 2]", crowd="1"), None, [(ERROR, "bad_value", 2, 0, "1")]),
    "a flag that is a list": (
        DETECTION,
        box("[1, 1, 2, 2]", ignore="[]"),
        None,
        [(ERROR, "bad_value", 2, 0, "0 items")],
    ),
    "an unknown key": (
        DETECTION,
        box("[1, 1, 2, 2]", crowds="true"),
        (Box(category="cat", bbox=(1, 1, 2, 2)),),
        [(WARNING, "unknown_key", 2, 0, "crowds")],
    ),
    "everything at once": (
        DETECTION,
        box("[1, 1, 2, 2]") + "\n" + box("[9, 9, 9, nan]", crowd="2") + "\n- {category: cow, bbox: [3, 3, 2, 79]}",
        (Box(category="cat", bbox=(1, 1, 2, 2)),),
        [
            (ERROR, "not_finite", 3, 1, "[9, 9, 9, nan]"),
            (ERROR, "bad_value", 3, 1, "2"),
            (ERROR, "undeclared_category", 4, 2, "cow"),
            (ERROR, "reversed_box", 4, 2, "[3, 3, 2, 79]"),
        ],
    ),
    "three corners": (
        QUADS,
        quad("[[1, 1], [5, 1], [5, 5]]"),
        None,
        [(ERROR, "wrong_coordinate_count", 2, 0, "[[1, 1], [5, 1], [5, 5]]")],
    ),
    "eight numbers in a row": (
        QUADS,
        quad("[1, 1, 5, 1, 5, 5, 1, 5]"),
        None,
        [(ERROR, "wrong_coordinate_count", 2, 0, "[1, 1, 5, 1, 5, 5, 1, 5]")],
    ),
    "a corner of three": (
        QUADS,
        quad("[[1, 1], [5, 1], [5, 5, 5], [1, 5]]"),
        None,
        [(ERROR, "wrong_coordinate_count", 2, 0, "[[1, 1], [5, 1], [5, 5, 5], [1, 5]]")],
    ),
    "a corner that is not finite": (
        QUADS,
        quad("[[1, 1], [5, 1], [5, -.INF], [1, 5]]"),
        None,
        [(ERROR, "not_finite", 2, 0, "[[1, 1], [5, 1], [5, -.INF], [1, 5]]")],
    ),
    "corners on a line": (
        QUADS,
        quad("[[1, 1], [2, 2], [3, 3], [9, 9]]"),
        None,
        [(ERROR, "no_area", 2, 0, "[[1, 1], [2, 2], [3, 3], [9, 9]]")],
    ),
    "corners in a point": (
        QUADS,
        quad("[[3, 3], [3, 3], [3, 3], [3, 3]]"),
        None,
        [(ERROR, "no_area", 2, 0, "[[3, 3], [3, 3], [3, 3], [3, 3]]")],
    ),
    "a bow-tie": (
        QUADS,
        quad("[[1, 1], [9, 9], [9, 1], [1, 9]]"),
        (Quad(category="text", quad=((1, 1), (9, 9), (9, 1), (1, 9))),),
        [(WARNING, "bow_tie_quad", 2, 0, "[[1, 1], [9, 9], [9, 1], [1, 9]]")],
    ),
    "a bow-tie with unlike wings": (
        QUADS,
        quad("[[1, 1], [9, 1], [3, 9], [5, 0]]"),
        (Quad(category="text", quad=((1, 1), (9, 1), (3, 9), (5, 0))),),
        [(WARNING, "bow_tie_quad", 2, 0, "[[1, 1], [9, 1], [3, 9], [5, 0]]")],
    ),
    "a concave quad": (
        QUADS,
        quad("[[1, 1], [9, 1], [3, 3], [1, 9]]"),
        (Quad(category="text", quad=((1, 1), (9, 1), (3, 3), (1, 9))),),
        [(WARNING, "concave_quad", 2, 0, "[[1, 1], [9, 1], [3, 3], [1, 9]]")],
    ),
    "a quad outside": (
        QUADS,
        quad("[[101, 1], [109, 1], [109, 9], [101, 9]]"),
        None,
        [(ERROR, "outside_image", 2, 0, "[[101, 1], [109, 1], [109, 9], [101, 9]]")],
    ),
    "a quad in part outside": (
        QUADS,
        quad("[[90, 1], [109, 1], [109, 9], [90, 9]]"),
        (Quad(category="text", quad=((90, 1), (109, 1), (109, 9), (90, 9))),),
        [(WARNING, "partly_outside_image", 2, 0, "[[90, 1], [109, 1], [109, 9], [90, 9]]")],
    ),
    "a quad of fractions": (
        QUADS,
        quad("[[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]"),
        (Quad(category="text", quad=((0, 0), (0.5, 0), (0.5, 0.5), (0, 0.5))),),
        [(WARNING, "looks_like_fractions", 2, 0, "[[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]")],
    ),
    "an unknown keypoint": (
        KEYPOINTS,
        "- nose: [1, 1]\n  left ey: [2, 2]\n- nose: [5, 5]",
        (Instance(points={"nose": (5, 5)}),),
        [(ERROR, "unknown_keypoint", 3, 0, "left ey")],
    ),
    "a keypoint with visibility": (
        KEYPOINTS,
        "- nose: [1, 1, 2]",
        None,
        [(ERROR, "wrong_coordinate_count", 2, 0, "[1, 1, 2]")],
    ),
    "a keypoint that is no list": (KEYPOINTS, "- nose: 5", None, [(ERROR, "wrong_coordinate_count", 2, 0, "5")]),
    "a keypoint that is not finite": (KEYPOINTS, "- nose: [1, .NaN]", None, [(ERROR, "not_finite", 2, 0, "[1, .NaN]")]),
    "all keypoints outside": (
        KEYPOINTS,
        "- nose: [101, 5]\n  left eye: [5, -3]",
        None,
        [(ERROR, "outside_image", 2, 0, "[101, 5]")],
    ),
    "a keypoint outside": (
        KEYPOINTS,
        "- nose: [1, 5]\n  left eye: [5, -3]",
        (Instance(points={"nose": (1, 5), "left eye": (5, -3)}),),
        [(WARNING, "partly_outside_image", 3, 0, "[5, -3]")],
    ),
    "keypoints that are fractions": (
        KEYPOINTS,
        "- {nose: [0.5, 0.25], left eye: [0, 1]}",
        (Instance(points={"nose": (0.5, 0.25), "left eye": (0, 1)}),),
        [(WARNING, "looks_like_fractions", 2, 0, "[0.5, 0.25]")],
    ),
    "an object without anything": (
        KEYPOINTS,
        "- {nose: null}",
        (Instance(points={"nose": None}),),
        [(WARNING, "empty_instance", 2, 0, "")],
    ),
    "a bbox of keypoints that is bad": (
        KEYPOINTS,
        "- {nose: [1, 1], bbox: [5, 5, 5, 6]}",
        None,
        [(ERROR, "no_area", 2, 0, "[5, 5, 5, 6]")],
    ),
    "an area that is none": (KEYPOINTS, "- {nose: [1, 1], area: 0}", None, [(ERROR, "no_area", 2, 0, "0")]),
    "an area that is text": (KEYPOINTS, "- {nose: [1, 1], area: big}", None, [(ERROR, "bad_value", 2, 0, "big")]),
    "[] for a number": (REGRESSION, "  []", None, [(ERROR, "empty_annotation", 1, -1, "[]")]),
    "a list for a number": (REGRESSION, "  [1]", None, [(ERROR, "bad_value", 1, -1, "[1]")]),
    "a word for a number": (REGRESSION, "  many", None, [(ERROR, "bad_value", 1, -1, "many")]),
    "not a number": (REGRESSION, "  .nan", None, [(ERROR, "not_finite", 1, -1, ".nan")]),
    "a number above the range": (REGRESSION, "  10.001", None, [(ERROR, "out_of_range", 1, -1, "10.001")]),
    "a number below the range": (REGRESSION, "  -2", None, [(ERROR, "out_of_range", 1, -1, "-2")]),
    "an undeclared token": (
        TEXT,
        "  axbx",
        None,
        [
            (ERROR, "undeclared_category", 1, 1, "x"),
            (ERROR, "undeclared_category", 1, 3, "x"),
        ],
    ),
    "a token that is a list": (TEXT, "- a\n- [b]", None, [(ERROR, "bad_value", 3, 1, "1 items")]),
    "a text that is a mapping": (TEXT, "  {a: b}", None, [(ERROR, "bad_value", 1, -1, "1 keys")]),
    "a text with white space": (TEXT, "  a b", None, [(ERROR, "undeclared_category", 1, 1, " ")]),
    "an endless text": (TEXT, "  " + "a" * (TOKENS_MAX + 1), None, [(ERROR, "text_too_long", 1, -1, "10001")]),
}


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_everything_that_is_bad_is_found_in_one_pass(case: str, lenient: bool) -> None:
    metadata, annotation, left, expected = BAD[case]
    found, report = read(metadata, annotation, lenient=lenient)
    assert found == left
    assert [(f.severity, f.rule, f.place.line, f.index, f.value) for f in report.findings] == expected
    for finding in report.findings:
        assert (finding.place.file, finding.place.image) == ("labels.yaml", "a.png")
        assert finding.message
        done = Action.DROPPED if lenient else Action.REFUSED
        assert finding.action is (done if finding.severity is ERROR else Action.KEPT)
    assert report.refuses() == (not lenient and any(severity is ERROR for severity, *_ in expected))


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", ".nan", "NaN", "-.Inf", "Infinity"])
@pytest.mark.parametrize("position", range(8))
def test_no_number_that_is_not_finite_passes_at_any_place(position: int, word: str) -> None:
    numbers = ["10", "10", "50", "10", "50", "40", "10", "40"]
    numbers[position] = word
    corners = ", ".join(f"[{x}, {y}]" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    found, report = read(QUADS, quad(f"[{corners}]"))
    assert (found, [f.rule for f in report.findings]) == (None, ["not_finite"])
    numbers = ["10", "20", "30", "40"]
    numbers[position % 4] = word
    found, report = read(DETECTION, box(f"[{', '.join(numbers)}]"))
    assert (found, [f.rule for f in report.findings]) == (None, ["not_finite"])
    found, report = read(KEYPOINTS, f"- {{nose: [{numbers[position % 4]}, 1], left eye: [5, 5]}}")
    assert (found, [f.rule for f in report.findings]) == (None, ["not_finite"])


def test_an_object_is_dropped_once_however_much_is_wrong_with_it() -> None:
    _, report = read(*BAD["everything at once"][:2])
    assert report.annotations_dropped == 2
    assert {each.rule: (each.annotations, each.images) for each in report.dropped()} == {
        "not_finite": (1, 1),
        "undeclared_category": (1, 1),
    }
    assert read(*BAD["an undeclared token"][:2])[1].annotations_dropped == 1


def test_a_key_that_stands_twice_in_an_object_spoils_that_object_alone() -> None:
    twice = "- {category: cat, bbox: [1, 1, 3, 3]}\n- {category: cat,\n   bbox: [1, 1, 3, 3], bbox: [2, 2, 9, 9]}"
    found, report = read(DETECTION, twice)
    assert found == (Box(category="cat", bbox=(1, 1, 3, 3)),)
    assert [(f.rule, f.place.line, f.place.image, f.index, f.value) for f in report.findings] == [
        ("repeated_key", 4, "a.png", 1, "bbox")
    ]
    assert [(each.rule, each.annotations, each.images) for each in report.dropped()] == [("repeated_key", 1, 1)]
    # What else is wrong with it is found, and it is dropped once; where it is the only one nothing is known.
    found, report = read(DETECTION, "- {category: dog, category: cat, bbox: [3, 1, 1, 0]}")
    assert (found, report.annotations_dropped) == (None, 1)
    assert [f.rule for f in report.findings] == ["repeated_key", "undeclared_category", "reversed_box"]
    # Of a mapping in place of a list nothing can be trusted, nor of what stands twice itself.
    assert read(DETECTION, "  {category: cat, category: cat}")[1].annotations_dropped == 1


def test_a_box_of_one_pixel_is_sound_also_in_the_very_corner_and_fractions_are_not() -> None:
    annotation, report = read(DETECTION, box("[9, 9, 10, 10]"))
    assert (annotation, report.findings) == ((Box(category="cat", bbox=(9, 9, 10, 10)),), [])
    annotation, report = read(DETECTION, box("[0, 0, 1, 1]"))
    assert (annotation, report.findings) == ((Box(category="cat", bbox=(0, 0, 1, 1)),), [])
    annotation, report = read(DETECTION, box("[0, 0, 0.5, 1]"))
    assert annotation == (Box(category="cat", bbox=(0, 0, 0.5, 1)),)
    assert [f.rule for f in report.findings] == ["looks_like_fractions"]
    assert read(DETECTION, box("[0, 0, 0.5, 1]"), size=(1, 1))[1].findings == []


def test_only_a_finite_number_of_a_size_that_can_be_multiplied_is_read() -> None:
    assert float("inf") > NUMBER_MAX**2
    assert read(DETECTION, box(f"[0, 0, {NUMBER_MAX:.0f}, 9]"))[0] is not None


def counts() -> Iterator[tuple[str, str, int, list[str]]]:
    yield DETECTION, box("[1, 1, 2, 2]") + "\n" + box("[1, 1, 2, 2]", ignore="true"), 2, ["cat", "cat"]
    yield QUADS, quad("[[1, 1], [5, 1], [5, 5], [1, 5]]"), 1, ["text"]
    yield KEYPOINTS, "- {nose: [1, 1], left eye: null}\n- {bbox: [1, 1, 2, 2]}", 2, ["nose"]
    yield REGRESSION, "  0", 1, []
    yield TEXT, "  abba", 1, ["a", "b", "b", "a"]
    for metadata in (DETECTION, QUADS, KEYPOINTS, TEXT):
        yield metadata, "  []", 0, []


@pytest.mark.parametrize(("metadata", "annotation", "count", "categories"), list(counts()))
def test_annotations_and_the_names_that_they_use_are_counted(
    metadata: str, annotation: str, count: int, categories: list[str]
) -> None:
    found, _ = read(metadata, annotation)
    task_format = next(each for task, each in FORMATS.items() if f"task: {task}\n" in metadata)
    assert (task_format.count(found), list(task_format.categories(found))) == (count, categories)
