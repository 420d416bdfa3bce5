"""RunnerService and RunnerAdminService."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sihlai.runner.v1 import (
    runner_admin_service_pb2,
    runner_admin_service_pb2_grpc,
    runner_service_pb2,
    runner_service_pb2_grpc,
)
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.errors import FailedPrecondition, NotFound, Reason
from services.chassis.log import get_logger
from services.scheduler.checkpoints import CheckpointStore
from services.scheduler.desk import Answer, RunnerDesk
from services.scheduler.job import SECOND_US, Attempt, Checkpoint
from services.scheduler.lease import AttemptKey, Report, RunAttempt, SpoolReport, key_of
from services.scheduler.seal import Seal
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.runners import RunnerStore, RunnerView, Standing
from services.scheduler.tokens import SignedToken, TokenMint
from services.scheduler.wire.checkpoint import checkpoint_to_proto
from services.scheduler.wire.names import (
    checkpoint_ids_of,
    page_size_of,
    page_token,
    page_token_after,
    request_of,
    runner_id_of,
)
from services.scheduler.wire.project import source_with_credentials
from services.scheduler.wire.runner import key_to_proto, report_from_proto, runner_to_proto, set_desired
from services.scheduler.wire.times import duration, timestamp

log = get_logger(__name__)

PROTOCOL_VERSION = 1
LIST_SCOPE = "runners"
_UID = re.compile("[a-z0-9-]+")


@dataclass(frozen=True, kw_only=True)
class RunnerLimits:
    """What runners are told and allowed."""

    lease_seconds: float
    log_drain_hours_max: float
    """How long after its end an attempt's points and lines are still taken."""


