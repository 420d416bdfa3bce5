"""Downloads and uploads, on real folders."""

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import job_pb2

from runner.agent.disk import Disk
from runner.agent.fault import RunnerFault
from runner.agent.files import upload
from runner.agent.files.download import (
    CheckpointDamaged,
    Downloaded,
    DownloadLimits,
    Downloads,
    HeadDataset,
    IndexedImage,
)
from runner.agent.files.upload import Uploads, UploadTarget
from runner.report import CheckpointWritten
from services.chassis.errors import FailedPrecondition, Reason
from services.chassis.objects.access import ObjectLimits
from tests.runner.agent.recording import until

CONTENT = b"an image"
PART_BYTES = ObjectLimits().part_bytes


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
    limits = DownloadLimits(
        concurrent_max=4,
        unavailable_seconds_max=1,
        missing_seconds_max=0,
        disk_free_bytes_min=disk_free_bytes_min,
    )
    return Downloads(limits=limits, randomness=random.Random(0))


def fetch(
    source: Path, images: list[IndexedImage], folder: Path, *, seen: list[int] | None = None, **limits: int
) -> Downloaded:
    images_uri = (source / "images").as_uri()
    downloading = downloads(**limits)
    work = downloading.files(
        downloading.images(DatasetSource(uri=source.as_uri()), images_uri, images, folder),
        folder,
        on_progress=lambda done, total: seen.append(done) if seen is not None else None,
    )
    return asyncio.run(work)


