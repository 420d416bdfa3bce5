from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import dataset_pb2

from services.chassis.errors import Reason
from services.chassis.rpc import error_from_rpc

ERROR = dataset_pb2.SEVERITY_ERROR
WARNING = dataset_pb2.SEVERITY_WARNING
MULTILABEL = "task: multilabel classification\nlabels: [red, round]\nannotations: labels.yaml\n"
FOLDER = "task: multiclass classification\ncategories: [cat, dog]\nannotations: labels/\n"

# Each case: what is done to a sound dataset, and what is found: (severity, rule, file, line, image, index).
Change = Callable[[Any], object]
Expected = list[tuple[int, str, str, int, str, int]]


def labels(text: str) -> Change:
    return lambda dataset: dataset.text("labels.yaml", text)


def metadata(text: str) -> Change:
    return lambda dataset: dataset.text("metadata.yaml", text)


def multilabel(text: str) -> Change:
    return lambda dataset: dataset.write(MULTILABEL, **{"labels.yaml": text})


def folder(**files: str) -> Change:
    def change(dataset: Any) -> None:
        dataset.write(FOLDER, **{f"labels/{name}": text for name, text in files.items()})

    return change


def image(name: str, content: bytes) -> Change:
    return lambda dataset: (dataset.path / "images" / name).write_bytes(content)


def cut_image(dataset: Any) -> None:
    path = dataset.path / "images/a.png"
    path.write_bytes(path.read_bytes()[:-20])


def huge_image(dataset: Any) -> None:
    path = dataset.path / "images/a.png"
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 1_000_000, 1_000_000)
    path.write_bytes(content)


def rename(dataset: Any) -> None:
    (dataset.path / "images/a.png").rename(dataset.path / "images/a.gif")


def link_out(dataset: Any) -> None:
    outside = dataset.path.parent / "outside.png"
    (dataset.path / "images/a.png").rename(outside)
    (dataset.path / "images/a.png").symlink_to(outside)


def link_nowhere(dataset: Any) -> None:
    (dataset.path / "images/a.png").unlink()
    (dataset.path / "images/a.png").symlink_to("nowhere.png")


def labels_link_out(dataset: Any) -> None:
    (dataset.path / "labels.yaml").rename(dataset.path.parent / "labels.yaml")
    (dataset.path / "labels.yaml").symlink_to(dataset.path.parent / "labels.yaml")


def labels_of_a_folder_link_out(dataset: Any) -> None:
    folder(**{"a.yaml": "cat", "b.yaml": "cow"})(dataset)
    (dataset.path / "labels/a.yaml").rename(dataset.path.parent / "labels.yaml")
    (dataset.path / "labels/a.yaml").symlink_to(dataset.path.parent / "labels.yaml")


