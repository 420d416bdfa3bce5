"""Imports and exports as calls: where they may write, what a repeat gives, what they refuse."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import InvalidArgument
from services.chassis.rpc import error_from_rpc

BOX = {"category_id": 7, "bbox": [1, 1, 2, 2]}
CATEGORIES = [{"id": 7, "name": "cat"}]
QUADS = "task: quadrilateral detection\ncategories: [cat]\nannotations: quads.yaml\n"


def test_what_was_imported_is_a_sound_dataset_that_is_there_once(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": [BOX], "b.png": []}, CATEGORIES)

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        findings, totals = await trader.service.findings(taken.result.dataset)
        assert (list(findings), totals.images) == ([], 2)
        again = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert (taken.result.reused, again.result.reused) == (False, True)
        other = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native", lenient=True)
        assert "is not empty" in other.error
        assert other.json() == taken.json()

    trade(test)


def test_a_repeated_export_finds_what_is_there_and_another_one_does_not_touch_it(
    trade: Any, dataset: Any, tmp_path: Path
) -> None:
    dataset.write(
        "task: object detection\ncategories: [cat]\nannotations: o.yaml\n", **{"o.yaml": "a.png: []\nb.png: []\n"}
    )

    async def test(trader: Any) -> None:
        first = await trader.give("PASCAL_VOC", dataset.path, tmp_path / "voc")
        again = await trader.give("PASCAL_VOC", dataset.path, tmp_path / "voc")
        assert (first.result.reused, again.result.reused) == (False, True)
        assert again.result.labelled_out == 2

    trade(test)


@pytest.mark.parametrize("kind", ["PASCAL_VOC", "YOLO_DETECT", "COCO_INSTANCES", "DATUMARO"])
def test_an_export_says_that_the_range_of_16_bit_images_is_left_out(
    kind: str, trade: Any, dataset: Any, tmp_path: Path
) -> None:
    metadata = "task: object detection\ncategories: [cat]\nannotations: o.yaml\n"
    boxes = "a.png: [{category: cat, bbox: [0, 0, 2, 2]}]\n"
    dataset.write(metadata, **{"o.yaml": boxes})

    async def test(trader: Any) -> None:
        for number, added in enumerate(("", "image_range: [0, 4095]\n")):
            (dataset.path / "metadata.yaml").write_text(metadata + added)
            given = await trader.give(kind, dataset.path, tmp_path / f"exported-{number}", copy_images=True)
            said = [each for each in given.findings if each.value == "image_range"]
            assert [each.rule for each in said] == ["not_said"] * number, given.error
        assert "`image_range: [0, 4095]` is left out" in said[0].message

    trade(test)


def test_two_calls_at_once_are_one_piece_of_work_with_the_same_findings(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": [{**BOX, "ignore": 1}]}, CATEGORIES).image("images/beside.png")

    async def test(trader: Any) -> None:
        both = await asyncio.gather(*(trader.take("COCO_INSTANCES", files.path, tmp_path / "native") for _ in range(2)))
        assert [taken.result.reused for taken in both] in ([False, False], [False, True])
        assert both[0].rules == ["unlisted_image"]

    trade(test)


def test_a_refused_import_can_be_repeated_once_the_source_is_mended(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": [{**BOX, "bbox": [1, 1, 0, 2]}]}, CATEGORIES)

    async def test(trader: Any) -> None:
        refused = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert refused.errors == ["no_area"]
        files.coco("instances", {"a.png": [BOX]}, CATEGORIES)
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert (taken.findings, taken.result.annotations_out) == ([], 1)

    trade(test)


def test_an_export_converts_into_the_best_task_of_the_format_on_the_way(
    trade: Any, dataset: Any, tmp_path: Path
) -> None:
    dataset.write(QUADS, **{"quads.yaml": "a.png:\n- {category: cat, quad: [[1, 1], [3, 1], [4, 3], [1, 2]]}\n"})

    async def test(trader: Any) -> None:
        given = await trader.give("COCO_INSTANCES", dataset.path, tmp_path / "coco", copy_images=True)
        assert [(s.from_task, s.to) for s in given.result.steps] == [
            (task_pb2.TASK_QUADRILATERAL_DETECTION, task_pb2.TASK_OBJECT_DETECTION)
        ]
        assert given.json("annotations/instances.json")["annotations"][0]["bbox"] == [1, 1, 3, 2]
        unreachable = await trader.give("COCO_PANOPTIC", dataset.path, tmp_path / "panoptic")
        assert unreachable.error.startswith("FAILED_PRECONDITION")
        assert "object detection" in unreachable.error, "what can be reached is told"

    trade(test)


def test_category_ids_survive_a_conversion_between_import_and_export(trade: Any, files: Any, tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]
    files.coco("instances", {"a.png": [BOX]}, categories)

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        quads = await trader.service.convert(taken.result.dataset, task_pb2.TASK_QUADRILATERAL_DETECTION)
        folder = Path(quads.dataset.uri.removeprefix("file://"))
        given = await trader.give("COCO_INSTANCES", folder, tmp_path / "back")
        assert given.json("annotations/instances.json")["categories"] == categories
        findings, _ = await trader.service.findings(quads.dataset)
        assert list(findings) == []

    trade(test)


@pytest.mark.parametrize("ids", ["{cat: one}", "[7]", "{cat: 3, dog: 3}"])
def test_category_ids_that_are_none_are_passed_over_with_a_warning(
    trade: Any, dataset: Any, tmp_path: Path, ids: str
) -> None:
    metadata = f"task: object detection\ncategories: [cat, dog]\ncategory_ids: {ids}\nannotations: o.yaml\n"
    dataset.write(metadata, **{"o.yaml": "a.png: []\n"})

    async def test(trader: Any) -> None:
        given = await trader.give("COCO_INSTANCES", dataset.path, tmp_path / "coco")
        assert given.rules[0] == "bad_value"
        assert [each["id"] for each in given.json("annotations/instances.json")["categories"]] == [1, 2]

    trade(test)


def test_a_link_out_of_the_source_is_not_followed(trade: Any, files: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/x.png").write_bytes(b"secret")
    files.coco("instances", {"a.png": [BOX]}, CATEGORIES)
    (files.path / "images/linked.png").symlink_to(tmp_path / "secret/x.png")
    (files.path / "more").symlink_to(tmp_path / "secret")

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native", copy_images=True, lenient=True)
        assert set(taken.rules) <= {"leads_outside"}
        assert sorted(path.name for path in (tmp_path / "native/images").iterdir()) == ["a.png"]

    trade(test)


def test_places_outside_the_allowed_ones_are_refused(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": [BOX]}, CATEGORIES)

    async def test(trader: Any) -> None:
        elsewhere = await trader.take("COCO_INSTANCES", files.path, tmp_path / "elsewhere")
        assert elsewhere.error.startswith("PERMISSION_DENIED")
        outside = await trader.take("COCO_INSTANCES", Path("/etc"), tmp_path / "to/native")
        assert outside.error.startswith("PERMISSION_DENIED")

    trade(test, allowed_roots=(tmp_path,), allowed_destination_roots=(tmp_path / "to",))


@pytest.mark.parametrize(
    ("settings", "code", "found"),
    [
        ({"foreign_files_max": 1}, "RESOURCE_EXHAUSTED", "more than 1 files"),
        ({"foreign_document_bytes_max": 10}, "FAILED_PRECONDITION", "at most 10"),
    ],
)
def test_limits_are_told_with_what_was_found(
    trade: Any, files: Any, tmp_path: Path, settings: Any, code: str, found: str
) -> None:
    files.coco("instances", {"a.png": [BOX]}, CATEGORIES)

    async def test(trader: Any) -> None:
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert taken.error.startswith(code)
        assert found in taken.error

    trade(test, **settings)


def test_the_annotations_of_one_image_have_a_limit_of_their_own(trade: Any, files: Any, tmp_path: Path) -> None:
    files.image("images/a.png").text("labels/a.txt", "0 0.5 0.5 0.2 0.2\n" * 9)
    files.text("data.yaml", "names: [cat]\ntrain: images\n")

    async def test(trader: Any) -> None:
        taken = await trader.take("YOLO_DETECT", files.path, tmp_path / "native", lenient=True)
        assert taken.errors == ["file_too_large"]
        assert taken.json() == {"a.png": None}

    trade(test, foreign_file_bytes_max=100)


def test_all_that_is_wrong_with_a_request_is_told_at_once(trade: Any) -> None:
    async def test(trader: Any) -> None:
        request = service_pb2.ImportDatasetRequest(request_id="no uuid", unannotated=9, format=99)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in trader.service.stub.ImportDataset(request):
                pass
        refused = error_from_rpc(error.value)
        assert isinstance(refused, InvalidArgument)
        told = {violation.field for violation in refused.violations}
        assert told >= {"source.uri", "destination.uri", "format", "unannotated", "request_id"}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in trader.service.stub.ExportDataset(service_pb2.ExportDatasetRequest()):
                pass
        assert "format: is missing: name one of COCO instances, " in (error.value.details() or "")

    trade(test)


def test_images_on_another_server_must_be_copied(trade: Any, tmp_path: Path) -> None:
    async def test(trader: Any) -> None:
        request = service_pb2.ImportDatasetRequest(
            source=dataset_pb2.DatasetSource(uri="s3://bucket/coco", endpoint_url="http://127.0.0.1:9"),
            destination=dataset_pb2.DatasetSource(uri=(tmp_path / "native").as_uri()),
            format=service_pb2.FOREIGN_FORMAT_COCO_INSTANCES,
        )
        with pytest.raises(grpc.aio.AioRpcError, match="another server"):
            async for _ in trader.service.stub.ImportDataset(request):
                pass

    trade(test, allowed_endpoint_hosts=("127.0.0.1:9",))


def test_broken_text_in_place_of_any_document_is_an_error_of_ours(look: Any, files: Any) -> None:
    """A short look; the fuzzing proper has a target of its own."""
    chance = random.Random(0)
    files.coco("instances", {"a.png": [{**BOX, "segmentation": [[1, 1, 4, 1, 4, 4]]}]}, CATEGORIES)
    files.text("data.yaml", "names: [cat]\ntrain: images\n").text("labels/a.txt", "0 0.5 0.5 0.2 0.2\n")
    files.text("Annotations/a.xml", "<annotation><object><name>cat</name></object></annotation>")
    for name, path in (
        ("COCO instances", "annotations/instances.json"),
        ("YOLO detect", "data.yaml"),
        ("YOLO segment", "labels/a.txt"),
        ("Pascal VOC", "Annotations/a.xml"),
    ):
        sound = (files.path / path).read_bytes()
        for _ in range(60):
            broken = bytearray(sound)
            for _ in range(chance.randrange(1, 6)):
                at = chance.randrange(len(broken))
                broken[at : at + chance.randrange(3)] = chance.choice(
                    [b"", b"\0", b"9", b"\xff", b"[", b"}", b"-", b'"', b"1e999", b"null", b"<", b"&", b":", b" "]
                )
            (files.path / path).write_bytes(broken)
            look(name, files.path)
        (files.path / path).write_bytes(sound)


def test_a_call_that_is_left_stops_and_the_next_one_gets_there(trade: Any, files: Any, tmp_path: Path) -> None:
    files.text("data.yaml", "names: [cat]\ntrain: images\n")
    for number in range(40):
        files.image(f"images/{number}.png").text(f"labels/{number}.txt", "0 0.5 0.5 0.25 0.5\n")

    async def test(trader: Any) -> None:
        request = service_pb2.ImportDatasetRequest(
            source=dataset_pb2.DatasetSource(uri=files.path.as_uri()),
            destination=dataset_pb2.DatasetSource(uri=(tmp_path / "native").as_uri()),
            format=service_pb2.FOREIGN_FORMAT_YOLO_DETECT,
            copy_images=True,
        )
        call = trader.service.stub.ImportDataset(request)
        async for message in call:
            assert message.HasField("progress")
            break
        call.cancel()
        taken = await trader.take("YOLO_DETECT", files.path, tmp_path / "native", copy_images=True)
        assert (taken.result.images_in, taken.result.annotations_out) == (40, 40)
        assert not list(tmp_path.glob(".*")), "nothing is left beside the destination"
        assert not list(trader.service.store.glob(".draft-*")), "nor in the store"

    trade(test)
