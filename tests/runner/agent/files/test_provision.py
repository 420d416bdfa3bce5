"""What an attempt finds on its disk, converted by the real service: each head's dataset in the head's own task."""

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw, ImageSequence
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2, job_spec_pb2

from runner.agent.config import Device
from runner.agent.files.conversion import Conversion, ConversionLimits
from runner.agent.files.download import DownloadLimits, Downloads
from runner.agent.files.provision import OnConverted, Provision, Work, ending_of_provision
from services.chassis.errors import FailedPrecondition, Reason
from services.chassis.rpc import channel
from services.split.choice import HeadAnnotations, validation_names
from tests.runner.agent.recording import Recording, until
from tests.runner.agent.system import System

COLORS = {"cell": (255, 0, 0), "plate": (0, 0, 255)}
HEADS = {
    "both": task_pb2.TASK_PANOPTIC_SEGMENTATION,
    "classes": task_pb2.TASK_SEMANTIC_SEGMENTATION,
    "masks": task_pb2.TASK_INSTANCE_SEGMENTATION,
    "boxes": task_pb2.TASK_OBJECT_DETECTION,
    "quads": task_pb2.TASK_QUADRILATERAL_DETECTION,
    "names": task_pb2.TASK_MULTILABEL_CLASSIFICATION,
    "odd": task_pb2.TASK_ANOMALY_DETECTION,
    "itself": task_pb2.TASK_AUTOENCODING,
    "views": task_pb2.TASK_VIEW_INVARIANCE_LEARNING,
}
STOP_SECONDS_MAX = 15.0
"""A worker ends the maps that it has; alone on a machine that is a fraction of a second."""
MAP_HEADS = ("both", "classes", "masks")


def panoptic_dataset(folder: Path, images: int = 10) -> Path:
    """Two cells on a plate on every image but the last, which is unlabelled, and the one before: a cell, no plate."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for index in range(images):
        Image.new("RGB", (32, 24), (index, 0, 0)).save(folder / "images" / f"{index}.jpg")
        if index == images - 1:
            continue
        has_plate = index < images - 2
        colors = Image.new("RGB", (32, 24), COLORS["plate"] if has_plate else (0, 0, 0))
        ids = Image.new("L", (32, 24))
        for number, left in enumerate((4, 20) if has_plate else (4,), start=1):
            ImageDraw.Draw(colors).rectangle((left, 4, left + 5, 9), COLORS["cell"])
            ImageDraw.Draw(ids).rectangle((left, 4, left + 5, 9), number)
        colors.save(folder / "annotations" / f"{index}.tiff", save_all=True, append_images=[ids])
    metadata = {
        "task": "panoptic segmentation",
        "categories": ["cell", "plate"],
        "colors": {name: list(color) for name, color in COLORS.items()},
        "things": ["cell"],
        "annotations": "annotations/",
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    return folder


def provision(
    system: System,
    dataset: Path,
    folder: Path,
    heads: Iterable[str],
    on_work: Callable[[Work], None],
    fingerprint: str = "",
    data: job_spec_pb2.Data | None = None,
    on_converted: OnConverted = lambda split, head, result, findings: None,
    **assigned: Any,
) -> Provision:
    """A provision for some of HEADS, to be run. In an event loop alone."""
    spec = job_spec_pb2.JobSpec(data=data)
    for head in heads:
        spec.model.heads.add(id=head, task=HEADS[head])
    source = dataset_pb2.DatasetSource(uri=dataset.as_uri())
    folder.mkdir()
    limits = ConversionLimits(
        reconnect_seconds_first=0.1, reconnect_seconds_max=0.5, unavailable_seconds_max=5, changed_tries_max=3
    )
    downloads = DownloadLimits(
        concurrent_max=4, unavailable_seconds_max=1, missing_seconds_max=0, disk_free_bytes_min=0
    )
    return Provision(
        wire.Assignment(
            job="projects/p/jobs/j",
            job_uid="u",
            epoch=1,
            spec=spec,
            training_dataset=source,
            dataset_fingerprint=fingerprint,
            **assigned,
        ),
        folder,
        device=Device.CPU,
        conversion_service=Conversion(
            channel(system.services["conversion"].address, token=lambda: system.token),
            limits=limits,
            randomness=random.Random(0),
        ),
        downloads=Downloads(limits=downloads, randomness=random.Random(0)),
        recorder=Recording(folder / "spool").recorder,
        on_work=on_work,
        on_fingerprint=lambda fingerprint: None,
        on_converted=on_converted,
        on_problem=lambda problem: None,
    )


def provide(system: System, dataset: Path, folder: Path, works: list[Work]) -> dict[str, Any]:
    """Provide for HEADS; the training dataset's part of the attempt file."""

    async def run() -> Path:
        return await provision(system, dataset, folder, HEADS, works.append).run()

    training: dict[str, Any] = json.loads(asyncio.run(run()).read_text())["training"]
    assert list(training["heads"]) == list(HEADS)
    return training