def convert_to_maps(folder: Path, maps: dict[str, bytes], **changed: Any) -> Path:
    """A converted dataset with maps, as conversion writes it; `changed` are entries of its annotations."""
    (folder / "annotations").mkdir(parents=True)
    annotations: dict[str, Any] = {"unlabelled.png": None}
    for name, content in maps.items():
        (folder / "annotations" / f"{name}.png").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        annotations[f"{name}.jpg"] = {"map": f"annotations/{name}.png", "bytes": len(content), "sha256": digest}
    for name, change in changed.items():
        annotations[f"{name}.jpg"] |= change
    index = {"images": [{"name": name, "bytes": 5} for name in annotations], "fingerprint": "f"}
    metadata = {
        "task": "semantic segmentation",
        "categories": ["cell"],
        "colors": [[255, 0, 0]],
        "images": "file:///images",
        "annotations": "annotations/",
    }
    for name, content in (("metadata", metadata), ("annotations", annotations), ("index", index)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


async def fetch_head(dataset: Path, folder: Path, seen: list[tuple[int, int]] | None = None) -> HeadDataset:
    """Fetch a head's dataset with its maps."""
    found = await downloads().head(DatasetSource(uri=dataset.as_uri()), folder)
    await downloads().files(
        found.maps, folder, on_progress=lambda done, total: seen.append((done, total)) if seen is not None else None
    )
    return found


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
    with pytest.raises(RunnerFault, match="the runner's disk has"):
        fetch(source, images_of(source), tmp_path / "out", disk_free_bytes_min=2**60)
    assert not list((tmp_path / "out").iterdir())


def test_the_maps_of_a_head_are_fetched_with_it_small_and_large(tmp_path: Path) -> None:
    maps = {f"{index}": b"map" * (index + 1) for index in range(20)} | {"large": bytes(2**20 + 1)}
    dataset = convert_to_maps(tmp_path / "converted", maps, **{"3": {"crowd": [["cell", 1]], "categories": ["cell"]}})
    seen: list[tuple[int, int]] = []
    found = asyncio.run(fetch_head(dataset, tmp_path / "head", seen))
    assert [image.name for image in found.images][:2] == ["unlabelled.png", "0.jpg"]
    assert found.images_uri == "file:///images"
    assert seen == [(done, 21) for done in range(1, 22)]
    assert {path.name: path.read_bytes() for path in (tmp_path / "head" / "annotations").iterdir()} == {
        f"{name}.png": content for name, content in maps.items()
    }


@pytest.mark.parametrize(
    ("entry", "reason", "sentence"),
    [
        ({"map": "annotations/gone.png"}, Reason.DATASET_CHANGED, "gone.png is gone"),
        ({"bytes": 4}, Reason.DATASET_CHANGED, "has 3 bytes, but 4 were recorded"),
        ({"sha256": "0" * 64}, Reason.DATASET_CHANGED, "has not the checksum"),
        ({"map": "annotations/../escape.png"}, Reason.DATASET_INVALID, "is no file name"),
        ({"map": "images/0.png"}, Reason.DATASET_INVALID, "is no file name"),
        ({"map": "annotations/"}, Reason.DATASET_INVALID, "is no file name"),
        ({"bytes": "many"}, Reason.DATASET_INVALID, "is not what the runner reads"),
    ],
)
def test_a_map_that_is_not_what_the_annotations_say_is_refused(
    tmp_path: Path, entry: dict[str, Any], reason: Reason, sentence: str
) -> None:
    dataset = convert_to_maps(tmp_path / "converted", {"0": b"map", "1": b"map"}, **{"1": entry})
    with pytest.raises(FailedPrecondition, match=sentence) as refused:
        asyncio.run(fetch_head(dataset, tmp_path / "head"))
    assert refused.value.reason is reason


def test_annotations_that_are_no_maps_ask_for_none(tmp_path: Path) -> None:
    dataset = convert_to_maps(tmp_path / "converted", {})
    (dataset / "metadata.json").write_text('{"images": "file:///images", "annotations": "annotations.json"}')
    (dataset / "annotations.json").write_text('{"0.jpg": "cat", "1.jpg": [{"category": "cat"}], "2.jpg": 0.5}')
    assert not asyncio.run(fetch_head(dataset, tmp_path / "head")).maps


def written(folder: Path, iteration: int, *, cause: str = "VALIDATION", best: bool = False) -> CheckpointWritten:
    checkpoint = folder / "local" / str(iteration)
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights" * iteration)
    (checkpoint / "config.json").write_text("{}")
    return CheckpointWritten(str(checkpoint), iteration, cause, 0.75, best)


async def saved() -> None:
    """Nothing has to be on disk before an upload."""


class Uploading:
    """Uploads into a local folder, and what they told."""

    def __init__(self, root: Path, *, store: str = "store", waiting_max: int = 3) -> None:
        self.uploaded: list[job_pb2.Checkpoint] = []
        self.problems: list[str] = []
        self.seen: list[tuple[int, str]] = []
        self.uploads = Uploads(
            UploadTarget(job="projects/p/jobs/j", epoch=7, uri=(root / store / "uid" / "7").as_uri()),
            disk=Disk(still_seconds_max=20, again_seconds_max=2),
            waiting_max=waiting_max,
            before_upload=saved,
            now_unix_us=lambda: 1_000_000,
            randomness=random.Random(0),
            on_uploaded=self.uploaded.append,
            on_change=lambda urgent: self.seen.append((self.uploads.done_bytes, self.uploads.problem)),
            on_problem=self.problems.append,
        )

    async def running(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        running = asyncio.create_task(self.uploads.run())
        try:
            await work()
        finally:
            running.cancel()


def test_a_checkpoint_is_uploaded_with_its_manifest_and_removed_here(tmp_path: Path) -> None:
    async def run() -> Uploading:
        uploading = Uploading(tmp_path)
        uploading.uploads.add(written(tmp_path, 5, cause="STOP", best=True))
        await uploading.running(uploading.uploads.finished)
        await until(
            lambda: not (tmp_path / "local" / "5").exists()
        )  # a thread removes it, and no upload waits for that
        return uploading

    (checkpoint,) = asyncio.run(run()).uploaded
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

    async def run() -> Uploading:
        uploading = Uploading(tmp_path)
        uploading.uploads.add(written(tmp_path, 5))
        uploading.uploads.add(written(tmp_path, 6))
        await uploading.running(uploading.uploads.finished)
        return uploading

    uploading = asyncio.run(run())
    assert [checkpoint.iteration for checkpoint in uploading.uploaded] == [5]
    assert "is there already, with another content" in uploading.uploads.failures[0]
    assert not uploading.uploads.runner_failed
    assert not (stored / "6" / "manifest.json").exists()
    assert (tmp_path / "local" / "6").exists()


def test_a_checkpoint_that_this_disk_does_not_give_is_the_runners_fault(tmp_path: Path) -> None:
    async def run() -> Uploading:
        uploading = Uploading(tmp_path)
        checkpoint = written(tmp_path, 5)
        weights = Path(checkpoint.folder) / "model.safetensors"
        weights.unlink()
        weights.symlink_to("/proc/self/mem")  # whose first page nobody can read: EIO
        uploading.uploads.add(checkpoint)
        await uploading.running(uploading.uploads.finished)
        return uploading

    uploading = asyncio.run(run())
    assert "Input/output error" in uploading.uploads.failures[0]
    assert uploading.uploads.runner_failed


def test_an_upload_that_stands_still_says_why_and_is_given_up_after_its_time(tmp_path: Path) -> None:
    blocker = tmp_path / "store"
    blocker.write_text("a file where the store's folder should be")

    async def run() -> Uploading:
        uploading = Uploading(tmp_path)

        async def work() -> None:
            uploading.uploads.add(written(tmp_path, 1))
            assert not await uploading.uploads.finished_or_stuck(0.05)
            await until(lambda: bool(uploading.uploads.problem))
            assert "checkpoint 1 waits for the object store" in uploading.uploads.problem
            blocker.unlink()
            assert await uploading.uploads.finished_or_stuck(60)

        await uploading.running(work)
        return uploading

    uploading = asyncio.run(run())
    assert uploading.seen[-1] == (9, "")
    assert uploading.uploads.total_bytes == 9
    assert [checkpoint.iteration for checkpoint in uploading.uploaded] == [1]


def test_what_arrives_again_counts_as_movement_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes every part and never the whole, as one that is restarted before the end of each upload."""
    monkeypatch.setattr(upload, "RETRY_SECONDS_MAX", 0.01)
    in_the_way = tmp_path / "store" / "uid" / "7" / "1" / "model.safetensors"
    in_the_way.mkdir(parents=True)

    async def run() -> Uploading:
        uploading = Uploading(tmp_path)
        checkpoint = written(tmp_path, 1)
        with (Path(checkpoint.folder) / "model.safetensors").open("ab") as file:
            file.truncate(7 * PART_BYTES)

        async def work() -> None:
            uploading.uploads.add(checkpoint)
            await until(lambda: moved_again(uploading) == upload.RESTARTS_MAX)
            assert not await uploading.uploads.finished_or_stuck(0.5)

        await uploading.running(work)
        return uploading

    def moved_again(uploading: Uploading) -> int:
        """How often a problem was over because something arrived."""
        problems = [bool(problem) for _, problem in uploading.seen]
        return sum(before and not after for before, after in pairwise(problems))

    assert moved_again(asyncio.run(run())) == upload.RESTARTS_MAX


def test_tries_in_which_nothing_arrived_are_no_restarts_and_what_arrives_again_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "RETRY_SECONDS_FIRST", 0.2)
    monkeypatch.setattr(upload, "RETRY_SECONDS_MAX", 0.2)
    store = tmp_path / "store"
    in_the_way = store / "uid" / "7" / "1" / "model.safetensors"
    in_the_way.mkdir(parents=True)

    async def run() -> Uploading:
        uploading = Uploading(tmp_path)
        checkpoint = written(tmp_path, 1)
        with (Path(checkpoint.folder) / "model.safetensors").open("ab") as file:
            file.truncate(7 * PART_BYTES)

        async def work() -> None:
            uploading.uploads.add(checkpoint)
            await until(lambda: bool(uploading.uploads.problem))
            in_the_way.rmdir()
            store.rename(tmp_path / "away")
            store.write_text("a file where the store's folder should be")
            await until(lambda: len(uploading.problems) > upload.RESTARTS_MAX + 2)
            store.unlink()
            (tmp_path / "away").rename(store)
            assert await uploading.uploads.finished_or_stuck(60)

        await uploading.running(work)
        return uploading

    seen = asyncio.run(run()).seen
    furthest = 2 + 2 * PART_BYTES
    assert (furthest, "") in seen
    outage = next(index for index, (_, problem) in enumerate(seen) if problem)
    told = [done_bytes for done_bytes, problem in seen[outage:] if not problem]
    assert seen[outage][0] == 0, "nothing of the next try has arrived"
    assert {2, 2 + PART_BYTES, furthest} <= set(told)


def test_a_store_that_cannot_even_be_looked_at_is_waited_for_and_is_no_fault_of_the_runner(tmp_path: Path) -> None:
    async def run() -> Uploading:
        uploading = Uploading(tmp_path, store="x" * 300)  # more than a file system takes, which it says at each call

        async def work() -> None:
            uploading.uploads.add(written(tmp_path, 1))
            await until(lambda: bool(uploading.problems))

        await uploading.running(work)
        return uploading

    uploading = asyncio.run(run())
    assert "waits for the object store" in uploading.uploads.problem
    assert not uploading.uploads.failures


def test_a_folder_that_is_not_mounted_is_waited_for_and_then_the_runners_fault(source: Path, tmp_path: Path) -> None:
    images = images_of(source)
    away = source.rename(tmp_path / "away")
    with pytest.raises(RunnerFault, match="is missing on this machine: is it mounted"):
        fetch(source, images, tmp_path / "out")

    async def wait_for_it() -> Downloaded:
        limits = DownloadLimits(
            concurrent_max=4, unavailable_seconds_max=0, missing_seconds_max=60, disk_free_bytes_min=0
        )
        downloading = Downloads(limits=limits, randomness=random.Random(0))
        wanted = downloading.images(
            DatasetSource(uri=source.as_uri()), (source / "images").as_uri(), images, tmp_path / "out"
        )

        def mount(problem: str) -> None:
            if problem and away.exists():
                away.rename(source)

        return await downloading.files(wanted, tmp_path / "out", on_progress=lambda done, total: None, on_problem=mount)

    assert asyncio.run(wait_for_it()).files == 40


def test_with_the_store_away_the_upload_waits_and_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    blocker = tmp_path / "store"
    blocker.write_text("a file where the store's folder should be")

    async def run() -> Uploading:
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

    uploading = asyncio.run(run())
    assert [checkpoint.iteration for checkpoint in uploading.uploaded] == [1, 2, 5]
    assert "waits for the object store" in uploading.problems[0]