CASES: dict[str, tuple[Change, Expected]] = {
    "nothing": (lambda dataset: None, []),
    "an undeclared category": (
        labels("a.png: cat\n\nb.png: dogg\n"),
        [(ERROR, "undeclared_category", "labels.yaml", 3, "b.png", -1)],
    ),
    "an empty list for one category": (
        labels("a.png: []\n"),
        [(ERROR, "empty_annotation", "labels.yaml", 1, "a.png", -1)],
    ),
    "a list for one category": (labels("a.png: [cat]\n"), [(ERROR, "bad_value", "labels.yaml", 1, "a.png", -1)]),
    "a mapping for one category": (labels("a.png: {x: cat}\n"), [(ERROR, "bad_value", "labels.yaml", 1, "a.png", -1)]),
    "an annotation without an image": (
        labels("a.png: cat\nz.png: cat\n"),
        [(ERROR, "annotation_without_image", "labels.yaml", 2, "z.png", -1)],
    ),
    "a name that leads outside": (
        labels("../a.png: cat\n"),
        [(ERROR, "leads_outside", "labels.yaml", 1, "../a.png", -1)],
    ),
    "a repeated image": (
        labels("a.png: cat\nb.png: cat\na.png: dog\n"),
        [(ERROR, "repeated_key", "labels.yaml", 3, "a.png", -1)],
    ),
    "annotations that are a list": (labels("- cat\n"), [(ERROR, "bad_value", "labels.yaml", 1, "", -1)]),
    "annotations that are no YAML": (labels("a.png: [cat\n"), [(ERROR, "syntax", "labels.yaml", 2, "", -1)]),
    "annotations that are missing": (
        lambda dataset: (dataset.path / "labels.yaml").unlink(),
        [(ERROR, "missing_file", "metadata.yaml", 1, "", -1)],
    ),
    "annotations behind a link out": (labels_link_out, [(ERROR, "leads_outside", "metadata.yaml", 1, "", -1)]),
    "everything at once": (
        labels("a.png: bird\nb.png: []\nc.png: {}\nq.png: cat\n"),
        [
            (ERROR, "undeclared_category", "labels.yaml", 1, "a.png", -1),
            (ERROR, "empty_annotation", "labels.yaml", 2, "b.png", -1),
            (ERROR, "bad_value", "labels.yaml", 3, "c.png", -1),
            (ERROR, "annotation_without_image", "labels.yaml", 4, "q.png", -1),
        ],
    ),
    "labels that are text": (multilabel("a.png: red\n"), [(ERROR, "bad_value", "labels.yaml", 1, "a.png", -1)]),
    "a key that stands twice in an object": (
        lambda dataset: dataset.write(
            "task: object detection\ncategories: [cat]\nannotations: boxes/\n",
            **{"boxes/a.yaml": "- category: cat\n  bbox: [0, 0, 3, 3]\n  bbox: [0, 0, 2, 2]\n"},
        ),
        [(ERROR, "repeated_key", "boxes/a.yaml", 3, "a", 0)],
    ),
    "a number that is not finite, as Python writes it": (
        lambda dataset: dataset.write(
            "task: regression\nrange: [0, 1]\nannotations: numbers.json\n",
            **{"numbers.json": '{"a.png": 0.5,\n "b.png": NaN,\n "c.png": -Infinity}'},
        ),
        [
            (ERROR, "not_finite", "numbers.json", 2, "b.png", -1),
            (ERROR, "not_finite", "numbers.json", 3, "c.png", -1),
        ],
    ),
    "an undeclared label": (
        multilabel("a.png: [red,\n blue]\n"),
        [(ERROR, "undeclared_category", "labels.yaml", 2, "a.png", 1)],
    ),
    "a label that is a list": (
        multilabel("a.png:\n- red\n- [round]\n- null\n"),
        [
            (ERROR, "bad_value", "labels.yaml", 3, "a.png", 1),
            (ERROR, "bad_value", "labels.yaml", 4, "a.png", 2),
        ],
    ),
    "a label that stands twice": (
        multilabel("a.png: [red, red]\n"),
        [(WARNING, "repeated_label", "labels.yaml", 1, "a.png", 1)],
    ),
    "an unknown task": (
        metadata("categories: [cat]\ntask: multiclas classification\nannotations: labels.yaml\n"),
        [(ERROR, "unknown_task", "metadata.yaml", 2, "", -1)],
    ),
    "no task": (metadata("categories: [cat]\n"), [(ERROR, "unknown_task", "metadata.yaml", 1, "", -1)]),
    "no annotations key": (
        metadata("task: multiclass classification\ncategories: [cat, dog]\n"),
        [(ERROR, "missing_key", "metadata.yaml", 1, "", -1)],
    ),
    "no vocabulary": (
        lambda dataset: dataset.write(
            "task: metric learning\nannotations: labels.yaml\n", **{"labels.yaml": "a.png: null\n"}
        ),
        [(ERROR, "missing_key", "metadata.yaml", 1, "", -1)],
    ),
    "an unknown key": (
        metadata("task: multiclass classification\ncategories: [cat, dog]\ncolours: []\nannotations: labels.yaml\n"),
        [(WARNING, "unknown_key", "metadata.yaml", 3, "", -1)],
    ),
    "a repeated category": (
        metadata("task: multiclass classification\ncategories:\n- cat\n- dog\n- cat\nannotations: labels.yaml\n"),
        [(ERROR, "repeated_category", "metadata.yaml", 5, "", -1)],
    ),
    "a repeated metadata key": (
        metadata("task: multiclass classification\ncategories: [cat, dog]\ncategories: []\nannotations: labels.yaml\n"),
        [(ERROR, "repeated_key", "metadata.yaml", 3, "", -1)],
    ),
    "a category that is null": (
        metadata("task: multiclass classification\ncategories:\n- cat\n- dog\n-\nannotations: labels.yaml\n"),
        [(ERROR, "bad_name", "metadata.yaml", 5, "", -1)],
    ),
    "a wrong flag": (
        metadata("task: multiclass classification\nordered: maybe\ncategories: [cat, dog]\nannotations: labels.yaml\n"),
        [(ERROR, "bad_value", "metadata.yaml", 2, "", -1)],
    ),
    "metadata that are text": (metadata("cat\n"), [(ERROR, "bad_value", "metadata.yaml", 1, "", -1)]),
    "metadata that are no YAML": (metadata("a: [\n"), [(ERROR, "syntax", "metadata.yaml", 2, "", -1)]),
    "annotations that lead outside": (
        metadata("task: multiclass classification\ncategories: [cat]\nannotations: ../labels.yaml\n"),
        [(ERROR, "leads_outside", "metadata.yaml", 3, "", -1)],
    ),
    "two files of metadata": (
        lambda dataset: dataset.text("metadata.json", "{}"),
        [(ERROR, "repeated_metadata", "metadata.json", 0, "", -1)],
    ),
    "an image that is cut off": (cut_image, [(ERROR, "truncated_image", "images/a.png", 0, "a.png", -1)]),
    "an image that is none": (image("a.png", b"hello"), [(ERROR, "unreadable_image", "images/a.png", 0, "a.png", -1)]),
    "an image that is empty": (image("a.png", b""), [(ERROR, "unreadable_image", "images/a.png", 0, "a.png", -1)]),
    "an image that is a bomb": (huge_image, [(ERROR, "decompression_bomb", "images/a.png", 0, "a.png", -1)]),
    "an image of another format than its name": (
        lambda dataset: dataset.image("a.png", format="JPEG"),
        [(WARNING, "wrong_extension", "images/a.png", 0, "a.png", -1)],
    ),
    "an image with an unknown extension": (
        rename,
        [
            (WARNING, "wrong_extension", "images/a.gif", 0, "a.gif", -1),
            (ERROR, "annotation_without_image", "labels.yaml", 1, "a.png", -1),
        ],
    ),
    "an image that leads outside": (link_out, [(ERROR, "leads_outside", "images/a.png", 0, "a.png", -1)]),
    "an image that leads nowhere": (link_nowhere, [(ERROR, "unreadable_image", "images/a.png", 0, "a.png", -1)]),
    "two images of one stem": (
        lambda dataset: dataset.image("a.jpg"),
        [(WARNING, "repeated_stem", "images/a.*", 0, "", -1)],
    ),
    "an image that is turned": (
        lambda dataset: dataset.image("a.png", exif=struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 274, 3, 1, 6, 0)),
        [(WARNING, "exif_rotation", "images/a.png", 0, "a.png", -1)],
    ),
    "a folder of annotations": (folder(**{"a.yaml": "cat", "b.json": '"dog"', "c.yml": "null"}), []),
    "a folder with something else in it": (
        folder(**{"a.yaml": "cat", "b.txt": "dog"}),
        [(ERROR, "wrong_extension", "labels/b.txt", 0, "b", -1)],
    ),
    "a folder with two annotations of one stem": (
        folder(**{"a.yaml": "cat", "a.json": '"cat"'}),
        [(ERROR, "repeated_stem", "labels/a.yaml", 0, "a", -1)],
    ),
    "a folder with an annotation without an image": (
        folder(**{"a.yaml": "cat", "z.yaml": "cat"}),
        [(ERROR, "annotation_without_image", "labels/z.yaml", 1, "z", -1)],
    ),
    "a folder with a damaged file": (
        folder(**{"a.yaml": "cat", "b.yaml": "[dog"}),
        [(ERROR, "syntax", "labels/b.yaml", 1, "b", -1)],
    ),
    "a folder whose annotation is wrong": (
        folder(**{"a.yaml": "\nbird"}),
        [(ERROR, "undeclared_category", "labels/a.yaml", 2, "a.png", -1)],
    ),
    "annotations in a language of their own": (
        lambda dataset: dataset.write(
            "task: multiclass classification\ncategories: [cat]\nannotations: labels.csv\n",
            **{"labels.csv": "a.png,cat\n"},
        ),
        [(ERROR, "wrong_extension", "metadata.yaml", 1, "", -1)],
    ),
    "a file where a folder of maps was wanted": (
        lambda dataset: dataset.write(
            "task: depth estimation\nrange: [1, 2]\nannotations: maps.zip\n", **{"maps.zip": "PK"}
        ),
        [(ERROR, "wrong_extension", "metadata.yaml", 1, "", -1)],
    ),
    "a link out of a folder of annotations": (
        labels_of_a_folder_link_out,
        [
            (ERROR, "leads_outside", "labels/a.yaml", 0, "a", -1),
            (ERROR, "undeclared_category", "labels/b.yaml", 1, "b.png", -1),
        ],
    ),
    "images at no uri": (
        metadata("task: autoencoding\nimages: ../other/images\n"),
        [(ERROR, "bad_value", "metadata.yaml", 2, "", -1)],
    ),
    "images at a uri with a secret": (
        metadata("task: autoencoding\nimages: s3://key:secret@bucket/images\n"),
        [(ERROR, "bad_value", "metadata.yaml", 2, "", -1)],
    ),
    "an empty folder": (folder(**{".keep": ""}), [(ERROR, "missing_file", "metadata.yaml", 1, "", -1)]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_thing_that_is_wrong_is_found_where_it_is(case: str, run: Any, dataset: Any) -> None:
    change, expected = CASES[case]
    dataset.write()
    change(dataset)

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source)
        found = [(f.severity, f.rule, f.file, f.line, f.image, f.index) for f in findings]
        assert found == expected
        assert totals.errors == sum(severity == ERROR for severity, *_ in expected)
        assert totals.warnings == len(expected) - totals.errors
        assert sum(totals.findings_by_rule.values()) == len(expected)
        for finding in findings:
            assert finding.message
            wanted = dataset_pb2.FINDING_ACTION_REFUSED
            assert finding.action == wanted or finding.severity == WARNING

    run(test)