def annotations_of(training: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {head: json.loads((Path(training["heads"][head]) / "annotations.json").read_text()) for head in HEADS}


def test_each_head_gets_its_own_task_and_the_images_come_once(system: System, tmp_path: Path) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "panoptic")
    works: list[Work] = []
    training = provide(system, dataset, tmp_path / "attempt", works)
    assert sorted(path.name for path in Path(training["images"]).iterdir()) == [f"{index}.jpg" for index in range(10)]
    annotations = annotations_of(training)
    assert {head: found["9.jpg"] for head, found in annotations.items()} == dict.fromkeys(HEADS)
    assert annotations["names"]["0.jpg"] == ["cell", "plate"]
    assert annotations["names"]["8.jpg"] == ["cell"]
    assert annotations["boxes"]["8.jpg"] == [{"category": "cell", "bbox": [4, 4, 10, 10]}]
    assert annotations["quads"]["8.jpg"][0]["quad"] == [[4, 4], [10, 4], [10, 10], [4, 10]]
    for index in range(9):
        entries = {head: annotations[head][f"{index}.jpg"] for head in MAP_HEADS}
        assert entries["classes"]["categories"] == annotations["names"][f"{index}.jpg"]
        assert entries["masks"]["categories"] == ["cell"]
        pages = {head: pages_of(Path(training["heads"][head]) / entry["map"]) for head, entry in entries.items()}
        source = pages_of(dataset / "annotations" / f"{index}.tiff")
        assert pages["classes"] == source[:1]
        assert pages["both"][0] == source[0]
        assert len(pages["masks"]) == len(annotations["boxes"][f"{index}.jpg"])
    downloads = [(work.done, work.total) for work in works if work.phase == "downloading"]
    assert downloads == [(done, 37) for done in range(1, 38)], "ten images and nine maps for each of three heads"


def test_what_the_service_writes_is_what_the_split_reads(system: System, tmp_path: Path) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "split", images=40)
    annotations = annotations_of(provide(system, dataset, tmp_path / "attempt", []))
    names = {
        head: task_pb2.Task.Name(task).removeprefix("TASK_").lower().replace("_", " ") for head, task in HEADS.items()
    } | {"views": "view-invariance learning"}
    heads = {head: HeadAnnotations(task=names[head], annotations=annotations[head]) for head in HEADS}
    plate = {name for name, found in annotations["names"].items() if found and "plate" in found}
    for head in HEADS:
        chosen = validation_names([heads[head]], 0.2, 0)
        assert len(chosen) == pytest.approx(8, abs=2), head
        assert 0 < len(chosen & plate) < len(plate), head
    assert len(validation_names(list(heads.values()), 0.2, 0)) == pytest.approx(8, abs=2)


def test_a_map_that_changes_after_its_conversion_ends_the_attempt_with_that_reason(
    system: System, tmp_path: Path
) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "changing", images=4)
    training = provide(system, dataset, tmp_path / "first", [])
    entry = annotations_of(training)["classes"]["0.jpg"]
    for path in (system.folder / "converted" / "datasets").glob(f"*/{entry['map']}"):
        path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(FailedPrecondition) as refused:
        provide(system, dataset, tmp_path / "second", [])
    assert refused.value.reason is Reason.DATASET_CHANGED


def test_an_image_that_changes_after_its_conversion_ends_the_attempt_with_that_reason(
    system: System, tmp_path: Path
) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "replaced", images=4)
    provide(system, dataset, tmp_path / "first", [])
    path = dataset / "images" / "2.jpg"
    about = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # so that it is taken for what was indexed
    with pytest.raises(FailedPrecondition, match=r"2\.jpg has not the checksum") as refused:
        provide(system, dataset, tmp_path / "second", [])
    assert refused.value.reason is Reason.DATASET_CHANGED
    assert ending_of_provision(refused.value).reason == job_pb2.JOB_REASON_DATASET_ERROR


