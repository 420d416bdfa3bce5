"""A dataset in a bucket on its way to a runner: converted by the service, fetched by the agent."""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path
from typing import Any

import pytest
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.conversion.v1.conversion_service_pb2 import ConvertDatasetRequest

from runner.agent.files.conversion import Conversion, ConversionLimits
from runner.agent.files.download import Downloaded, DownloadLimits, Downloads, HeadDataset
from runner.agent.files.provision import AGAIN
from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason, SihlaiError
from tests.object_server import Bucket
from tests.relay import relay_to

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


def test_a_store_that_is_away_is_said_to_be_why_a_job_waits_and_a_refusal_ends_the_wait(
    run: Any, dataset: Any, bucket: Bucket
) -> None:
    dataset.write()
    bucket.upload(dataset.path)
    limits = ConversionLimits(
        reconnect_seconds_first=0.01, reconnect_seconds_max=0.05, unavailable_seconds_max=60, changed_tries_max=1
    )
    waits: list[SihlaiError] = []
    waited = asyncio.Event()

    def wait(error: SihlaiError) -> None:
        waits.append(error)
        if len(waits) > 1:
            waited.set()

    async def convert(service: Any, source: dataset_pb2.DatasetSource) -> Any:
        client = Conversion(service.channel, limits=limits, randomness=random.Random(0))
        request = ConvertDatasetRequest(source=source, to=MULTILABEL)
        return await client.convert(request, on_progress=lambda work: None, on_unavailable=wait)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            await relay.cut()
            waiting = asyncio.create_task(convert(service, bucket.source(endpoint_url=relay.endpoint_url)))
            await asyncio.wait_for(waited.wait(), 30)
            assert {each.reason for each in waits} == {Reason.OBJECT_STORE_UNAVAILABLE}
            assert waits[0].reason in AGAIN, "it is not said that conversion does not answer"
            await relay.open()
            assert (await waiting).labelled_out == 3
        waits.clear()
        for source in (bucket.source(key=bucket.server.stranger), bucket.source(anonymous=True)):
            with pytest.raises(PermissionDenied):
                await convert(service, source)
        assert waits == []

    run(
        test,
        allowed_endpoint_hosts=("127.0.0.1",),
        object_retries_max=0,
    )
