"""One attempt, from its assignment to its end: prepared, trained, its checkpoints uploaded, its dataset deleted.

However it ends, the trainer and all that it started are gone first, then the local dataset, and only then the end is
written down for the scheduler; a disk that stands still delays that for a limited time (see `Disk`). Points and lines
go to the spool, which stays; reports of conversions go to the object store meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sihlai.logs.v1 import log_line_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import Stopping
from runner.agent.disk import DiskStandsStill, delete_tree, on_disk
from runner.agent.ends import ending_of_crash
from runner.agent.fault import RunnerFault, fault_of
from runner.agent.files.conversion_report import ConversionReports
from runner.agent.files.download import CheckpointDamaged
from runner.agent.files.provision import Provision, Work, ending_of_provision
from runner.agent.files.upload import Uploads, UploadTarget
from runner.agent.ledger import key_of
from runner.agent.parts import Parts
from runner.agent.telemetry.recorder import Recorder
from runner.agent.trainer.ending import Ending, ending_of_fault, ending_of_outage, ending_of_stop, failure
from runner.agent.trainer.supervision import StopWanted, Supervision
from runner.report import CheckpointStarted, CheckpointWritten, Progress
from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger

log = get_logger(__name__)

Result = TypeVar("Result")

PROBLEM_CHARACTERS_MAX = 500
SECONDS_LEFT_MAX = 10 * 366 * 24 * 3_600
"""More is no estimate."""

PHASES = {
    wire.ATTEMPT_PHASE_PREPARING: "preparing",
    wire.ATTEMPT_PHASE_TRAINING: "training",
    wire.ATTEMPT_PHASE_CHECKPOINTING: "checkpointing",
    wire.ATTEMPT_PHASE_UPLOADING: "uploading",
}
VALIDATING = "validating"


class StoppedEarly(Exception):  # noqa: N818  # not a mistake
    """The attempt was stopped before what it did came to an end."""


class Attempt:
    """An attempt that this runner holds. `on_change(urgent)` is called when there is something to report."""

    def __init__(
        self,
        assignment: wire.Assignment,
        folder: Path,
        recorder: Recorder,
        parts: Parts,
        on_change: Callable[[bool], None],
    ) -> None:
        self.assignment = assignment
        self.key = key_of(assignment)
        self.stopping = Stopping.NO
        self.dropped = False
        self._folder = folder
        self._recorder = recorder
        self._parts = parts
        self._on_change = on_change
        self._phase: wire.AttemptPhase.ValueType = wire.ATTEMPT_PHASE_DOWNLOADING
        self._work = Work(phase="converting")
        self._fingerprint = ""
        self._start_iteration = assignment.resume_from.iteration if assignment.HasField("resume_from") else 0
        self._iterations_max = (
            self._start_iteration if assignment.evaluation else assignment.spec.trainer.iterations_max
        )
        self._progress = Progress(self._start_iteration, self._iterations_max)
        self._checkpoints: list[job_pb2.Checkpoint] = []
        self._uploaded: set[int] = set()
        self._uploading: asyncio.Task[None] | None = None
        self._last_written: CheckpointWritten | None = None
        self._supervision: Supervision | None = None
        self._stop_wanted = StopWanted()
        self._unsaved: job_pb2.Checkpoint | None = None
        self._problem = ""
        self._stopped = asyncio.Event()
        self._stopped_at_once = asyncio.Event()
        self._reports = ConversionReports(
            uri=assignment.checkpoint_uri,
            attempt=assignment.attempt,
            epoch=assignment.epoch,
            now_unix_us=parts.now_unix_us,
            randomness=parts.randomness,
            on_problem=lambda problem: recorder.line(problem, level=log_line_pb2.LOG_LEVEL_WARNING),
        )
        self._target = UploadTarget(job=assignment.job, epoch=assignment.epoch, uri=assignment.checkpoint_uri)
        self._uploads = Uploads(
            self._target,
            disk=parts.disk,
            waiting_max=parts.config.checkpoints_waiting_max,
            before_upload=self._save_points,
            now_unix_us=parts.now_unix_us,
            randomness=parts.randomness,
            on_uploaded=self._on_uploaded,
            on_change=on_change,
            on_problem=lambda problem: recorder.line(problem, level=log_line_pb2.LOG_LEVEL_WARNING),
        )

    async def run(self) -> wire.ClosedAttempt | None:
        """Work until the end, for whoever reports it; None where the attempt was dropped."""
        self._say(f"attempt {self.assignment.attempt} was assigned to {self._parts.config.runner}")
        self._uploading = asyncio.create_task(self._uploads.run())
        helpers = [asyncio.create_task(self._measure()), asyncio.create_task(self._reports.run()), self._uploading]
        try:
            ending = await self._ending()
            await self._keep_reports()
        except Exception as error:
            log.exception("attempt_crashed", attempt=str(self.key))
            ending = ending_of_crash(error)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
            for helper in helpers:
                if not helper.cancelled() and (crash := helper.exception()) is not None:
                    log.error("attempt_helper_crashed", attempt=str(self.key), exc_info=crash)
            await self._delete_files()
        await self._judge(ending)
        return await self._close(ending)

    def stop(self, stopping: Stopping, *, grace_seconds: float, hand_back: bool) -> None:
        """Stop with a checkpoint or at once; a weaker stop than the one that is under way changes nothing."""
        self._uploads.patient = self._uploads.patient and not hand_back
        if stopping > self.stopping:
            how = "with a checkpoint" if stopping is Stopping.CHECKPOINT else "at once"
            who = "the runner hands the job back" if hand_back else "the job is stopped"
            self._say(f"{who} {how}")
            self._stop(stopping, grace_seconds=grace_seconds, hand_back=hand_back)

    def drop(self) -> None:
        """The attempt was superseded: end it at once and report nothing of it. Its points and lines stay welcome."""
        self.dropped = True
        if self.stopping < Stopping.IMMEDIATE:
            self._say("the attempt was superseded, it ends at once", log_line_pb2.LOG_LEVEL_WARNING)
            self._stop(Stopping.IMMEDIATE, grace_seconds=0, hand_back=True)

    def acknowledge(self, uris: Sequence[str]) -> None:
        """These checkpoints are recorded: they need not be reported again."""
        self._checkpoints = [each for each in self._checkpoints if each.uri not in uris]

    def active(self) -> wire.ActiveAttempt:
        """What the scheduler is told."""
        active = wire.ActiveAttempt(
            job_uid=self.key.job_uid,
            attempt=self.assignment.attempt,
            epoch=self.key.epoch,
            phase=self._phase,
            checkpoints=self._checkpoints,
            dataset_fingerprint=self._fingerprint,
            stopping=job_pb2.StopMode.ValueType(int(self.stopping)),
        )
        progress = active.progress
        progress.phase = PHASES.get(self._phase, self._work.phase)
        progress.problem = (self._problem or self._uploads.problem)[:PROBLEM_CHARACTERS_MAX]
        progress.iteration = self._progress.iteration
        progress.iterations_max = self._iterations_max
        uploading = self._phase == wire.ATTEMPT_PHASE_UPLOADING
        seconds_left = self._progress.seconds_left
        if not uploading and seconds_left is not None and 0 <= seconds_left <= SECONDS_LEFT_MAX:
            progress.time_left.FromMilliseconds(round(seconds_left * 1000))
        if self._phase == wire.ATTEMPT_PHASE_DOWNLOADING:
            progress.done, progress.total = self._work.done, self._work.total
        if self._phase == wire.ATTEMPT_PHASE_TRAINING and self._progress.total:
            progress.phase = VALIDATING
            progress.done, progress.total = self._progress.done, self._progress.total
        if uploading:
            progress.done, progress.total = self._uploads.done_bytes, self._uploads.total_bytes
        return active

    def _stop(self, stopping: Stopping, *, grace_seconds: float, hand_back: bool) -> None:
        self.stopping = stopping
        self._stop_wanted = StopWanted(stopping=stopping, grace_seconds=grace_seconds, hand_back=hand_back)
        self._stopped.set()
        if stopping is Stopping.IMMEDIATE:
            self._stopped_at_once.set()
        if self._supervision is not None:
            self._supervision.stop(self._stop_wanted)
        self._on_change(True)

    async def _ending(self) -> Ending:
        try:
            attempt_file = await self._unless(self._stopped, self._provided())
        except StoppedEarly:
            return ending_of_stop(hand_back=self._stop_wanted.hand_back, message="stopped before its first step")
        except (SihlaiError, CheckpointDamaged, RunnerFault, OSError) as error:
            log.warning("provision_failed", attempt=str(self.key), problem=str(error))
            return ending_of_provision(error)
        self._set_phase(wire.ATTEMPT_PHASE_PREPARING)
        return await self._with_uploads(await self._train(attempt_file))

    async def _provided(self) -> Path:
        parts = self._parts
        await on_disk(self._folder.mkdir, parents=True)
        provision = Provision(
            self.assignment,
            self._folder,
            device=parts.config.device,
            conversion_service=parts.conversion,
            downloads=parts.downloads,
            recorder=self._recorder,
            on_work=self._on_work,
            on_fingerprint=self._on_fingerprint,
            on_converted=self._reports.add,
            on_problem=self._set_problem,
        )
        return await provision.run()

    async def _unless(self, stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result; StoppedEarly where a stop comes first, and then the work is cancelled."""
        working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                raise StoppedEarly
            return working.result()
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.wait({working, stopped})

    async def _train(self, attempt_file: Path) -> Ending:
        parts = self._parts
        # No await before it: a stop that came meanwhile is in `_stop_wanted`, a later one finds the supervision.
        self._supervision = Supervision(
            mark=str(self.key),
            recorder=self._recorder,
            ledger=parts.ledger,
            disk=parts.disk,
            exit_seconds_max=parts.config.exit_seconds_max,
            kill_seconds_max=parts.config.kill_seconds_max,
            on_report=self._take_in,
            stop=self._stop_wanted,
        )
        command = [*parts.trainer_command, "--attempt-file", str(attempt_file)]
        ending = await self._supervision.run(command, folder=self._folder, environ=parts.environ)
        # By the job, or by this machine?
        doubtful = ending.outcome == job_pb2.ATTEMPT_OUTCOME_FAILED and self._supervision.unexplained
        try:
            problem = await self._unless(self._stopped_at_once, parts.fitness.check()) if doubtful else ""
        except StoppedEarly:  # nobody knows
            return ending_of_stop(hand_back=self._stop_wanted.hand_back, message=f"stopped. {ending.message}")
        return ending_of_fault(f"{problem}. The trainer: {ending.message}") if problem else ending

    async def _with_uploads(self, ending: Ending) -> Ending:
        """Wait for the uploads while they get on. A last checkpoint that is not uploaded then is kept here, also where
        the attempt was superseded: its job may have ended with it.
        """
        last = self._last_written
        if last is None:
            return ending
        self._set_phase(wire.ATTEMPT_PHASE_UPLOADING)
        still_seconds_max = self._parts.config.upload_minutes_max * 60
        waits = [
            asyncio.create_task(self._uploads.finished_or_stuck(still_seconds_max)),
            asyncio.create_task(self._stopped_at_once.wait()),
        ]
        assert self._uploading is not None, "uploads run from the start"
        await asyncio.wait({*waits, self._uploading}, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if last.iteration in self._uploaded:
            return ending
        if self._stopped_at_once.is_set() and not self._stop_wanted.hand_back:
            return ending_of_stop(hand_back=False, message="stopped at once, while its last checkpoint was uploaded")
        self._uploading.cancel()
        await asyncio.wait({self._uploading})
        if last.iteration in self._uploaded:  # at the last moment
            return ending
        problem = self._uploads.problem or f"nothing of it moved for {still_seconds_max:g} s"
        if self._stopped_at_once.is_set():
            problem = f"the {'attempt was superseded' if self.dropped else 'runner ended'} while it was uploaded"
        refused = not self._uploads.problem and bool(self._uploads.failures)
        message = f"{self._uploads.failures[-1] if refused else problem}; {await self._keep_unsaved(last)}"
        if ending.outcome == job_pb2.ATTEMPT_OUTCOME_FAILED:
            return ending
        if refused:
            message = f"the last checkpoint is not in the store: {message}"
            by_runner = self._uploads.runner_failed
            return ending_of_fault(message) if by_runner else failure(job_pb2.JOB_REASON_CHECKPOINT_ERROR, message)
        if ending.outcome == job_pb2.ATTEMPT_OUTCOME_COMPLETED:  # not without its model
            return ending_of_outage(f"trained to the end, but the last checkpoint is not in the store: {message}")
        return Ending(outcome=ending.outcome, reason=ending.reason, message=message)

    async def _keep_unsaved(self, last: CheckpointWritten) -> str:
        """Keep the last checkpoint on this disk, to be uploaded later; what became of it, in words."""
        unsaved, now_unix_us = self._parts.unsaved, self._parts.now_unix_us()
        try:
            self._unsaved = await unsaved.keep(self.key, last, self._target, now_unix_us)
        except OSError as error:
            return f"it could not be kept here either: {fault_of(error)}"
        return f"it is kept in {unsaved.place(self.key)} and uploaded from there later"

    async def _delete_files(self) -> None:
        """Delete what the attempt has left here; the next agent tries again where it cannot be."""
        problem = "not all of it could be deleted"
        try:
            if await self._parts.disk.run_long(delete_tree, self._folder):
                return
        except DiskStandsStill as error:  # it is deleted later, should the disk answer while this agent lives
            problem = str(error)
            self._say(f"the local dataset is not deleted yet: {problem}", log_line_pb2.LOG_LEVEL_WARNING)
        log.error("attempt_folder_not_deleted", folder=str(self._folder), problem=problem)

    async def _judge(self, ending: Ending) -> None:
        """What the end says of this runner, and what the attempt has left of its disk."""
        fitness = self._parts.fitness
        if ending.reason == job_pb2.JOB_REASON_RUNNER_FAULT:
            fitness.doubt(ending.message.split("\n", 1)[0])
        elif problem := await fitness.disk_problem():
            fitness.doubt(problem)
        elif self._progress.iteration > self._start_iteration:
            fitness.trust()

    async def _keep_reports(self) -> None:
        """Wait a little for reports of conversions that are not kept yet; who stops at once does not wait."""
        waits = [asyncio.create_task(self._reports.finished()), asyncio.create_task(self._stopped_at_once.wait())]
        limit_seconds = self._parts.config.report_upload_seconds_max
        await asyncio.wait(waits, timeout=limit_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not waits[0].done():
            self._say("not every report of a conversion could be kept", log_line_pb2.LOG_LEVEL_WARNING)
        for wait in waits:
            wait.cancel()

    async def _close(self, ending: Ending) -> wire.ClosedAttempt | None:
        parts = self._parts
        outcome = job_pb2.AttemptOutcome.Name(ending.outcome).removeprefix("ATTEMPT_OUTCOME_").lower().replace("_", " ")
        log.info("attempt_ended", attempt=str(self.key), outcome=outcome, message=ending.message, dropped=self.dropped)
        closed = wire.ClosedAttempt(
            job_uid=self.key.job_uid,
            attempt=self.assignment.attempt,
            epoch=self.key.epoch,
            outcome=ending.outcome,
            reason=ending.reason,
            message=ending.message,
            iteration=self._progress.iteration,
            checkpoints=self._checkpoints,
        )
        closed.end_time.FromMicroseconds(parts.now_unix_us())
        said = f", {first_line}" if (first_line := ending.message.split("\n", 1)[0]) else ""
        if self.dropped:
            self._say(f"the attempt ended here without a report{said}", log_line_pb2.LOG_LEVEL_WARNING)
        else:
            failed = ending.outcome == job_pb2.ATTEMPT_OUTCOME_FAILED
            level = log_line_pb2.LOG_LEVEL_ERROR if failed else log_line_pb2.LOG_LEVEL_INFO
            self._say(f"the attempt ended: {outcome}{said}", level)
        if self._unsaved is not None:
            try:
                await parts.unsaved.conclude(self.key, closed, self._unsaved)
            except OSError as error:
                closed.message = f"{closed.message}; it is not, after all: {fault_of(error)}"
                log.error("unsaved_checkpoint_lost", attempt=str(self.key), problem=str(error))
        self._recorder.close()
        try:
            await parts.disk.answer(self._recorder.written(), seconds_max=parts.config.spool_open_seconds_max)
        except DiskStandsStill as error:  # what waits for it is lost with this agent, and the next one closes the spool
            log.error("spool_not_closed", attempt=str(self.key), problem=str(error))
        return None if self.dropped else closed

    def _take_in(self, report: Progress | CheckpointStarted | CheckpointWritten) -> None:
        match report:
            case Progress():
                self._progress = report
                begun = report.iteration > self._start_iteration or self.assignment.evaluation
                if self._phase == wire.ATTEMPT_PHASE_PREPARING and begun:
                    self._set_phase(wire.ATTEMPT_PHASE_TRAINING)
                self._on_change(False)
            case CheckpointStarted():
                self._set_phase(wire.ATTEMPT_PHASE_CHECKPOINTING)
            case CheckpointWritten():
                self._recorder.flush()
                self._last_written = report
                self._uploads.add(report)
                if report.cause != "VALIDATION":
                    self._set_phase(wire.ATTEMPT_PHASE_UPLOADING)

    async def _save_points(self) -> None:
        """A later attempt goes on behind a checkpoint: the points before it must not be lost with this agent."""
        spool, disk = self._recorder.spool, self._parts.disk
        limit_seconds = self._parts.config.spool_open_seconds_max
        try:
            await disk.answer(self._recorder.written(), seconds_max=limit_seconds)
            await disk.answer(spool.disk.syncing.run(spool.sync), seconds_max=limit_seconds)
        except DiskStandsStill as error:
            log.warning("points_not_saved", attempt=str(self.key), problem=str(error))

    def _set_problem(self, problem: str) -> None:
        """What the preparation waits for, in words; empty once it goes on."""
        if problem != self._problem:
            self._problem = problem
            self._on_change(True)

    def _on_work(self, work: Work) -> None:
        urgent = work.phase != self._work.phase
        self._work = work
        self._on_change(urgent)

    def _on_fingerprint(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._on_change(True)

    def _on_uploaded(self, checkpoint: job_pb2.Checkpoint) -> None:
        self._uploaded.add(checkpoint.iteration)
        self._checkpoints.append(checkpoint)
        size_bytes = sum(file.size_bytes for file in checkpoint.files)
        self._say(f"checkpoint {checkpoint.epoch}-{checkpoint.iteration} was uploaded, {size_bytes / 1e6:.1f} MB")
        log.info("checkpoint_uploaded", attempt=str(self.key), uri=checkpoint.uri, size_bytes=size_bytes)
        self._on_change(True)

    def _set_phase(self, phase: wire.AttemptPhase.ValueType) -> None:
        if phase != self._phase:
            self._phase = phase
            self._on_change(True)

    async def _measure(self) -> None:
        """Measure the machine now and then; by time, so the step is only where the training is."""
        meter, seconds = self._parts.meter, self._parts.config.system_metrics_seconds
        while True:
            process_id = self._supervision.process_id if self._supervision is not None else None
            for values, context in await meter.measure(process_id):
                self._recorder.points(values, step=self._progress.iteration, context=context)
            await asyncio.sleep(seconds)

    def _say(self, text: str, level: log_line_pb2.LogLevel.ValueType = log_line_pb2.LOG_LEVEL_INFO) -> None:
        self._recorder.line(text, level=level)
