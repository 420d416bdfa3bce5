"""RunnerService and RunnerAdminService."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from sihlai.runner.v1 import (
    runner_admin_service_pb2,
    runner_admin_service_pb2_grpc,
    runner_service_pb2,
    runner_service_pb2_grpc,
)

from services.chassis.auth.principal import current_principal
from services.chassis.errors import FailedPrecondition, Reason
from services.chassis.log import get_logger
from services.scheduler.assignment import Assignments, UnassignableError
from services.scheduler.desk import Answer, RunnerDesk
from services.scheduler.domain.job import Checkpoint
from services.scheduler.domain.lease import AttemptKey, BeIdle, Report, RunAttempt, key_of
from services.scheduler.domain.view import Damaged, RunnerView
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.runners import RunnerStore, Standing
from services.scheduler.tokens import SignedToken, TokenMint
from services.scheduler.wire.names import (
    page_size_of,
    page_token_after,
    request_of,
    runner_id_of,
)
from services.scheduler.wire.page import Serialized, page_of
from services.scheduler.wire.runner import key_to_proto, report_from_proto, runner_to_proto, set_desired
from services.scheduler.wire.times import duration, timestamp

log = get_logger(__name__)

PROTOCOL_VERSION_MIN = 1
PROTOCOL_VERSION_MAX = 1
"""Of runners that are served: a scheduler is updated first, and still serves those that are updated later."""
LIST_SCOPE = "runners"
_UID = re.compile("[a-z0-9-]+")


@dataclass(frozen=True, kw_only=True)
class RunnerLimits:
    """What runners are told and allowed."""

    log_drain_hours_max: float
    """How long after its end an attempt's points and lines are still taken."""
    progress_reports_max: int
    """Reports of progress alone that all runners together send a second."""


