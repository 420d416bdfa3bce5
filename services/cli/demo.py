"""`sihlai demo`: the whole system on real images, in a temporary folder of which contact sheets stay; it checks itself.

Every process is real: nats-server, conversion, scheduler, metrics, a runner and its trainers. The demo talks to them as
any client does, and fails (exit code 1) with a sentence for each thing that does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.markup import escape
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.logs.v1.log_line_pb2 import LogLine
from sihlai.logs.v1.log_service_pb2 import TailLogsRequest
from sihlai.metrics.v1 import metrics_service_pb2 as metrics
from sihlai.scheduler.v1 import checkpoint_service_pb2 as checkpoints
from sihlai.scheduler.v1 import job_pb2, project_service_pb2
from sihlai.scheduler.v1 import job_service_pb2 as jobs
from sihlai.scheduler.v1.job_pb2 import Job
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli.audit import Audit
from services.cli.digits import HEAD, Digit, drawn, write_digits
from services.cli.download import download_file
from services.cli.endpoints import Endpoints, Services
from services.cli.folder import SERVICES
from services.cli.machine import PYTHON
from services.cli.metric import comparison_parts
from services.cli.name import short
from services.cli.output import Output
from services.cli.screen import Screen
from services.cli.session import EXIT_FAILED, EXIT_INTERRUPTED, CommandError, environment, reported
from services.cli.stream import tail_logs
from services.cli.supervisor import Change, Stack, StackConfig, StackEvent
from services.cli.table import checkpoint_text, checkpoints_table, seconds_text, size_text
from services.cli.witness import Witness

PROJECT = "projects/digits"
ACCURACY = f"{HEAD}/valid/accuracy"
ACCURACY_MIN = 0.98
STOP_STEP = 150
"""The second job is stopped once somebody has seen this step."""
BUCKETS = 120
SHEETS = "contact-sheets"
"""What stays of the demo's folder."""
DIGITS_CLASSIFIED = (3, 14, 159, 265, 358, 979)
RIGHT_MIN = 5
PREDICT_SECONDS_MAX = 60.0
STORY_SECONDS_MAX = 600.0
"""Whatever hangs, the demo ends."""
SECONDS_WANTED = 120.0

MODEL = {"backbone": {"name": "tiny"}, "heads": [{"id": HEAD, "task": "TASK_MULTICLASS_CLASSIFICATION"}]}
FIRST: dict[str, Any] = {
    "display_name": "AdamW, one cycle",
    "model": MODEL,
    "data": {"height": 16, "width": 16},
    "trainer": {
        "iterations_max": 300,
        "validations": 6,
        "batch_size": 64,
        "adamw": {"learning_rate": 0.005},
        "one_cycle": {},
    },
}
SECOND: dict[str, Any] = {
    "display_name": "SGD, multi-step",
    "model": MODEL,
    "data": {"height": 16, "width": 16},
    "trainer": {
        "iterations_max": 400,
        "validations": 4,
        "batch_size": 32,
        "sgd": {"learning_rate": 0.05, "nesterov": True},
        "multi_step": {"warmup_iterations": 20},
    },
}


