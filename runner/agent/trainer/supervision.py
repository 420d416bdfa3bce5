"""The trainer at work, as the agent sees it: started, relayed into the spool, told to stop, gone when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sihlai.logs.v1 import log_line_pb2
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import Stopping
from runner.agent.disk import Disk
from runner.agent.ledger import Ledger, ProcessGroup
from runner.agent.telemetry.levels import LineLevels
from runner.agent.telemetry.lines import Piece
from runner.agent.telemetry.recorder import Recorder
from runner.agent.trainer.ending import (
    Death,
    Ending,
    ending_of_fault,
    ending_of_trainer,
    failure,
    out_of_memory_kills,
)
from runner.agent.trainer.process import GROUP_END_SECONDS, TrainerProcess, end_group
from runner.report import (
    COMMAND_HAND_BACK,
    COMMAND_STOP,
    CheckpointStarted,
    CheckpointWritten,
    Ended,
    Line,
    Points,
    Progress,
)
from services.chassis.log import get_logger
from services.chassis.threads import in_own_thread

log = get_logger(__name__)

PIPES_SECONDS = 10.0
"""How long after the trainer's end nothing more may be taken out of its pipes: longer than a disk that stands still
holds them up (`spool_stall_seconds_max`). Who else has them was started by it, and is ended."""
PIPES_SECONDS_MAX = 30.0
"""And how long they are read in all."""


@dataclass(frozen=True, kw_only=True)
class StopWanted:
    """How the trainer is to be stopped."""

    stopping: Stopping = Stopping.NO
    grace_seconds: float = 0.0
    hand_back: bool = False


class Supervision:
    """One run of the trainer. `on_report` gets what is neither a point nor a line nor the last word.

    `stop` is what is wanted already: what was asked for while there was no trainer is told to it when there is one.
    """

    def __init__(
        self,
        *,
        mark: str,
        recorder: Recorder,
        ledger: Ledger,
        disk: Disk,
        exit_seconds_max: float,
        kill_seconds_max: float,
        on_report: Callable[[Progress | CheckpointStarted | CheckpointWritten], None],
        stop: StopWanted = StopWanted(),
    ) -> None:
        self._mark = mark
        self._recorder = recorder
        self._ledger = ledger
        self._disk = disk
        self._exit_seconds_max = exit_seconds_max
        self._kill_seconds_max = kill_seconds_max
        self._on_report = on_report
        self._process: TrainerProcess | None = None
        self._wanted = stop
        self._last_word: Ended | None = None
        self._last_checkpoint_written = False
        self._failure = ""
        self._killed_for = ""
        self._killed = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._heard = 0
        """So often something was taken out of the trainer's pipes."""

    @property
    def process_id(self) -> int | None:
        """The trainer's process; None where none runs."""
        return None if self._process is None else self._process.group.leader

    @property
    def unexplained(self) -> bool:
        """Whether the trainer has not said how it ended, or not known why."""
        return self._last_word is None or self._last_word.unforeseen

    async def run(self, command: Sequence[str], *, folder: Path, environ: Mapping[str, str]) -> Ending:
        """From start to end; nothing that the trainer started is left afterwards. Raises OSError at the start."""
        kills_before = out_of_memory_kills()
        process = await TrainerProcess.start(command, folder=folder, environ=environ, mark=self._mark)
        self._process = process
        try:
            log.info("trainer_started", attempt=self._mark, process=process.group.leader)
            self._recorder.line("the trainer was started")
            if self._wanted.stopping:
                self._stop_process(process)
            relays = self._start_relays(process)
            try:
                await self._disk.run(self._ledger.write_group, process.group)
            except OSError as error:  # the leash ends the trainer with this agent, if not all that it started
                log.error("group_not_on_disk", attempt=self._mark, problem=str(error))
            exit_code = await self._exit_code(process)
        finally:
            process.kill()
            self._set_deadline(None)
            await self._end_group(process.group)
            self._process = None
        await self._hear_out(relays, seconds=PIPES_SECONDS if exit_code is not None else 0)
        process.close()
        log.info("trainer_ended", attempt=self._mark, exit_code=exit_code, killed_for=self._killed_for)
        if exit_code is None and self._last_word is None:
            why = f"{self._killed_for}; SIGKILL does not end it: what it waits for, such as a disk, hangs"
            return ending_of_fault(why)
        kills_after = out_of_memory_kills()
        unknown = kills_before is None or kills_after is None
        death = Death(
            exit_code=-signal.SIGKILL if exit_code is None else exit_code,
            killed_for=self._killed_for,
            out_of_memory_kills=None if unknown else (kills_after or 0) - (kills_before or 0),
        )
        if self._failure:
            return failure(job_pb2.JOB_REASON_INTERNAL, self._failure, self._recorder.tail())
        return ending_of_trainer(
            self._last_word,
            death,
            stopping=self._wanted.stopping is not Stopping.NO,
            hand_back=self._wanted.hand_back,
            tail=self._recorder.tail(),
        )

    async def _exit_code(self, process: TrainerProcess) -> int | None:
        """As `wait`; None where the trainer was killed and does not end. One that has a GPU takes a while to."""
        exiting, killed = asyncio.create_task(process.wait()), asyncio.create_task(self._killed.wait())
        try:
            await asyncio.wait({exiting, killed}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({exiting}, timeout=self._kill_seconds_max)
            return exiting.result() if exiting.done() else None
        finally:
            exiting.cancel()
            killed.cancel()

    async def _end_group(self, group: ProcessGroup) -> None:
        """Whatever hangs: what cannot be ended, or struck off the ledger, is left to the next agent."""
        ending = in_own_thread("group-ending", functools.partial(end_group, group))
        await asyncio.wait({ending}, timeout=2 * GROUP_END_SECONDS)
        if not ending.done():
            log.error("process_group_not_ended", attempt=self._mark, seconds=2 * GROUP_END_SECONDS)
        elif not ending.result().surviving:
            with contextlib.suppress(OSError):
                await self._disk.run(self._ledger.forget_group, group)

    def stop(self, wanted: StopWanted) -> None:
        """Tell the trainer to end with a checkpoint within its grace, or end it at once."""
        self._wanted = wanted
        if self._process is not None:
            self._stop_process(self._process)

    def _stop_process(self, process: TrainerProcess) -> None:
        wanted = self._wanted
        if wanted.stopping is Stopping.IMMEDIATE:
            self._kill("stopped at once")
            return
        process.tell(COMMAND_HAND_BACK if wanted.hand_back else COMMAND_STOP)
        if self._last_word is None and not self._last_checkpoint_written:
            reason = f"the trainer did not write its checkpoint within {wanted.grace_seconds:g} s and was ended"
            self._set_deadline(wanted.grace_seconds, reason)

    def _start_relays(self, process: TrainerProcess) -> list[asyncio.Task[None]]:
        relays = [
            asyncio.create_task(self._relay_reports(process)),
            asyncio.create_task(self._relay_lines(process.output(), log_line_pb2.LOG_STREAM_STDOUT)),
            asyncio.create_task(self._relay_lines(process.errors(), log_line_pb2.LOG_STREAM_STDERR)),
        ]
        for relay in relays:
            relay.add_done_callback(self._on_relay_done)
        return relays

    def _on_relay_done(self, relay: asyncio.Task[None]) -> None:
        """A pipe that nobody reads would block the trainer for ever: the attempt ends with what broke the relay."""
        if relay.cancelled() or (error := relay.exception()) is None:
            return
        log.error("relay_crashed", attempt=self._mark, exc_info=error)
        self._fail(f"the runner could not take in what the trainer said: {type(error).__name__}: {error}")

    async def _hear_out(self, relays: list[asyncio.Task[None]], *, seconds: float) -> None:
        """Take in the rest of what the trainer said, its last word too, however slowly the disk takes it: until nothing
        came for so long.
        """
        deadline = time.monotonic() + PIPES_SECONDS_MAX
        heard, reading = -1, set(relays)
        while reading and heard != self._heard and time.monotonic() < deadline:
            heard = self._heard
            _, reading = await asyncio.wait(reading, timeout=seconds)
        for relay in reading:
            relay.cancel()

    async def _relay_reports(self, process: TrainerProcess) -> None:
        try:
            async for reports in process.reports():
                for report in reports:
                    self._take_in(report)
                await self._recorder.room()
                self._heard += 1
        except (ValueError, msgspec.DecodeError) as error:
            self._fail(f"the trainer sent what is no report: {error}")

    async def _relay_lines(self, pieces: AsyncIterator[Piece], stream: log_line_pb2.LogStream.ValueType) -> None:
        levels = LineLevels()
        async for piece in pieces:
            self._recorder.line(
                piece.text,
                level=levels.level_of(piece),
                source="trainer",
                stream=stream,
                continued=piece.continued,
            )
            await self._recorder.room()
            self._heard += 1

    def _take_in(self, report: Points | Line | Progress | CheckpointStarted | CheckpointWritten | Ended) -> None:
        match report:
            case Points():
                self._recorder.points(
                    report.values, step=report.step, time_unix_us=report.time_unix_us, context=report.context
                )
            case Line():
                level = log_line_pb2.LogLevel.Value(f"LOG_LEVEL_{report.level.value}")
                self._recorder.line(report.text, level=level, source="trainer", time_unix_us=report.time_unix_us)
            case Ended():
                self._last_word = report
                self._set_deadline(self._exit_seconds_max)
            case CheckpointWritten():
                if report.cause != "VALIDATION":  # the last one: the grace is kept, only the way out is left
                    self._last_checkpoint_written = True
                    self._set_deadline(self._exit_seconds_max)
                self._on_report(report)
            case _:
                self._on_report(report)

    def _set_deadline(self, seconds: float | None, reason: str = "the trainer did not exit and was ended") -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._kill, reason)

    def _fail(self, problem: str) -> None:
        self._failure = self._failure or problem
        self._kill(problem)

    def _kill(self, reason: str) -> None:
        if self._process is not None:
            self._killed_for = self._killed_for or reason
            self._process.kill()
            self._killed.set()
