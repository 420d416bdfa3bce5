"""What the metadata of tasks with objects, numbers and texts may declare."""

from __future__ import annotations

from typing import Any

import pytest

from services.conversion.dataset.metadata import read_metadata, read_vocabulary
from services.conversion.finding import Report

KEYPOINTS = "task: keypoint detection\nkeypoints: [nose, left eye, right eye]\n"
TEXT = "task: scene text recognition\ntokens: abcß\n"

# Each case: metadata, and what is found: (rule, line, value).
VOCABULARIES: dict[str, tuple[str, list[tuple[str, int, str]]]] = {
    **{
        f"a {name} as a {what}": (metadata.replace("X", name), [("reserved_name", 2, name)])
        for name in ("bbox", "area", "crowd", "ignore")
        for what, metadata in {
            "category": "task: object detection\ncategories: [cat, X]\n",
            "quad": "task: quadrilateral detection\ncategories: [X, text]\n",
            "keypoint": "task: keypoint detection\nkeypoints: [nose, X]\n",
        }.items()
    },
    "no keypoints": ("task: keypoint detection\n", [("missing_key", 1, "")]),
    "too few sigmas": (KEYPOINTS + "sigmas: [1, 2]\n", [("bad_value", 3, "[1, 2]")]),
    "sigmas that are a word": (KEYPOINTS + "sigmas: x\n", [("bad_value", 3, "x")]),
    "a sigma that is a word": (KEYPOINTS + "sigmas: [1, 2, x]\n", [("bad_value", 3, "[1, 2, x]")]),
    "a sigma of nothing": (KEYPOINTS + "sigmas: [1, 2, 0]\n", [("bad_value", 3, "[1, 2, 0]")]),
    "a sigma that is not finite": (KEYPOINTS + "sigmas: [1, 2, .inf]\n", [("not_finite", 3, "[1, 2, .inf]")]),
    "pairs that are a word": (KEYPOINTS + "flip_pairs: nose\n", [("bad_value", 3, "nose")]),
    "an unknown name in a pair": (
        KEYPOINTS + "flip_pairs:\n- [left eye, ear]\n",
        [("bad_flip_pair", 4, "[left eye, ear]")],
    ),
    "a pair of one": (KEYPOINTS + "flip_pairs: [[nose, nose]]\n", [("bad_flip_pair", 3, "[nose, nose]")]),
    "a pair of three": (
        KEYPOINTS + "flip_pairs: [[nose, left eye, nose]]\n",
        [("bad_flip_pair", 3, "[nose, left eye, nose]")],
    ),
    "a name in two pairs": (
        KEYPOINTS + "flip_pairs: [[left eye, right eye], [nose, left eye]]\n",
        [("bad_flip_pair", 3, "[nose, left eye]")],
    ),
    "no range": ("task: regression\n", [("missing_key", 1, "")]),
    "a range of one": ("task: regression\nrange: [1]\n", [("bad_value", 2, "[1]")]),
    "a range of words": ("task: regression\nrange: [a, b]\n", [("bad_value", 2, "[a, b]")]),
    "a reversed range": ("task: regression\nrange: [2, 1]\n", [("bad_value", 2, "[2, 1]")]),
    "an empty range": ("task: regression\nrange: [1, 1.0]\n", [("bad_value", 2, "[1, 1.0]")]),
    "an endless range": ("task: regression\nrange: [0, .inf]\n", [("not_finite", 2, "[0, .inf]")]),
    "no tokens": ("task: scene text recognition\n", [("missing_key", 1, "")]),
    "tokens of nothing": ("task: scene text recognition\ntokens: ''\n", [("empty_vocabulary", 2, "")]),
    "white space as a token": ("task: scene text recognition\ntokens: a b\n", [("bad_name", 2, " ")]),
    "white space in a token": ("task: scene text recognition\ntokens: [a, b c]\n", [("bad_name", 2, "b c")]),
    "a repeated character": ("task: scene text recognition\ntokens: aba\n", [("repeated_category", 2, "a")]),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_vocabulary_that_is_wrong_is_an_error(case: str) -> None:
    metadata, expected = VOCABULARIES[case]
    report = Report(findings_max=100)
    declared = read_metadata((metadata + "annotations: labels.yaml\n").encode(), "metadata.yaml", report)
    read_vocabulary(declared.sets[0], report)
    assert [(f.rule, f.place.line, f.value) for f in report.findings] == expected
    assert report.refuses()


def vocabulary_of(metadata: str) -> Any:
    report = Report(findings_max=100)
    declared = read_metadata((metadata + "annotations: labels.yaml\n").encode(), "metadata.yaml", report)
    vocabulary = read_vocabulary(declared.sets[0], report)
    assert not report.findings
    return vocabulary


def test_sigmas_are_one_part_in_k_where_none_are_given() -> None:
    assert vocabulary_of(KEYPOINTS).sigmas == (1 / 3, 1 / 3, 1 / 3)
    assert vocabulary_of(KEYPOINTS + "sigmas: [.5, 1, 2e0]\n").sigmas == (0.5, 1, 2)


def test_pairs_that_a_mirror_exchanges_are_kept() -> None:
    assert vocabulary_of(KEYPOINTS + "flip_pairs: [[left eye, right eye]]\n").flip_pairs == (("left eye", "right eye"),)


def test_tokens_may_be_a_list_or_the_characters_of_a_text() -> None:
    assert vocabulary_of(TEXT) == vocabulary_of("task: scene text recognition\ntokens: [a, b, c, ß]\n")
