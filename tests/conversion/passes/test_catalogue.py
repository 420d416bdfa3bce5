"""Images of a dataset page by page, with thumbnails and annotations, as they are or after a conversion."""

from __future__ import annotations

import io
import json
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.chassis.errors import Reason
from services.chassis.rpc import error_from_rpc

BOXES = """a.png: [{category: cat, bbox: [0, 1, 3, 4]}, {category: dog, bbox: [1, 1, 2, 2]}]
b.png: []
c.png: null
d.png: [{category: dog, bbox: [1, 1, 4, 3]}, {category: dog, bbox: [2, 2, 2, 3]}]
"""


@pytest.fixture
def boxes(dataset: Any) -> Any:
    return dataset.write("task: object detection\ncategories: [cat, dog]\nannotations: a.yaml\n", **{"a.yaml": BOXES})


def listing(service: Any, source: Any, **fields: Any) -> Any:
    return service.stub.ListImages(service_pb2.ListImagesRequest(source=source, **fields))


def test_images_come_by_name_in_pages_with_what_is_said_of_them(run: Any, boxes: Any) -> None:
    async def test(service: Any) -> None:
        page = await listing(service, boxes.source, page_size=3)
        assert [image.name for image in page.images] == ["a.png", "b.png", "c.png"]
        assert (page.total_size, page.task) == (4, task_pb2.TASK_OBJECT_DETECTION)
        a, b, c = page.images
        assert json.loads(a.annotation_json)[0] == {"category": "cat", "bbox": [0, 1, 3, 4]}
        assert (list(a.categories), b.annotation_json, c.annotation_json) == (["cat", "dog"], "[]", "null")
        assert [image.state for image in page.images] == [1, 2, 3]
        assert (a.width, a.height, a.picture) == (5, 4, b"")
        last = await listing(service, boxes.source, page_size=3, page_token=page.next_page_token)
        assert ([image.name for image in last.images], last.next_page_token) == (["d.png"], "")
        assert [finding.rule for finding in last.images[0].findings] == ["no_area"]

    run(test)


def test_images_of_a_category_and_of_a_finding_and_after_a_conversion(run: Any, boxes: Any) -> None:
    async def test(service: Any) -> None:
        cats = await listing(service, boxes.source, category="cat")
        assert ([image.name for image in cats.images], cats.total_size) == (["a.png"], 1)
        bad = await listing(service, boxes.source, rule="no_area")
        assert [image.name for image in bad.images] == ["d.png"]
        labels = await listing(service, boxes.source, to=task_pb2.TASK_MULTILABEL_CLASSIFICATION, category="dog")
        assert [image.annotation_json for image in labels.images] == ['["cat","dog"]', '["dog"]']

    run(test)


def test_thumbnails_and_one_image_are_no_larger_than_asked(run: Any, boxes: Any) -> None:
    boxes.image("a.png", size=(300, 100))

    async def test(service: Any) -> None:
        page = await listing(service, boxes.source, thumbnail_side=64, page_size=2)
        with Image.open(io.BytesIO(page.images[0].picture)) as picture:
            assert picture.size == (64, 21) == (page.images[0].picture_width, page.images[0].picture_height)
        assert page.images[1].picture_width == 5, "a small image stays as it is"
        request = service_pb2.GetImageRequest(source=boxes.source, image="a.png", side_max=150)
        found = (await service.stub.GetImage(request)).image
        assert (found.picture_width, found.media_type, list(found.categories)) == (150, "image/jpeg", ["cat", "dog"])
        (boxes.path / "images/b.png").unlink()
        gone = (await service.stub.GetImage(service_pb2.GetImageRequest(source=boxes.source, image="b.png"))).image
        assert "does not exist" in gone.picture_problem

    run(test)


async def pages_of(service: Any, source: Any, **fields: Any) -> list[Any]:
    pages, token = list[Any](), ""
    while token or not pages:
        pages.append(await listing(service, source, page_token=token, **fields))
        token = pages[-1].next_page_token
    return pages


