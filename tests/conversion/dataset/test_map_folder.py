"""Folders of maps: what is in them, what is wrong with them, and that nothing of it is taken for something else."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import FailedPrecondition, Reason
from services.chassis.objects.store import open_store
from services.chassis.rpc import error_from_rpc
from services.conversion.dataset.map_folder import MapFolder
from services.conversion.dataset.record import RawRecord
from services.conversion.file.document import read_document
from services.conversion.finding import Place
from services.conversion.index import ImageEntry, Index
from services.conversion.reader.annotation_set import MapLoader
from tests.conversion.map_dataset import METADATA, files_of, noise, png, write_semantic

SEMANTIC = task_pb2.TASK_SEMANTIC_SEGMENTATION
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
ERROR, WARNING = dataset_pb2.SEVERITY_ERROR, dataset_pb2.SEVERITY_WARNING


def source(folder: Path) -> dataset_pb2.DatasetSource:
    return dataset_pb2.DatasetSource(uri=folder.as_uri())


def folder_of(result: service_pb2.ConversionResult) -> Path:
    return Path(result.dataset.uri.removeprefix("file://"))


async def refused(call: Any) -> Any:
    try:
        await call
    except grpc.RpcError as error:
        return error_from_rpc(error)
    raise AssertionError("an error was expected")


def test_maps_are_written_beside_an_account_of_them_and_can_be_read_again(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 20)

    async def test(service: Any) -> None:
        result = await service.convert(source(folder), SEMANTIC)
        files = files_of(folder_of(result))
        maps = {path.name for path in (folder / "maps").iterdir()} - {"0006.png", "0013.png"}  # all black: null
        assert {name for name in files if "/" in name} == {f"annotations/{name}" for name in maps}
        content = service.converted(result)
        assert content["metadata"]["annotations"] == "annotations/"
        assert content["metadata"]["colors"]["road"] == [90, 90, 90]
        annotations = content["annotations"]
        assert list(annotations) == [f"{number:04}.png" for number in range(20)]
        assert {name for name, value in annotations.items() if value is not None} == maps
        entry = annotations["0001.png"]
        assert (entry["map"], entry["bytes"]) == ("annotations/0001.png", len(files["annotations/0001.png"]))
        assert (result.labelled_in, result.labelled_out) == (16, 14)
        again = await service.convert(result.dataset, SEMANTIC)
        other = {name: content for name, content in files_of(folder_of(again)).items() if "/" in name}
        assert other == {name: content for name, content in files.items() if "/" in name}
        labels = service.converted(await service.convert(result.dataset, MULTILABEL))["annotations"]
        assert labels["0001.png"] == ["sky", "road", "car"]
        assert labels["0006.png"] is None

    run(test)


def test_a_dataset_whose_maps_say_nothing_can_be_converted_and_read_again(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 3)
    for path in (folder / "maps").iterdir():
        path.write_bytes(noise(6))

    async def test(service: Any) -> None:
        result = await service.convert(source(folder), SEMANTIC)
        assert service.converted(result)["metadata"]["annotations"] == "annotations.json"
        again = await service.convert(result.dataset, MULTILABEL)
        assert list(service.converted(again)["annotations"].values()) == [None] * 3

    run(test)


def test_an_inspection_counts_what_maps_hold(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 20)

    async def test(service: Any) -> None:
        request = service_pb2.InspectDatasetRequest(source=source(folder))
        (summary,) = (await service.stub.InspectDataset(request)).annotation_sets
        assert (summary.labelled_images, summary.negative_images, summary.unlabelled_images) == (14, 0, 6)
        assert {each.category: each.images for each in summary.categories} == {"sky": 14, "road": 14, "car": 14}

    run(test)


Change = Callable[[Path], object]


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.png"
    outside.write_bytes(noise(1))
    (folder / "maps/0000.png").unlink()
    (folder / "maps/0000.png").symlink_to(outside)


def cut(folder: Path) -> None:
    path = folder / "maps/0000.png"
    path.write_bytes(path.read_bytes()[:-20])


def bomb(folder: Path) -> None:
    path = folder / "maps/0000.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (10**6).to_bytes(4, "big") * 2
    path.write_bytes(content)


def rename(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def all_of(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


# Each case: what is done to a sound dataset, and the findings: (rule, file, image).
CASES: dict[str, tuple[Change, list[tuple[str, str, str]]]] = {
    "nothing": (lambda _: None, []),
    "a broken map": (write("maps/0000.png", b"broken"), [("unreadable_map", "maps/0000.png", "0000")]),
    "an empty map": (write("maps/0000.png", b""), [("unreadable_map", "maps/0000.png", "0000")]),
    "a truncated map": (cut, [("truncated_map", "maps/0000.png", "0000")]),
    "a bomb": (bomb, [("decompression_bomb", "maps/0000.png", "0000")]),
    "a map of another shape": (
        write("maps/0000.png", noise(0, (12, 4))),
        [("aspect_ratio", "maps/0000.png", "0000.png")],
    ),
    "a map larger than its image": (
        write("maps/0000.png", noise(0, (24, 16))),
        [("map_too_large", "maps/0000.png", "0000.png")],
    ),
    "another format by its name": (
        rename("maps/0000.png", "maps/0000.jpg"),
        [("wrong_extension", "maps/0000.jpg", "0000")],
    ),
    "a map without an image": (
        rename("maps/0000.png", "maps/other.png"),
        [("annotation_without_image", "maps/other.png", "other")],
    ),
    "a map whose image is broken": (
        write("images/0000.png", b"broken"),
        [("unreadable_image", "images/0000.png", "0000.png")],
    ),
    "a link out of the dataset": (link_out, [("leads_outside", "maps/0000.png", "0000")]),
    "two maps of one stem": (
        write("maps/0000.PNG", noise(0)),
        [("repeated_stem", "maps/0000.png", "0000")],
    ),
    "two images of one stem": (
        lambda folder: (folder / "images/0000.jpeg").write_bytes((folder / "images/0000.png").read_bytes()),
        [("wrong_extension", "images/0000.jpeg", "0000.jpeg"), ("repeated_stem", "maps/0000.png", "0000.jpeg")],
    ),
    "an unknown colour": (
        write("maps/0000.png", png(np.full((8, 12, 3), 77, np.uint8))),
        [("unknown_color", "maps/0000.png", "0000.png")],
    ),
    "a sidecar without a map": (
        write("maps/0004.yaml", b"crowd: [1]"),
        [("sidecar_without_map", "maps/0004.yaml", "0004")],
    ),
    "a sidecar that is no yaml": (write("maps/0000.yaml", b"["), [("syntax", "maps/0000.yaml", "0000")]),
    "a sidecar with a repeated key": (
        write("maps/0000.json", b'{"crowd": [], "crowd": [1]}'),
        [("repeated_key", "maps/0000.json", "0000")],
    ),
    "two sidecars": (
        all_of(write("maps/0000.json", b"{}"), write("maps/0000.yml", b"{}")),
        [("repeated_stem", "maps/0000.json", "0000"), ("repeated_stem", "maps/0000.yml", "0000")],
    ),
    "a picture beside a map": (write("maps/0000.jpg", b"x"), [("wrong_extension", "maps/0000.jpg", "0000")]),
    "hidden files and folders": (
        all_of(write("maps/.DS_Store", b"x"), lambda folder: (folder / "maps/more").mkdir()),
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_thing_that_is_wrong_with_maps_is_found_where_it_is(case: str, run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 5)
    change, expected = CASES[case]
    change(folder)

    async def test(service: Any) -> None:
        findings, _ = await service.findings(source(folder))
        assert sorted((each.rule, each.file, each.image) for each in findings) == sorted(expected)
        result = await service.convert(source(folder), MULTILABEL, lenient=True)
        labels = service.converted(result)["annotations"]
        assert labels["0001.png"] == ["sky", "road", "car"]
        if case not in ("nothing", "hidden files and folders", "a sidecar without a map", "a picture beside a map"):
            assert labels.get("0000.png") is None

    run(test)


def test_maps_beyond_the_limit_and_missing_folders_are_found(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 5)
    (folder / "maps/0000.png").write_bytes(png(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)))

    async def test(service: Any) -> None:
        findings, _ = await service.findings(source(folder))
        assert [(each.rule, each.file) for each in findings] == [("map_too_large", "maps/0000.png")]
        for path in (folder / "maps").iterdir():
            path.unlink()
        findings, _ = await service.findings(source(folder))
        assert [each.rule for each in findings] == ["missing_file"]
        (folder / "maps").rmdir()
        findings, _ = await service.findings(source(folder))
        assert [each.rule for each in findings] == ["missing_file"]

    run(test, image_bytes_max=10_000)


def test_the_fingerprint_changes_with_every_map_and_sidecar_and_with_no_date(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 5)

    async def test(service: Any) -> None:
        async def fingerprint() -> str:
            request = service_pb2.InspectDatasetRequest(source=source(folder))
            return str((await service.stub.InspectDataset(request)).fingerprint)

        seen = [await fingerprint()]
        os.utime(folder / "maps/0000.png", (1, 1))
        assert await fingerprint() == seen[0]
        (folder / "maps/0000.png").write_bytes(noise(99))
        seen.append(await fingerprint())
        (folder / "maps/0000.yaml").write_text("{}")
        seen.append(await fingerprint())
        (folder / "maps/0001.png").unlink()
        seen.append(await fingerprint())
        # What is no map, or leads outside, is refused: whether it is there matters too.
        (folder / "maps/0000.jpg").write_bytes(b"x")
        seen.append(await fingerprint())
        (folder / "images/9.png").symlink_to(tmp_path / "outside.png")
        seen.append(await fingerprint())
        assert len(set(seen)) == len(seen)

    run(test)


def test_a_map_that_is_replaced_once_it_is_indexed_ends_the_conversion_or_is_left_out_and_told(
    run: Any, tmp_path: Path
) -> None:
    folder = write_semantic(tmp_path / "dataset", 40)

    async def test(service: Any) -> None:
        await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source(folder)))  # the indices
        path = folder / "maps/0030.png"
        about = path.stat()
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # so that only its content shows it
        error = await refused(service.convert(source(folder), SEMANTIC))
        assert isinstance(error, FailedPrecondition)
        assert error.reason is Reason.DATASET_CHANGED
        assert error.metadata["uri"] == f"{folder.as_uri()}/maps/0030.png"
        assert "was replaced" in error.message
        assert [path.name for path in service.store.iterdir()] == ["indices"]

        result = await service.convert(source(folder), SEMANTIC, lenient=True)
        (dropped,) = result.dropped
        assert (dropped.rule, dropped.annotations, dropped.images) == ("map_changed", 1, 1)
        (finding,) = (each for each in result.findings if each.rule == "map_changed")
        assert (finding.file, finding.image) == ("maps/0030.png", "0030.png")
        assert service.converted(result)["annotations"]["0030.png"] is None

    run(test)


def test_a_map_that_vanishes_midway_is_said_to_be_deleted(tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 1)
    entry = ImageEntry(name="0000.png", size_bytes=1, etag="sha256-0")
    maps = MapFolder(path="maps/", index=Index(entries=(entry,)))
    record = RawRecord(image=entry, place=Place(file=""), annotated=True, value=None, path="maps/0000.png")

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            loader = MapLoader(open_store(folder.as_uri()), maps, executor)
            with pytest.raises(FailedPrecondition, match="was replaced"):
                await loader.load(record)
            (folder / "maps/0000.png").unlink()
            with pytest.raises(FailedPrecondition, match="was deleted"):
                await loader.load(record)
            os.mkfifo(folder / "maps/0000.png")
            with pytest.raises(FailedPrecondition, match="was replaced"):
                await loader.load(record)

    asyncio.run(main())


def test_maps_of_several_sets_do_not_mix(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "dataset", 5)
    one = METADATA.replace("\n", "\n  ").rstrip()
    (folder / "metadata.yaml").write_text(
        f"- name: fine\n  {one}\n- name: kind\n  task: multiclass classification\n"
        "  categories: [a]\n  annotations: kind.yaml\n"
    )
    (folder / "kind.yaml").write_text("0000.png: a\n")

    async def test(service: Any) -> None:
        findings, _ = await service.findings(source(folder))
        assert findings == []
        result = await service.convert(source(folder), MULTILABEL, annotation_set="fine")
        assert service.converted(result)["annotations"]["0000.png"] == ["sky", "road", "car"]
        result = await service.convert(source(folder), MULTILABEL, annotation_set="kind")
        assert service.converted(result)["annotations"]["0000.png"] == ["a"]

    run(test)


def test_a_record_and_its_sidecar_can_be_sent_to_another_process() -> None:
    value = read_document(b"crowd:\n- 1\n- 2\n", "a.yaml").value
    record = RawRecord(
        image=ImageEntry(name="a.png", size_bytes=1, etag=""), place=Place(file="a"), annotated=True, value=value
    )
    again = pickle.loads(pickle.dumps(record))
    assert again == record
    assert (again.value.lines, again.value["crowd"].lines) == ({"crowd": 1}, [2, 3])
