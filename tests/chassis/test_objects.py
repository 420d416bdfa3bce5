"""Objects in local folders and in S3-compatible storage: what comes in comes out, and nothing leaves its bounds."""

import asyncio
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.chassis import errors
from services.chassis.errors import Reason
from services.chassis.objects.access import AzureKey, ObjectLimits, S3Key
from services.chassis.objects.store import ObjectAlreadyExists, ObjectChanged, ObjectNotFound, open_store
from tests.relay import relay_to

OPENED = {
    "s3://bucket/data": S3Key(access_key_id="id", secret_access_key="do-not-show-me"),
    "gs://bucket/data": None,
    "az://account/bucket/data": AzureKey(sas_token="sv=1&sig=do-not-show-me"),
}
KEY = S3Key(access_key_id="id", secret_access_key="do-not-show-me", region="eu-central-1")
QUICK = ObjectLimits(connect_seconds=5, read_seconds=20, retries_max=0, retry_seconds_max=1)


@pytest.fixture
def folder(tmp_path):
    return open_store(f"file://{tmp_path}/data")


async def paths(folder, prefix=""):
    return sorted([found.path async for found in folder.list(prefix)])


async def joined(chunks):
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("path", ["a.txt", "deep/er/a b#c%20?.png", "ü/é~.jpg"])
def test_object_comes_back_under_its_own_name(folder, tmp_path, path):
    async def scenario():
        await folder.write(path, b"content")
        assert (tmp_path / "data" / path).read_bytes() == b"content"
        assert await folder.read(path) == b"content"
        assert await paths(folder) == [path]
        assert (await folder.info(path)).size_bytes == 7
        assert await folder.exists(path)
        await folder.delete(path)
        assert not await folder.exists(path)
        await folder.delete(path)

    asyncio.run(scenario())


def test_file_is_written_and_copied_back_whole(folder, tmp_path):
    async def scenario():
        data = os.urandom(12 * 2**20 + 17)
        (tmp_path / "source").write_bytes(data)
        await folder.write("big", tmp_path / "source")
        assert await folder.copy_to_local("big", tmp_path / "new" / "copy") == len(data)
        assert (tmp_path / "new" / "copy").read_bytes() == data
        assert await joined(folder.stream("big", chunk_bytes=2**20)) == data
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["copy"]

    asyncio.run(scenario())


def test_a_large_file_goes_in_parts_and_tells_how_far_it_is(tmp_path):
    limits = ObjectLimits(part_bytes=2**20)
    folder = open_store(f"file://{tmp_path}/data", limits=limits)
    data = os.urandom(5 * 2**20 + 17)
    (tmp_path / "source").write_bytes(data)
    seen = []

    async def scenario():
        await folder.write("big", tmp_path / "source", create_only=True, on_progress=seen.append)
        assert await joined(folder.stream("big")) == data
        with pytest.raises(ObjectAlreadyExists):
            await folder.write("big", tmp_path / "source", create_only=True)
        assert await paths(folder) == ["big"]

    asyncio.run(scenario())
    assert seen == [2**20]  # four parts are on their way, one is read ahead, and who has written it all knows it


def test_a_file_that_cannot_be_read_here_is_no_fault_of_the_store(tmp_path):
    folder = open_store(f"file://{tmp_path}/data", limits=ObjectLimits(part_bytes=2**20))
    with pytest.raises(FileNotFoundError, match="gone"):
        asyncio.run(folder.write("big", tmp_path / "gone"))
    (tmp_path / "source").write_bytes(bytes(7 * 2**20))

    def break_off(size_bytes):
        raise OSError(5, "the disk is broken")

    with pytest.raises(OSError, match="the disk is broken"):
        asyncio.run(folder.write("big", tmp_path / "source", on_progress=break_off))
    assert not (tmp_path / "data" / "big").exists()


