"""ConversionReportService of the real server, over what a runner wrote beside its checkpoints."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf import json_format
from sihlai.conversion.v1.conversion_service_pb2 import ConversionResult, DroppedCount
from sihlai.conversion.v1.dataset_pb2 import Finding
from sihlai.scheduler.v1 import checkpoint_service_pb2, job_pb2, job_service_pb2
from sihlai.scheduler.v1 import conversion_report_service_pb2 as messages
from sihlai.scheduler.v1.conversion_report_service_pb2_grpc import ConversionReportServiceStub

from services.chassis import rpc
from services.chassis.errors import InvalidArgument, NotFound, Reason, SihlaiError

TRAINING, VALIDATION = messages.DATASET_SPLIT_TRAINING, messages.DATASET_SPLIT_VALIDATION


def write_report(assignment, head: str, split: int = TRAINING, *, sheet: bytes = b"", **fields) -> Path:
    """What an agent leaves for one conversion; its folder."""
    word = messages.DatasetSplit.Name(split).removeprefix("DATASET_SPLIT_").lower()
    folder = Path(urlsplit(assignment.checkpoint_uri).path) / "conversions" / f"{word}-{head}"
    folder.mkdir(parents=True)
    result = ConversionResult(
        images_in=10, labelled_in=9, labelled_out=8, dropped=[DroppedCount(rule="no_area", annotations=3, images=1)]
    )
    if sheet:
        (folder / "contact_sheet.jpg").write_bytes(sheet)
        result.contact_sheet = "contact_sheet.jpg"
    report = messages.ConversionReport(
        head=head,
        split=split,
        attempt=assignment.attempt,
        epoch=assignment.epoch,
        result=result,
        findings=[Finding(rule="no_area", message="the box has no area")],
    )
    report.MergeFrom(messages.ConversionReport(**fields))
    (folder / "report.json").write_text(json_format.MessageToJson(report, preserving_proto_field_name=True))
    return folder


async def refused(call) -> SihlaiError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return rpc.error_from_rpc(error.value)


async def list_all(client, parent: str, page_size: int = 0) -> list[messages.ConversionReport]:
    found: list[messages.ConversionReport] = []
    token = ""
    while True:
        request = messages.ListConversionReportsRequest(parent=parent, page_size=page_size, page_token=token)
        page = await ConversionReportServiceStub(client.channel).ListConversionReports(request)
        found += page.conversion_reports
        token = page.next_page_token
        if not token:
            return found


async def get(client, name: str) -> messages.GetConversionReportResponse:
    request = messages.GetConversionReportRequest(name=name)
    return await ConversionReportServiceStub(client.channel).GetConversionReport(request)


def test_reports_of_a_running_and_of_an_ended_job_are_listed_in_pages_and_read(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit(job_id="first")
            assert await list_all(client, job.name) == []
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work("ATTEMPT_PHASE_DOWNLOADING")
            for head, split in (("cells", VALIDATION), ("cells", TRAINING), ("a-b", TRAINING)):
                write_report(runner.assignment, head, split, sheet=b"a picture" if head == "cells" else b"")
            epoch = runner.assignment.epoch
            wanted = [f"{epoch}-training-a-b", f"{epoch}-training-cells", f"{epoch}-validation-cells"]
            for page_size in (0, 1, 2):
                found = await list_all(client, job.name, page_size)
                assert [report.name for report in found] == [f"{job.name}/conversionReports/{each}" for each in wanted]
            assert (found[0].head, found[0].split, found[0].attempt) == ("a-b", TRAINING, 1)
            assert found[0].result.dropped[0].annotations == 3
            assert not found[0].findings, "lists are without them"

            await runner.close("ATTEMPT_OUTCOME_COMPLETED", reason="JOB_REASON_LIMIT_REACHED", wait=0.0)
            await client.until(job.name, job_pb2.JOB_STATE_COMPLETED)
            whole = await get(client, found[1].name)
            assert (whole.contact_sheet, whole.media_type) == (b"a picture", "image/jpeg")
            assert whole.conversion_report.findings[0].message == "the box has no area"
            plain = await get(client, found[0].name)
            assert (plain.contact_sheet, plain.media_type) == (b"", "")

    asyncio.run(test())


def test_each_attempt_keeps_its_own_reports_and_no_other_is_believed(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit(job_id="first")
            runner = simulated_runner(client)
            await runner.idle()
            first = write_report(runner.assignment, "cells")
            stranger = first.parents[2] / str(runner.assignment.epoch + 1_000)
            shutil.copytree(first.parents[1], stranger)  # of no attempt of this job
            shutil.copytree(first, first.with_name("training-copied"))
            write_report(runner.assignment, "damaged")
            (first.with_name("training-damaged") / "report.json").write_text("{")
            write_report(runner.assignment, "unfinished", sheet=b"x")
            (first.with_name("training-unfinished") / "report.json").unlink()
            (first.with_name("Other-cells")).mkdir()
            (first.with_name("Other-cells") / "report.json").write_text("{}")
            await runner.close("ATTEMPT_OUTCOME_HANDED_BACK")
            assert (await runner.idle()).run.HasField("assignment")
            write_report(runner.assignment, "cells", result=ConversionResult(labelled_out=9))

            found = await list_all(client, job.name)
            assert [(report.attempt, report.head) for report in found] == [(2, "cells"), (1, "cells")]
            epoch = found[1].epoch
            for report in ("training-copied", "training-damaged", "training-unfinished", "validation-cells"):
                error = await refused(get(client, f"{job.name}/conversionReports/{epoch}-{report}"))
                assert (type(error), error.reason) == (NotFound, Reason.CONVERSION_REPORT_NOT_FOUND)
            error = await refused(get(client, f"{job.name}/conversionReports/{stranger.name}-training-cells"))
            assert error.reason is Reason.CONVERSION_REPORT_NOT_FOUND

    asyncio.run(test())


@pytest.mark.parametrize(
    "wrong",
    [
        '"split": 99',
        '"head": "\\ud800"',
        '"epoch": ' + "9" * 5_000,
        '"later": ' + "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_a_report_that_cannot_be_read_hides_no_other(serve, simulated_runner, wrong):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit(job_id="first")
            runner = simulated_runner(client)
            await runner.idle()
            write_report(runner.assignment, "cells")
            bad = write_report(runner.assignment, "damaged") / "report.json"
            whole = {"head": "damaged", "split": "DATASET_SPLIT_TRAINING", "attempt": "1", "epoch": "1"}
            key = wrong.partition(":")[0].strip('"')
            others = json.dumps({name: value for name, value in whole.items() if name != key})
            bad.write_text(f"{others[:-1]}, {wrong}}}")
            assert [report.head for report in await list_all(client, job.name)] == ["cells"]
            error = await refused(get(client, f"{job.name}/conversionReports/1-training-damaged"))
            assert error.reason is Reason.CONVERSION_REPORT_NOT_FOUND
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))

    asyncio.run(test())


def test_reports_beside_an_attempts_checkpoints_are_not_taken_for_checkpoints(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit(job_id="first")
            runner = simulated_runner(client)
            await runner.idle()
            folder = write_report(runner.assignment, "cells")
            (folder / "manifest.json").write_text("{}")
            await runner.close("ATTEMPT_OUTCOME_COMPLETED", reason="JOB_REASON_LIMIT_REACHED")
            await client.until(job.name, job_pb2.JOB_STATE_COMPLETED)
            uid, epoch = job.uid, 1
            assert await client.scheduler.checkpoints.adopt(uid, epoch) == []
            request = checkpoint_service_pb2.ListCheckpointsRequest(parent=job.name)
            assert not (await client.checkpoints.ListCheckpoints(request)).checkpoints

    asyncio.run(test())


def test_what_is_no_name_of_a_report_is_refused(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit(job_id="first")
            for report in ("1-testing-cells", "0-training-cells", "1-training-", "1-training-../x", "last", ""):
                error = await refused(get(client, f"{job.name}/conversionReports/{report}"))
                assert isinstance(error, InvalidArgument), report
            error = await refused(get(client, f"{job.name}/checkpoints/1-training-cells"))
            assert isinstance(error, InvalidArgument)
            for name in ("projects/digits/jobs/nobody", "projects/nobody/jobs/first"):
                error = await refused(list_all(client, name))
                assert error.reason is Reason.JOB_NOT_FOUND
            request = messages.ListConversionReportsRequest(parent=job.name, page_token="x")
            error = await refused(ConversionReportServiceStub(client.channel).ListConversionReports(request))
            assert error.reason is Reason.INVALID_PAGE_TOKEN
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))

    asyncio.run(test())
