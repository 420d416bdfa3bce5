"""Contact sheets through the real service: on their own, and with a conversion."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.chassis.errors import InvalidArgument, Reason, SihlaiError
from services.chassis.rpc import error_from_rpc
from services.conversion.formats import FORMATS
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageSize
from services.conversion.task import Task

DATA = Path(__file__).parents[4] / "shared/data"
DETECTION = task_pb2.TASK_OBJECT_DETECTION
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
QUADS = task_pb2.TASK_QUADRILATERAL_DETECTION
METADATA = "task: object detection\ncategories: [cat, dog]\nannotations: boxes.yaml\n"
BOX = "{category: cat, bbox: [1, 1, 4, 3]}"


async def preview(service: Any, dataset: Any, **fields: Any) -> service_pb2.PreviewDatasetResponse:
    answer: service_pb2.PreviewDatasetResponse = await service.stub.PreviewDataset(
        service_pb2.PreviewDatasetRequest(source=dataset.source, **fields)
    )
    return answer


async def error_of(call: Awaitable[Any]) -> SihlaiError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("an error was expected")


def picture(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def boxes(dataset: Any, count: int = 12, **lines: str) -> Any:
    names = tuple(f"{number:02}.png" for number in range(count))
    annotated = dict.fromkeys(names, f"[{BOX}]") | {f"{key.strip('_')}.png": line for key, line in lines.items()}
    return dataset.write(
        METADATA, names, **{"boxes.yaml": "".join(f"{name}: {line}\n" for name, line in annotated.items())}
    )


def sheet_of(result: service_pb2.ConversionResult) -> Path:
    return Path(result.dataset.uri.removeprefix("file://")) / result.contact_sheet


def test_a_sheet_shows_some_images_that_are_spread_over_the_dataset(run: Any, dataset: Any) -> None:
    boxes(dataset, 40)

    async def test(service: Any) -> None:
        found = await preview(service, dataset)
        numbers = [int(name.removesuffix(".png")) for name in found.images]
        assert numbers == [2, 7, 12, 17, 22, 27, 32, 37]
        image = picture(found.content)
        assert (image.format, found.media_type) in (("PNG", "image/png"), ("JPEG", "image/jpeg"))
        assert image.width > 1_000
        assert (await preview(service, dataset)).content == found.content

    before = {path: path.stat().st_mtime_ns for path in dataset.path.rglob("*")}
    run(test)
    assert {path: path.stat().st_mtime_ns for path in dataset.path.rglob("*")} == before


def test_labelled_images_are_shown_before_others(run: Any, dataset: Any) -> None:
    boxes(dataset, 6, _00="null", _01="[]", _02="null")

    async def test(service: Any) -> None:
        assert (await preview(service, dataset, images_max=3)).images == ["03.png", "04.png", "05.png"]
        assert (await preview(service, dataset, images_max=4)).images == ["01.png", "03.png", "04.png", "05.png"]
        assert len((await preview(service, dataset)).images) == 6

    run(test)


def test_a_conversion_is_shown_beside_its_source(run: Any, dataset: Any) -> None:
    boxes(dataset, 2)

    async def test(service: Any) -> None:
        alone = await preview(service, dataset)
        both = await preview(service, dataset, to=MULTILABEL, via=[QUADS])
        assert picture(both.content).height > picture(alone.content).height
        poses = service_pb2.ConversionOptions()
        poses.steps.add(keypoint_to_detection={"min_size": 5})
        error = await error_of(preview(service, dataset, options=poses))
        assert "no step at all" in error.message

    run(test)


def test_images_are_shown_that_are_named_in_that_order(run: Any, dataset: Any) -> None:
    boxes(dataset, 6)

    async def test(service: Any) -> None:
        names = ["05.png", "00.png", "05.png"]
        assert (await preview(service, dataset, images=names)).images == ["05.png", "00.png"]
        error = await error_of(preview(service, dataset, images=["00.png", "nobody.png", "../metadata.yaml"]))
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == ["images[1]", "images[2]"]
        assert "'nobody.png', which is not in images/" in error.message

    run(test)


def test_no_sheet_shows_more_images_than_the_server_allows(run: Any, dataset: Any) -> None:
    boxes(dataset, 6)

    async def test(service: Any) -> None:
        assert len((await preview(service, dataset, images_max=50)).images) == 4
        assert len((await preview(service, dataset)).images) == 2
        error = await error_of(preview(service, dataset, images=[f"{n:02}.png" for n in range(6)]))
        assert "names 6 images, but a sheet shows at most 4" in error.message

    run(test, preview_images_max=4, preview_images_default=2)


def test_what_is_wrong_with_a_request_is_said_all_at_once(run: Any, dataset: Any) -> None:
    async def test(service: Any) -> None:
        request = service_pb2.PreviewDatasetRequest(via=[DETECTION], images_max=-1, images=[""])
        error = await error_of(service.stub.PreviewDataset(request))
        assert isinstance(error, InvalidArgument)
        fields = [violation.field for violation in error.violations]
        assert fields == ["source.uri", "via", "images_max", "images[0]"]

    run(test)


def test_annotations_with_errors_are_left_out_and_the_others_shown(run: Any, dataset: Any) -> None:
    boxes(dataset, 2, _00=f"[{BOX}, {{category: lion, bbox: [1, 1, 3, 3]}}]")

    async def test(service: Any) -> None:
        wrong = await preview(service, dataset)
        assert wrong.images == ["00.png", "01.png"]
        dataset.text("boxes.yaml", f"00.png: [{BOX}]\n01.png: [{BOX}]\n")
        assert (await preview(service, dataset)).content != wrong.content

    run(test)


def test_a_dataset_that_cannot_be_understood_is_refused(run: Any, dataset: Any) -> None:
    dataset.write("task: object detection\nannotations: boxes.yaml\n", **{"boxes.yaml": "a.png: []\n"})

    async def test(service: Any) -> None:
        error = await error_of(preview(service, dataset))
        assert error.reason is Reason.DATASET_INVALID
        assert "categories" in error.message
        for path in (dataset.path / "images").iterdir():
            path.write_bytes(b"no image")
        dataset.text("metadata.yaml", METADATA)
        error = await error_of(preview(service, dataset))
        assert error.reason is Reason.DATASET_INVALID
        assert "it is no JPEG, PNG or TIFF" in error.message

    run(test)


def test_maps_are_read_for_the_images_that_are_shown(run: Any, dataset: Any) -> None:
    vocabulary = PanopticColors(
        names=("cat", "sky"), colors={"cat": (250, 0, 0), "sky": (0, 0, 250)}, things=frozenset({"cat"})
    )
    labels = np.zeros((40, 60), np.uint16)
    labels[:20], labels[25:, :30] = 2, 1
    segments = (Segment(category="cat", id=1), Segment(category="sky", id=0))
    annotation = PanopticMap(labels=labels, segments=segments)
    size = ImageSize(width=60, height=40)
    file = FORMATS[Task.PANOPTIC_SEGMENTATION].write(annotation, size, vocabulary)
    metadata = {"task": "panoptic segmentation", "annotations": "maps/", "things": ["cat"]}
    metadata |= {"categories": ["cat", "sky"], "colors": {"cat": [250, 0, 0], "sky": [0, 0, 250]}}
    dataset.write(json.dumps(metadata), (), **{"maps/b.yaml": "crowd: [[cat, 1]]\n"})
    for name in ("a", "b", "c"):
        dataset.image(f"{name}.png", size=(60, 40))
    for name in ("a", "b"):
        (dataset.path / f"maps/{name}.tiff").write_bytes(file.content)

    async def test(service: Any) -> None:
        found = await preview(service, dataset, images_max=2)
        assert found.images == ["a.png", "b.png"]
        colors = np.asarray(picture(found.content).convert("RGB")).reshape(-1, 3)
        assert (colors[:, 2] > 120).any(), "the sky is blue"
        plain = await preview(service, dataset, images=["a.png"])
        assert (await preview(service, dataset, images=["b.png"])).content != plain.content

    run(test)


def test_a_conversion_leaves_a_sheet_with_its_result(run: Any, dataset: Any) -> None:
    boxes(dataset, 12, _03="[]", _04="null")

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        assert result.contact_sheet in ("contact_sheet.png", "contact_sheet.jpg")
        assert picture(sheet_of(result).read_bytes()).width > 1_000
        assert service.converted(result)["report"]["contact_sheet"] == result.contact_sheet
        again = await service.convert(dataset.source, MULTILABEL)
        assert (again.reused, again.contact_sheet) == (True, result.contact_sheet)
        shown = await preview(service, dataset, to=MULTILABEL)
        assert shown.content == sheet_of(result).read_bytes()
        further = await service.convert(result.dataset, task_pb2.TASK_AUTOENCODING)
        assert further.contact_sheet

    run(test)


def test_the_sheet_of_a_conversion_shows_what_it_lost(run: Any, dataset: Any) -> None:
    lost = "[{category: cat, bbox: [9, 9, 12, 12]}]"
    boxes(dataset, 40, _21=lost)

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL, lenient=True)
        assert [each.rule for each in result.dropped] == ["outside_image"]
        usual = await preview(service, dataset, to=MULTILABEL)
        assert "21.png" not in usual.images
        names = ["02.png", "08.png", "13.png", "19.png", "21.png", "26.png", "31.png", "37.png"]
        shown = await preview(service, dataset, to=MULTILABEL, images=names)
        assert shown.content == sheet_of(result).read_bytes()

    run(test)


def test_an_image_that_cannot_be_decoded_fails_no_conversion(run: Any, dataset: Any) -> None:
    boxes(dataset, 3)
    path = dataset.path / "images/01.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF  # the header is sound, the picture is not
    path.write_bytes(content)

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        assert (result.images_in, result.labelled_out) == (3, 3)
        assert picture(sheet_of(result).read_bytes()).width > 500

    run(test)


def test_larger_images_than_may_be_are_named_and_not_shown(run: Any, dataset: Any) -> None:
    boxes(dataset, 3)

    async def test(service: Any) -> None:
        found = await preview(service, dataset)
        assert len(found.images) == 3
        assert (np.asarray(picture(found.content).convert("RGB")) == (222, 222, 218)).all(axis=2).mean() > 0.4

    run(test, preview_image_bytes_max=10)


def test_a_sheet_that_takes_too_long_is_left_out(run: Any, dataset: Any) -> None:
    boxes(dataset, 3)

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        assert (result.labelled_out, result.contact_sheet) == (3, "")

    run(test, preview_seconds_max=0)


def test_where_there_are_no_annotations_there_is_no_sheet(run: Any, dataset: Any) -> None:
    dataset.write(None)

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, task_pb2.TASK_VIEW_INVARIANCE_LEARNING)
        assert not result.contact_sheet
        assert (await preview(service, dataset)).images == ["a.png", "b.png", "c.png", "d.png"]

    run(test)


def test_previews_share_the_turns_of_all_other_work(run: Any, dataset: Any) -> None:
    boxes(dataset, 3)

    async def test(service: Any) -> None:
        answers = await asyncio.gather(*(preview(service, dataset) for _ in range(8)), return_exceptions=True)
        busy = [error_from_rpc(each) for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert len(busy) < len(answers)
        assert {error.reason for error in busy} <= {Reason.LIMIT_REACHED}

    run(test, works_running_max=1, works_waiting_max=2)


def test_real_photos_make_a_sheet_that_is_worth_its_bytes(run: Any, dataset: Any, tmp_path: Path) -> None:
    photos = DATA / "bccd/JPEGImages"
    if not photos.is_dir():
        pytest.skip("the real data of bccd are not beside the repository")
    names = sorted(path.name for path in photos.iterdir())
    metadata = {"task": "object detection", "categories": ["cell"], "annotations": "cells.json"}
    dataset.write(
        json.dumps(metadata | {"images": photos.as_uri()}),
        (),
        **{"cells.json": json.dumps({name: [{"category": "cell", "bbox": [100, 100, 400, 300]}] for name in names})},
    )

    async def test(service: Any) -> None:
        found = await preview(service, dataset, to=QUADS)
        assert found.media_type == "image/jpeg"
        assert len(found.images) == 8
        assert 100_000 < len(found.content) < 2_000_000

    run(test, allowed_roots=(tmp_path, DATA))
