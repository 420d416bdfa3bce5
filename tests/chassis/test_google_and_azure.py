"""gs:// and az://: what is sent, with whose key, and what real servers answer.

Azure's storage is met where Azurite is installed. Google's own has never been met: what is read here as gs:// comes
from a server of S3's kind, whose XML is nearly the same, and what is signed is checked as Google would check it.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import obstore
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from sihlai.conversion.v1 import dataset_pb2

from services.chassis import errors
from services.chassis.objects.access import AzureKey, Credentials, GoogleKey, ObjectLimits, S3Key
from services.chassis.objects.key import key_from_proto, key_violations
from services.chassis.objects.store import (
    ObjectAlreadyExists,
    ObjectChanged,
    ObjectFolder,
    ObjectNotFound,
    open_store,
)
from services.chassis.objects.uri import uri_parts
from tests.azure_server import ACCOUNT, AzureServer
from tests.object_server import Bucket

QUICK = ObjectLimits(connect_seconds=5, read_seconds=20, retries_max=0, retry_seconds_max=1)


def pem(key: rsa.RSAPrivateKey) -> str:
    """The key as Google writes it."""
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


RSA = rsa.generate_private_key(65537, 2_048)
PEM = pem(RSA)
GOOGLE = GoogleKey(client_email="reader@project.iam.gserviceaccount.com", private_key=PEM, private_key_id="k1")
SAS = AzureKey(sas_token="?sv=2024&sig=c2lnbmF0dXJl")
OWN_GOOGLE = {"client_email": "own@project", "private_key": pem(rsa.generate_private_key(65537, 2_048))}
OWN_KEYS = {
    "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(OWN_GOOGLE | {"private_key_id": "own"}),
    "AZURE_STORAGE_ACCOUNT_KEY": "b3du",
    "AZURE_STORAGE_SAS_TOKEN": "sig=own",
}


class Recorder(ThreadingHTTPServer):
    """Answers 404, and keeps what was asked: the path, and its Authorization."""

    seen: list[tuple[str, str]]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server = self.server
            assert isinstance(server, Recorder)
            server.seen.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = Recorder(("127.0.0.1", 0), Answer)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(recorder: Recorder, uri: str, key: Credentials | None) -> tuple[str, str]:
    """What reading one object asks a server for, without a key as of a public bucket."""
    endpoint_url = f"http://127.0.0.1:{recorder.server_port}"

    async def scenario() -> None:
        store = open_store(uri, endpoint_url=endpoint_url, credentials=key, anonymous=key is None, limits=QUICK)
        with pytest.raises(ObjectNotFound):
            await store.read("a.png")

    asyncio.run(scenario())
    return recorder.seen.pop()


@pytest.mark.parametrize("own", [False, True])
def test_each_storage_is_asked_with_the_callers_key_and_never_with_the_processs_own(
    recorder: Recorder, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OWN_KEYS.items() if own else ():
        monkeypatch.setenv(name, value)
    path, sent = asked(recorder, "gs://bucket/in%20it", GOOGLE)
    assert path == "/bucket/in%20it%2Fa%2Epng"
    token = sent.removeprefix("Bearer ")
    claims = jwt.decode(token, RSA.public_key(), algorithms=["RS256"])
    assert (claims["iss"], claims["exp"] - claims["iat"]) == (GOOGLE.client_email, 3_600)
    assert jwt.get_unverified_header(token)["kid"] == "k1"
    path, sent = asked(recorder, "az://account/container/in%20it", SAS)
    assert (path, sent) == ("/container/in%20it/a.png?sv=2024&sig=c2lnbmF0dXJl", "")
    assert asked(recorder, "gs://bucket", None) == ("/bucket/a%2Epng", "")
    assert asked(recorder, "az://account/container", None) == ("/container/a.png", "")


def test_a_key_of_another_storage_or_that_signs_nothing_is_refused() -> None:
    s3 = S3Key(access_key_id="id", secret_access_key="do-not-show-me")
    for uri, key in (("gs://bucket", s3), ("az://account/bucket", GOOGLE), ("s3://bucket", SAS)):
        with pytest.raises(errors.InvalidArgument, match="credentials: must be "):
            open_store(uri, credentials=key)
    with pytest.raises(errors.InvalidArgument, match=r"google\.private_key: is no private key that signs") as refused:
        open_store("gs://bucket", credentials=GoogleKey(client_email="a@b", private_key="do-not-show-me"))
    assert "do-not-show-me" not in f"{refused.value} {s3} {GOOGLE} {SAS}"


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("az://account", "must be az://account/container/prefix"),
        ("az://account/", "must be az://account/container/prefix"),
        ("az://evil.example.org%23/container", "names the account"),
        ("az://ACCOUNT/container", "names the account"),
        ("az://key@account/container", "must not hold credentials"),
        ("gs://", "must be file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://account/container/prefix"),
        ("gs://bucket/../other", r"must not hold '\.\.'"),
        ("gcs://bucket", "must be file:///folder"),
    ],
)
def test_what_is_no_bucket_of_theirs_is_refused(uri: str, wanted: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=wanted):
        open_store(uri)


def test_containers_of_two_accounts_are_two_places() -> None:
    assert uri_parts("az://one/data/x") != uri_parts("az://two/data/x")
    assert uri_parts("gs://data/x") != uri_parts("s3://data/x")
    with pytest.raises(errors.PermissionDenied, match="is not among the hosts"):
        open_store("az://account/data", endpoint_url="https://elsewhere.org", allowed_hosts=["here.org"])


def test_keys_are_checked_as_they_are_sent_and_never_repeated() -> None:
    def fields(uri: str, **given: object) -> list[str]:
        found = key_violations(dataset_pb2.Credentials(**given), "credentials", uri)  # type: ignore[arg-type]
        assert "do-not-show-me" not in str(found)
        return [each.field.removeprefix("credentials").removeprefix(".") for each in found]

    google = dataset_pb2.GoogleKey(client_email="a@b", private_key=PEM)
    s3 = dataset_pb2.S3Key(access_key_id="do-not-show-me")
    assert fields("gs://b", google=google) == []
    assert fields("az://a/b", azure_account_key="c2VjcmV0") == fields("az://a/b", azure_sas_token="sig=secret") == []
    assert fields("gs://b") == fields("file:///b", google=google) == [""]
    assert fields("s3://b", google=google) == ["google"]
    assert fields("s3://b", s3=s3) == ["s3.secret_access_key"]
    assert fields("", s3=s3) == ["s3.secret_access_key"], "of a change of keys alone the uri is not known"
    assert fields("gs://b", google=dataset_pb2.GoogleKey(private_key="a\x00")) == [
        "google.client_email",
        "google.private_key",
    ]
    found = key_from_proto(dataset_pb2.Credentials(google=google), "")
    assert isinstance(found, GoogleKey)
    assert found.private_key == PEM
    assert key_from_proto(dataset_pb2.Credentials(azure_sas_token="x"), "") == AzureKey(sas_token="x")


def test_a_public_bucket_is_read_as_googles_over_a_server_that_speaks_its_xml(bucket: Bucket) -> None:
    prefix = f"{bucket.prefix}/in it"
    store = bucket.server.store("public", bucket.server.owner)
    for name, content in (("a.txt", b"one"), ("b/c.txt", b"two")):
        obstore.put(store, f"{prefix}/{name}", content)

    async def scenario() -> None:
        uri = f"gs://public/{prefix}".replace(" ", "%20")
        folder = open_store(uri, endpoint_url=bucket.server.endpoint_url, anonymous=True, limits=QUICK)
        assert sorted([each.path async for each in folder.list()]) == ["a.txt", "b/c.txt"]
        info = await folder.info("b/c.txt")
        assert (info.size_bytes, await folder.read("b/c.txt", etag=info.etag)) == (3, b"two")
        with pytest.raises(ObjectChanged):
            await folder.read("a.txt", etag=info.etag)
        with pytest.raises(ObjectNotFound):
            await folder.read("none")
        with pytest.raises(errors.PermissionDenied, match="give credentials"):
            await folder.write("a.txt", b"three")

    asyncio.run(scenario())


async def everything(folder: ObjectFolder, tmp_path: Path) -> None:
    """All that a store of the system does."""
    await folder.write("a/b.txt", b"one", create_only=True)
    with pytest.raises(ObjectAlreadyExists):
        await folder.write("a/b.txt", b"two", create_only=True)
    info = await folder.info("a/b.txt")
    assert (info.size_bytes, await folder.read("a/b.txt", etag=info.etag)) == (3, b"one")
    await folder.write("a/b.txt", b"two")
    with pytest.raises(ObjectChanged):
        await folder.read("a/b.txt", etag=info.etag)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 * 2**20))
    await folder.write("large", large)
    assert await folder.copy_to_local("large", tmp_path / "again") == 9 * 2**20
    assert (tmp_path / "again").read_bytes() == large.read_bytes()
    assert b"".join([each async for each in folder.stream("large", offset=2**20)]) == large.read_bytes()[2**20 :]
    assert sorted([each.path async for each in folder.list()]) == ["a/b.txt", "large"]
    assert [each.path async for each in folder.folder("a").list()] == ["b.txt"]
    await folder.delete("large")
    assert not await folder.exists("large")


def test_azures_server_takes_all_that_a_store_does_with_the_right_key_alone(
    azure_server: AzureServer, tmp_path: Path
) -> None:
    uri, endpoint_url = f"az://{ACCOUNT}/datasets/team/in%20it", azure_server.endpoint_url
    stranger = AzureKey(account_key="c3RyYW5nZXI=")

    async def scenario() -> None:
        await everything(open_store(uri, endpoint_url=endpoint_url, credentials=azure_server.key), tmp_path)
        for key, advice in ((stranger, "check the credentials"), (None, "give credentials")):
            folder = open_store(uri, endpoint_url=endpoint_url, credentials=key, anonymous=key is None, limits=QUICK)
            for act in (folder.read("a/b.txt"), folder.info("a/b.txt"), folder.write("c", b"")):
                with pytest.raises(errors.PermissionDenied, match=advice):
                    await act

    asyncio.run(scenario())
