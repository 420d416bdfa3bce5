"""Jobs given to runners, many in one go: attempts and leases are written by a few statements for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import bindparam, insert, update

from services.scheduler.domain import job as domain
from services.scheduler.domain.dispatcher import ReadyJob
from services.scheduler.domain.fact import JobStarted
from services.scheduler.domain.lease import Runner
from services.scheduler.store import tables
from services.scheduler.store.attempts import JOB_BY_UID, changing_jobs
from services.scheduler.store.committed import Given
from services.scheduler.store.queue import advance
from services.scheduler.store.rows import attempt_to_row, job_from_row
from services.scheduler.store.statement import Statement
from services.scheduler.store.transaction import Transaction

_INSERT_ATTEMPT = Statement(
    insert(tables.attempts), columns=[column.key for column in tables.attempts.c if column.key != "adopt_time_us"]
)
_SERVE = Statement(
    update(tables.projects).where(tables.projects.c.uid == bindparam("id")).values(served=bindparam("at")),
    guarded=True,
)
_OVERTAKE = Statement(
    update(tables.jobs)
    .where(tables.jobs.c.uid == bindparam("id"))
    .values(overtaken=tables.jobs.c.overtaken + bindparam("times"))
)


class Claim(Struct, frozen=True, kw_only=True):
    """This job for this runner, at this revision. `overtaken`: the uid of the job that it goes before, or empty."""

    job: ReadyJob
    runner: Runner
    revision: int
    overtaken: str = ""


def claim_jobs(transaction: Transaction, claims: Sequence[Claim], *, lease_seconds: float) -> None:
    """Give ready jobs of as many projects to as many runners: attempts and leases in one. The dispatcher knows already.

    Raises IntegrityError where a slot is taken, FailedPrecondition where a job is not ready, and then none is given.
    """
    overtaken = [{"id": claim.overtaken, "times": 1} for claim in claims if claim.overtaken]
    if overtaken:
        transaction.together([transaction.changing(_OVERTAKE, overtaken)])
    changed, given, rows = [], [], []
    for claim, found in zip(
        claims, transaction.each(JOB_BY_UID, [{"id": claim.job.uid} for claim in claims]), strict=True
    ):
        job, runner = job_from_row(found[0]), claim.runner
        floor = transaction.fence.epoch_floor(job.sequence)
        claimed, attempt = domain.claim(
            replace(job, epoch=max(job.epoch, floor), attempts=max(job.attempts, floor)),
            runner_id=runner.runner_id,
            session=runner.session,
            software_version=runner.capabilities.software_version,
            now_us=transaction.now_us,
            lease_seconds=lease_seconds,
        )
        claimed = replace(claimed, revision=claim.revision)
        changed.append((job, claimed))
        given.append(Given(runner=runner, job=claimed, attempt=attempt))
        rows.append({**attempt_to_row(attempt), "project_uid": job.project_uid, "adopted": False})
    served = [{"id": each.job.project_uid, "at": each.job.revision} for each in given]
    advance(
        transaction,
        [job for job, _ in changed],
        after=[
            transaction.changing(_INSERT_ATTEMPT, rows),
            *changing_jobs(transaction, changed),
            transaction.changing(_SERVE, served),
        ],
    )
    for each in given:
        transaction.give(each)
        transaction.emit(
            JobStarted(
                job_name=each.job.name,
                job_uid=each.job.uid,
                attempt=each.attempt.number,
                epoch=each.attempt.epoch,
                runner_id=each.runner.runner_id,
            )
        )