def test_pages_of_large_thumbnails_are_small_enough_for_every_client(run: Any, dataset: Any) -> None:
    names = [f"{number:02}.png" for number in range(20)]
    dataset.write("task: autoencoding\n", images=(), **{"notes.txt": ""})
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (900, 900, 3), np.uint8)
        Image.fromarray(noise).save(dataset.path / "images" / name)

    async def test(service: Any) -> None:
        pages = await pages_of(service, dataset.source, thumbnail_side=800)
        assert [image.name for page in pages for image in page.images] == names
        assert all(image.picture_width == 800 for page in pages for image in page.images)
        assert max(page.ByteSize() for page in pages) <= 3 * 2**20 + 2**16
        assert min(len(page.images) for page in pages[:-1]) > 1

    run(test)


def test_what_is_too_large_for_a_page_says_so_and_hides_no_other_image(run: Any, dataset: Any) -> None:
    boxes = ", ".join("{category: cat, bbox: [0, 0, 2, 3]}" for _ in range(2_000))
    sound = "{category: cat, bbox: [0, 0, 1, 1]}"
    broken = ", ".join("{category: cat, bbox: [1, 1, 1, 1]}" for _ in range(400))
    dataset.write(
        "task: object detection\ncategories: [cat]\nannotations: a.yaml\n",
        images=("b.png", "c.png", "d.png"),
        **{"a.yaml": f"a.png: []\nb.png: [{boxes}]\nc.png: [{broken}]\nd.png: [{sound}]\n"},
    )
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(dataset.path / "images/a.png")

    async def test(service: Any) -> None:
        pages = await pages_of(service, dataset.source, thumbnail_side=500)
        assert max(page.ByteSize() for page in pages) < 60_000
        a, b, c, d = (image for page in pages for image in page.images)
        assert (a.picture, a.annotation_json) == (b"", "[]")
        assert "an answer has 40000 at most: ask for a smaller one" in a.picture_problem
        assert (b.annotation_json, list(b.categories), b.state) == ("", [], 1)
        assert "read it from the dataset" in b.annotation_problem
        assert (len(c.findings), len(b.picture) > 0) == (100, True)
        assert (json.loads(d.annotation_json)[0]["category"], d.annotation_problem) == ("cat", "")
        for name in ("a.png", "b.png"):
            request = service_pb2.GetImageRequest(source=dataset.source, image=name, side_max=500)
            whole = (await service.stub.GetImage(request)).image
            assert (whole.picture_problem, whole.annotation_problem) == ("", "")
            assert whole.picture
            assert len(json.loads(whole.annotation_json)) == (0 if name == "a.png" else 2_000)

    run(test, list_bytes_max=40_000)


def test_a_dataset_that_changed_between_pages_is_told_once_it_is_looked_at_again(run: Any, boxes: Any) -> None:
    async def test(service: Any) -> None:
        page = await listing(service, boxes.source, page_size=1)
        boxes.text("a.yaml", BOXES.replace("cat", "dog"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listing(service, boxes.source, page_size=1, page_token=page.next_page_token)
        assert "begin with the first one" in (caught.value.details() or "")

    run(test, list_seconds_max=0.0)


def test_forged_page_token_is_refused(run: Any, boxes: Any) -> None:
    async def test(service: Any) -> None:
        for token in ("x", "1", "1.", "-1.f", "٣.f", "9" * 50 + ".f"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await listing(service, boxes.source, page_token=token)
            assert error_from_rpc(refused.value).reason is Reason.INVALID_PAGE_TOKEN

    run(test)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"thumbnail_side": 100_000}, "thumbnail_side"),
        ({"annotation_set": "no"}, "annotation_set"),
    ],
)
def test_what_cannot_be_understood_is_told(run: Any, boxes: Any, fields: Any, wrong: str) -> None:
    async def test(service: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match=wrong):
            await listing(service, boxes.source, **fields)
        with pytest.raises(grpc.aio.AioRpcError, match="no image of the dataset"):
            await service.stub.GetImage(service_pb2.GetImageRequest(source=boxes.source, image="z.png"))

    run(test)
