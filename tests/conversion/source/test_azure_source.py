"""A dataset in a container of Azure's, and in a bucket read as Google's: converted, and fetched by a runner."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import obstore
import pytest
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from runner.agent.files.download import DownloadLimits, Downloads
from services.chassis.objects.store import open_store
from tests.azure_server import ACCOUNT, AzureServer
from tests.object_server import Bucket

HOSTS = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0}
LIMITS = DownloadLimits(concurrent_max=4, unavailable_seconds_max=1, missing_seconds_max=0, disk_free_bytes_min=0)
BOXES = "task: object detection\ncategories: [cat]\nannotations: boxes.yaml\n"


async def convert_and_fetch(service: Any, source: dataset_pb2.DatasetSource, dataset: Any, folder: Path) -> None:
    result = await service.convert(source, task_pb2.TASK_MULTILABEL_CLASSIFICATION)
    assert service.converted(result)["annotations"]["a.png"] == ["cat"]
    downloads = Downloads(limits=LIMITS, randomness=random.Random(0))
    head = await downloads.head(result.dataset, folder / "head")
    assert head.images_uri == f"{source.uri}/images"
    wanted = downloads.images(source, head.images_uri, head.images, folder / "images")
    await downloads.files(wanted, folder, on_progress=lambda done, total: None)
    fetched = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert fetched == {path.name: path.read_bytes() for path in (dataset.path / "images").iterdir()}


def test_a_dataset_in_a_container_of_azures_is_converted_and_fetched_with_its_key(
    run: Any, dataset: Any, azure_server: AzureServer, tmp_path: Path
) -> None:
    dataset.write(BOXES, **{"boxes.yaml": "a.png: [{category: cat, bbox: [0, 0, 2, 4]}]\n"})
    uri = f"az://{ACCOUNT}/datasets/of%20a%20team"
    key = dataset_pb2.Credentials(azure_account_key=azure_server.key.account_key)
    source = dataset_pb2.DatasetSource(uri=uri, endpoint_url=azure_server.endpoint_url, credentials=key)

    async def test(service: Any) -> None:
        store = open_store(uri, endpoint_url=azure_server.endpoint_url, credentials=azure_server.key)
        for path in dataset.path.rglob("*"):
            if path.is_file():
                await store.write(path.relative_to(dataset.path).as_posix(), path.read_bytes())
        await convert_and_fetch(service, source, dataset, tmp_path / "out")

    run(test, **HOSTS)


def test_a_public_dataset_is_converted_and_fetched_as_one_of_googles(
    run: Any, dataset: Any, bucket: Bucket, tmp_path: Path
) -> None:
    dataset.write(BOXES, **{"boxes.yaml": "a.png: [{category: cat, bbox: [0, 0, 2, 4]}]\n"})
    store = bucket.server.store("public", bucket.server.owner)
    for path in dataset.path.rglob("*"):
        if path.is_file():
            name = path.relative_to(dataset.path).as_posix()
            obstore.put(store, f"{bucket.prefix}/{name}", path.read_bytes())
    uri = f"gs://public/{bucket.prefix}"
    source = dataset_pb2.DatasetSource(uri=uri, endpoint_url=bucket.server.endpoint_url)

    async def test(service: Any) -> None:
        await convert_and_fetch(service, source, dataset, tmp_path / "out")

    run(test, **HOSTS)


@pytest.mark.parametrize("uri", ["gs://bucket/prefix", "az://account/container/prefix"])
def test_a_key_of_another_kind_is_refused_with_what_is_wanted(run: Any, uri: str) -> None:
    key = dataset_pb2.Credentials(s3=dataset_pb2.S3Key(access_key_id="a", secret_access_key="do-not-show-me"))
    source = dataset_pb2.DatasetSource(uri=uri, credentials=key)

    async def test(service: Any) -> None:
        with pytest.raises(Exception, match=r"source\.credentials\.s3: opens nothing of") as refused:
            await service.convert(source, task_pb2.TASK_MULTILABEL_CLASSIFICATION)
        assert "do-not-show-me" not in str(refused.value)

    run(test, **HOSTS)