def test_an_upload_that_takes_longer_than_a_read_may_arrives_whole(object_server, tmp_path):
    """What takes long to send is not what stands still: the read time-out counted both, and no large file arrived."""
    limits = ObjectLimits(
        read_seconds=2.0, part_bytes=5 * 2**20, parts_concurrent_max=1, retries_max=0, retry_seconds_max=1
    )
    data = os.urandom(12 * 2**20)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "small").write_bytes(data[: 5 * 2**20])
    seen = []

    async def scenario():
        async with relay_to(object_server.port) as relay:
            relay.slow_requests(2.2 * 2**20)
            folder = open_store(
                "s3://results/slow", endpoint_url=relay.endpoint_url, credentials=object_server.owner, limits=limits
            )
            began = time.monotonic()
            await folder.write("big", tmp_path / "source", create_only=True, on_progress=seen.append)
            assert time.monotonic() - began > 2 * limits.read_seconds
            await folder.write("small", tmp_path / "small", create_only=True)
        direct = open_store(
            "s3://results/slow", endpoint_url=object_server.endpoint_url, credentials=object_server.owner
        )
        assert await joined(direct.stream("big")) == data
        assert await joined(direct.stream("small")) == data[: 5 * 2**20]

    asyncio.run(scenario())
    assert seen == [5 * 2**20]


def test_of_a_large_file_only_what_has_arrived_counts(object_server, tmp_path):
    limits = ObjectLimits(part_bytes=5 * 2**20, parts_concurrent_max=2, retries_max=0, retry_seconds_max=1)
    (tmp_path / "source").write_bytes(bytes(40 * 2**20))
    seen = []

    async def scenario():
        async with relay_to(object_server.port) as relay:
            relay.hold_requests(rb"partNumber=")
            folder = open_store(
                "s3://results/held", endpoint_url=relay.endpoint_url, credentials=object_server.owner, limits=limits
            )
            writing = asyncio.create_task(folder.write("big", tmp_path / "source", on_progress=seen.append))
            await relay.held.wait()
            await relay.cut()
            with pytest.raises(errors.Unavailable):
                await writing

    asyncio.run(scenario())
    assert not seen


def test_stream_goes_on_from_an_offset(folder):
    async def scenario():
        await folder.write("a", b"0123456789")
        assert await joined(folder.stream("a", offset=4)) == b"456789"
        assert await joined(folder.stream("a", offset=10)) == b""

    asyncio.run(scenario())


def test_empty_object_can_be_read_streamed_and_copied(folder, tmp_path):
    async def scenario():
        await folder.write("empty", b"")
        assert await folder.read("empty") == b""
        assert await joined(folder.stream("empty")) == b""
        assert await folder.copy_to_local("empty", tmp_path / "copy") == 0

    asyncio.run(scenario())


def test_create_only_write_never_replaces(folder):
    async def scenario():
        await folder.write("manifest", b"first", create_only=True)
        with pytest.raises(ObjectAlreadyExists, match="manifest exists already"):
            await folder.write("manifest", b"second", create_only=True)
        assert await folder.read("manifest") == b"first"
        await folder.write("manifest", b"third")
        assert await folder.read("manifest") == b"third"

    asyncio.run(scenario())


