"""What people are told of a job."""

import io
from datetime import UTC, datetime

from rich.console import Console
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job, Progress

from services.cli.command.job_watch import ChangeLines
from services.cli.view.table import job_table, jobs_table, progress_text


def shown(job: Job) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(job_table(job))
    return capture.get()


def test_an_upload_is_told_in_sizes_and_what_holds_it_up_in_words() -> None:
    progress = Progress(
        phase="uploading",
        iteration=40,
        iterations_max=40,
        done=8 * 2**20,
        total=360 * 2**20,
        problem="checkpoint 40 waits for the object store: [/b] it is full",
    )
    job = Job(name="projects/digits/jobs/first", state=job_pb2.JOB_STATE_RUNNING, progress=progress)
    assert progress_text(job) == "40 of 40, uploading 8.0 MiB of 360.0 MiB"
    assert "held up" in shown(job)
    assert "waits for the object store: [/b] it is full" in shown(job)
    job.state = job_pb2.JOB_STATE_COMPLETED
    assert progress_text(job) == "40 of 40"
    assert "held up" not in shown(job)


def test_images_are_counted() -> None:
    progress = Progress(phase="downloading", done=3, total=12)
    assert progress_text(Job(state=job_pb2.JOB_STATE_STARTING, progress=progress)) == "downloading 3 of 12"


def test_a_list_of_jobs_fits_into_eighty_columns_and_breaks_no_name() -> None:
    jobs = [
        Job(name=f"projects/handwritten-digits/jobs/a-job-with-a-name-{number}", state=job_pb2.JOB_STATE_RUNNING)
        for number in range(3)
    ]
    for job in jobs:
        job.progress.CopyFrom(Progress(iteration=100, iterations_max=1000, phase="training"))
        job.spec.display_name = "what somebody called it at some length, [/b] and \x1b[31mred"
    for width in (60, 80, 160):
        console = Console(width=width, file=io.StringIO(), highlight=False)
        console.print(jobs_table(jobs))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 4, "one line a job"
        assert all(len(line.rstrip()) <= width for line in lines)
        assert "handwritten-digits/a-job-with-a-name-2" in lines[3]
        assert "\x1b" not in "".join(lines)
    assert "[/b]" in lines[3]


def test_what_comes_from_outside_steers_no_terminal_and_is_no_markup() -> None:
    job = Job(name="projects/a/jobs/b", uid="u", state=job_pb2.JOB_STATE_RUNNING)
    job.progress.CopyFrom(Progress(phase="[/b] \x1b[31m", problem="\x07bell [/red]"))
    job.training_dataset.uri = "s3://bucket/[/bold]\x1b]0;title\x07"
    console = Console(width=160, file=io.StringIO(), highlight=False)
    console.print(job_table(job))
    console.print(jobs_table([job]))
    told = console.file.getvalue() + ChangeLines().changed(job, datetime(2026, 1, 1, tzinfo=UTC))  # type: ignore[attr-defined]
    assert not {"\x1b", "\x07"} & set(told)
    assert "[/b]" in told
    assert "[/bold]" in told