def test_a_dataset_that_is_not_the_recorded_one_ends_the_attempt_with_that_reason(
    system: System, tmp_path: Path
) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "recorded", images=4)

    async def run() -> None:
        await provision(system, dataset, tmp_path / "attempt", HEADS, lambda _: None, "another").run()

    with pytest.raises(FailedPrecondition, match="was recorded with the fingerprint another, but has") as refused:
        asyncio.run(run())
    assert refused.value.reason is Reason.DATASET_CHANGED
    ending = ending_of_provision(refused.value)
    assert ending.reason == job_pb2.JOB_REASON_DATASET_ERROR
    assert "fingerprint another" in ending.message


def test_a_conversion_of_maps_ends_soon_after_nobody_wants_it_any_more(system: System, tmp_path: Path) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "long", images=3)
    large = Image.new("RGB", (1_280, 960), COLORS["plate"])
    large.save(dataset / "annotations" / "0.tiff", save_all=True, append_images=[Image.new("L", large.size)])
    large.save(dataset / "images" / "0.jpg")
    for index in range(3, 250):
        os.link(dataset / "annotations" / "0.tiff", dataset / "annotations" / f"{index}.tiff")
        os.link(dataset / "images" / "0.jpg", dataset / "images" / f"{index}.jpg")
    converted = system.folder / "converted" / "datasets"
    before = set(converted.glob("*"))

    async def run() -> None:
        works: list[Work] = []
        running = asyncio.create_task(provision(system, dataset, tmp_path / "attempt", ["classes"], works.append).run())
        await until(lambda: system.converts() and any(0 < work.done < work.total for work in works))
        with system.services["conversion"].paused():
            running.cancel()
            await asyncio.wait({running})
        assert running.cancelled()
        await until(lambda: not system.converts(), seconds=STOP_SECONDS_MAX)

    asyncio.run(run())
    assert set(converted.glob("*")) == before, "the conversion was not ended: it came to its end"


def test_an_evaluation_brings_only_what_it_validates_on_and_the_model(system: System, tmp_path: Path) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / "evaluated", images=40)
    other = panoptic_dataset(system.folder / "datasets" / "harder", images=4)
    stored = tmp_path / "stored"
    stored.mkdir()
    files = {"model.safetensors": b"the weights", "config.json": b"{}", "state.pt": b"the optimizer's"}
    for name, content in files.items():
        (stored / name).write_bytes(content)
    checkpoint = job_pb2.Checkpoint(
        name="projects/p/jobs/o/checkpoints/1-60",
        uri=stored.as_uri(),
        iteration=60,
        files=[{"name": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()],
    )

    def provided(name: str, **assigned: Any) -> dict[str, Any]:
        async def run() -> Path:
            heads = ("both", "names")
            return await provision(
                system,
                dataset,
                tmp_path / name,
                heads,
                lambda _: None,
                data=job_spec_pb2.Data(validation_split={"share": 0.2}),
                evaluation=True,
                resume_from=checkpoint,
                **assigned,
            ).run()

        found: dict[str, Any] = json.loads(asyncio.run(run()).read_text())
        assert found["evaluates"] == {"checkpoint": checkpoint.name, "iteration": 60}
        assert {each.name for each in Path(found["resume_folder"]).iterdir()} == {"model.safetensors", "config.json"}
        return found

    everything = annotations_of(provide(system, dataset, tmp_path / "everything", []))
    split = provided("split")
    assert split["training"] is None
    folders = {head: Path(folder) for head, folder in split["validation"]["heads"].items()}
    annotations = {head: json.loads((folder / "annotations.json").read_text()) for head, folder in folders.items()}
    chosen = validation_names(
        [
            HeadAnnotations(task="panoptic segmentation", annotations=everything["both"]),
            HeadAnnotations(task="multilabel classification", annotations=everything["names"]),
        ],
        0.2,
        0,
    )
    assert {path.name for path in Path(split["validation"]["images"]).iterdir()} == chosen
    assert all(annotations[head] == {name: everything[head][name] for name in sorted(chosen)} for head in folders)
    maps = {annotations["both"][name]["map"] for name in chosen}
    assert {f"annotations/{path.name}" for path in (folders["both"] / "annotations").iterdir()} == maps

    whole = provided("whole", validation_dataset=dataset_pb2.DatasetSource(uri=other.as_uri()))
    assert len(list(Path(whole["validation"]["images"]).iterdir())) == 4
    assert whole["dataset_fingerprint"] not in ("", split["dataset_fingerprint"])


def pages_of(path: Path) -> list[bytes]:
    """The pages of a map as RGB."""
    with Image.open(path) as image:
        return [page.convert("RGB").tobytes() for page in ImageSequence.Iterator(image)]
