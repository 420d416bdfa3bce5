"""`import sihlai` against a system of real processes: a script's view, then an event loop's."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
import sihlai
import yaml
from PIL import Image
from sihlai.metrics.v1.metrics_service_pb2 import WatchMetricsRequest
from sihlai.scheduler.v1 import job_pb2

from services.cli.machine.supervisor import Stack, StackConfig
from services.client.job import LAST_LINES, last_lines
from services.client.series import watched
from tests.relay import Relay

ITERATIONS = 30
IMAGES = 24
WAIT_SECONDS = 240.0
START_SECONDS = 240.0


def write_shapes(folder: Path) -> Path:
    """Squares and bars, as a dataset in the native format."""
    (folder / "images").mkdir()
    annotations = {}
    for index in range(IMAGES):
        image = Image.new("L", (16, 16))
        image.paste(255, (4, 4, 12, 12) if index % 2 else (2, 7, 14, 9))
        image.save(folder / "images" / f"{index:02}.png")
        annotations[f"{index:02}.png"] = "square" if index % 2 else "bar"
    metadata = {"task": "multiclass classification", "categories": ["square", "bar"], "annotations": "annotations.yaml"}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    (folder / "annotations.yaml").write_text(yaml.safe_dump(annotations))
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    config = StackConfig(
        data=tmp_path_factory.mktemp("stack"),
        allowed_roots=(tmp_path_factory.getbasetemp(),),
        device="cpu",
        start_seconds_max=START_SECONDS,
    )
    with Stack(config, environ=os.environ) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[sihlai.Client]:
    """One address is enough."""
    with sihlai.connect(stack.address("scheduler"), token=token_of(stack)) as connected:
        yield connected


def token_of(stack: Stack) -> str:
    """The token of the stack's own user, where it has one."""
    file = stack.config.data / "token"
    return file.read_text().strip() if file.exists() else ""


@pytest.fixture(scope="module")
def trained(client: sihlai.Client, shapes: Path) -> sihlai.Job:
    project = client.create_project("shapes", shapes, display_name="squares and bars")
    job = project.submit(
        model={"backbone": {"name": "tiny"}, "heads": [{"id": "shape", "task": "multiclass-classification"}]},
        data=sihlai.Data(height=16, width=16),
        trainer={"iterations_max": ITERATIONS, "validations": 2, "batch_size": 8},
        labels={"team": "a"},
    )
    lines = [line.line for line in job.log(follow=True)]
    assert lines, "the log was followed to its end"
    wait_for_points(client, job)
    return job.wait(timeout=WAIT_SECONDS)


def wait_for_points(client: sihlai.Client, job: sihlai.Job) -> None:
    """Until all are stored: the last of them may come after the job's end."""
    for answer in client.iterate(watched, WatchMetricsRequest(job=job.name)):
        complete = answer.ended.points_complete
    assert complete


def test_a_job_is_submitted_in_parts_followed_and_waited_for(trained: sihlai.Job) -> None:
    assert (trained.state, trained.ended) == ("completed", True)
    assert trained.spec.trainer.iterations_max == ITERATIONS
    assert [job.state for job in trained.watch()] == ["completed"]


def test_series_are_exact_and_in_buckets_and_frames_for_what_speaks_arrow(trained: sihlai.Job) -> None:
    loss = trained.series("train/loss")["train/loss"]
    assert list(loss.steps) == list(range(1, ITERATIONS + 1))
    assert all(math.isfinite(value) for value in loss.values)
    table = pyarrow.table(trained.series("*/loss"))
    assert table.column_names == ["job", "series", "context", "step", "time", "value"]
    assert table.num_rows == sum(len(curve.values) for curve in trained.series("*/loss"))
    buckets = pyarrow.table(trained.series("train/loss").buckets(4))
    assert 1 <= buckets.num_rows <= 4
    assert sum(buckets["count"].to_pylist()) == ITERATIONS


def test_jobs_are_a_frame_of_their_settings_and_best_values(client: sihlai.Client, trained: sihlai.Job) -> None:
    jobs = client.jobs("shapes", labels={"team": "a"}, states=["completed"])
    frame = jobs.frame(config=["trainer.batch_size", "model.heads[0].id"], best=["train/loss", "nothing"])
    (row,) = frame.rows()
    assert (row["trainer.batch_size"], row["model.heads[0].id"], row["nothing"]) == (8, "shape", None)
    assert row["train/loss"] == min(trained.series("train/loss")["train/loss"].values)
    assert pyarrow.table(frame)["create_time"].type == pyarrow.timestamp("us", tz="UTC")


def test_jobs_are_compared(client: sihlai.Client, trained: sihlai.Job) -> None:
    resumed = trained.resume(trainer={"iterations_max": 2 * ITERATIONS}, job_id="longer").wait(timeout=WAIT_SECONDS)
    wait_for_points(client, resumed)
    found = sihlai.compare(trained, resumed, names=["train/loss"])
    assert {"shapes/longer"} < set(found.differences["trainer.iterations_max"])
    assert [row["last_step"] for row in found.frame().rows()] == [ITERATIONS, 2 * ITERATIONS]


