"""Images listed by the side of a split: exactly those that a trainer trains and validates on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_spec_pb2

from runner.trainer.attempt_file import DatasetFolders
from runner.trainer.data import _split
from runner.trainer.dataset import read_dataset
from services.chassis.errors import InvalidArgument
from services.chassis.rpc import error_from_rpc
from tests.conversion.map_dataset import write_semantic

IMAGES = 60
BOX, LABELS = task_pb2.TASK_OBJECT_DETECTION, task_pb2.TASK_MULTILABEL_CLASSIFICATION
ALONE = task_pb2.TASK_AUTOENCODING
SIDES = (service_pb2.SPLIT_SIDE_TRAINING, service_pb2.SPLIT_SIDE_VALIDATION)


@pytest.fixture
def boxes(dataset: Any) -> Any:
    chance = random.Random(0)
    lines = []
    (dataset.path / "images").mkdir(parents=True)
    for number in range(IMAGES):
        dataset.image(f"{number:02}.png")
        found = [f"{{category: {chance.choice(['cat', 'dog'])}, bbox: [0, 1, 3, 4]}}" for _ in range(number % 3)]
        lines.append(f"{number:02}.png: {'null' if number % 7 == 3 else '[' + ', '.join(found) + ']'}\n")
    dataset.text("metadata.yaml", "task: object detection\ncategories: [cat, dog, rare]\nannotations: a.yaml\n")
    dataset.text("a.yaml", "".join(lines).replace("category: cat", "category: rare", 1))
    return dataset


async def listed(service: Any, source: Any, side: int, **split: Any) -> list[str]:
    names: list[str] = []
    token = ""
    while True:
        request = service_pb2.ListImagesRequest(
            source=source, page_size=7, page_token=token, split=service_pb2.SplitFilter(side=side, **split)
        )
        page = await service.stub.ListImages(request)
        names += [image.name for image in page.images]
        token = page.next_page_token
        if not token:
            assert page.total_size == len(names)
            return names


async def trained(
    service: Any, source: Any, images: Path, tasks: list[int], share: float | None, seed: int
) -> tuple[list[str], list[str]]:
    """What a trainer would train and validate on, of the datasets that its agent would have converted."""
    heads, folders = [], {}
    for number, task in enumerate(tasks):
        converted = await service.convert(source, task)
        folders[f"head{number}"] = Path(converted.dataset.uri.removeprefix("file://"))
        heads.append(job_spec_pb2.Head(id=f"head{number}", task=task))
    found = read_dataset(DatasetFolders(images=images, heads=folders), heads)
    spec = job_spec_pb2.JobSpec()
    spec.data.validation_split.share = 0.2 if share is None else share
    spec.data.validation_split.seed = seed
    training, validation = _split(found, spec)
    return [example.name for example in training], [example.name for example in validation]


@pytest.mark.parametrize(("share", "seed"), [(None, 0), (0.1, 7), (0.5, -3)])
@pytest.mark.parametrize("tasks", [[BOX], [LABELS], [BOX, LABELS], [LABELS, ALONE]])
def test_a_side_is_what_a_trainer_has_on_it(
    share: float | None, seed: int, tasks: list[int], run: Any, boxes: Any
) -> None:
    async def test(service: Any) -> None:
        expected = await trained(service, boxes.source, boxes.path / "images", tasks, share, seed)
        heads = [service_pb2.SplitHead(task=task) for task in tasks]
        found = [
            await listed(service, boxes.source, side, share=share, seed=seed or None, heads=heads) for side in SIDES
        ]
        assert (found[0], found[1]) == expected
        assert expected[0]
        assert expected[1]
        assert len(expected[0]) + len(expected[1]) == (IMAGES if ALONE in tasks else IMAGES - 9)
        if tasks == [BOX]:  # without heads it is what is listed
            assert await listed(service, boxes.source, SIDES[1], share=share, seed=seed or None) == expected[1]

    run(test)


def test_maps_are_split_by_their_categories(run: Any, tmp_path: Path) -> None:
    folder = write_semantic(tmp_path / "maps", 40, size=(12, 8))
    source = service_pb2.ListImagesRequest().source
    source.uri = folder.as_uri()

    async def test(service: Any) -> None:
        tasks = [task_pb2.TASK_SEMANTIC_SEGMENTATION]
        expected = await trained(service, source, folder / "images", tasks, None, 0)
        assert tuple([await listed(service, source, side) for side in SIDES]) == expected

    run(test)


def test_a_split_that_is_none_is_refused(run: Any, boxes: Any) -> None:
    async def test(service: Any) -> None:
        for side, share, field in ((0, 0.2, "split.side"), (1, 1.5, "split.share"), (2, float("nan"), "split.share")):
            with pytest.raises(grpc.RpcError) as caught:
                await listed(service, boxes.source, side, share=share)
            error = error_from_rpc(caught.value)
            assert isinstance(error, InvalidArgument)
            assert [each.field for each in error.violations] == [field]

    run(test)
