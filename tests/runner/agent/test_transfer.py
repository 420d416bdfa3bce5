"""Downloads and uploads, on real folders."""

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import job_pb2

from runner.agent.download import CheckpointDamaged, Downloaded, DownloadLimits, Downloads, IndexedImage
from runner.agent.upload import Uploads, UploadTarget
from runner.report import CheckpointWritten
from services.chassis.errors import FailedPrecondition, Reason
from tests.runner.agent.recording import until

CONTENT = b"an image"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "images"
    folder.mkdir(parents=True)
    for index in range(40):
        (folder / f"{index}.png").write_bytes(CONTENT + b"!" * index)
    return folder.parent


def images_of(source: Path) -> list[IndexedImage]:
    return [IndexedImage(name=path.name, size_bytes=path.stat().st_size) for path in (source / "images").iterdir()]


def downloads(*, disk_free_bytes_min: int = 0) -> Downloads:
    limits = DownloadLimits(concurrent_max=4, tries_max=2, disk_free_bytes_min=disk_free_bytes_min)
    return Downloads(limits=limits, randomness=random.Random(0))


def fetch(
    source: Path, images: list[IndexedImage], folder: Path, *, seen: list[int] | None = None, **limits: int
) -> Downloaded:
    work = downloads(**limits).images(
        DatasetSource(uri=source.as_uri()),
        (source / "images").as_uri(),
        images,
        folder,
        on_progress=lambda done, total: seen.append(done) if seen is not None else None,
    )
    return asyncio.run(work)


def test_all_images_are_fetched_and_progress_counts_them(source: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    fetched = fetch(source, images_of(source), tmp_path / "out", seen=seen)
    assert fetched.files == 40
    assert seen == list(range(1, 41))
    for path in (source / "images").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "size_bytes", "reason"),
    [
        ("0.png", 9_999, Reason.DATASET_CHANGED),
        ("gone.png", 5, Reason.DATASET_CHANGED),
        ("../escape.png", 5, Reason.DATASET_INVALID),
        ("..", 5, Reason.DATASET_INVALID),
        ("", 5, Reason.DATASET_INVALID),
    ],
)
def test_an_image_that_is_not_what_the_index_says_is_refused(
    source: Path, tmp_path: Path, name: str, size_bytes: int, reason: Reason
) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        fetch(source, [IndexedImage(name=name, size_bytes=size_bytes)], tmp_path / "out")
    assert refused.value.reason is reason


def test_a_dataset_that_does_not_fit_is_refused_before_anything_is_fetched(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="the runner's disk has"):
        fetch(source, images_of(source), tmp_path / "out", disk_free_bytes_min=2**60)
    assert not list((tmp_path / "out").iterdir())


def written(folder: Path, iteration: int, *, cause: str = "VALIDATION", best: bool = False) -> CheckpointWritten:
    checkpoint = folder / "local" / str(iteration)
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights" * iteration)
    (checkpoint / "config.json").write_text("{}")
    return CheckpointWritten(str(checkpoint), iteration, cause, 0.75, best)


class Uploading:
    """Uploads into a local folder, and what they told."""

    def __init__(self, root: Path, *, waiting_max: int = 3) -> None:
        self.uploaded: list[job_pb2.Checkpoint] = []
        self.problems: list[str] = []
        self.uploads = Uploads(
            UploadTarget(job="projects/p/jobs/j", epoch=7, uri=(root / "store" / "uid" / "7").as_uri()),
            waiting_max=waiting_max,
            before_upload=lambda: None,
            now_unix_us=lambda: 1_000_000,
            randomness=random.Random(0),
            on_uploaded=self.uploaded.append,
            on_problem=self.problems.append,
        )

    async def running(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        running = asyncio.create_task(self.uploads.run())
        try:
            await work()
        finally:
            running.cancel()


def test_a_checkpoint_is_uploaded_with_its_manifest_and_removed_here(tmp_path: Path) -> None:
    async def upload() -> Uploading:
        uploading = Uploading(tmp_path)
        uploading.uploads.add(written(tmp_path, 5, cause="STOP", best=True))
        await uploading.running(uploading.uploads.finished)
        return uploading

    (checkpoint,) = asyncio.run(upload()).uploaded
    stored = tmp_path / "store" / "uid" / "7" / "5"
    assert checkpoint.name == "projects/p/jobs/j/checkpoints/7-5"
    assert checkpoint.uri == stored.as_uri()
    manifest = json.loads((stored / "manifest.json").read_text())
    assert manifest["files"][1] == {
        "name": "model.safetensors",
        "size_bytes": 35,
        "sha256": hashlib.sha256(b"weights" * 5).hexdigest(),
    }
    assert (manifest["cause"], manifest["best"], manifest["selection_value"]) == ("STOP", True, 0.75)
    assert (manifest["epoch"], manifest["iteration"], manifest["create_time_unix_us"]) == (7, 5, 1_000_000)
    assert not (tmp_path / "local" / "5").exists()

    fetched = tmp_path / "fetched"
    asyncio.run(downloads().checkpoint(checkpoint, fetched))
    assert (fetched / "model.safetensors").read_bytes() == b"weights" * 5

    (stored / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointDamaged, match="has the checksum"):
        asyncio.run(downloads().checkpoint(checkpoint, tmp_path / "again"))
    (stored / "model.safetensors").unlink()
    with pytest.raises(CheckpointDamaged, match="cannot be fetched"):
        asyncio.run(downloads().checkpoint(checkpoint, tmp_path / "again"))


def test_an_upload_whose_answer_was_lost_is_taken_up_and_another_content_is_refused(tmp_path: Path) -> None:
    stored = tmp_path / "store" / "uid" / "7"
    for iteration, content in ((5, b"weights" * 5), (6, b"of somebody else")):
        (stored / str(iteration)).mkdir(parents=True)
        (stored / str(iteration) / "model.safetensors").write_bytes(content)

    async def upload() -> Uploading:
        uploading = Uploading(tmp_path)
        uploading.uploads.add(written(tmp_path, 5))
        uploading.uploads.add(written(tmp_path, 6))
        await uploading.running(uploading.uploads.finished)
        return uploading

    uploading = asyncio.run(upload())
    assert [checkpoint.iteration for checkpoint in uploading.uploaded] == [5]
    assert "is there already, with another content" in uploading.uploads.failures[0]
    assert not (stored / "6" / "manifest.json").exists()
    assert (tmp_path / "local" / "6").exists()


def test_with_the_store_away_the_upload_waits_and_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    blocker = tmp_path / "store"
    blocker.write_text("a file where the store's folder should be")

    async def upload() -> Uploading:
        uploading = Uploading(tmp_path, waiting_max=3)

        async def work() -> None:
            uploading.uploads.add(written(tmp_path, 1))
            await until(lambda: bool(uploading.problems))
            for iteration in (2, 3, 4, 5):
                uploading.uploads.add(written(tmp_path, iteration, best=iteration == 2))
            blocker.unlink()
            await uploading.uploads.finished()

        await uploading.running(work)
        return uploading

    uploading = asyncio.run(upload())
    assert [checkpoint.iteration for checkpoint in uploading.uploaded] == [1, 2, 5]
    assert "waits for the object store" in uploading.problems[0]
