"""The agent: what the scheduler wants is made true on this machine, and the scheduler is told what is true.

One call after the other says what the runner does and waits for what it should do (`Synchronize`); what to do about the
answer is `decision`'s to say. With the scheduler away the training goes on. This process never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import grpc
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.runner.v1 import runner_service_pb2_grpc
from sihlai.scheduler.v1 import job_pb2

from runner.agent.answer import wanted_of
from runner.agent.attempt import Attempt
from runner.agent.config import RunnerConfig
from runner.agent.decision import (
    Action,
    AttemptKey,
    Begin,
    Decline,
    Drop,
    Holding,
    Stop,
    Stopping,
    decide,
)
from runner.agent.ends import Ends, ending_of_crash
from runner.agent.ledger import key_of
from runner.agent.parts import Parts
from runner.agent.recovery import ATTEMPTS, SPOOLS, Recovered
from runner.agent.telemetry.beginning import begin_recording
from runner.agent.telemetry.shipping.shipper import Shipper, Token
from runner.agent.telemetry.spool.disk import SpoolDisk
from runner.agent.trainer.ending import ending_of_fault, ending_of_stop
from runner.agent.waiting import ends_within, happens_within, restarted
from services.chassis.backoff import Backoff
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Reason,
    SihlaiError,
    Unauthenticated,
    Unimplemented,
)
from services.chassis.log import get_logger
from services.chassis.rpc import error_from_rpc

log = get_logger(__name__)

PROTOCOL_VERSION = 1
ANSWER_SECONDS_MIN = 0.1
"""An answer that changes nothing and comes sooner than this is waited out, so that no mistake makes a busy loop."""
TELLING_SECONDS = 2.0
"""How long the end waits for what is on its way: to the scheduler, to the ledger."""
REFUSALS = (FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unimplemented)
"""With these a first call will never succeed; later they may be another version of the scheduler's, and pass."""


class Replaced(Exception):  # noqa: N818  # what happened, not a mistake
    """Another session has this runner's name; the scheduler's words say which and what to do."""


class Refused(Exception):  # noqa: N818  # the scheduler's decision
    """The scheduler does not take this runner as it is."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a call said: its sequence number, and what was held."""

    sequence: int
    holding: Holding


