"""Datasets in a real bucket: read like those on this machine, with the caller's rights alone."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Reason, SihlaiError
from services.chassis.objects.access import S3Key
from services.chassis.rpc import error_from_rpc
from tests.object_server import Bucket

HOSTS = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0}
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
BOXES = "task: object detection\ncategories: [cat, '007']\nannotations: boxes.yaml\n"
BOX_LINES = (
    "a.png:\n- {category: cat, bbox: [0, 0, 2.5, 4]}\n- {category: '007', bbox: [1, 1, 5, 4], crowd: true}\n"
    "b.png: []\nc.png: null\n"
)


async def refusal(service: Any, source: dataset_pb2.DatasetSource) -> SihlaiError:
    """The error of an inspection; a validation and a conversion fail with the same one."""
    errors = []
    inspect = service_pb2.InspectDatasetRequest(source=source)
    validate = service_pb2.ValidateDatasetRequest(source=source)
    convert = service_pb2.ConvertDatasetRequest(source=source, to=MULTILABEL)
    for call in (service.stub.ValidateDataset(validate), service.stub.ConvertDataset(convert)):
        with pytest.raises(Exception, match=r".") as caught:
            [_ async for _ in call]
        errors.append(error_from_rpc(caught.value))
    with pytest.raises(Exception, match=r".") as caught:
        await service.stub.InspectDataset(inspect)
    errors.append(error_from_rpc(caught.value))
    assert len({(type(each), each.reason, each.message) for each in errors}) == 1, errors
    return errors[0]


def nothing_converted(service: Any) -> bool:
    """Whether the local store holds neither a dataset nor a draft of one."""
    return not list(service.store.glob("datasets/*")) and not list(service.store.glob(".draft-*"))


def test_a_dataset_in_a_bucket_reads_like_the_same_one_on_this_machine(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write(BOXES, **{"boxes.yaml": BOX_LINES})
    dataset.image("e.jpg", size=(7, 3))
    dataset.text("images/notes.txt", "no image")
    dataset.text("images/deeper/f.png", "passed over")
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        found = []
        for source in (dataset.source, bucket.source()):
            inspection = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))
            assert len(inspection.fingerprint) == 64
            inspection.fingerprint = ""
            findings, totals = await service.findings(source)
            assert totals.warnings == 1
            result = await service.convert(source, MULTILABEL)
            files = service.converted(result)
            assert files["metadata"].pop("images") == source.uri + "/images"
            for each in files["index"]["images"]:
                assert each.pop("etag")
            counts = (result.images_in, result.labelled_in, result.annotations_in, result.annotations_out)
            found.append((inspection, findings, totals, files["metadata"], files["annotations"], counts))
            found[-1] += (files["index"]["images"],)
        assert found[0] == found[1]
        assert found[1][4] == {"a.png": ["cat", "007"], "b.png": [], "c.png": None, "d.png": None, "e.jpg": None}

    run(test, **HOSTS)


def test_a_conversion_of_what_did_not_change_is_found_again_whatever_key_asks(
    run: Any, dataset: Any, bucket: Bucket
) -> None:
    dataset.write()
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        first = await service.convert(bucket.source(), MULTILABEL)
        again = await service.convert(bucket.source(key=bucket.server.owner), MULTILABEL)
        assert (first.reused, again.reused) == (False, True)
        assert first.dataset == again.dataset
        bucket.put("labels.yaml", b"a.png: dog\n")
        assert (await service.convert(bucket.source(), MULTILABEL)).dataset != first.dataset

    run(test, **HOSTS)


def test_images_may_lie_in_another_place_that_the_same_key_reads(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write(
        "task: multiclass classification\ncategories: [cat, dog]\nannotations: labels.yaml\n"
        f"images: {bucket.uri}/elsewhere\n"
    )
    bucket.upload(dataset.path / "images", "elsewhere/")
    for name in ("metadata.yaml", "labels.yaml"):
        bucket.put(f"set/{name}", (dataset.path / name).read_bytes())

    async def test(service: Any) -> None:
        source = bucket.source(below="/set")
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))
        assert answer.images == 4

    run(test, **HOSTS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_large_images_are_told_by_their_ends_or_read_whole(kind: str, run: Any, dataset: Any, bucket: Bucket) -> None:
    """Their directory is at the end of a TIFF, which then is read whole."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    content = file.getvalue()
    assert len(content) > 140_000
    dataset.write(images=("b.png", "c.png", "d.png"))
    bucket.upload(dataset.path)
    name = {"JPEG": "a.jpg", "PNG": "a.png", "TIFF": "a.tif"}[kind]
    bucket.put(f"images/{name}", content)
    bucket.put(f"images/cut-{name}", content[:-100])
    bucket.put(f"images/half-{name}", content[: len(content) // 2])

    async def test(service: Any) -> None:
        findings, _ = await service.findings(bucket.source())
        broken = {each.image for each in findings if each.rule in ("truncated_image", "unreadable_image")}
        assert broken == {f"cut-{name}", f"half-{name}"}
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=bucket.source()))
        assert [(size.width, size.height, size.images) for size in answer.sizes] == [(5, 4, 3), (200, 300, 1)]

    run(test, **HOSTS)


