"""Conversions to a place of the caller's choice: whole or not at all, and nothing that was there is touched."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason, SihlaiError, Unavailable
from services.chassis.objects.access import ObjectLimits
from services.chassis.objects.store import ObjectFolder, ObjectInfo, open_store
from services.chassis.rpc import error_from_rpc
from services.conversion.source.place import Access, DatasetSource
from services.conversion.store.destination import Destination, Destinations
from services.conversion.store.store import ResultStore
from tests.conversion.map_dataset import files_of, write_semantic
from tests.object_server import Bucket, key_to_proto

MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
SEMANTIC = task_pb2.TASK_SEMANTIC_SEGMENTATION


def place(path: Path) -> dataset_pb2.DatasetSource:
    return dataset_pb2.DatasetSource(uri=path.as_uri())


async def refused(call: Any) -> Any:
    try:
        await call
    except grpc.RpcError as error:
        return error_from_rpc(error)
    raise AssertionError("an error was expected")


@pytest.mark.parametrize("exists", [True, False])
def test_a_dataset_is_written_whole_to_an_empty_folder_and_a_repeat_finds_it(
    exists: bool, run: Any, dataset: Any, tmp_path: Path
) -> None:
    dataset.write()
    target = tmp_path / "out/deep/labels"
    if exists:
        target.mkdir(parents=True)
        target.chmod(0o2750)

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL, destination=place(target))
        assert (result.dataset.uri, result.reused) == (target.as_uri(), False)
        assert {"metadata.json", "annotations.json", "index.json", "report.json"} <= set(files_of(target))
        assert [path.name for path in target.parent.iterdir()] == ["labels"]
        assert not exists or stat.S_IMODE(target.stat().st_mode) == 0o2750, "the folder's own rights stay"
        assert not list(service.store.glob("datasets/*"))
        written = files_of(target)
        again = await service.convert(dataset.source, MULTILABEL, destination=place(target))
        assert (again.reused, files_of(target)) == (True, written)
        stored = await service.convert(dataset.source, MULTILABEL)
        assert files_of(Path(stored.dataset.uri.removeprefix("file://"))) == written

    run(test, allowed_destination_roots=(tmp_path / "out",))


def test_a_place_that_cannot_be_written_is_told_with_the_reason(run: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write()
    (tmp_path / "out").write_text("a file, where a folder was wanted")

    async def test(service: Any) -> None:
        error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(tmp_path / "out/new/x")))
        assert "cannot be written" in error.message
        assert "out is no folder" in error.message
        assert not list(service.store.glob("drafts/*")), "no work was begun for it"

    run(test, allowed_destination_roots=(tmp_path,))


def test_a_place_that_holds_something_else_is_refused_and_left_alone(run: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write()
    full, file = tmp_path / "out/full", tmp_path / "out/file"
    full.mkdir(parents=True)
    (full / "thesis.txt").write_text("years of work")
    file.write_text("x")

    async def test(service: Any) -> None:
        for target in (full, file):
            error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(target)))
            assert isinstance(error, FailedPrecondition)
            assert error.reason is Reason.OBJECT_ALREADY_EXISTS
            assert "is not empty" in error.message
        other = tmp_path / "out/other"
        await service.convert(dataset.source, MULTILABEL, destination=place(other))
        error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(other), lenient=True))
        assert error.reason is Reason.OBJECT_ALREADY_EXISTS
        assert files_of(full) == {"thesis.txt": b"years of work"}
        assert file.read_text() == "x"

    run(test, allowed_destination_roots=(tmp_path / "out",))


def test_nothing_is_written_outside_the_allowed_roots_and_never_to_the_store(
    run: Any, dataset: Any, tmp_path: Path
) -> None:
    dataset.write()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "elsewhere")

    async def test(service: Any) -> None:
        for target in (tmp_path / "elsewhere", tmp_path / "out/link/x", tmp_path / "out/../elsewhere"):
            error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(target)))
            assert error.reason in (Reason.URI_NOT_ALLOWED, Reason.INVALID_FIELDS)
        assert not (tmp_path / "elsewhere").exists()

    run(test, allowed_destination_roots=(tmp_path / "out",))

    async def test_store(service: Any) -> None:
        (tmp_path / "link").symlink_to(service.store)
        for uri in (
            (service.store / "datasets/0").as_uri(),
            service.store.as_uri(),
            tmp_path.as_uri(),
            f"file://{tmp_path}//store/datasets/0",
            f"file://{tmp_path}/%73tore/datasets/0",
            f"file://{tmp_path}/link/datasets/0",
        ):
            target = dataset_pb2.DatasetSource(uri=uri)
            error = await refused(service.convert(dataset.source, MULTILABEL, destination=target))
            assert isinstance(error, PermissionDenied)
            assert error.reason is Reason.URI_NOT_ALLOWED

    run(test_store, allowed_destination_roots=(tmp_path,))

    async def test_data(service: Any) -> None:
        (tmp_path / "way").symlink_to(tmp_path / "data")
        for target in (tmp_path / "data", tmp_path / "data/scheduler", tmp_path / "way/x"):
            error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(target)))
            assert isinstance(error, PermissionDenied)
            assert "where the system keeps its own data" in error.message
        await service.convert(dataset.source, MULTILABEL, destination=place(tmp_path / "database"))

    run(test_data, allowed_destination_roots=(tmp_path,), closed_destination_roots=(tmp_path / "data",))

    async def test_default(service: Any) -> None:
        error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(tmp_path / "out/x")))
        assert error.reason is Reason.URI_NOT_ALLOWED

    run(test_default)


def test_a_refused_dataset_leaves_no_destination(run: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write(**{"labels.yaml": "a.png: cow\n"})

    async def test(service: Any) -> None:
        target = tmp_path / "out/labels"
        error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(target)))
        assert error.reason is Reason.DATASET_INVALID
        assert not target.parent.exists()

    run(test, allowed_destination_roots=(tmp_path / "out",))


def test_a_destination_without_a_uri_names_its_field(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        error = await refused(
            service.convert(dataset.source, MULTILABEL, destination=dataset_pb2.DatasetSource(endpoint_url="x"))
        )
        assert [violation.field for violation in error.violations] == ["destination.uri"]

    run(test)


def test_a_bucket_is_a_destination_like_a_folder(run: Any, tmp_path: Path, bucket: Bucket) -> None:
    folder = write_semantic(tmp_path / "dataset", 40)
    source = dataset_pb2.DatasetSource(uri=folder.as_uri())
    server = bucket.server
    target = dataset_pb2.DatasetSource(
        uri=f"s3://datasets/{bucket.prefix}/out",
        endpoint_url=server.endpoint_url,
        credentials=key_to_proto(server.owner),
    )

    async def test(service: Any) -> None:
        result = await service.convert(source, SEMANTIC, destination=target)
        assert (result.dataset.uri, result.dataset.endpoint_url) == (target.uri, target.endpoint_url)
        opened = open_store(target.uri, endpoint_url=target.endpoint_url, credentials=server.owner)
        stored = await service.convert(source, SEMANTIC)
        expected = files_of(Path(stored.dataset.uri.removeprefix("file://")))
        assert {each.path: await opened.read(each.path) async for each in opened.list()} == expected
        assert (await service.convert(source, SEMANTIC, destination=target)).reused
        error = await refused(service.convert(source, MULTILABEL, destination=target))
        assert error.reason is Reason.OBJECT_ALREADY_EXISTS
        target.uri += "-of-a-reader"
        target.credentials.CopyFrom(key_to_proto(server.reader))
        error = await refused(service.convert(source, SEMANTIC, destination=target))
        assert error.reason is Reason.OBJECT_STORE_DENIED

    run(test, allowed_endpoint_hosts=("127.0.0.1",))


class FailingBucket(ObjectFolder):
    """A real folder behind a bucket's uri that stops taking files after some, as a server does whose disk is full."""

    def __init__(self, folder: ObjectFolder, left: int, error: BaseException) -> None:
        self.uri = "s3://bucket/out"
        self._behind = folder
        self._left = left
        self._error = error

    async def write(self, path: str, content: bytes | Path, *, create_only: bool = False) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error
        await self._behind.write(path, content)

    async def read(self, path: str, *, etag: str = "") -> bytes:
        return await self._behind.read(path)

    async def delete(self, path: str) -> None:
        await self._behind.delete(path)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async for each in self._behind.list(prefix):
            yield each