def test_two_images_of_one_stem_cannot_share_a_file_of_annotations(run: Any, dataset: Any) -> None:
    dataset.write(FOLDER, images=("a.png", "a.jpg"), **{"labels/a.yaml": "cat"})

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert [(f.severity, f.rule) for f in findings] == [(ERROR, "repeated_stem")]

    run(test)


def test_findings_beyond_the_limit_are_counted(run: Any, dataset: Any) -> None:
    dataset.write(**{"labels.yaml": "".join(f"z{number}.png: cat\n" for number in range(50))})

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source, findings_max=7)
        assert (len(findings), totals.findings_omitted, totals.errors) == (7, 43, 50)
        findings, totals = await service.findings(dataset.source, findings_max=1000)
        assert (len(findings), totals.findings_omitted) == (20, 30)

    run(test, findings_max=20)


def test_a_nearest_name_is_offered(run: Any, dataset: Any) -> None:
    dataset.write(**{"labels.yaml": "a.png: dg\na: cat\n"})

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert "did you mean 'dog'?" in findings[0].message
        assert findings[0].value == "dg"
        assert "there is no image 'a'" in findings[1].message

    run(test)


def test_links_inside_the_dataset_hidden_files_and_folders_are_no_findings(run: Any, dataset: Any) -> None:
    dataset.write()
    (dataset.path / "images/b.png").unlink()
    (dataset.path / "images/b.png").symlink_to("a.png")
    (dataset.path / "images/.DS_Store").write_bytes(b"x")
    (dataset.path / "images/thumbnails").mkdir()
    (dataset.path / "images/thumbnails/x.png").write_bytes(b"x")

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source)
        assert (findings, totals.images) == ([], 4)

    run(test)