def test_a_key_that_may_not_read_is_refused_with_what_to_check(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write()
    bucket.upload(dataset.path)
    server = bucket.server
    mistyped = S3Key(access_key_id=server.reader.access_key_id, secret_access_key="mistyped-secret")

    async def test(service: Any) -> None:
        for key in (server.stranger, server.service, mistyped):
            for source in (bucket.source(key=key), bucket.source(key=key, below="/nowhere")):
                error = await refusal(service, source)
                assert isinstance(error, PermissionDenied)
                assert error.reason is Reason.OBJECT_STORE_DENIED
                assert error.metadata["uri"].startswith(source.uri)
                assert error.message.endswith(
                    "is refused by the object store: check the credentials and what they may do"
                )
                for secret in (key.access_key_id, key.secret_access_key):
                    assert secret not in error.message + str(dict(error.metadata))
        assert nothing_converted(service)

    run(test, **HOSTS)


def test_what_is_not_in_the_bucket_and_a_bucket_that_is_not_there_are_no_datasets(
    run: Any, dataset: Any, bucket: Bucket
) -> None:
    dataset.write()
    bucket.upload(dataset.path)
    missing = bucket.source(key=bucket.server.owner)
    missing.uri = "s3://no-such-bucket/dataset"

    async def test(service: Any) -> None:
        for source in (bucket.source(below="/images"), bucket.source(below="/nowhere"), missing):
            error = await refusal(service, source)
            assert isinstance(error, FailedPrecondition)
            assert error.reason is Reason.DATASET_NOT_FOUND
            assert error.message == f"there is no dataset at {source.uri}: there is neither metadata.yaml nor images/"
        for name in ("a.png", "b.png", "c.png", "d.png"):
            bucket.delete(f"images/{name}")
        error = await refusal(service, bucket.source())
        assert error.message == f"there is no dataset at {bucket.uri}/images: there are no images"
        assert nothing_converted(service)

    run(test, **HOSTS)


def test_a_server_that_the_configuration_does_not_allow_is_not_asked(run: Any, bucket: Bucket) -> None:
    async def test(service: Any) -> None:
        for endpoint_url in (bucket.server.endpoint_url, "http://localhost:1", f"{bucket.server.endpoint_url}/x"):
            error = await refusal(service, bucket.source(endpoint_url=endpoint_url))
            assert isinstance(error, PermissionDenied)
            assert error.reason is Reason.URI_NOT_ALLOWED
            assert error.message.startswith(f"{endpoint_url} is not among the hosts that the configuration allows")

    run(test, allowed_endpoint_hosts=("127.0.0.1:1", "storage.example"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("region", "x@127.0.0.1/"),
        ("region", "evil.example/#"),
        ("uri", "s3://KEY:do-not-show-me@bucket/x"),
        ("uri", "s3://[bucket/x"),
        ("uri", "s3://buck et/x"),
        ("uri", "s3://bucket/%00"),
        ("endpoint_url", "http://127.0.0.1:99999"),
        ("endpoint_url", "http://127.0.0.1\\@evil.example"),
        ("endpoint_url", "http://127.0.0.1#@evil.example"),
        ("endpoint_url", "http://[::g]"),
    ],
)
def test_nothing_in_a_source_leads_to_another_server_or_shows_a_secret(
    field: str, value: str, run: Any, bucket: Bucket
) -> None:
    async def test(service: Any) -> None:
        source = bucket.source()
        if field == "region":
            source.endpoint_url = ""
        setattr(source, field, value)
        error = await refusal(service, source)
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == [f"source.{field}"]
        assert "do-not-show-me" not in error.message

    run(test, **HOSTS)


def own_key(monkeypatch: pytest.MonkeyPatch, key: S3Key) -> None:
    """Let the service's process have this key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret_access_key)


def test_a_request_without_a_key_does_not_get_what_the_service_itself_may_read(
    run: Any, dataset: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.write()
    bucket.upload(dataset.path)
    own_key(monkeypatch, bucket.server.owner)

    async def refused(service: Any) -> None:
        error = await refusal(service, bucket.source(anonymous=True))
        assert isinstance(error, PermissionDenied)
        assert error.reason is Reason.OBJECT_STORE_DENIED
        assert error.message.endswith("give credentials, as without them only what is public can be read")

    async def read(service: Any) -> None:
        source = bucket.source(anonymous=True)
        assert (await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))).images == 4

    run(refused, **HOSTS)
    for siblings in (("s3://datasets/team",), (f"{bucket.uri}/images",), ("s3://results",)):
        run(refused, own_credentials_uris=siblings, **HOSTS)
    for uris in (("s3://results", bucket.uri), ("s3://datasets/",), ("s3://datasets/teams",)):
        run(read, own_credentials_uris=uris, **HOSTS)


def test_a_public_bucket_is_read_without_a_key(run: Any, dataset: Any, bucket: Bucket) -> None:
    dataset.write()
    public = replace(bucket, name="public")
    public.upload(dataset.path)

    async def test(service: Any) -> None:
        source = public.source(anonymous=True)
        assert (await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))).images == 4
        assert (await service.convert(source, MULTILABEL)).images_in == 4

    run(test, **HOSTS)


def test_a_token_of_the_service_never_goes_along_with_the_key_of_a_request(
    run: Any, dataset: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server refuses a key with the token of another one, and a server of somebody else's would have learnt it."""
    dataset.write()
    bucket.upload(dataset.path)
    own_key(monkeypatch, bucket.server.owner)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-the-service")

    async def test(service: Any) -> None:
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=bucket.source()))
        assert answer.images == 4

    run(test, **HOSTS)