def run_demo(
    context: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder with everything in it.")] = False,
) -> None:
    """Start everything, train on handwritten digits, stop, resume, compare, classify, convert; check that it holds."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends in order, as with Ctrl-C
    screen = Screen()
    audit = Audit()
    folder = Path(tempfile.mkdtemp(prefix="sihlai-demo-"))
    exit_code = 0
    try:
        with reported(Output(as_json=False)):
            _tell_all(context, folder, screen, audit)
    except typer.Exit as ending:
        exit_code = ending.exit_code
    if exit_code == EXIT_INTERRUPTED:
        shutil.rmtree(folder)
        raise typer.Exit(exit_code)
    screen.heading("What was checked")
    screen.show(audit.table())
    for problem in audit.problems:
        screen.console.print(f"[red]error:[/red] {escape(problem)}")
    used = seconds_text(screen.seconds)
    failed = exit_code != 0 or bool(audit.problems)
    if failed:
        screen.say(f"[bold red]the demo failed[/bold red] after {used}")
    else:
        slow = f", more than the {SECONDS_WANTED:.0f} s that two cores need" if screen.seconds > SECONDS_WANTED else ""
        screen.say(f"[bold green]everything holds[/bold green], in {used}{slow}")
    if keep or failed:
        screen.say(f"[dim]everything stays in {folder}; the processes' logs are in {folder / 'data' / 'logs'}[/dim]")
    else:
        for entry in folder.iterdir():
            if entry.name != SHEETS:
                shutil.rmtree(entry)
    raise typer.Exit(exit_code or (EXIT_FAILED if failed else 0))


def _tell_all(context: typer.Context, folder: Path, screen: Screen, audit: Audit) -> None:
    """The demo from the first process to the last."""
    screen.heading("Handwritten digits, and everything that runs")
    digits = write_digits(folder / "digits")
    screen.say(f"{len(digits):,} images of {len({digit.category for digit in digits})} categories in the native format")
    died: list[str] = []

    def tell(event: StackEvent) -> None:
        if event.change in (Change.DIED, Change.KILLED):
            died.append(f"{event.name} {event.detail}")
        if event.change is Change.SERVING:
            screen.say(f"  [dim]{event.name} serves {event.detail}[/dim]")

    stack = Stack(StackConfig(data=folder / "data", allowed_roots=(folder,)), environ=environment(context), tell=tell)
    try:
        stack.start()
        story = _Story(screen=screen, audit=audit, folder=folder, digits=digits, stack=stack)
        asyncio.run(story.tell())
    except BaseException:
        stack.hurry()  # what it was for has failed: nobody needs its last checkpoint
        raise
    finally:
        names = stack.names
        screen.heading("Stopping")
        killed = stack.stop()
    audit.check(
        "every process lives through it and ends by itself",
        found=f"{len(names)} processes, none killed, none left behind",
        problem="; ".join([*died, *(f"{name} had to be killed" for name in killed if not died)]),
    )


@dataclass(frozen=True, kw_only=True)
class _Story:
    """What the demo does with a system that is up."""

    screen: Screen
    audit: Audit
    folder: Path
    digits: list[Digit]
    stack: Stack

    async def tell(self) -> None:
        addresses = {service: self.stack.address(service) for service in SERVICES}
        endpoints = Endpoints(addresses=addresses, folder=self.stack.folder)
        async with asyncio.timeout(STORY_SECONDS_MAX), Services(endpoints) as services:
            await self._create_project(services)
            first = await self._train_first(services)
            stopped = await self._train_and_stop_second(services)
            resumed = await self._resume(services, stopped)
            await self._compare(services, [first, stopped, resumed])
            await self._classify(services, first)
            self.audit.no_dataset_left(self.stack.config.data)
            await self._convert(services)

    async def _create_project(self, services: Services) -> None:
        source = DatasetSource(uri=(self.folder / "digits").resolve().as_uri())
        project = project_service_pb2.Project(display_name="Handwritten digits", training_dataset=source)
        request = project_service_pb2.CreateProjectRequest(
            project=project, project_id=short(PROJECT), request_id=str(uuid.uuid4())
        )
        await services.projects.CreateProject(request)

    async def _train_first(self, services: Services) -> Job:
        self.screen.heading("A job, watched while it trains")
        witness = Witness(services, await self._submit(services, "first", FIRST))
        async with self._watched(witness):
            pass
        await self._check(
            services, "first", witness, job_pb2.JOB_STATE_COMPLETED, range(1, FIRST["trainer"]["iterations_max"] + 1)
        )
        measured = witness.series.last(ACCURACY)
        accuracy = measured[1] if measured else 0.0
        self.audit.check(
            f"first: validation accuracy of at least {ACCURACY_MIN:.0%}",
            found=f"{accuracy:.2%}",
            problem="" if accuracy >= ACCURACY_MIN else f"wanted at least {ACCURACY_MIN:.0%}, found {accuracy:.2%}",
        )
        return witness.job

    async def _train_and_stop_second(self, services: Services) -> Job:
        self.screen.heading("A second job with other settings, stopped midway")
        witness = Witness(services, await self._submit(services, "second", SECOND))
        async with self._watched(witness):
            await witness.reached(STOP_STEP)
            request = jobs.StopJobRequest(
                name=witness.job.name, reason="to show how it goes on", request_id=str(uuid.uuid4())
            )
            await services.jobs.StopJob(request)
        checkpoint = witness.job.last_checkpoint
        await self._check(services, "second", witness, job_pb2.JOB_STATE_STOPPED, range(1, checkpoint.iteration + 1))
        found = await services.checkpoints.ListCheckpoints(checkpoints.ListCheckpointsRequest(parent=witness.job.name))
        self.screen.show(checkpoints_table(found.checkpoints))
        found_text = checkpoint_text(checkpoint) if witness.job.HasField("last_checkpoint") else "none"
        right = checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_STOP and checkpoint.iteration >= STOP_STEP
        self.audit.check(
            "second: the stopped job has a checkpoint",
            found=found_text,
            problem="" if right else f"wanted one of the stop, at step {STOP_STEP} or later, found {found_text}",
        )
        return witness.job

    async def _resume(self, services: Services, stopped: Job) -> Job:
        self.screen.heading("Resumed from its checkpoint, to the end")
        request = jobs.ResumeJobRequest(name=stopped.name, job_id="second-resumed", request_id=str(uuid.uuid4()))
        witness = Witness(services, (await services.jobs.ResumeJob(request)).job)
        async with self._watched(witness):
            pass
        begin = stopped.last_checkpoint.iteration + 1
        steps = range(begin, SECOND["trainer"]["iterations_max"] + 1)
        await self._check(services, "second-resumed", witness, job_pb2.JOB_STATE_COMPLETED, steps)
        return witness.job

    async def _compare(self, services: Services, compared: list[Job]) -> None:
        self.screen.heading("The jobs compared")
        request = metrics.CompareJobsRequest(
            jobs=[job.name for job in compared],
            selector=metrics.SeriesSelector(names=["train/loss", ACCURACY]),
            buckets_max=BUCKETS,
        )
        answer = await services.metrics.CompareJobs(request)
        for part in comparison_parts(answer, width=self.screen.console.width):
            self.screen.show(part)
        differing = {difference.path for difference in answer.differences}
        curves = [curve for job in answer.jobs for curve in job.curves if curve.buckets.counts]
        wanted = {"trainer.batch_size", "trainer.iterations_max"} - differing
        problems = [f"{path} differs, but is not named" for path in sorted(wanted)]
        if len(curves) != 2 * len(compared):
            problems.append(f"wanted {2 * len(compared)} curves, found {len(curves)}")
        self.audit.check(
            "the comparison names what differs and has every curve",
            found=f"{len(differing)} fields differ, {len(curves)} curves",
            problem="; ".join(problems),
        )

    async def _classify(self, services: Services, job: Job) -> None:
        self.screen.heading("The final model, downloaded, and a few digits")
        name = f"{job.name}/checkpoints/final"
        found = await services.checkpoints.GetCheckpoint(checkpoints.GetCheckpointRequest(name=name))
        target = self.folder / "model"
        target.mkdir()
        for file in found.checkpoint.files:
            path = await download_file(services, found.checkpoint.name, file, target)
            self.screen.say(f"  {path.name}, {size_text(file.size_bytes)}, sha256 verified")
        chosen = [self.digits[index] for index in DIGITS_CLASSIFIED]
        predictions = await predict(target, [digit.path for digit in chosen])
        self.screen.show(drawn(chosen, predictions))
        right = sum(p[0] == digit.category for p, digit in zip(predictions, chosen, strict=True))
        self.audit.check(
            "the downloaded model classifies digits",
            found=f"{right} of {len(chosen)} are right",
            problem="" if right >= RIGHT_MIN else f"wanted at least {RIGHT_MIN} of {len(chosen)}, found {right}",
        )

    async def _convert(self, services: Services) -> None:
        # Only the demo needs what it imports, Pillow and scikit-learn among it, which take a second.
        from services.cli.demo_conversions import show_conversions

        await show_conversions(
            services,
            screen=self.screen,
            audit=self.audit,
            folder=self.folder / "scenes",
            sheets=self.folder / SHEETS,
        )

    async def _submit(self, services: Services, job_id: str, specification: dict[str, Any]) -> Job:
        spec = json_format.ParseDict(specification, JobSpec())
        request = jobs.SubmitJobRequest(parent=PROJECT, job_id=job_id, spec=spec, request_id=str(uuid.uuid4()))
        return (await services.jobs.SubmitJob(request)).job

    @contextlib.asynccontextmanager
    async def _watched(self, witness: Witness) -> AsyncIterator[None]:
        """Watch the job during the block and on to its end."""
        async with self.screen.watching(witness, ACCURACY), asyncio.TaskGroup() as tasks:
            tasks.create_task(witness.watch())
            yield

    async def _check(
        self,
        services: Services,
        what: str,
        witness: Witness,
        ending: job_pb2.JobState.ValueType,
        steps: range,
    ) -> None:
        """Compare what was seen live with what is stored."""
        request = metrics.QuerySeriesRequest(job=witness.job.name)
        stored = await services.metrics.QuerySeries(request)
        lines: list[LogLine] = []
        tail = tail_logs(services, TailLogsRequest(job=witness.job.name), on_break=lambda error: lines.clear())
        async for answer in tail:
            lines += answer.batch.lines
        self.audit.states(what, witness, ending)
        self.audit.lines(what, lines, witness)
        self.audit.points(what, stored.series, witness, steps)


async def predict(model: Path, images: list[Path]) -> list[tuple[str, float]]:
    """What the model in a folder takes images for: category and probability, in the order of the images."""
    words = (*PYTHON[1:], "-m", "runner.predict", "--checkpoint", str(model), *map(str, images), "--json")
    process = await asyncio.create_subprocess_exec(
        PYTHON[0], *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PREDICT_SECONDS_MAX):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        raise CommandError(f"the model gave no prediction within {PREDICT_SECONDS_MAX:.0f} s") from None
    if process.returncode:
        last = (stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise CommandError(f"the prediction failed with exit code {process.returncode}: {last}")
    heads = [found["heads"][HEAD] for found in json.loads(stdout)]
    return [(str(head["category"]), float(head["probability"])) for head in heads]
