"""`sihlai demo`: the whole system on real images, in a temporary folder of which the pictures stay; it checks itself.

Every process is real: nats-server, conversion, scheduler, metrics, a runner and its trainers. The demo talks to them as
any client does, and fails (exit code 1) with a sentence for each thing that does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
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

from services.chassis.endpoints import Endpoints
from services.cli.command.metric import comparison_parts
from services.cli.demo import tenth
from services.cli.demo.audit import Audit
from services.cli.demo.digits import HEAD, Digit, drawn, write_digits
from services.cli.demo.screen import Screen
from services.cli.demo.witness import Witness
from services.cli.error import EXIT_FAILED, EXIT_INTERRUPTED
from services.cli.machine.predictor import predicted
from services.cli.machine.supervisor import Change, Stack, StackConfig, StackEvent
from services.cli.session import environment, reported
from services.cli.view.output import Output
from services.cli.view.table import checkpoint_text, checkpoints_table, seconds_text, size_text
from services.client.call import CHECKPOINTS, JOBS, METRICS, PROJECTS, ask
from services.client.checkpoint import downloaded
from services.client.face import AsyncClient
from services.client.job import tailed
from services.client.name import short

PROJECT = "projects/digits"
ACCURACY = f"{HEAD}/valid/accuracy"
ACCURACY_MIN = 0.98
STOP_STEP = 150
"""The second job is stopped once somebody has seen this step."""
BUCKETS = 120
SHEETS = "contact-sheets"
DRAWN = "predictions"
"""What stays of the demo's folder."""
DIGITS_CLASSIFIED = (3, 14, 159, 265, 358, 979)
RIGHT_MIN = 5
STORY_SECONDS_MAX = 600.0
"""Whatever hangs, the demo ends."""
SECONDS_WANTED = 300.0

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
    """Start everything, train on handwritten digits, stop, resume, compare, classify, convert; check that it holds.

    Example: sihlai demo --keep
    """
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
            if entry.name not in (SHEETS, DRAWN):
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
        endpoints = Endpoints(up=self.stack.folder.root)
        async with asyncio.timeout(STORY_SECONDS_MAX), AsyncClient(endpoints) as client:
            await self._create_project(client, PROJECT, "Handwritten digits", self.folder / "digits")
            first = await self._train_first(client)
            stopped = await self._train_and_stop_second(client)
            resumed = await self._resume(client, stopped)
            wanted = {"trainer.batch_size", "trainer.iterations_max"}
            await self._compare(client, [first, stopped, resumed], ACCURACY, wanted)
            await self._classify(client, first)
            await self._train_three_heads(client)
            await self._train_with_a_tenth(client)
            self.audit.no_dataset_left(self.stack.config.data)
            await self._convert(client)

    async def _create_project(
        self, client: AsyncClient, name: str, display_name: str, folder: Path, validation: Path | None = None
    ) -> None:
        source = DatasetSource(uri=folder.resolve().as_uri())
        project = project_service_pb2.Project(display_name=display_name, training_dataset=source)
        if validation is not None:
            project.validation_dataset.uri = validation.resolve().as_uri()
        request = project_service_pb2.CreateProjectRequest(
            project=project, project_id=short(name), request_id=str(uuid.uuid4())
        )
        await client.run(ask, PROJECTS.CreateProject, request)

    async def _train_first(self, client: AsyncClient) -> Job:
        self.screen.heading("A job, watched while it trains")
        witness = Witness(client, await self._submit(client, PROJECT, "first", FIRST))
        async with self._watched(witness):
            pass
        await self._check(
            client, "first", witness, job_pb2.JOB_STATE_COMPLETED, range(1, FIRST["trainer"]["iterations_max"] + 1)
        )
        measured = witness.series.last(ACCURACY)
        accuracy = measured[1] if measured else 0.0
        self.audit.check(
            f"first: validation accuracy of at least {ACCURACY_MIN:.0%}",
            found=f"{accuracy:.2%}",
            problem="" if accuracy >= ACCURACY_MIN else f"wanted at least {ACCURACY_MIN:.0%}, found {accuracy:.2%}",
        )
        return witness.job

    async def _train_and_stop_second(self, client: AsyncClient) -> Job:
        self.screen.heading("A second job with other settings, stopped midway")
        witness = Witness(client, await self._submit(client, PROJECT, "second", SECOND))
        async with self._watched(witness):
            await witness.reached(STOP_STEP)
            request = jobs.StopJobRequest(
                name=witness.job.name, reason="to show how it goes on", request_id=str(uuid.uuid4())
            )
            await client.run(ask, JOBS.StopJob, request)
        checkpoint = witness.job.last_checkpoint
        await self._check(client, "second", witness, job_pb2.JOB_STATE_STOPPED, range(1, checkpoint.iteration + 1))
        found = await client.run(
            ask, CHECKPOINTS.ListCheckpoints, checkpoints.ListCheckpointsRequest(parent=witness.job.name)
        )
        self.screen.show(checkpoints_table(found.checkpoints))
        found_text = checkpoint_text(checkpoint) if witness.job.HasField("last_checkpoint") else "none"
        right = checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_STOP and checkpoint.iteration >= STOP_STEP
        self.audit.check(
            "second: the stopped job has a checkpoint",
            found=found_text,
            problem="" if right else f"wanted one of the stop, at step {STOP_STEP} or later, found {found_text}",
        )
        return witness.job

    async def _resume(self, client: AsyncClient, stopped: Job) -> Job:
        self.screen.heading("Resumed from its checkpoint, to the end")
        request = jobs.ResumeJobRequest(name=stopped.name, job_id="second-resumed", request_id=str(uuid.uuid4()))
        witness = Witness(client, (await client.run(ask, JOBS.ResumeJob, request)).job)
        async with self._watched(witness):
            pass
        begin = stopped.last_checkpoint.iteration + 1
        steps = range(begin, SECOND["trainer"]["iterations_max"] + 1)
        await self._check(client, "second-resumed", witness, job_pb2.JOB_STATE_COMPLETED, steps)
        return witness.job

    async def _compare(self, client: AsyncClient, compared: list[Job], measured: str, wanted: set[str]) -> None:
        """Compare the loss and what was measured; `wanted` are paths in the specification that must be told apart."""
        self.screen.heading("The jobs compared")
        shown = [measured, "train/loss"]
        request = metrics.CompareJobsRequest(
            jobs=[job.name for job in compared],
            selector=metrics.SeriesSelector(names=shown),
            buckets_max=BUCKETS,
        )
        answer = await client.run(ask, METRICS.CompareJobs, request)
        for part in comparison_parts(answer, shown):
            self.screen.show(part)
        differing = {difference.path for difference in answer.differences}
        curves = [curve for job in answer.jobs for curve in job.curves if curve.buckets.counts]
        unnamed = sorted(path for path in wanted if not any(found.startswith(path) for found in differing))
        problems = [f"{path} differs, but is not named" for path in unnamed]
        if len(curves) != 2 * len(compared):
            problems.append(f"wanted {2 * len(compared)} curves, found {len(curves)}")
        self.audit.check(
            "the comparison names what differs and has every curve",
            found=f"{len(differing)} fields differ, {len(curves)} curves",
            problem="; ".join(problems),
        )

    async def _classify(self, client: AsyncClient, job: Job) -> None:
        self.screen.heading("The final model, downloaded, and a few digits")
        target = await self._download(client, job, self.folder / "model")
        chosen = [self.digits[index] for index in DIGITS_CLASSIFIED]
        seen = [each async for each in predicted(target, [digit.path for digit in chosen])]
        predictions = [(str(each.heads[HEAD]["category"]), float(each.heads[HEAD]["probability"])) for each in seen]
        self.screen.show(drawn(chosen, predictions))
        right = sum(p[0] == digit.category for p, digit in zip(predictions, chosen, strict=True))
        self.audit.check(
            "the downloaded model classifies digits",
            found=f"{right} of {len(chosen)} are right",
            problem="" if right >= RIGHT_MIN else f"wanted at least {RIGHT_MIN} of {len(chosen)}, found {right}",
        )

    async def _train_three_heads(self, client: AsyncClient) -> None:
        # Only the demo needs what it imports, Pillow and scikit-learn among it, which take a second.
        from services.cli.demo import learning as scenes

        self.screen.heading("Scenes: one model that learns three tasks at once")
        began = self.screen.seconds
        folder = self.folder / "scenes-to-learn"
        made = await asyncio.to_thread(scenes.write_training_scenes, folder)
        self.screen.say(f"{len(made)} scenes with panoptic maps, of which boxes, areas and labels are learned")
        await self._create_project(client, scenes.PROJECT, "Scenes of digits", folder)
        trained = []
        for job_id, spec in ((scenes.JOB, scenes.SPEC), ("one-head", scenes.ONE_HEAD)):
            witness = Witness(client, await self._submit(client, scenes.PROJECT, job_id, spec))
            async with self._watched(witness, scenes.MEASURED):
                pass
            steps = range(1, spec["trainer"]["iterations_max"] + 1)
            await self._check(client, job_id, witness, job_pb2.JOB_STATE_COMPLETED, steps)
            trained.append(witness)
        last = {name: trained[0].series.last(name) for name in scenes.WANTED}
        scenes.check_learned({name: found[1] if found else None for name, found in last.items()}, self.audit)
        await self._compare(client, [each.job for each in trained], scenes.MEASURED, {"model.heads[1]"})
        model = await self._download(client, trained[0].job, self.folder / "scenes-model")
        new = await asyncio.to_thread(scenes.write_new_scenes, self.folder / "new-scenes")
        paths = [self.folder / "new-scenes" / "images" / scene.name for scene in new]
        drawn = self.folder / DRAWN
        found = [each async for each in predicted(model, paths, draw=drawn)]
        self.screen.show(scenes.predictions_table(found))
        self.screen.say(f"drawn predictions: {drawn}")
        scenes.check_predicted(found, new, self.audit)
        self.screen.say(f"[dim]this part took {seconds_text(self.screen.seconds - began)}[/dim]")

    async def _train_with_a_tenth(self, client: AsyncClient) -> None:
        self.screen.heading("A tenth of the labels, without and with a head that learns from images alone")
        began = self.screen.seconds
        folder, validation = self.folder / "tenth", self.folder / "tenth-validation"
        counts = await asyncio.to_thread(tenth.write_partly_labelled, self.digits, folder, validation)
        trained, labelled, validated = counts
        self.screen.say(f"{trained:,} digits, {labelled} with a label; {validated} others are validated on")
        await self._create_project(client, tenth.PROJECT, "A tenth of the labels", folder, validation)
        witnesses = []
        for job_id, spec in (("without", tenth.WITHOUT), ("with", tenth.WITH)):
            witness = Witness(client, await self._submit(client, tenth.PROJECT, job_id, spec))
            async with self._watched(witness, tenth.ACCURACY):
                pass
            steps = range(1, spec["trainer"]["iterations_max"] + 1)
            await self._check(client, job_id, witness, job_pb2.JOB_STATE_COMPLETED, steps)
            witnesses.append(witness)
        await self._compare(client, [each.job for each in witnesses], tenth.ACCURACY, {"model.heads[1]"})
        without, besides = (each.series.last(tenth.ACCURACY) for each in witnesses)
        said = tenth.difference(without[1] if without else None, besides[1] if besides else None, self.audit)
        self.screen.say(said)
        self.screen.say(f"[dim]this part took {seconds_text(self.screen.seconds - began)}[/dim]")

    async def _download(self, client: AsyncClient, job: Job, target: Path) -> Path:
        name = f"{job.name}/checkpoints/final"
        found = await client.run(ask, CHECKPOINTS.GetCheckpoint, checkpoints.GetCheckpointRequest(name=name))
        await client.run(downloaded, found.checkpoint, target)
        for file in found.checkpoint.files:
            self.screen.say(f"  {file.name}, {size_text(file.size_bytes)}, sha256 verified")
        return target

    async def _convert(self, client: AsyncClient) -> None:
        # Only the demo needs what it imports, Pillow and scikit-learn among it, which take a second.
        from services.cli.demo.conversions import show_conversions

        await show_conversions(
            client,
            screen=self.screen,
            audit=self.audit,
            folder=self.folder / "scenes",
            sheets=self.folder / SHEETS,
        )

    async def _submit(self, client: AsyncClient, parent: str, job_id: str, specification: dict[str, Any]) -> Job:
        spec = json_format.ParseDict(specification, JobSpec())
        request = jobs.SubmitJobRequest(parent=parent, job_id=job_id, spec=spec, request_id=str(uuid.uuid4()))
        return (await client.run(ask, JOBS.SubmitJob, request)).job

    @contextlib.asynccontextmanager
    async def _watched(self, witness: Witness, measured: str = ACCURACY) -> AsyncIterator[None]:
        """Watch the job during the block and on to its end."""
        async with self.screen.watching(witness, measured), asyncio.TaskGroup() as tasks:
            tasks.create_task(witness.watch())
            yield

    async def _check(
        self,
        client: AsyncClient,
        what: str,
        witness: Witness,
        ending: job_pb2.JobState.ValueType,
        steps: range,
    ) -> None:
        """Compare what was seen live with what is stored."""
        request = metrics.QuerySeriesRequest(job=witness.job.name)
        stored = await client.run(ask, METRICS.QuerySeries, request)
        lines: list[LogLine] = []
        tail = client.iterate(tailed, TailLogsRequest(job=witness.job.name), on_break=lambda error: lines.clear())
        async for answer in tail:
            lines += answer.batch.lines
        self.audit.states(what, witness, ending)
        self.audit.lines(what, lines, witness)
        self.audit.points(what, stored.series, witness, steps)