def test_every_annotation_set_is_validated(run: Any, dataset: Any) -> None:
    dataset.write(
        "- name: kind\n  task: multiclass classification\n  categories: [cat]\n  annotations: kind.json\n"
        "- name: look\n  task: multilabel classification\n  labels: [red]\n  annotations: look.yml\n",
        **{"kind.json": '{"a.png": "cat",\n "b.png": "dog"}', "look.yml": "a.png: [blue]\n"},
    )

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert [(f.file, f.line, f.index) for f in findings] == [("kind.json", 2, -1), ("look.yml", 1, 0)]

    run(test)


@pytest.mark.parametrize("names", [("a", "a"), ("a", None), ("", "b")])
def test_annotation_sets_of_a_list_need_names_of_their_own(names: Any, run: Any, dataset: Any) -> None:
    sets = ""
    for name in names:
        sets += "- task: multilabel classification\n  labels: [red]\n  annotations: labels.yaml\n"
        sets += f"  name: '{name}'\n" if name is not None else ""
    dataset.write(sets, **{"labels.yaml": "a.png: [red]\n"})

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert {f.rule for f in findings} <= {"repeated_name", "bad_name"}
        assert findings

    run(test)


def test_metadata_that_name_no_place_of_images_are_what_is_told_where_there_are_none(run: Any, dataset: Any) -> None:
    dataset.write("task: autoencoding\nimages: ../other/images\n", images=())

    async def test(service: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.findings(dataset.source)
        error = error_from_rpc(raised.value)
        assert error.reason is Reason.DATASET_INVALID
        assert "`images` is '../other/images', but must be file:///" in error.message

    run(test)


def test_sizes_beyond_the_limits_are_found(run: Any, dataset: Any) -> None:
    dataset.write()
    dataset.image("a.png", size=(300, 300))

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert [(f.rule, f.image) for f in findings] == [("decompression_bomb", "a.png")]

    run(test, image_pixels_max=89_999)

    async def test_bytes(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert {f.rule for f in findings} == {"image_too_large", "file_too_large"}

    run(test_bytes, image_bytes_max=10, annotation_bytes_max=10)


def test_metadata_behind_a_link_out_are_not_read(run: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write()
    (dataset.path / "metadata.yaml").rename(tmp_path / "metadata.yaml")
    (dataset.path / "metadata.yaml").symlink_to(tmp_path / "metadata.yaml")

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert [(f.rule, f.file) for f in findings] == [("leads_outside", "metadata.yaml")]

    run(test)
