"""Conversions as an agent asks for them, with real services beside it: shown, interrupted, told of afterwards."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from sihlai.scheduler.v1 import conversion_report_service_pb2 as reports
from sihlai.scheduler.v1 import conversion_report_service_pb2_grpc, job_pb2

from services.chassis.errors import FailedPrecondition, Reason
from services.chassis.rpc import error_from_rpc
from tests.runner.agent.system import System, end, until

IMAGES = 14_000
"""Enough to be converted for some seconds."""
STEPS_MAX = 200
STEP_SECONDS = 0.05
"""Much shorter than the conversion."""
TOLD_SECONDS = 1.5
"""Within so long a runner tells how far it is, mostly."""
STOP_SECONDS_MAX = 15.0
"""How long a stop may take on a machine that others use too; alone it is a fraction of a second."""


@pytest.fixture(scope="module")
def work(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The work folder of an agent that runs."""
    work = tmp_path_factory.mktemp("agent") / "work"
    agent = system.agent(work, "--report-upload-seconds-max", "0.5")
    yield work
    assert end(agent) == 0


def large_dataset(system: System) -> Path:
    """Many names for a few images."""
    folder = system.dataset("many", images=2)
    names = {f"{index:05}.png": str(index % 2) for index in range(IMAGES)}
    for name, category in names.items():
        os.link(folder / "images" / f"{int(category):04}.png", folder / "images" / name)
    for category in names.values():
        (folder / "images" / f"{int(category):04}.png").unlink(missing_ok=True)
    (folder / "annotations.yaml").write_text(json.dumps(names))
    return folder


def report_stub(system: System) -> conversion_report_service_pb2_grpc.ConversionReportServiceStub:
    return conversion_report_service_pb2_grpc.ConversionReportServiceStub(system.channel("scheduler"))


def list_reports(system: System, job: str) -> list[reports.ConversionReport]:
    request = reports.ListConversionReportsRequest(parent=job)
    return list(report_stub(system).ListConversionReports(request, timeout=20).conversion_reports)


def conversion_held(system: System, stack: ExitStack) -> job_pb2.Job:
    """A job in the middle of its conversion, which comes no further for now: it gets there by small steps."""
    name = system.submit(system.project(large_dataset(system)), iterations=100_000)
    until(system.converts)
    for _ in range(STEPS_MAX):
        with ExitStack() as held:
            held.enter_context(system.services["conversion"].paused())
            assert system.converts(), "it came to its end before it could be held"
            with contextlib.suppress(AssertionError):
                until(lambda: system.job(name).progress.done > 0, seconds=TOLD_SECONDS)
            job = system.job(name)
            if job.progress.done:
                stack.push(held.pop_all())
                return job
        time.sleep(STEP_SECONDS)
    raise AssertionError("it is told of no image that was converted")


def test_a_stop_while_converting_ends_the_attempt_and_the_work_at_once(system: System, work: Path) -> None:
    converted = system.folder / "converted" / "datasets"
    with ExitStack() as stack:
        job = conversion_held(system, stack)
        name, before = job.name, set(converted.glob("[!.]*"))
        assert job.state == job_pb2.JOB_STATE_STARTING
        assert 0 < job.progress.done <= job.progress.total == IMAGES
        stopped_at = time.monotonic()
        system.stop_job(name)
        job = system.wait_ended(name)
        assert time.monotonic() - stopped_at < STOP_SECONDS_MAX
    assert (job.state, job.HasField("last_checkpoint")) == (job_pb2.JOB_STATE_STOPPED, False)
    assert job.attempts[0].message == "stopped before its first step"
    assert not list((work / "attempts").glob("*")), "the local copy was deleted before the end was reported"
    until(lambda: not system.converts(), seconds=STOP_SECONDS_MAX)
    assert set(converted.glob("[!.]*")) == before, "the conversion was not ended: it came to its end"
    assert list_reports(system, name) == []


@pytest.mark.parametrize(
    ("task", "reachable"),
    [
        (
            "instance segmentation",
            "instance segmentation, object detection, multilabel classification, quadrilateral detection",
        ),
        ("semantic segmentation", "semantic segmentation, multilabel classification"),
        (
            "panoptic segmentation",
            "panoptic segmentation, instance segmentation, semantic segmentation, object detection, "
            "multilabel classification, quadrilateral detection",
        ),
        ("depth estimation", "depth estimation"),
    ],
)
def test_a_head_that_a_dataset_of_maps_cannot_teach_is_refused_with_what_it_can(
    system: System, task: str, reachable: str
) -> None:
    folder = system.dataset(task.replace(" ", "-"), images=2)
    vocabulary = {"range": [0, 1]} if task == "depth estimation" else {"categories": ["a"], "colors": {"a": [9, 9, 9]}}
    (folder / "metadata.yaml").write_text(json.dumps({"task": task, **vocabulary, "annotations": "annotations/"}))
    (folder / "annotations").mkdir()
    with pytest.raises(grpc.RpcError) as refused:
        system.submit(system.project(folder))
    error = error_from_rpc(refused.value)
    assert (type(error), error.reason) == (FailedPrecondition, Reason.TASK_NOT_REACHABLE)
    assert (error.metadata["from"], error.metadata["to"]) == (task, "multiclass classification")
    named = error.metadata["reachable"].split(", ")
    assert set(named) - {"anomaly detection", "autoencoding", "view-invariance learning"} == set(reachable.split(", "))
    assert all(name in error.message for name in named)


def test_the_report_of_a_conversion_is_kept_with_the_job(system: System, work: Path) -> None:
    dataset = system.dataset("kept", images=12)
    annotations = {f"{index:04}.png": None if index < 3 else str(index % 2) for index in range(12)}
    (dataset / "annotations.yaml").write_text(json.dumps(annotations))
    name = system.submit(system.project(dataset), iterations=100_000, step_ms="10")
    system.wait_step(name, 1)
    until(lambda: bool(list_reports(system, name)))
    (report,) = list_reports(system, name)
    assert (report.head, report.split, report.attempt) == ("digits", reports.DATASET_SPLIT_TRAINING, 1)
    assert (report.result.images_in, report.result.labelled_in, report.result.labelled_out) == (12, 9, 9)
    system.stop_job(name)
    assert system.wait_ended(name).state == job_pb2.JOB_STATE_STOPPED

    shutil.rmtree(system.folder / "converted" / "datasets")
    request = reports.GetConversionReportRequest(name=report.name)
    whole = report_stub(system).GetConversionReport(request, timeout=20)
    assert whole.conversion_report.result == report.result
    assert bool(whole.contact_sheet) == bool(report.result.contact_sheet)


def test_a_report_that_cannot_be_written_ends_no_healthy_job(system: System, work: Path) -> None:
    project = system.project()
    first, name = system.submit(project, iterations=100_000, step_ms="10"), system.submit(project, iterations=30)
    system.wait_step(first, 1)
    blocker = system.folder / "checkpoints" / system.job(name).uid / "1" / "conversions"
    blocker.parent.mkdir(parents=True)
    blocker.write_text("a file where the folder of the reports should be")
    system.stop_job(first, immediate=True)
    job = system.wait_ended(name)
    assert (job.state, job.last_checkpoint.iteration) == (job_pb2.JOB_STATE_COMPLETED, 30)
    said = [line.line for line in system.lines(name)]
    assert "not every report of a conversion could be kept" in said
    assert sum("the report of the conversion for digits waits for the object store" in line for line in said) == 1
    assert list_reports(system, name) == []
