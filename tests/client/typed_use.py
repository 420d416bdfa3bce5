"""How programs use both faces, for a type checker, which `make check` runs over this file; it is never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import sihlai
from sihlai.conversion.v1.conversion_service_pb2 import ConversionResult, InspectDatasetResponse
from sihlai.logs.v1.log_line_pb2 import LogLine
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_service_pb2 import GetJobRequest, GetJobResponse, ListJobsRequest

from services.client.call import JOBS, ask
from services.client.comparison import Comparison
from services.client.job import watched
from services.client.series import Buckets, Curve, Curves


def a_script(client: sihlai.Client) -> None:
    project = client.create_project("digits", Path("digits"), display_name="Digits")
    job = project.submit(trainer={"iterations_max": 10}, labels={"team": "a"})
    assert_type(job, sihlai.Job)
    assert_type(job.wait(timeout=1.0), sihlai.Job)
    assert_type(job.stop(now=True), sihlai.Job)
    assert_type(list(job.log(follow=True, tail=3)), list[LogLine])
    assert_type(list(job.watch()), list[sihlai.Job])
    assert_type(job.series("*/loss")["train/loss"], Curve)
    assert_type(job.series().buckets(3), Buckets)
    assert_type(job.compare(job, names=["valid/loss"]), Comparison)
    assert_type(job.checkpoints.best.download("model"), Path)
    assert_type(job.checkpoints.best.get(), job_pb2.Checkpoint)
    assert_type(list(job.checkpoints), list[job_pb2.Checkpoint])
    assert_type(job.delete(), None)
    assert_type(client.jobs("digits", states=["running"])[0], sihlai.Job)
    assert_type(client.jobs().frame(config=["trainer.batch_size"]), sihlai.Frame)
    assert_type(client.projects()[0].name, str)
    assert_type(client.dataset("digits").inspect(), InspectDatasetResponse)
    assert_type(client.dataset("digits").convert("depth-estimation", lenient=True), ConversionResult)
    assert_type(client.run(ask, JOBS.GetJob, GetJobRequest()), GetJobResponse)
    assert_type(list(client.iterate(watched, "digits/first")), list[job_pb2.Job])
    client.run(ask, JOBS.GetJob, ListJobsRequest())  # type: ignore[arg-type]  # the request of another method
    job.wait(1.0)  # type: ignore[call-arg]  # a wait is limited by name
    client.job()  # type: ignore[call-arg]  # which one?


async def a_loop(client: sihlai.AsyncClient) -> None:
    project = await client.create_project("digits", Path("digits"))
    job = await project.submit(trainer={"iterations_max": 10})
    assert_type(job, sihlai.AsyncJob)
    assert_type(await job.wait(timeout=1.0), sihlai.AsyncJob)
    assert_type([line async for line in job.log(follow=True)], list[LogLine])
    assert_type([each async for each in job.watch()], list[sihlai.AsyncJob])
    assert_type(await job.series("*/loss"), Curves)
    assert_type(await job.series().buckets(3), Buckets)
    assert_type(await job.compare(job), Comparison)
    assert_type(await job.checkpoints.best.download("model"), Path)
    assert_type((await client.jobs("digits"))[0], sihlai.AsyncJob)
    assert_type(await (await client.jobs()).frame(best=["valid/loss"]), sihlai.Frame)
    assert_type((await client.projects())[0].name, str)
    assert_type(await client.dataset("digits").convert("depth-estimation"), ConversionResult)
    assert_type(await client.run(ask, JOBS.GetJob, GetJobRequest()), GetJobResponse)
    assert_type([each async for each in client.iterate(watched, "digits/first")], list[job_pb2.Job])
    for _ in job.checkpoints:  # type: ignore[misc]  # a list is awaited
        pass
    print(job.wait().state)  # type: ignore[attr-defined]  # not awaited
