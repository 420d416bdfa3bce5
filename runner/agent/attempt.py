"""One attempt, from its assignment to its end: prepared, trained, its checkpoints uploaded, its dataset deleted.

However it ends, the trainer and all that it started are gone first, then the local dataset, and only then the end is
written down for the scheduler. Points and lines go to the spool, which stays; reports of conversions go to the object
store meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sihlai.logs.v1 import log_line_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.config import RunnerConfig
from runner.agent.conversion import Conversion
from runner.agent.conversion_report import ConversionReports
from runner.agent.decision import Stopping
from runner.agent.download import CheckpointDamaged, Downloads
from runner.agent.ending import Ending, ending_of_stop, failure
from runner.agent.ledger import Ledger, key_of
from runner.agent.provision import Provision, Work, ending_of_provision
from runner.agent.recorder import Recorder
from runner.agent.supervision import Supervision
from runner.agent.system import SystemMeter
from runner.agent.upload import Uploads, UploadTarget
from runner.report import CheckpointStarted, CheckpointWritten, Progress
from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger

log = get_logger(__name__)

UNSAVED = "unsaved"
"""Holds last checkpoints that the object store did not take."""
SECONDS_LEFT_MAX = 10 * 366 * 24 * 3_600
"""More is no estimate."""

PHASES = {
    wire.ATTEMPT_PHASE_PREPARING: "preparing",
    wire.ATTEMPT_PHASE_TRAINING: "training",
    wire.ATTEMPT_PHASE_CHECKPOINTING: "checkpointing",
    wire.ATTEMPT_PHASE_UPLOADING: "uploading",
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an attempt works with. `trainer_command` is completed by the attempt file and the report pipe."""

    config: RunnerConfig
    conversion: Conversion
    downloads: Downloads
    ledger: Ledger
    meter: SystemMeter
    trainer_command: Sequence[str]
    environ: Mapping[str, str]
    now_unix_us: Callable[[], int]
    randomness: random.Random


