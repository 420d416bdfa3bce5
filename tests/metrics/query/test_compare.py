"""Jobs side by side."""

from __future__ import annotations

import json

from sihlai.metrics.v1 import metrics_service_pb2
from sihlai.scheduler.v1 import job_pb2

from tests.metrics.client import IngestClient, Metrics, columns, definition
from tests.metrics.job_book import Job, JobBook, submit

LOSS = "digits/train/loss"


def configured(rate: float, *, momentum: bool = False) -> object:
    def configure(job: job_pb2.Job) -> None:
        job.training_dataset.uri = "file:///digits"
        job.training_dataset.credentials_stored = momentum
        job.spec.labels["purpose"] = "test"
        head = job.spec.model.heads.add(id="digits")
        head.multiclass_classification.dropout = rate
        job.spec.model.initialization.random.SetInParent()
        if momentum:
            job.spec.trainer.sgd.learning_rate = rate
            job.spec.trainer.sgd.momentum = 0.9
        else:
            job.spec.trainer.adamw.learning_rate = rate

    return configure


def compare(
    server: Metrics, jobs: list[Job], *names: str, buckets_max: int = 0
) -> metrics_service_pb2.CompareJobsResponse:
    selector = metrics_service_pb2.SeriesSelector(names=names) if names else None
    request = metrics_service_pb2.CompareJobsRequest(
        jobs=[job.name for job in jobs], selector=selector, buckets_max=buckets_max
    )
    return server.metrics().CompareJobs(request)


def write_curve(client: IngestClient, server: Metrics, job: Job, first: int, last: int) -> None:
    writer = len(client.stored) + 1
    client.open(writer, server.token(job.uid), series=[definition(job.uid, LOSS), definition(job.uid, "other")])
    steps = range(first, last + 1)
    client.points(writer, 1, columns(job.uid, LOSS, steps, [1 / (step + 1) for step in steps]))
    client.points(writer, 2, columns(job.uid, "other", [1], [1.0]))
    client.wait_stored(writer, 2)


def test_fields_that_differ_are_named_by_path_with_the_value_of_each_job(server: Metrics, book: JobBook) -> None:
    jobs = [
        submit(book, configure=configured(0.1)),
        submit(book, configure=configured(0.2)),
        submit(book, configure=configured(0.2, momentum=True)),
    ]
    response = compare(server, jobs)
    assert not response.configurations_missing
    assert [job.job for job in response.jobs] == [job.name for job in jobs]
    differences = {
        difference.path: [json.loads(value) if value else None for value in difference.values]
        for difference in response.differences
    }
    assert differences == {
        "model.heads[0].multiclass_classification.dropout": [0.1, 0.2, 0.2],
        "trainer.adamw.learning_rate": [0.1, 0.2, None],
        "trainer.sgd.learning_rate": [None, None, 0.2],
        "trainer.sgd.momentum": [None, None, 0.9],
    }


def test_curves_have_the_same_bounds_in_all_jobs(server: Metrics, book: JobBook, ingest: IngestClient) -> None:
    jobs = [submit(book), submit(book)]
    write_curve(ingest, server, jobs[0], 1, 100)
    write_curve(ingest, server, jobs[1], 41, 200)
    response = compare(server, jobs, LOSS, buckets_max=10)
    first, second = (job.curves[0].buckets for job in response.jobs)
    assert list(first.axis_firsts) == [0, 32, 64, 96]
    assert list(second.axis_firsts) == [32, 64, 96, 128, 160, 192]
    assert [job.series[0].summary.count for job in response.jobs] == [100, 160]
    assert all(len(job.series) == 1 for job in response.jobs)


def test_without_a_selector_there_are_all_summaries_and_no_curves(
    server: Metrics, book: JobBook, ingest: IngestClient
) -> None:
    job = submit(book)
    write_curve(ingest, server, job, 1, 10)
    (compared,) = compare(server, [job]).jobs
    assert [series.definition.name for series in compared.series] == [LOSS, "other"]
    assert not compared.curves