class RunnerServicer(runner_service_pb2_grpc.RunnerServiceServicer):
    """Synchronize. `now_us` is the time."""

    def __init__(
        self,
        desk: RunnerDesk,
        runners: RunnerStore,
        projects: ProjectStore,
        rows: CheckpointRows,
        *,
        checkpoints: CheckpointStore,
        mint: TokenMint,
        seal: Seal,
        limits: RunnerLimits,
        now_us: Callable[[], int],
    ) -> None:
        self._desk = desk
        self._runners = runners
        self._projects = projects
        self._rows = rows
        self._checkpoints = checkpoints
        self._mint = mint
        self._seal = seal
        self._limits = limits
        self._now_us = now_us

    async def Synchronize(
        self, request: runner_service_pb2.SynchronizeRequest, context: Any
    ) -> runner_service_pb2.SynchronizeResponse:
        _check_version(request.protocol_version)
        report = report_from_proto(request)
        answer = await self._desk.synchronize(self._with_own_checkpoints(report))
        response = runner_service_pb2.SynchronizeResponse(
            sequence=request.sequence,
            acknowledged_closed=[key_to_proto(closed.key) for closed in report.closed],
            acknowledged_checkpoints=[checkpoint.uri for checkpoint in _reported(report)],
            lease=duration(self._limits.lease_seconds),
            call_again_after=duration(answer.call_again_seconds),
        )
        set_desired(response, answer.desired)
        for closed in report.closed:
            log.info(
                "attempt_closed",
                job_uid=closed.key.job_uid,
                attempt=closed.number,
                outcome=closed.outcome.value,
                runner=request.runner,
            )
        if self._needs_assignment(report, answer):
            assignment = await self._assignment(answer.standing)
            response.run.assignment.CopyFrom(assignment)
            log.info("attempt_assigned", job=assignment.job, attempt=assignment.attempt, runner=request.runner)
        await self._add_tokens(response, report, answer.standing)
        return response

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

    async def _assignment(self, standing: Standing) -> runner_service_pb2.Assignment:
        job, attempt, resume = standing.job, standing.attempt, standing.resume
        assert job is not None, "who should run has a job"
        assert attempt is not None, "who should run has an attempt"
        validation = job.validation_dataset
        sealed = await self._projects.sealed_credentials([job.training_dataset, validation])
        resume_job = job.source.job_name if job.source and resume and resume.key.job_uid != job.uid else job.name
        spec = JobSpec.FromString(job.spec)
        return runner_service_pb2.Assignment(
            job=job.name,
            job_uid=job.uid,
            attempt=attempt.number,
            epoch=attempt.epoch,
            spec=spec,
            training_dataset=source_with_credentials(job.training_dataset, sealed, self._seal),
            validation_dataset=source_with_credentials(validation, sealed, self._seal) if validation else None,
            dataset_fingerprint=job.dataset_fingerprint,
            resume_from=checkpoint_to_proto(resume, resume_job) if resume is not None else None,
            checkpoint_uri=self._checkpoints.prefix(job.uid, attempt.epoch),
            initialization=await self._initialization(spec) if resume is None else None,
        )

    async def _initialization(self, spec: JobSpec) -> job_pb2.Checkpoint | None:
        """The checkpoint that a fresh start takes its weights from. The trainer names one that was deleted since."""
        if spec.model.initialization.WhichOneof("source") != "checkpoint":
            return None
        project_id, job_id, checkpoint_id = checkpoint_ids_of(spec.model.initialization.checkpoint.checkpoint)
        try:
            checkpoint = await self._rows.get(project_id, job_id, checkpoint_id)
        except NotFound:
            return None
        return checkpoint_to_proto(checkpoint, f"projects/{project_id}/jobs/{job_id}")

    async def _add_tokens(
        self, response: runner_service_pb2.SynchronizeResponse, report: Report, standing: Standing
    ) -> None:
        if standing.attempt is not None and standing.job is not None:
            token = self._mint.token(standing.attempt, standing.job.project_id, drain_only=False)
            response.write_tokens.append(_token_to_proto(token))
        found = await self._runners.attempts([spool.key for spool in report.spools])
        for spool in report.spools:
            attempt, project_id = found.get(spool.key, (None, ""))
            if attempt is None or not self._is_wanted(spool, attempt):
                response.dropped_spools.append(key_to_proto(spool.key))
            else:
                response.write_tokens.append(_token_to_proto(self._mint.token(attempt, project_id, drain_only=True)))

    def _is_wanted(self, spool: SpoolReport, attempt: Attempt) -> bool:
        limit_us = round(self._limits.log_drain_hours_max * 3_600 * SECOND_US)
        is_late = attempt.end_time_us is not None and self._now_us() - attempt.end_time_us > limit_us
        return spool.number == attempt.number and not is_late


class RunnerAdminServicer(runner_admin_service_pb2_grpc.RunnerAdminServiceServicer):
    """Runners, for those who run them."""

    def __init__(self, runners: RunnerStore) -> None:
        self._runners = runners

    async def ListRunners(
        self, request: runner_admin_service_pb2.ListRunnersRequest, context: Any
    ) -> runner_admin_service_pb2.ListRunnersResponse:
        limit = page_size_of(request.page_size)
        after = page_token_after(request.page_token, LIST_SCOPE)
        found = await self._runners.page(after=after, limit=limit + 1)
        more = len(found) > limit
        return runner_admin_service_pb2.ListRunnersResponse(
            runners=[runner_to_proto(view) for view in found[:limit]],
            next_page_token=page_token(found[limit - 1].runner.runner_id, LIST_SCOPE) if more else "",
        )

    async def DrainRunner(
        self, request: runner_admin_service_pb2.DrainRunnerRequest, context: Any
    ) -> runner_admin_service_pb2.DrainRunnerResponse:
        runner_id = runner_id_of(request.name)
        answer = await self._runners.drain(request_of("DrainRunner", request), _encode_drained, runner_id=runner_id)
        return runner_admin_service_pb2.DrainRunnerResponse.FromString(answer)


def _check_version(found: int) -> None:
    if found == PROTOCOL_VERSION:
        return
    raise FailedPrecondition(
        Reason.PROTOCOL_VERSION,
        f"the runner speaks version {found} of the protocol, this server {PROTOCOL_VERSION}: update the older",
        {"found": str(found), "wanted": str(PROTOCOL_VERSION)},
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