@pytest.mark.parametrize("left", [0, 1, 5, 11, 12])
@pytest.mark.parametrize(
    "error",
    [Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, "full"), asyncio.CancelledError()],
    ids=["fails", "cancelled"],
)
def test_an_upload_that_ends_early_takes_back_what_it_wrote(left: int, error: BaseException, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    (draft / "annotations").mkdir(parents=True)
    for name in ("metadata.json", "report.json", *(f"annotations/{number}.png" for number in range(10))):
        (draft / name).write_text(name)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            bucket = FailingBucket(open_store((tmp_path / "out").as_uri()), left, error)
            destination = Destination(bucket, endpoint_url="", requests_max=3, upload_seconds_max=60, executor=executor)
            with pytest.raises(type(error)):
                await destination.publish(draft, "digest")
            assert files_of(tmp_path / "out") == {}
            assert bucket._left < 0

    asyncio.run(main())


def test_a_link_that_takes_a_folders_place_midway_gets_nothing(tmp_path: Path) -> None:
    """Whoever may write where a dataset is to be written must not send it, or its folders, to somewhere else."""
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "closed").mkdir()
    draft = tmp_path / "draft"
    with ThreadPoolExecutor(1) as executor:
        access = Access(
            allowed_roots=(tmp_path / "out",),
            allowed_hosts=(),
            own_credentials_uris=(),
            images_max=10,
            limits=ObjectLimits(),
            buckets_max=1,
        )
        destinations = Destinations(
            access=access,
            store_uri=(tmp_path / "store").as_uri(),
            requests_max=3,
            upload_seconds_max=60,
            free_bytes_min=0,
            executor=executor,
        )
        store = ResultStore((tmp_path / "store").as_uri(), draft_hours_max=1, requests_max=1)

        async def begin(destination: Destination) -> None:
            async with destination.draft("digest", store):
                raise AssertionError("nothing may be written there")

        def publish(target: str, swap: Callable[[], None]) -> SihlaiError:
            draft.mkdir(exist_ok=True)
            (draft / "metadata.json").write_text("{}")
            destination = destinations.open(DatasetSource(uri=(tmp_path / "out" / target).as_uri()))
            swap()
            with pytest.raises(SihlaiError) as caught:
                asyncio.run(destination.publish(draft, "digest"))
            if target != "labels":
                with pytest.raises(SihlaiError, match="has become a link"):
                    asyncio.run(begin(destination))
            return caught.value

        def link(name: str, *, folder: bool) -> Callable[[], None]:
            def swap() -> None:
                if folder:
                    (tmp_path / "out" / name).rename(tmp_path / f"was-{name}")
                (tmp_path / "out" / name).symlink_to(tmp_path / "closed")

            return swap

        assert "has become a link" in publish("deep/labels", link("deep", folder=True)).message
        assert "has become a link" in publish("new/labels", link("new", folder=False)).message
        assert publish("labels", link("labels", folder=False)).reason is Reason.URI_NOT_ALLOWED
    assert list((tmp_path / "closed").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder can be made by root alone")
def test_an_empty_folder_of_another_user_is_left_as_it_is(run: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write()
    theirs = tmp_path / "out/theirs"
    theirs.mkdir(parents=True)
    os.chown(theirs, 4242, 4242)

    async def test(service: Any) -> None:
        error = await refused(service.convert(dataset.source, MULTILABEL, destination=place(theirs)))
        assert "another user's" in error.message
        assert (theirs.stat().st_uid, list(theirs.iterdir())) == (4242, [])

    run(test, allowed_destination_roots=(tmp_path / "out",))