class RunnerServicer(runner_service_pb2_grpc.RunnerServiceServicer):
    """Synchronize."""

    def __init__(
        self,
        desk: RunnerDesk,
        runners: RunnerStore,
        assignments: Assignments,
        *,
        checkpoints: CheckpointStore,
        mint: TokenMint,
        limits: RunnerLimits,
    ) -> None:
        self._desk = desk
        self._runners = runners
        self._assignments = assignments
        self._checkpoints = checkpoints
        self._mint = mint
        self._limits = limits

    async def Synchronize(
        self, request: runner_service_pb2.SynchronizeRequest, context: Any
    ) -> runner_service_pb2.SynchronizeResponse:
        _check_version(request.protocol_version)
        report = report_from_proto(request)
        answer = await self._desk.synchronize(self._with_own_checkpoints(report))
        response = runner_service_pb2.SynchronizeResponse(
            sequence=request.sequence,
            call_again_after=duration(answer.call_again_seconds),
            progress_every=duration(self._desk.present / self._limits.progress_reports_max),
        )
        if answer.standing.applied:
            response.acknowledged_closed.extend(key_to_proto(closed.key) for closed in report.closed)
            response.acknowledged_checkpoints.extend(checkpoint.uri for checkpoint in _reported(report))
        assignment = None
        if self._needs_assignment(report, answer):
            assignment, answer = await self._assigned(answer)
        set_desired(response, answer.desired)
        for closed in report.closed if answer.standing.applied else ():
            log.info(
                "attempt_closed",
                job_uid=closed.key.job_uid,
                attempt=closed.number,
                outcome=closed.outcome.value,
                runner=request.runner,
            )
        if assignment is not None:
            response.run.assignment.CopyFrom(assignment)
            log.info("attempt_assigned", job=assignment.job, attempt=assignment.attempt, runner=request.runner)
        await self._add_tokens(response, report, answer.standing)
        return response

    async def _assigned(self, answer: Answer) -> tuple[runner_service_pb2.Assignment | None, Answer]:
        """The assignment; where it cannot be made the attempt has failed with the reason, and the runner is idle."""
        standing = answer.standing
        assert standing.attempt is not None, "who should run has an attempt"
        try:
            return await self._assignments.build(standing), answer
        except UnassignableError as error:
            await self._runners.fail(key_of(standing.attempt), reason=error.reason, message=str(error))
            idle = replace(standing, attempt=None, job=None, resume=None)
            return None, replace(answer, desired=BeIdle(), standing=idle)

    def _with_own_checkpoints(self, report: Report) -> Report:
        """The report without checkpoints that do not lie where their attempt's checkpoints belong."""
        active = report.active
        if active is not None:
            active = replace(active, checkpoints=self._own(active.key, active.checkpoints))
        closed = tuple(replace(each, checkpoints=self._own(each.key, each.checkpoints)) for each in report.closed)
        return replace(report, active=active, closed=closed)

    def _own(self, key: AttemptKey, checkpoints: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
        own = []
        for checkpoint in checkpoints:
            wanted = ""
            if _UID.fullmatch(key.job_uid):
                wanted = f"{self._checkpoints.prefix(key.job_uid, key.epoch)}/{checkpoint.key.iteration}"
            if checkpoint.key.epoch == key.epoch and checkpoint.uri.rstrip("/") == wanted:
                own.append(checkpoint)
            else:
                log.warning("checkpoint_outside_its_attempt", uri=checkpoint.uri, wanted=wanted)
        return tuple(own)

    def _needs_assignment(self, report: Report, answer: Answer) -> bool:
        held = report.active is not None and report.active.key == _key(answer.standing)
        return isinstance(answer.desired, RunAttempt) and not held

    async def _add_tokens(
        self, response: runner_service_pb2.SynchronizeResponse, report: Report, standing: Standing
    ) -> None:
        if standing.attempt is not None and standing.job is not None:
            token = self._mint.token(standing.attempt, standing.job.project_id, drain_only=False)
            response.write_tokens.append(_token_to_proto(token))
        keys = [spool.key for spool in report.spools]
        found = await self._runners.attempts(keys, ended_hours_max=self._limits.log_drain_hours_max)
        for spool in report.spools:
            attempt, project_id = found.get(spool.key, (None, ""))
            if isinstance(attempt, Damaged):
                continue  # nobody knows whose it is: the runner keeps what may be the only copy
            if attempt is None or attempt.number != spool.number:
                response.dropped_spools.append(key_to_proto(spool.key))
            elif attempt.runner_id != report.runner_id:
                # Neither a right to write into somebody else's log, nor a reason to delete what may be its only copy.
                log.warning("spool_of_another_runner", runner=report.runner_id, wanted=attempt.runner_id)
            else:
                response.write_tokens.append(_token_to_proto(self._mint.token(attempt, project_id, drain_only=True)))


class RunnerAdminServicer(runner_admin_service_pb2_grpc.RunnerAdminServiceServicer):
    """Runners, for those who run them."""

    def __init__(self, runners: RunnerStore) -> None:
        self._runners = runners

    async def ListRunners(self, request: runner_admin_service_pb2.ListRunnersRequest, context: Any) -> Serialized:
        limit = page_size_of(request.page_size)
        after = page_token_after(request.page_token, LIST_SCOPE)
        found = await self._runners.page(after=after, limit=limit + 1)
        return await page_of(
            found,
            _as_visible,
            limit=limit,
            place=lambda view: view.runner.runner_id,
            scope=LIST_SCOPE,
            answer=lambda runners, token: runner_admin_service_pb2.ListRunnersResponse(
                runners=runners, next_page_token=token
            ),
        )

    async def GetRunner(
        self, request: runner_admin_service_pb2.GetRunnerRequest, context: Any
    ) -> runner_admin_service_pb2.GetRunnerResponse:
        view = await self._runners.get(runner_id_of(request.name))
        return runner_admin_service_pb2.GetRunnerResponse(runner=_as_visible(view))

    async def DrainRunner(
        self, request: runner_admin_service_pb2.DrainRunnerRequest, context: Any
    ) -> runner_admin_service_pb2.DrainRunnerResponse:
        runner_id = runner_id_of(request.name)
        answer = await self._runners.drain(request_of("DrainRunner", request), _encode_drained, runner_id=runner_id)
        log.info("runner_drain_asked", runner=request.name)
        return runner_admin_service_pb2.DrainRunnerResponse.FromString(answer)

    async def UndrainRunner(
        self, request: runner_admin_service_pb2.UndrainRunnerRequest, context: Any
    ) -> runner_admin_service_pb2.UndrainRunnerResponse:
        runner_id = runner_id_of(request.name)
        identity = request_of("UndrainRunner", request)
        answer = await self._runners.undrain(identity, _encode_undrained, runner_id=runner_id)
        log.info("runner_undrain_asked", runner=request.name)
        return runner_admin_service_pb2.UndrainRunnerResponse.FromString(answer)


def _as_visible(view: RunnerView) -> runner_admin_service_pb2.Runner:
    """A runner as the caller may see it: what it works on may be another project's."""
    proto = runner_to_proto(view)
    if proto.job and not current_principal().sees("/".join(proto.job.split("/")[:2])):
        proto.ClearField("job")
    return proto


def _check_version(found: int) -> None:
    if PROTOCOL_VERSION_MIN <= found <= PROTOCOL_VERSION_MAX:
        return
    wanted = f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}"
    raise FailedPrecondition(
        Reason.PROTOCOL_VERSION,
        f"the runner speaks version {found} of the protocol, this server {wanted}: update the older",
        {"found": str(found), "wanted": wanted},
    )


def _key(standing: Standing) -> AttemptKey | None:
    return key_of(standing.attempt) if standing.attempt is not None else None


def _reported(report: Report) -> list[Checkpoint]:
    active = report.active.checkpoints if report.active is not None else ()
    return [*active, *(checkpoint for closed in report.closed for checkpoint in closed.checkpoints)]


def _token_to_proto(token: SignedToken) -> runner_service_pb2.WriteToken:
    return runner_service_pb2.WriteToken(
        attempt=key_to_proto(token.key), token=token.text, expire_time=timestamp(token.expire_time_us)
    )


def _encode_drained(view: RunnerView) -> bytes:
    return runner_admin_service_pb2.DrainRunnerResponse(runner=runner_to_proto(view)).SerializeToString()


def _encode_undrained(view: RunnerView) -> bytes:
    return runner_admin_service_pb2.UndrainRunnerResponse(runner=runner_to_proto(view)).SerializeToString()
