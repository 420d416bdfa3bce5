"""Results that are kept in a real bucket: whole or not to be seen, whatever happens to the uploads."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import obstore
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceStub

from services.chassis.errors import PermissionDenied, Reason, SihlaiError, Unavailable
from services.chassis.objects.access import S3Key
from services.chassis.rpc import channel, error_from_rpc
from tests import tokens
from tests.object_server import Bucket, free_ports
from tests.relay import relay_to

MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
SETTINGS: dict[str, Any] = {"allowed_endpoint_hosts": ("127.0.0.1",), "object_retries_max": 0}
STALL_SECONDS = 1.0
SOON_SECONDS = 20.0


@pytest.fixture
def results(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A prefix for results that is the test's own. Drafts are made in the folder `drafts`."""
    own_key(monkeypatch, bucket.server.service)
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(drafts))
    return f"s3://results/{secrets.token_hex(6)}"


def own_key(monkeypatch: pytest.MonkeyPatch, key: S3Key) -> None:
    """Let the service's process have this key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret_access_key)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def settings(results: str, endpoint_url: str, **others: Any) -> dict[str, Any]:
    return SETTINGS | {"store_uri": results, "store_endpoint_url": endpoint_url} | others


def kept(bucket: Bucket, results: str) -> dict[str, bytes]:
    """Everything in the store, by its path in it."""
    prefix = results.removeprefix("s3://results/")
    store = bucket.server.store("results")
    paths = [each["path"] for batch in obstore.list(store, prefix) for each in batch]
    return {path.removeprefix(f"{prefix}/"): bytes(obstore.get(store, path).bytes()) for path in paths}


async def failure(service: Any, dataset: Any) -> SihlaiError:
    with pytest.raises(Exception, match=r".") as caught:
        async with asyncio.timeout(SOON_SECONDS):
            await service.convert(dataset.source, MULTILABEL)
    return error_from_rpc(caught.value)


def test_a_converted_dataset_in_a_bucket_is_what_it_is_in_a_folder(
    run: Any, dataset: Any, bucket: Bucket, results: str
) -> None:
    dataset.write()
    local: dict[str, Any] = {}

    async def convert_locally(service: Any) -> None:
        local.update(service.converted(await service.convert(dataset.source, MULTILABEL)))

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        assert result.dataset.uri.startswith(f"{results}/datasets/")
        assert result.dataset.endpoint_url == bucket.server.endpoint_url
        prefix = result.dataset.uri.removeprefix(f"{results}/") + "/"
        files = {path: content for path, content in kept(bucket, results).items() if path.startswith(prefix)}
        names = {path: path.removeprefix(prefix).removesuffix(".json") for path in files if path.endswith(".json")}
        assert {name: json.loads(files[path]) for path, name in names.items()} == local
        again = await service.convert(dataset.source, MULTILABEL)
        assert (again.reused, again.dataset) == (True, result.dataset)

    run(convert_locally)
    run(test, **settings(results, bucket.server.endpoint_url))


def test_a_converted_dataset_is_a_source_for_whoever_got_its_uri(
    run: Any, dataset: Any, bucket: Bucket, results: str
) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=result.dataset))
        assert (answer.images, answer.annotation_sets[0].task) == (4, MULTILABEL)

    run(test, **settings(results, bucket.server.endpoint_url))


@pytest.mark.parametrize("name", ["annotations.json", "metadata.json", "report.json"])
@pytest.mark.parametrize("happens", ["cut", "stalled"])
def test_an_upload_that_fails_midway_leaves_nothing_that_is_taken_for_a_dataset(
    happens: str, name: str, run: Any, dataset: Any, bucket: Bucket, results: str
) -> None:
    dataset.write()

    (port,) = free_ports(1)

    async def test(service: Any) -> None:
        async with relay_to(bucket.server.port, port) as relay:
            relay.hold_requests(f"PUT [^ ]*/{name} ".encode())
            failed = asyncio.create_task(failure(service, dataset))
            async with asyncio.timeout(SOON_SECONDS):
                await relay.held.wait()
            if happens == "cut":
                await relay.cut()
            error = await failed
            assert isinstance(error, Unavailable)
            assert error.reason is Reason.OBJECT_STORE_UNAVAILABLE
            assert error.message.startswith(f"{results}/datasets/")
            assert not [path for path in kept(bucket, results) if path.endswith("/report.json")]
            relay.release()
            if happens == "cut":
                await relay.open()
            # Where what was held was the last upload, it may arrive now: then the dataset is whole, and found.
            result = await service.convert(dataset.source, MULTILABEL)
            paths = set(kept(bucket, results))
            digest = result.dataset.uri.rpartition("/")[2]
            names = ("annotations.json", "index.json", "metadata.json", "report.json")
            assert {f"datasets/{digest}/{each}" for each in names} <= paths
            assert len({path.split("/")[1] for path in paths if path.startswith("datasets/")}) == 1

    stalls = {"object_write_seconds": STALL_SECONDS} if happens == "stalled" else {}
    run(test, **settings(results, f"http://127.0.0.1:{port}", **stalls))


def test_a_store_that_may_not_be_written_is_named_and_keeps_nothing(
    run: Any, dataset: Any, bucket: Bucket, results: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        error = await failure(service, dataset)
        assert isinstance(error, PermissionDenied)
        assert error.reason is Reason.OBJECT_STORE_DENIED
        assert error.message.startswith(results)

    for key in (bucket.server.reader, bucket.server.stranger):
        own_key(monkeypatch, key)
        run(test, **settings(results, bucket.server.endpoint_url))
    assert kept(bucket, results) == {}
    assert not list((tmp_path / "drafts").rglob(".draft-*"))


def test_a_store_that_is_away_is_named(run: Any, dataset: Any, results: str) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        error = await failure(service, dataset)
        assert isinstance(error, Unavailable)
        assert error.message.startswith(results)

    run(test, **settings(results, "http://127.0.0.1:1"))


def test_no_key_stands_in_an_answer_or_in_the_log_of_the_process(dataset: Any, bucket: Bucket, tmp_path: Path) -> None:
    dataset.write()
    bucket.upload(dataset.path)
    server = bucket.server
    address_file = tmp_path / "address"
    arguments = ["--address-file", str(address_file), "--log-level", "debug", "--object-retries-max", "0"]
    arguments += ["--store-uri", f"s3://results/{secrets.token_hex(6)}", "--store-endpoint-url", server.endpoint_url]
    arguments += ["--token-public-keys", str(tmp_path / "token.pub.pem")]
    token = tokens.token(tmp_path / "token.pem")
    environ = {"AWS_ACCESS_KEY_ID": server.service.access_key_id, "AWS_REGION": "us-east-1"}
    environ["AWS_SECRET_ACCESS_KEY"] = server.service.secret_access_key
    process = subprocess.Popen(
        [sys.executable, "-m", "services.conversion", *arguments, "--allowed-endpoint-hosts", "127.0.0.1"],
        cwd=Path(__file__).parents[3],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    answers: list[str] = []

    async def main() -> None:
        async with asyncio.timeout(60):
            while not address_file.exists():
                assert process.poll() is None, process.stdout
                await asyncio.sleep(0.01)
            address = address_file.read_text().strip()
            async with channel(address, token=lambda: token, retry_attempts_max=1) as open_channel:
                stub = ConversionServiceStub(open_channel)
                sources = [bucket.source(key=key) for key in (server.reader, server.stranger, server.service)]
                sources.append(bucket.source(below="/nowhere"))
                sources.append(bucket.source(endpoint_url="http://127.0.0.1:1"))
                sources.append(bucket.source(endpoint_url="http://storage.example"))
                for source in sources:
                    request = service_pb2.ConvertDatasetRequest(source=source, to=MULTILABEL)
                    try:
                        answers.extend([str(message) async for message in stub.ConvertDataset(request)])
                    except Exception as error:  # noqa: BLE001  # whatever it is, it must not tell
                        answers.append(str(error))

    try:
        asyncio.run(main())
        process.send_signal(signal.SIGTERM)
        log, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert sum("result" in answer for answer in answers) >= 1
    assert "call_refused" in log
    for key in (server.reader, server.stranger, server.service):
        assert key.secret_access_key not in log + "".join(answers)
        assert key.access_key_id not in log + "".join(answers)
