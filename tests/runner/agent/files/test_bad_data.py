"""Bad data of a job: it ends the job, or is left out and told of, by `data.bad_data`, whoever meets it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as conversion
from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import conversion_report_service_pb2 as reports
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_spec_pb2 import BAD_DATA_FAIL, BAD_DATA_SKIP, Data

from runner.agent.files.provision import Work
from services.chassis.errors import FailedPrecondition, Reason
from tests.runner.agent.files.test_conversion import report_stub
from tests.runner.agent.files.test_provision import panoptic_dataset, provision
from tests.runner.agent.system import System, end, until

SKIP = Data(bad_data=BAD_DATA_SKIP)


@pytest.fixture(scope="module")
def work(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The work folder of an agent that runs."""
    work = tmp_path_factory.mktemp("agent") / "work"
    agent = system.agent(work)
    yield work
    assert end(agent) == 0


def report_of(system: System, job: str) -> reports.ConversionReport:
    """The report of the only conversion, with its findings."""
    name = f"{job}/conversionReports/1-training-digits"
    request = reports.GetConversionReportRequest(name=name)
    return report_stub(system).GetConversionReport(request, timeout=20).conversion_report


def replace_unseen(path: Path) -> None:
    """Another content that only a look into the file tells from what was indexed."""
    about = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_what_conversion_finds_ends_the_job_or_is_left_out_and_told(system: System, work: Path) -> None:
    dataset = system.dataset("broken", images=24)
    (dataset / "images/0003.png").write_text("no image")
    annotations = json.dumps({f"{index:04}.png": "2" if index == 5 else str(index % 2) for index in range(24)})
    (dataset / "annotations.yaml").write_text(annotations)
    project = system.project(dataset)
    refused = system.wait_ended(system.submit(project))
    assert (refused.state, refused.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_DATASET_ERROR)
    job = system.wait_ended(system.submit(project, data=SKIP))
    assert job.state == job_pb2.JOB_STATE_COMPLETED, job.attempts[0].message
    report = report_of(system, job.name)
    assert {each.rule for each in report.result.dropped} == {"unreadable_image", "undeclared_category"}
    assert {each.image for each in report.findings} == {"0003.png", "0005.png"}
    assert (report.result.images_with_errors, report.result.labelled_out) == (2, 22)
    said = [line.line for line in system.lines(job.name)]
    assert any("1 for undeclared_category, 1 for unreadable_image dropped" in text for text in said)


def test_an_image_that_is_another_one_by_now_ends_the_job_or_is_left_out_and_told(system: System, work: Path) -> None:
    dataset = system.dataset("replaced-later", images=24)
    project = system.project(dataset)
    assert system.wait_ended(system.submit(project)).state == job_pb2.JOB_STATE_COMPLETED  # it is indexed now
    replace_unseen(dataset / "images/0007.png")
    for data in (None, Data(bad_data=BAD_DATA_FAIL)):
        refused = system.wait_ended(system.submit(project, data=data))
        assert (refused.state, refused.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_DATASET_ERROR)
        assert "0007.png has not the checksum" in refused.attempts[0].message
    job = system.wait_ended(system.submit(project, data=SKIP))  # the trainer looks whether each image has its file
    assert job.state == job_pb2.JOB_STATE_COMPLETED, job.attempts[0].message
    report = report_of(system, job.name)
    assert [(each.rule, each.annotations, each.images) for each in report.result.dropped] == [("image_changed", 1, 1)]
    (finding,) = report.findings
    assert (finding.image, finding.action) == ("0007.png", dataset_pb2.FINDING_ACTION_DROPPED)
    assert (report.result.errors, report.result.annotations_out, report.findings_omitted) == (1, 23, 0)
    said = [line.line for line in system.lines(job.name)]
    assert any("training image 0007.png is left out: " in text for text in said)
    assert any("downloaded 23 training images" in text for text in said)


def test_more_bad_images_than_the_job_allows_end_it_also_where_they_are_left_out(system: System, work: Path) -> None:
    dataset = system.dataset("half-gone", images=12)
    project = system.project(dataset)
    assert system.wait_ended(system.submit(project)).state == job_pb2.JOB_STATE_COMPLETED
    for index in range(3):
        replace_unseen(dataset / f"images/{index:04}.png")
    refused = system.wait_ended(system.submit(project, data=SKIP))
    assert refused.reason == job_pb2.JOB_REASON_DATASET_ERROR
    assert refused.attempts[0].message == (
        "3 of 12 training images cannot be had as converted: more than data.bad_data_share_max (0.1) allows"
    )
    until(lambda: len(report_of(system, refused.name).findings) == 3)  # what was found is told all the same
    patient = Data(bad_data=BAD_DATA_SKIP, bad_data_share_max=0.25)
    assert system.wait_ended(system.submit(project, data=patient)).state == job_pb2.JOB_STATE_COMPLETED
    for index in range(3, 7):
        (dataset / f"images/{index:04}.png").write_text("no image")
    refused = system.wait_ended(system.submit(project, data=patient))
    assert "training images have errors, see the job's conversion report: more than" in refused.attempts[0].message


@pytest.mark.parametrize("skip", [False, True])
def test_images_that_vanish_while_others_are_fetched_leave_every_head(
    system: System, tmp_path: Path, skip: bool
) -> None:
    dataset = panoptic_dataset(system.folder / "datasets" / f"vanishing-{skip}", images=60)
    gone = ["58.jpg", "59.jpg", "9.jpg"]  # the last ones by name
    told: list[tuple[conversion.ConversionResult, list[dataset_pb2.Finding]]] = []

    def vanish(work: Work) -> None:
        if work.phase == "downloading":
            for name in gone:
                (dataset / "images" / name).unlink(missing_ok=True)

    async def run() -> Path:
        heads = ("boxes", "classes", "itself")
        work = provision(
            system,
            dataset,
            tmp_path / "attempt",
            heads,
            vanish,
            data=Data(bad_data=BAD_DATA_SKIP, bad_data_share_max=0.1) if skip else None,
            on_converted=lambda split, head, result, findings: told.append((result, list(findings))),
        )
        return await work.run()

    if not skip:
        with pytest.raises(FailedPrecondition, match="is gone") as refused:
            asyncio.run(run())
        assert refused.value.reason is Reason.DATASET_CHANGED
        assert len(told) == 3, "what conversion gave is told all the same"
        return
    training = json.loads(asyncio.run(run()).read_text())["training"]
    images = sorted(path.name for path in Path(training["images"]).iterdir())
    assert len(images) == 57
    assert not set(gone) & set(images)
    for head, folder in training["heads"].items():
        assert sorted(json.loads((Path(folder) / "annotations.json").read_text())) == images, head
    assert [[each.image for each in findings] for _, findings in told] == [gone] * 3
    lost = {head: result.dropped[-1].annotations for head, (result, _) in zip(training["heads"], told, strict=True)}
    assert lost == {"boxes": 3, "classes": 2, "itself": 0}, "one of 58, none of 59, two of 9"