class StoppedEarly(Exception):  # noqa: N818  # not a mistake
    """The attempt was stopped before its trainer was started."""


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
        self._progress = Progress(self._start_iteration, assignment.spec.trainer.iterations_max)
        self._checkpoints: list[job_pb2.Checkpoint] = []
        self._uploaded: set[int] = set()
        self._uploading: asyncio.Task[None] | None = None
        self._last_written: CheckpointWritten | None = None
        self._supervision: Supervision | None = None
        self._hand_back = False
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
        self._uploads = Uploads(
            UploadTarget(job=assignment.job, epoch=assignment.epoch, uri=assignment.checkpoint_uri),
            waiting_max=parts.config.checkpoints_waiting_max,
            before_upload=recorder.spool.sync,
            now_unix_us=parts.now_unix_us,
            randomness=parts.randomness,
            on_uploaded=self._on_uploaded,
            on_problem=lambda problem: recorder.line(problem, level=log_line_pb2.LOG_LEVEL_WARNING),
        )

    async def run(self) -> wire.ClosedAttempt | None:
        """Work until the end, which is on disk when this returns; None where the attempt was dropped."""
        self._say(f"attempt {self.assignment.attempt} was assigned to {self._parts.config.runner}")
        self._uploading = asyncio.create_task(self._uploads.run())
        helpers = [asyncio.create_task(self._measure()), asyncio.create_task(self._reports.run()), self._uploading]
        try:
            ending = await self._ending()
            await self._keep_reports()
        except Exception as error:
            log.exception("attempt_crashed", attempt=str(self.key))
            ending = failure(job_pb2.JOB_REASON_INTERNAL, f"the runner made a mistake: {type(error).__name__}: {error}")
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
            for helper in helpers:
                if not helper.cancelled() and (crash := helper.exception()) is not None:
                    log.error("attempt_helper_crashed", attempt=str(self.key), exc_info=crash)
            await asyncio.to_thread(shutil.rmtree, self._folder, True)
            if self._folder.exists():
                log.error("attempt_folder_not_deleted", folder=str(self._folder))
        return self._close(ending)

    def stop(self, stopping: Stopping, *, grace_seconds: float, hand_back: bool) -> None:
        """Stop with a checkpoint or at once; a weaker stop than the one that is under way changes nothing."""
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
        progress.iteration = self._progress.iteration
        progress.iterations_max = self._progress.iterations_max
        if self._progress.seconds_left is not None and 0 <= self._progress.seconds_left <= SECONDS_LEFT_MAX:
            progress.time_left.FromMilliseconds(round(self._progress.seconds_left * 1000))
        if self._phase == wire.ATTEMPT_PHASE_DOWNLOADING:
            progress.done, progress.total = self._work.done, self._work.total
        return active

    def _stop(self, stopping: Stopping, *, grace_seconds: float, hand_back: bool) -> None:
        self.stopping = stopping
        self._hand_back = hand_back
        self._stopped.set()
        if stopping is Stopping.IMMEDIATE:
            self._stopped_at_once.set()
        if self._supervision is not None:
            self._supervision.stop(stopping, grace_seconds=grace_seconds, hand_back=hand_back)
        self._on_change(True)

    async def _ending(self) -> Ending:
        try:
            self._folder.mkdir(parents=True)
            attempt_file = await self._unless_stopped(self._provision().run())
        except StoppedEarly:
            return ending_of_stop(hand_back=self._hand_back, message="stopped before its first step")
        except (SihlaiError, CheckpointDamaged, OSError) as error:
            log.warning("provision_failed", attempt=str(self.key), problem=str(error))
            return ending_of_provision(error)
        self._set_phase(wire.ATTEMPT_PHASE_PREPARING)
        return await self._with_uploads(await self._train(attempt_file))

    def _provision(self) -> Provision:
        parts = self._parts
        return Provision(
            self.assignment,
            self._folder,
            device=parts.config.device,
            conversion_service=parts.conversion,
            downloads=parts.downloads,
            recorder=self._recorder,
            on_work=self._on_work,
            on_fingerprint=self._on_fingerprint,
            on_converted=self._reports.add,
        )

    async def _unless_stopped(self, work: Coroutine[Any, Any, Path]) -> Path:
        """The work's result; StoppedEarly where a stop comes first, and then the work is cancelled."""
        working, stopped = asyncio.create_task(work), asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopped.is_set():
                raise StoppedEarly
            return working.result()
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.wait({working, stopped})

    async def _train(self, attempt_file: Path) -> Ending:
        parts = self._parts
        self._supervision = Supervision(
            mark=str(self.key),
            recorder=self._recorder,
            ledger=parts.ledger,
            exit_seconds_max=parts.config.exit_seconds_max,
            on_report=self._take_in,
        )
        command = [*parts.trainer_command, "--attempt-file", str(attempt_file)]
        return await self._supervision.run(command, folder=self._folder, environ=parts.environ)

    async def _with_uploads(self, ending: Ending) -> Ending:
        """Wait for the uploads; an end that promises a checkpoint which could not be uploaded is a failure."""
        if self._last_written is None:
            return ending
        self._set_phase(wire.ATTEMPT_PHASE_UPLOADING)
        limit_seconds = self._parts.config.upload_minutes_max * 60
        assert self._uploading is not None, "uploads run from the start"
        waits = [asyncio.create_task(self._uploads.finished()), asyncio.create_task(self._stopped_at_once.wait())]
        await asyncio.wait({*waits, self._uploading}, timeout=limit_seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        uploaded = self._last_written.iteration in self._uploaded
        if uploaded or ending.outcome == job_pb2.ATTEMPT_OUTCOME_FAILED or self._stopped_at_once.is_set():
            return ending
        unsaved = self._parts.config.work_folder / UNSAVED / str(self.key)
        unsaved.parent.mkdir(parents=True, exist_ok=True)
        Path(self._last_written.folder).rename(unsaved)
        problem = self._uploads.failures[-1] if self._uploads.failures else f"not uploaded in {limit_seconds:g} s"
        message = f"the last checkpoint could not be written to the object store: {problem}; it is kept in {unsaved}"
        return failure(job_pb2.JOB_REASON_CHECKPOINT_ERROR, message)

    async def _keep_reports(self) -> None:
        """Wait a little for reports of conversions that are not kept yet; who stops at once does not wait."""
        waits = [asyncio.create_task(self._reports.finished()), asyncio.create_task(self._stopped_at_once.wait())]
        limit_seconds = self._parts.config.report_upload_seconds_max
        await asyncio.wait(waits, timeout=limit_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not waits[0].done():
            self._say("not every report of a conversion could be kept", log_line_pb2.LOG_LEVEL_WARNING)
        for wait in waits:
            wait.cancel()

    def _close(self, ending: Ending) -> wire.ClosedAttempt | None:
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
        if self.dropped:
            self._say("the attempt ended here without a report", log_line_pb2.LOG_LEVEL_WARNING)
        else:
            failed = ending.outcome == job_pb2.ATTEMPT_OUTCOME_FAILED
            level = log_line_pb2.LOG_LEVEL_ERROR if failed else log_line_pb2.LOG_LEVEL_INFO
            said = ending.message.split("\n", 1)[0]
            self._say(f"the attempt ended: {outcome}{f', {said}' if said else ''}", level)
            parts.ledger.write_closed(closed)
        self._recorder.close()
        return None if self.dropped else closed

    def _take_in(self, report: Progress | CheckpointStarted | CheckpointWritten) -> None:
        match report:
            case Progress():
                self._progress = report
                if self._phase == wire.ATTEMPT_PHASE_PREPARING and report.iteration > self._start_iteration:
                    self._set_phase(wire.ATTEMPT_PHASE_TRAINING)
                self._on_change(False)
            case CheckpointStarted():
                self._set_phase(wire.ATTEMPT_PHASE_CHECKPOINTING)
            case CheckpointWritten():
                # A later attempt goes on behind this checkpoint: the points before it must not be lost with this agent.
                self._recorder.flush()
                self._last_written = report
                self._uploads.add(report)
                if report.cause != "VALIDATION":
                    self._set_phase(wire.ATTEMPT_PHASE_UPLOADING)

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
            values = await asyncio.to_thread(meter.measure, process_id)
            step = self._progress.iteration
            self._recorder.points(values, step=step)
            for index, of_gpu in enumerate(meter.measure_gpus()):
                self._recorder.points(of_gpu, step=step, context={"gpu": str(index)})
            await asyncio.sleep(seconds)

    def _say(self, text: str, level: log_line_pb2.LogLevel.ValueType = log_line_pb2.LOG_LEVEL_INFO) -> None:
        self._recorder.line(text, level=level)