def test_names_that_urls_write_in_another_way_are_read_as_they_are(run: Any, dataset: Any, bucket: Bucket) -> None:
    names = (
        "a b.png",
        "ü.png",
        "50%.png",
        "%41.png",
        "a#b?.png",
        "a+b.png",
        "~x.png",
        "a&b=c;d.png",
        "'q'.png",
        "(1)*.png",
    )
    labels = "".join(f'"{name}": cat\n' for name in names)
    dataset.write(images=names, **{"labels.yaml": labels})
    bucket.upload(dataset.path)

    async def test(service: Any) -> None:
        found = []
        for source in (dataset.source, bucket.source()):
            findings, _ = await service.findings(source)
            assert [each.message for each in findings] == []
            result = await service.convert(source, MULTILABEL)
            found.append(service.converted(result)["annotations"])
        assert found[0] == found[1]
        assert set(found[0]) == set(names)
        assert all(found[0].values())

    run(test, **HOSTS)


def test_a_listing_of_several_pages_is_read_to_its_end(run: Any, dataset: Any, bucket: Bucket) -> None:
    """A server lists a thousand objects at a time."""
    dataset.write(images=("a.png",))
    bucket.upload(dataset.path)
    content = (dataset.path / "images" / "a.png").read_bytes()

    async def test(service: Any) -> None:
        store = bucket.server.store()
        for start in range(0, 1_100, 50):
            puts = [
                obstore.put_async(store, f"{bucket.prefix}/images/{number:05}.png", content)
                for number in range(start, start + 50)
            ]
            await asyncio.gather(*puts)
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=bucket.source()))
        assert answer.images == 1_101

    run(test, **HOSTS)