def test_the_best_checkpoint_is_downloaded_and_goes_on_where_it_was(trained: sihlai.Job, tmp_path: Path) -> None:
    folder = trained.checkpoints.best.download(tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (file,) = [file for file in trained.checkpoints.best.get().files if file.name == "model.safetensors"]
    assert len(content) == file.size_bytes
    (folder / file.name).unlink()
    (folder / f".{file.name}.{file.sha256[:16]}.part").write_bytes(content[: len(content) // 2])
    arrived: list[int] = []
    trained.checkpoints.best.download(folder, files=[file.name], on_progress=lambda _, size: arrived.append(size))
    assert arrived[0] > len(content) // 2, "the half that was there was not asked for again"
    assert (folder / file.name).read_bytes() == content


def test_a_dataset_is_inspected_validated_planned_and_converted(client: sihlai.Client, shapes: Path) -> None:
    dataset = client.dataset(shapes)
    assert dataset.inspect().images == IMAGES
    assert dataset.validate().ok
    (step,) = dataset.plan("multilabel-classification").steps
    assert step.rule
    assert dataset.convert("multilabel classification").labelled_out == IMAGES


def test_all_that_is_wrong_is_one_error(client: sihlai.Client, trained: sihlai.Job) -> None:
    with pytest.raises(sihlai.InvalidArgument, match=r"trainer\.validations.*trainer\.batch_size"):
        client.submit("shapes", {"trainer": {"batch_size": -1, "validations": -2}, "model": {"heads": [{"task": 1}]}})
    with pytest.raises(sihlai.SpecificationError, match="did you mean batch_size"):
        client.submit("shapes", trainer={"batchsize": 1})
    with pytest.raises(sihlai.SpecificationError, match="did you mean multiclass-classification"):
        client.submit("shapes", model={"heads": [{"task": "multiclas"}]})
    with pytest.raises(sihlai.NotFound, match="nobody"):
        client.job("shapes/nobody").wait()


def test_a_failed_job_is_raised_with_its_reason_and_last_lines(
    client: sihlai.Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torn = write_shapes(tmp_path_factory.mktemp("torn"))
    (torn / "images" / "03.png").write_text("torn")
    project = client.create_project("torn", torn)
    job = project.submit(
        model={"backbone": {"name": "tiny"}, "heads": [{"task": "multiclass-classification"}]},
        data={"height": 16, "width": 16, "bad_data": "fail-at-start"},
    )
    with pytest.raises(sihlai.JobFailed, match=r"torn/.*03\.png") as failed:
        job.wait(timeout=WAIT_SECONDS)
    assert failed.value.job.reason == job_pb2.JOB_REASON_DATASET_ERROR


def test_the_last_lines_of_a_job_are_those_of_its_log(client: sihlai.Client, trained: sihlai.Job) -> None:
    told = client.run(last_lines, trained.name)
    assert 0 < len(told) <= LAST_LINES
    assert told == [line.line for line in trained.log()][-LAST_LINES:]
    assert str(sihlai.JobFailed(trained.proto, ["first", "last"])).endswith("\n  first\n  last")


def test_waiting_has_an_end(client: sihlai.Client, shapes: Path) -> None:
    job = client.create_project("alone", shapes).submit(
        model={"heads": [{"task": "multiclass-classification"}]}, resources={"gpus": 1}
    )
    with pytest.raises(TimeoutError):
        job.wait(timeout=0.5)


def test_an_event_loop_does_the_same_over_broken_connections(stack: Stack, trained: sihlai.Job) -> None:
    """As in a notebook, where a loop runs already: the blocking client works within it too."""

    async def follow() -> None:
        relay = Relay(int(stack.address("metrics").rpartition(":")[2]))
        await relay.open()
        async with sihlai.connect_async(stack.address("scheduler"), token=token_of(stack)) as client:
            client.driver.endpoints.known["metrics"] = f"127.0.0.1:{relay.port}"
            job = await client.job("shapes/longer")
            seen = []
            async for line in job.log(follow=True):
                if len(seen) == 3:
                    await relay.cut()
                    await relay.open()
                seen.append((line.attempt, line.number))
            assert seen == [(line.attempt, line.number) for line in trained_again.log()]
            assert len(await job.series("train/loss")) == 1
            assert (await job.wait()).state == "completed"
            assert trained.refresh().state == "completed"

    with sihlai.connect(stack.address("scheduler"), token=token_of(stack)) as blocking:
        trained_again = blocking.job("shapes/longer")
        asyncio.run(follow())


def test_the_up_of_this_machine_is_found_by_itself(stack: Stack, trained: sihlai.Job) -> None:
    program = "import sihlai; print(sihlai.connect().job('shapes/longer').state)"
    environ = {**os.environ, "SIHLAI_DATA": str(stack.config.data)}
    found = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert found.stdout == "completed\n"


def test_protos_alone_load_no_client() -> None:
    program = (
        "import sys, sihlai.scheduler.v1.job_pb2 as p; assert 'services.client' not in sys.modules; "
        "import sihlai; assert 'grpc' not in sys.modules; sihlai.connect; assert 'grpc' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
