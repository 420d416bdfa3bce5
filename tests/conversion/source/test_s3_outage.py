"""Buckets that change, stall, vanish and come back while they are read: a clear error each, nothing half written."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import FailedPrecondition, Reason, SihlaiError, Unavailable
from services.chassis.rpc import error_from_rpc
from tests.object_server import Bucket
from tests.relay import Relay, relay_to

SETTINGS = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0, "requests_max": 2}
IMPATIENT = SETTINGS | {"object_read_seconds": 0.25}
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
SOON_SECONDS = 20.0
"""Below the defaults of the limits, far above what these tests set."""


async def inspection(service: Any, source: dataset_pb2.DatasetSource) -> service_pb2.InspectDatasetResponse:
    return await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))


async def failure(service: Any, source: dataset_pb2.DatasetSource) -> SihlaiError:
    """The error that a conversion ends with, soon. It has left nothing."""
    with pytest.raises(Exception, match=r".") as caught:
        async with asyncio.timeout(SOON_SECONDS):
            await service.convert(source, MULTILABEL)
    assert not list(service.store.glob("datasets/*"))
    assert not list(service.store.glob(".draft-*"))
    return error_from_rpc(caught.value)


async def given_up(service: Any, source: dataset_pb2.DatasetSource, relay: Relay) -> SihlaiError:
    """The error, where the relay holds something back. A busy machine may be slower than is configured before that."""
    while True:
        error = await failure(service, source)
        if relay.held.is_set():
            return error


async def served_again(service: Any, source: dataset_pb2.DatasetSource) -> service_pb2.ConversionResult:
    """What is converted now that nothing is held back; for a busy machine, see above."""
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            try:
                return await service.convert(source, MULTILABEL)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


async def meanwhile(call: Any, relay: Relay) -> asyncio.Task[Any]:
    """The call, under way, once the relay holds something back."""
    task = asyncio.create_task(call)
    async with asyncio.timeout(SOON_SECONDS):
        await relay.held.wait()
    return task


def image_request(bucket: Bucket, name: str) -> bytes:
    return f"GET /datasets/{bucket.prefix}/images/{name} ".encode()


@pytest.mark.parametrize("size_bytes", [0, 200_000])
@pytest.mark.parametrize("happens", ["deleted", "replaced"])
def test_an_image_that_changes_between_the_listing_and_its_turn_ends_the_call(
    happens: str, size_bytes: int, run: Any, dataset: Any, bucket: Bucket
) -> None:
    """It must not end in an index: that is taken for the truth by all later calls."""
    dataset.write()
    bucket.upload(dataset.path)
    image = (dataset.path / "images" / "c.png").read_bytes() + bytes(size_bytes)  # what follows the end does no harm
    bucket.put("images/c.png", image)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(image_request(bucket, "c.png"))
            failed = await meanwhile(failure(service, source), relay)
            if happens == "deleted":
                bucket.delete("images/c.png")
            else:
                bucket.put("images/c.png", image[:-1] + b"x")
            relay.release()
            error = await failed
            assert isinstance(error, FailedPrecondition)
            assert error.reason is Reason.DATASET_CHANGED
            assert error.metadata["uri"] == f"{bucket.uri}/images/c.png"
            wanted = "repeat the call once nobody changes the dataset"
            assert error.message == f"{bucket.uri}/images/c.png was {happens} while the dataset was read: {wanted}"
            if happens == "replaced":
                return
            assert (await inspection(service, source)).images == 3
            bucket.put("images/c.png", image)
            assert (await inspection(service, source)).images == 4
            assert (await service.convert(source, MULTILABEL)).images_in == 4

    run(test, **SETTINGS)


@pytest.mark.parametrize(
    ("name", "reason"), [("metadata.yaml", Reason.DATASET_CHANGED), ("labels.yaml", Reason.DATASET_INVALID)]
)
def test_a_file_of_annotations_that_disappears_between_its_listing_and_its_turn_ends_the_call(
    name: str, reason: Reason, run: Any, dataset: Any, bucket: Bucket
) -> None:
    dataset.write()
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            relay.hold_requests(f"GET /datasets/{bucket.prefix}/{name} ".encode())
            failed = await meanwhile(failure(service, bucket.source(endpoint_url=relay.endpoint_url)), relay)
            bucket.delete(name)
            relay.release()
            error = await failed
            assert isinstance(error, FailedPrecondition)
            assert error.reason is reason
            assert name in error.message

    run(test, **SETTINGS)


@pytest.mark.parametrize("what", ["metadata.yaml", r"\?list-type=2", "images/b.png", "labels.yaml"])
def test_a_server_that_does_not_answer_is_given_up_after_the_time_that_is_configured(
    what: str, run: Any, dataset: Any, bucket: Bucket
) -> None:
    dataset.write()
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(what.encode())
            error = await given_up(service, source, relay)
            assert isinstance(error, Unavailable)
            assert error.reason is Reason.OBJECT_STORE_UNAVAILABLE
            assert error.message.startswith(bucket.uri)
            assert "cannot be reached" in error.message
            assert error.retry_after_seconds > 0
            relay.release()
            assert (await served_again(service, source)).images_in == 4

    run(test, **IMPATIENT)


def test_an_answer_that_stops_in_the_middle_is_given_up_after_the_time_that_is_configured(
    run: Any, dataset: Any, bucket: Bucket
) -> None:
    dataset.write(**{"labels.yaml": "a.png: cat\n" + "# a long comment\n" * 20_000})
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_answers(f"GET /datasets/{bucket.prefix}/labels.yaml ".encode(), after_bytes=100_000)
            error = await given_up(service, source, relay)
            assert error.reason is Reason.OBJECT_STORE_UNAVAILABLE
            relay.release()
            assert (await served_again(service, source)).labelled_in == 1

    run(test, **IMPATIENT)


def test_a_transfer_that_stops_for_less_than_that_time_goes_on(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write()
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(image_request(bucket, "d.png"))
            converted = await meanwhile(service.convert(source, MULTILABEL), relay)
            relay.release()
            assert (await converted).images_in == 4

    run(test, **SETTINGS)


def test_a_server_that_dies_is_named_and_one_that_is_back_is_read_from_where_it_stood(
    run: Any, dataset: Any, bucket: Bucket
) -> None:
    names = tuple(f"{number:03}.png" for number in range(40))
    dataset.write(images=names, **{"labels.yaml": "000.png: cat\n"})
    bucket.upload(dataset.path)
    server = bucket.server

    async def test(service: Any) -> None:
        async with relay_to(server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(image_request(bucket, names[30]))
            failed = await meanwhile(failure(service, source), relay)
            server.kill()
            relay.release()
            assert isinstance(await failed, Unavailable)
            assert isinstance(await failure(service, source), Unavailable)
            server.start()  # in this thread, which its leash is tied to
            # What was read before is not read again.
            relay.hold_requests(image_request(bucket, names[0]))
            assert (await inspection(service, source)).images == len(names)
            assert not relay.held.is_set()

    try:
        run(test, **SETTINGS)
    finally:
        server.start()


def test_a_caller_that_leaves_a_stalled_read_leaves_nothing_behind(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write()
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(image_request(bucket, "b.png"))
            call = await meanwhile(service.convert(source, MULTILABEL), relay)
            call.cancel()
            await asyncio.wait({call})
            async with asyncio.timeout(SOON_SECONDS):
                await relay.left.wait()
            relay.release()
            async with asyncio.timeout(SOON_SECONDS):
                assert (await service.convert(source, MULTILABEL)).images_in == 4
            assert not list(service.store.glob(".draft-*"))

    run(test, **SETTINGS | {"object_read_seconds": 60.0})


def test_requests_are_tried_again_as_often_as_is_configured(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write()
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port) as relay:
            source = bucket.source(endpoint_url=relay.endpoint_url)
            relay.hold_requests(image_request(bucket, "b.png"))
            converted = await meanwhile(service.convert(source, MULTILABEL), relay)
            relay.release()  # what is held goes through now; the request that was given up is sent again
            assert (await converted).images_in == 4

    run(test, **IMPATIENT | {"object_retries_max": 3})
