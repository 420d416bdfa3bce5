"""What refuses the runner itself is the runner's fault; what refuses a user's key stays the user's."""

import asyncio
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import job_pb2

from runner.agent.fault import RunnerFault
from runner.agent.files.download import Downloaded, DownloadLimits, Downloads, IndexedImage
from runner.agent.files.provision import ending_of_provision
from services.chassis.errors import PermissionDenied, Reason, SihlaiError, Unauthenticated
from tests.object_server import Bucket

LIMITS = DownloadLimits(concurrent_max=4, unavailable_seconds_max=1, missing_seconds_max=0, disk_free_bytes_min=0)
FAULT = (job_pb2.ATTEMPT_OUTCOME_HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)
SKEWED = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"


@pytest.fixture
def stranger(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that this process's own key opens nothing of."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.server.stranger.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.server.stranger.secret_access_key)
    bucket.put("images/0.png", b"image")
    return bucket


@pytest.fixture
def skewed() -> Iterator[str]:
    """A storage for which every clock is wrong; its address."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(403)
        handler.send_header("Content-Length", str(len(SKEWED)))
        handler.end_headers()
        handler.wfile.write(SKEWED)

    handlers = type("Answer", (BaseHTTPRequestHandler,), {"do_GET": answer, "log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handlers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def downloads(*own: str) -> Downloads:
    return Downloads(limits=LIMITS, randomness=random.Random(0), own_credentials_uris=own)


def fetch_image(downloading: Downloads, source: DatasetSource, uri: str, folder: Path, size_bytes: int) -> Downloaded:
    images = [IndexedImage(name="0.png", size_bytes=size_bytes)]
    wanted = downloading.images(source, uri, images, folder)
    return asyncio.run(downloading.files(wanted, folder, on_progress=lambda done, total: None, skip=True))


def assert_fault(error: Exception) -> None:
    ending = ending_of_provision(error)
    assert (ending.outcome, ending.reason) == FAULT


def test_a_runner_that_may_not_read_what_conversion_made_blames_itself(stranger: Bucket, tmp_path: Path) -> None:
    converted = DatasetSource(uri=stranger.uri, endpoint_url=stranger.server.endpoint_url)
    with pytest.raises(RunnerFault, match="the runner's own rights do not suffice") as refused:
        asyncio.run(downloads().head(converted, tmp_path / "head"))
    assert_fault(refused.value)


@pytest.mark.parametrize("size_bytes", [5, 2**21])
def test_a_users_images_that_the_runner_reads_with_its_own_key_are_refused_to_the_runner(
    stranger: Bucket, tmp_path: Path, size_bytes: int
) -> None:
    source = stranger.source(anonymous=True)
    with pytest.raises(RunnerFault, match="the runner's own rights do not suffice"):
        fetch_image(downloads(stranger.uri), source, f"{stranger.uri}/images", tmp_path, size_bytes)
    source = stranger.source(key=stranger.server.stranger)
    left_out = fetch_image(downloads(), source, f"{stranger.uri}/images", tmp_path, size_bytes).left_out
    assert isinstance(left_out["0.png"], PermissionDenied)


@pytest.mark.parametrize("size_bytes", [5, 2**21])
def test_a_clock_that_a_store_does_not_take_is_the_runners_also_with_a_users_key(
    bucket: Bucket, skewed: str, tmp_path: Path, size_bytes: int
) -> None:
    source = bucket.source()
    source.endpoint_url = skewed
    with pytest.raises(RunnerFault, match="this machine's clock is not the store's") as refused:
        fetch_image(downloads(), source, f"{bucket.uri}/images", tmp_path, size_bytes)
    assert_fault(refused.value)


@pytest.mark.parametrize(
    "error",
    [
        Unauthenticated(Reason.TOKEN_EXPIRED, "the token has expired"),
        PermissionDenied(Reason.PERMISSION_DENIED, "runners/r may not call ConvertDataset"),
    ],
)
def test_a_token_that_conversion_does_not_take_is_the_runners_fault(error: SihlaiError) -> None:
    assert_fault(error)


@pytest.mark.parametrize("reason", [Reason.OBJECT_STORE_DENIED, Reason.URI_NOT_ALLOWED])
def test_what_is_refused_to_a_users_source_stays_the_users(reason: Reason) -> None:
    ending = ending_of_provision(PermissionDenied(reason, "s3://theirs is refused"))
    assert (ending.outcome, ending.reason) == (job_pb2.ATTEMPT_OUTCOME_FAILED, job_pb2.JOB_REASON_DATASET_ERROR)