def test_only_one_of_many_create_only_writes_succeeds(folder):
    async def scenario():
        writes = [folder.write("manifest", b"%d" % n, create_only=True) for n in range(20)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert results.count(None) == 1
        assert await folder.read("manifest") == b"%d" % results.index(None)

    asyncio.run(scenario())


def test_missing_object_is_named(folder, tmp_path):
    async def scenario():
        await folder.write("there", b"")
        for act in (folder.read("gone"), folder.info("gone"), folder.copy_to_local("gone", tmp_path / "copy")):
            with pytest.raises(ObjectNotFound, match="data/gone does not exist") as caught:
                await act
            assert caught.value.metadata["uri"].endswith("/data/gone")
        with pytest.raises(ObjectNotFound):
            await joined(folder.stream("gone"))
        assert not (tmp_path / "copy").exists()
        assert not await folder.exists("there/below")

    asyncio.run(scenario())


def test_folder_that_does_not_exist_is_empty_until_it_is_written_to(folder):
    async def scenario():
        assert await paths(folder) == []
        assert not await folder.exists("a")
        with pytest.raises(ObjectNotFound):
            await folder.read("a")
        await folder.write("a", b"")
        assert await paths(folder) == ["a"]

    asyncio.run(scenario())


def test_folder_in_a_folder_has_paths_of_its_own(folder):
    async def scenario():
        inner = folder.folder("jobs/uid-1/")
        await inner.write("2/model", b"x")
        await folder.write("jobs/uid-10/model", b"y")
        assert await paths(inner) == ["2/model"]
        assert await paths(inner, "2") == ["2/model"]
        assert await paths(folder, "jobs/uid-1") == ["jobs/uid-1/2/model"]
        assert await inner.read("2/model") == b"x"
        assert inner.uri == f"{folder.uri}/jobs/uid-1"

    asyncio.run(scenario())


def test_object_over_the_limit_is_not_read_into_memory(tmp_path):
    async def scenario():
        small = open_store(f"file://{tmp_path}", limits=ObjectLimits(read_bytes_max=10))
        await small.write("a", b"x" * 11)
        with pytest.raises(errors.ResourceExhausted, match="has 11 bytes, but at most 10"):
            await small.read("a")
        assert len(await joined(small.stream("a"))) == 11

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "a//b", ".", "", "a\nb"])
def test_path_that_could_leave_its_folder_is_refused(folder, path):
    async def scenario():
        for act in (folder.read(path), folder.write(path, b""), folder.delete(path), folder.exists(path)):
            with pytest.raises(errors.InvalidArgument, match="path: is"):
                await act

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "",
            "data",
            "/data",
            "http://host/data",
            "file://host/data",
            "file:data",
            "s3://",
            "s3:///a",
            "file:///a/../b",
        ),
        *("file:///a/%2e%2e/b", "s3://bucket/a?x=1", "file:///a#b", "s3://bucket/../b"),
    ],
)
def test_uri_of_another_kind_is_refused(uri):
    with pytest.raises(errors.InvalidArgument, match="uri: is"):
        open_store(uri)


def test_folder_outside_the_allowed_roots_is_refused(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "allowed-not")
    roots = [tmp_path / "allowed"]
    open_store(f"file://{tmp_path}/allowed", allowed_roots=roots)
    open_store(f"file://{tmp_path}/allowed/new/one", allowed_roots=roots)
    for outside in ("allowed-not", "", "allowed/link"):
        with pytest.raises(errors.PermissionDenied, match="outside the folders") as caught:
            open_store(f"file://{tmp_path}/{outside}", allowed_roots=roots)
        assert caught.value.reason is Reason.URI_NOT_ALLOWED
    with pytest.raises(errors.PermissionDenied, match="none"):
        open_store(f"file://{tmp_path}/allowed", allowed_roots=[])


def test_link_that_leads_out_of_the_allowed_roots_is_not_followed(tmp_path):
    async def scenario():
        (tmp_path / "data").mkdir()
        (tmp_path / "secret").write_text("secret")
        folder = open_store(f"file://{tmp_path}/data", allowed_roots=[tmp_path / "data"])
        (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
        (tmp_path / "data" / "up").symlink_to(tmp_path)
        for act in (folder.read("link"), folder.read("up/secret"), folder.write("up/secret", b"")):
            with pytest.raises(errors.PermissionDenied):
                await act
        assert (tmp_path / "secret").read_text() == "secret"

    asyncio.run(scenario())


def test_name_that_no_object_can_have_is_told_as_such(folder, tmp_path):
    async def scenario():
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a\nb").write_text("")
        with pytest.raises(errors.FailedPrecondition, match="no object can have"):
            await paths(folder)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            "ftp://host",
            "host:9000",
            "http://user:pw@host",
            "http://",
            "http://host:99999",
            "http://host:0",
            "http://[::g]",
        ),
        *("http://host\\@other", "http://host#@other", "http://host/?x", "http://ho st", "http://host/%2e%2e"),
    ],
)
def test_endpoint_that_is_no_web_address_is_refused(endpoint):
    with pytest.raises(errors.InvalidArgument, match="endpoint_url: is"):
        open_store("s3://bucket", endpoint_url=endpoint, credentials=KEY)


@pytest.mark.parametrize(
    "uri", [" s3://b", "s3://b\n", "s3://[b", "s3://b b", "s3://b/%00", "file:///%00", "file:///", "S3://b"]
)
def test_uri_that_others_may_read_in_another_way_is_refused(uri):
    with pytest.raises(errors.InvalidArgument, match="uri: "):
        open_store(uri)


