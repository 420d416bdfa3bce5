"""A dataset in a bucket on its way to a runner: converted by the service, fetched by the agent."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import Any

import pytest
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from runner.agent.files.download import Downloaded, DownloadLimits, Downloads, HeadDataset
from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason
from tests.object_server import Bucket

LIMITS = DownloadLimits(concurrent_max=4, unavailable_seconds_max=0, missing_seconds_max=0, disk_free_bytes_min=0)
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION


def test_a_converted_dataset_reaches_the_runner_with_the_rights_of_its_project_alone(
    run: Any, dataset: Any, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.write()
    large = dataset.image("e.png", size=(900, 800))
    large.write_bytes(large.read_bytes() + bytes(2**21))  # what follows the end does no harm
    bucket.upload(dataset.path)
    own = bucket.server.service  # the runner's own key reads results, and no dataset
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", own.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", own.secret_access_key)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    downloads = Downloads(limits=LIMITS, randomness=random.Random(0))

    async def fetched(source: dataset_pb2.DatasetSource, head: HeadDataset, name: str) -> Downloaded:
        wanted = downloads.images(source, head.images_uri, head.images, tmp_path / name)
        return await downloads.files(wanted, tmp_path / name, on_progress=lambda done, total: None)

    async def test(service: Any) -> None:
        source = bucket.source()
        result = await service.convert(source, MULTILABEL)
        head = await downloads.head(result.dataset, tmp_path / "head")
        assert head.images_uri == f"{bucket.uri}/images"
        assert (await fetched(source, head, "images")).files == 5
        for path in (dataset.path / "images").iterdir():
            assert (tmp_path / "images" / path.name).read_bytes() == path.read_bytes()
        with pytest.raises(PermissionDenied):
            await fetched(bucket.source(key=bucket.server.stranger), head, "refused")
        with pytest.raises(PermissionDenied):
            await fetched(bucket.source(anonymous=True), head, "refused")
        bucket.put("images/b.png", b"of another size")
        with pytest.raises(FailedPrecondition) as changed:
            await fetched(source, head, "changed")
        assert changed.value.reason is Reason.DATASET_CHANGED
        bucket.delete("images/b.png")
        with pytest.raises(FailedPrecondition) as gone:
            await fetched(source, head, "gone")
        assert gone.value.message == (
            "the image b.png is gone: the dataset changed while it was read; submit the job again"
        )

    run(
        test,
        store_uri=f"s3://results/{secrets.token_hex(6)}",
        store_endpoint_url=bucket.server.endpoint_url,
        allowed_endpoint_hosts=("127.0.0.1",),
    )