class Agent:
    """One start of the agent: one session."""

    def __init__(
        self,
        config: RunnerConfig,
        *,
        session: str,
        capabilities: wire.Capabilities,
        channel: grpc.aio.Channel,
        parts: Parts,
        spool_disk: SpoolDisk,
        make_shipper: Callable[[Callable[[], None]], Shipper],
        randomness: random.Random,
    ) -> None:
        self._config = config
        self._session = session
        self._capabilities = capabilities
        self._stub = runner_service_pb2_grpc.RunnerServiceStub(channel)
        self._parts = parts
        self._spool_disk = spool_disk
        self._random = randomness
        self._sequence = 0
        self._attempt: Attempt | None = None
        self._attempt_task: asyncio.Task[None] | None = None
        self._beginning: AttemptKey | None = None
        self._ends = Ends(
            parts.ledger,
            disk=parts.disk,
            now_unix_us=parts.now_unix_us,
            disk_seconds_max=config.ledger_seconds_max,
        )
        self._draining = False
        self._answered = False
        self._progress_seconds = self._config.progress_seconds_min
        self._urgent = asyncio.Event()
        self._progressed = asyncio.Event()
        self._drain_asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._settled = asyncio.Event()
        self._drain_told = asyncio.Event()
        self._shipper = make_shipper(self._on_shipper_change)

    async def run(self, recovered: Recovered) -> None:
        """Work until drained (or, with `once`, until one job is served). Raises Replaced, Refused."""
        self._ends.take_up(recovered.closed)
        for spool in recovered.spools:
            self._shipper.add(spool)
        log.info("agent_started", runner=self._config.runner, session=self._session)
        pause_seconds = self._config.reconnect_seconds_max
        beside = (self._shipper.run, self._sync_spools, self._upload_unsaved, self._look_at_itself)
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(self._synchronize()),
            asyncio.create_task(self._until_drained()),
            *(asyncio.create_task(restarted(work, pause_seconds=pause_seconds)) for work in beside),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            if self._attempt is not None and self._attempt_task is not None:
                self._attempt.drop()
                await asyncio.wait({self._attempt_task}, timeout=0 if self._hurried.is_set() else None)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        with contextlib.suppress(TimeoutError):  # what was stored is deleted from the disk
            await self._spool_disk.writing.run(lambda: None, seconds_max=TELLING_SECONDS)
            await self._ends.written(TELLING_SECONDS)
        log.info("agent_ended", runner=self._config.runner, unacknowledged=len(self._ends))

    def drain(self) -> None:
        """Take no new job, hand back the one that is there, store what can be stored, end. A second call hurries."""
        if self._drain_asked.is_set():
            log.warning("drain_hurried")
            self._hurried.set()
            self._parts.disk.hurry()
            if self._attempt is not None:
                self._attempt.stop(Stopping.IMMEDIATE, grace_seconds=0, hand_back=True)
            return
        log.info("drain_started")
        self._draining = True
        self._drain_asked.set()
        if self._attempt is not None:
            grace_seconds = self._config.drain_grace_seconds
            self._attempt.stop(Stopping.CHECKPOINT, grace_seconds=grace_seconds, hand_back=True)
        self._urgent.set()
        self._check_settled()

    async def _synchronize(self) -> None:
        """Say what is, learn what should be, for ever."""
        config = self._config
        backoff = Backoff(
            seconds_first=config.reconnect_seconds_first,
            seconds_max=config.reconnect_seconds_max,
            randomness=self._random,
        )
        answered_at = time.monotonic()
        while True:
            self._urgent.clear()
            self._progressed.clear()
            said = Said(sequence=self._next_sequence(), holding=self._holding())
            sent_at = time.monotonic()
            try:
                response = await self._call(self._request(said.sequence), sent_at)
            except grpc.RpcError as error:
                self._take_in_error(error_from_rpc(error), away_seconds=time.monotonic() - answered_at)
                await asyncio.sleep(backoff.next_seconds())
                continue
            if response is None:
                continue
            backoff.reset()
            answered_at = time.monotonic()
            self._answered = True
            self._progress_seconds = max(config.progress_seconds_min, response.progress_every.ToMilliseconds() / 1000)
            changed = await self._take_in(said, response)
            pause_seconds = response.call_again_after.ToMilliseconds() / 1000
            if not changed:
                pause_seconds = max(pause_seconds, ANSWER_SECONDS_MIN - (answered_at - sent_at))
            await self._interrupted_after(pause_seconds, sent_at)

    async def _call(self, request: wire.SynchronizeRequest, sent_at: float) -> wire.SynchronizeResponse | None:
        """The answer; None where something happened meanwhile that must be said now: the next call ends this one."""
        wait_seconds = max(self._config.synchronize_wait_seconds, request.wait_max.ToMilliseconds() / 1000)
        timeout = wait_seconds + self._config.synchronize_margin_seconds
        call = self._stub.Synchronize(request, timeout=timeout)
        waiting = asyncio.ensure_future(_answer(call))
        interrupting = asyncio.create_task(self._interrupted_after(None, sent_at))
        try:
            await asyncio.wait({waiting, interrupting}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            call.cancel()
            interrupting.cancel()
            waiting.cancel()
            await asyncio.wait({interrupting, waiting})

    async def _interrupted_after(self, seconds: float | None, sent_at: float) -> None:
        """Wait for `seconds`, or until something urgent, or progress that was not reported for long enough."""

        async def progress() -> None:
            await self._progressed.wait()
            await asyncio.sleep(sent_at + self._progress_seconds - time.monotonic())

        waits = [asyncio.create_task(self._urgent.wait()), asyncio.create_task(progress())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _request(self, sequence: int) -> wire.SynchronizeRequest:
        request = wire.SynchronizeRequest(
            runner=self._config.runner,
            session=self._session,
            sequence=sequence,
            protocol_version=PROTOCOL_VERSION,
            capabilities=self._capabilities,  # copied: what is set below stays in the request
            closed=self._ends.reports,
            draining=self._draining,
        )
        request.capabilities.problem = self._parts.fitness.problem
        if self._attempt is None:
            request.idle.SetInParent()
        else:
            request.active.CopyFrom(self._attempt.active())
        for spool in self._shipper.tokens_wanted():
            if spool.closed:
                request.spools.add(job_uid=spool.key.job_uid, attempt=spool.attempt, epoch=spool.key.epoch)
        if not self._farewell_due():
            idle = self._attempt is None
            wait_seconds = self._config.synchronize_idle_seconds if idle else self._config.synchronize_wait_seconds
            request.wait_max.FromMilliseconds(round(wait_seconds * 1000))
        return request

    async def _take_in(self, said: Said, response: wire.SynchronizeResponse) -> bool:
        """Act on an answer; whether that changed anything here."""
        if response.sequence != said.sequence:
            return False
        for acknowledged in response.acknowledged_closed:
            self._ends.acknowledge(key_of(acknowledged))
        if self._attempt is not None:
            self._attempt.acknowledge(response.acknowledged_checkpoints)
        for dropped in response.dropped_spools:
            self._shipper.drop(key_of(dropped))
        if said.holding.draining and said.holding.key is None:
            self._drain_told.set()
        action = decide(said.holding, self._holding(), self._ends.keys, wanted_of(response))
        acted = await self._act(action, response)
        # After the action: the spool of an attempt that begins is there only now.
        for token in response.write_tokens:
            expire_time = token.expire_time.ToDatetime(tzinfo=UTC)
            self._shipper.set_token(key_of(token.attempt), Token(text=token.token, expire_time=expire_time))
        self._check_settled()
        return acted or bool(response.acknowledged_closed or response.write_tokens or response.dropped_spools)

    async def _act(self, action: Action, response: wire.SynchronizeResponse) -> bool:
        match action:
            case Begin():
                return await self._begin(response.run.assignment)
            case Decline(key=key, hand_back=hand_back):
                self._decline(key, hand_back=hand_back)
            case Stop(stopping=stopping, grace_seconds=grace_seconds, hand_back=hand_back):
                assert self._attempt is not None, "what is not held is not stopped"
                self._attempt.stop(stopping, grace_seconds=grace_seconds, hand_back=hand_back)
            case Drop():
                assert self._attempt is not None, "what is not held is not dropped"
                log.warning("attempt_superseded", attempt=str(self._attempt.key))
                self._attempt.drop()
            case _:
                return False
        return True

    async def _begin(self, assignment: wire.Assignment) -> bool:
        """Work on it, and wait a moment for its begin: the scheduler hears of others while a slow disk lets it wait."""
        if self._beginning is not None:  # it comes again when this is over
            return False
        key = self._beginning = key_of(assignment)
        log.info("attempt_assigned", job=assignment.job, attempt=str(key), number=assignment.attempt)
        begun = asyncio.Event()
        self._attempt_task = asyncio.create_task(self._work(assignment, begun))
        await happens_within(self._config.spool_stall_seconds_max, begun)
        return True

    async def _work(self, assignment: wire.Assignment, begun: asyncio.Event) -> None:
        attempt = None
        try:
            attempt = await self._begun(assignment)
        except OSError as error:
            problem = f"the runner's disk fails: {error}"
            self._parts.fitness.doubt(problem)
            self._ends.add_unbegun(key_of(assignment), ending_of_fault(problem), number=assignment.attempt)
        finally:
            self._beginning = None
            begun.set()
        if attempt is not None:
            await self._work_on(attempt)
        self._urgent.set()
        self._shipper.notify()
        self._check_settled()

    async def _begun(self, assignment: wire.Assignment) -> Attempt | None:
        """The attempt; None where nobody wants it any more once its disk lets it begin. Raises OSError."""
        key, folder = key_of(assignment), self._config.work_folder
        recorder = await begin_recording(
            assignment,
            folder / SPOOLS / str(key),
            spool_disk=self._spool_disk,
            disk=self._parts.disk,
            disk_seconds_max=self._config.spool_open_seconds_max,
            now_unix_us=self._parts.now_unix_us,
            on_append=self._shipper.notify,
        )
        self._shipper.add(recorder.spool)
        if self._draining and key not in self._ends.keys:
            self._decline(key, hand_back=True)
        if key in self._ends.keys:
            recorder.close()
            return None
        self._attempt = Attempt(
            assignment, folder / ATTEMPTS / str(key), recorder, self._parts, self._on_attempt_change
        )
        self._urgent.set()
        return self._attempt

    async def _work_on(self, attempt: Attempt) -> None:
        try:
            closed = await attempt.run()
        except Exception as error:  # whatever it is, a lease must not be renewed for what nobody works on
            log.exception("attempt_crashed", attempt=str(attempt.key))
            ending = ending_of_crash(error)
            if ending.reason == job_pb2.JOB_REASON_RUNNER_FAULT:
                self._parts.fitness.doubt(ending.message)
            closed = self._ends.unbegun(attempt.key, ending, number=attempt.assignment.attempt)
        if closed is not None and not attempt.dropped:
            await self._ends.add(closed)
        self._attempt = None
        if self._config.once and not attempt.dropped:
            self._draining = True
            self._drain_asked.set()

    def _decline(self, key: AttemptKey, *, hand_back: bool) -> None:
        message = "the runner ends and never began the attempt" if hand_back else "stopped before it began"
        self._ends.add_unbegun(key, ending_of_stop(hand_back=hand_back, message=message))
        self._urgent.set()

    def _take_in_error(self, error: SihlaiError, *, away_seconds: float) -> None:
        if error.reason is Reason.SESSION_REPLACED:
            raise Replaced(error.message)
        if isinstance(error, REFUSALS) and not self._answered:
            raise Refused(f"the scheduler at {self._config.scheduler_address} refuses this runner: {error.message}")
        log.warning("scheduler_away", reason=error.reason.value, problem=error.message, seconds=round(away_seconds))
        limit_seconds = self._config.disconnected_hours_max * 3600
        if self._attempt is not None and away_seconds > limit_seconds:
            grace_seconds = self._config.drain_grace_seconds
            self._attempt.stop(Stopping.CHECKPOINT, grace_seconds=grace_seconds, hand_back=True)

    async def _until_drained(self) -> None:
        """Wait for the end: asked to drain, the attempt handed back, all stored and acknowledged as far as can be."""
        await self._drain_asked.wait()
        if self._attempt_task is not None:
            limit_seconds = self._config.hurried_end_seconds_max
            if not await ends_within(limit_seconds, self._attempt_task, since=self._hurried):
                log.error("attempt_left", seconds=limit_seconds)
        self._check_settled()
        if not await happens_within(self._config.drain_spool_seconds, self._settled, self._hurried):
            await happens_within(TELLING_SECONDS, self._settled)
            log.warning("ended_with_work_left", closed=len(self._ends), spools_left=not self._shipper.empty)
        # The scheduler should know, but who has nothing to lose does not wait long for one that is away.
        await happens_within(TELLING_SECONDS, self._drain_told)

    async def _upload_unsaved(self) -> None:
        async def report(closed: wire.ClosedAttempt) -> None:
            await self._ends.add(closed)
            self._urgent.set()

        await self._parts.unsaved.run(report)

    async def _look_at_itself(self) -> None:
        await self._parts.fitness.run(self._urgent.set)

    async def _sync_spools(self) -> None:
        while True:
            await asyncio.sleep(self._config.spool_sync_seconds)
            await self._spool_disk.syncing.run(self._shipper.sync)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _holding(self) -> Holding:
        if self._attempt is None:
            return Holding(draining=self._draining)
        return Holding(key=self._attempt.key, stopping=self._attempt.stopping, draining=self._draining)

    @property
    def _idle(self) -> bool:
        return self._attempt is None and self._beginning is None

    def _on_attempt_change(self, urgent: bool) -> None:
        (self._urgent if urgent else self._progressed).set()

    def _on_shipper_change(self) -> None:
        self._urgent.set()
        self._check_settled()

    def _farewell_due(self) -> bool:
        """Whether the scheduler has still to hear that this runner takes no more jobs and has none."""
        return self._draining and self._attempt is None and not self._drain_told.is_set()

    def _check_settled(self) -> None:
        if self._draining and self._idle and not self._ends and self._shipper.empty:
            self._settled.set()


async def _answer(call: Any) -> wire.SynchronizeResponse:
    response: wire.SynchronizeResponse = await call
    return response