def test_secret_in_a_uri_is_refused_and_not_repeated():
    for options in ({"uri": "s3://KEY:do-not-show-me@bucket"}, {"endpoint_url": "http://KEY:do-not-show-me@host"}):
        with pytest.raises(errors.InvalidArgument, match="credentials") as caught:
            open_store(**{"uri": "s3://bucket"} | options)
        assert "do-not-show-me" not in caught.value.message


def test_region_that_would_lead_to_another_host_is_refused():
    for region in ("x@host/", "host/#", "a.b", "../", "x" * 65):
        with pytest.raises(errors.InvalidArgument, match="region: is"):
            open_store("s3://bucket", region=region)
        with pytest.raises(errors.InvalidArgument, match="region: is"):
            open_store("s3://bucket", credentials=S3Key(access_key_id="a", secret_access_key="b", region=region))


def test_changed_object_is_not_read_by_its_old_etag(folder):
    async def scenario():
        await folder.write("a", b"first")
        etag = (await folder.info("a")).etag
        assert await folder.read("a", etag=etag) == b"first"
        assert await joined(folder.stream("a", etag=etag)) == b"first"
        await folder.write("a", b"second one")
        for act in (folder.read("a", etag=etag), joined(folder.stream("a", etag=etag))):
            with pytest.raises(ObjectChanged, match="was changed while it was read"):
                await act

    asyncio.run(scenario())


def test_endpoint_outside_the_allowed_hosts_is_refused():
    for hosts in (["s3.example.com"], ["s3.example.com:9000"]):
        open_store("s3://b/p", endpoint_url="https://s3.example.com:9000", credentials=KEY, allowed_hosts=hosts)
    for hosts in ([], ["example.com"], ["s3.example.com:9001"]):
        with pytest.raises(errors.PermissionDenied) as caught:
            open_store("s3://b/p", endpoint_url="https://s3.example.com:9000", credentials=KEY, allowed_hosts=hosts)
        assert caught.value.reason is Reason.URI_NOT_ALLOWED


@pytest.fixture
def storage():
    """A storage that answers everything with one status."""

    def answer(handler):
        handler.send_response(handler.server.status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    methods = {f"do_{name}": answer for name in ("GET", "HEAD", "PUT", "POST", "DELETE")}
    handlers = type("Answer", (BaseHTTPRequestHandler,), methods | {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handlers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (403, errors.PermissionDenied, Reason.OBJECT_STORE_DENIED),
        (401, errors.PermissionDenied, Reason.OBJECT_STORE_DENIED),
        (503, errors.Unavailable, Reason.OBJECT_STORE_UNAVAILABLE),
        (404, ObjectNotFound, Reason.OBJECT_NOT_FOUND),
        # However often it is asked, the answer stays: of a wrong region, or of another kind of server.
        *((status, errors.PermissionDenied, Reason.OBJECT_STORE_DENIED) for status in (301, 400, 405, 501)),
    ],
)
@pytest.mark.parametrize(("uri", "key"), OPENED.items())
def test_answers_of_a_storage_become_our_errors_and_show_no_key(storage, status, kind, reason, uri, key):
    async def scenario():
        storage.status = status
        endpoint = f"http://127.0.0.1:{storage.server_port}"
        folder = open_store(uri, endpoint_url=endpoint, credentials=key, anonymous=key is None, limits=QUICK)
        for act in (folder.read("a"), folder.info("a"), paths(folder)):
            with pytest.raises(kind) as caught:
                await act
            assert caught.value.reason is reason
            assert "do-not-show-me" not in f"{caught.value} {caught.value.metadata} {caught.value.__cause__} {key}"

    asyncio.run(scenario())


def test_storage_that_is_not_there_is_unavailable():
    async def scenario():
        endpoint = "http://127.0.0.1:9"
        folder = open_store("s3://bucket/data", endpoint_url=endpoint, credentials=KEY, limits=QUICK)
        with pytest.raises(errors.Unavailable, match="s3://bucket/data/a cannot be reached") as caught:
            await folder.read("a")
        assert caught.value.retry_after_seconds == 5.0

    asyncio.run(scenario())
