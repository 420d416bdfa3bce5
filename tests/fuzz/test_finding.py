"""What the fuzzer has found: each input once did something that no input may do."""

from __future__ import annotations

import pytest

from tests.fuzz.case import Case
from tests.fuzz.target import TARGETS, signature

WAYS = 60
LABELS = b"a.png: 0.25\nb.png: -1.5\nc.png: 10\n"
FOUND: dict[str, tuple[str, Case]] = {
    "a range that is none, and then a number outside of what stands in for it": (
        "dataset",
        {"metadata.yaml": b"task: regression\nrange: [-1.5 1e1]\nannotations: labels.yaml\n", "labels.yaml": LABELS},
    ),
    "a point below its image, whose box is cut off there": (
        "dataset",
        {
            "metadata.yaml": b"task: keypoint detection\nkeypoints: [nose, eye]\nannotations: labels.yaml\n",
            "labels.yaml": b"a.png:\n- {nose: [1, 1], eye: [2, 1272]}\n",
        },
    ),
    "an object with one point and no box, which another tool's format gives a box without area": (
        "dataset",
        {
            "metadata.yaml": b"task: keypoint detection\nkeypoints: [nose, eye]\nannotations: labels.yaml\n",
            "labels.yaml": b"a.png:\n- {nose: [1, 2], eye: null}\n- {nose: [5, 5], eye: [5, 9]}\n",
        },
    ),
    "half a letter in a mask": (
        "coco",
        {
            "annotations/instances_x.json": b'{"images": [{"id": 1, "file_name": "a.png", "width": 24, "height": 18}], '
            b'"annotations": [{"id": 1, "image_id": 1, "category_id": 3, "area": 7, "bbox": [1, 1, 9, 9], '
            b'"segmentation": {"size": [18, 24], "counts": "\xc9"}}], "categories": [{"id": 3, "name": "cat"}]}',
            "a.png": b"",
        },
    ),
    "white space before a uri": (
        "source",
        {"uri.txt": b" s3://bucket/x", "endpoint.txt": b"http://127.0.0.1", "region.txt": b""},
    ),
    "the root of all folders": ("source", {"uri.txt": b"file:///", "endpoint.txt": b"", "region.txt": b""}),
    "brackets that hold no address": ("source", {"uri.txt": b"s3://[x", "endpoint.txt": b"", "region.txt": b""}),
    "a file's name with a zero": ("source", {"uri.txt": b"file:///a%00b", "endpoint.txt": b"", "region.txt": b""}),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_once_is_found_no_more(what: str) -> None:
    name, case = FOUND[what]
    # The length of the annotations chooses what they are converted into.
    for more in range(WAYS if "labels.yaml" in case else 1):
        longer = {path: content + b"\n" * (more * (path == "labels.yaml")) for path, content in case.items()}
        assert signature(TARGETS[name], longer)
