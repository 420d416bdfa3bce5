"""What users were told, what was seen meanwhile, and what all of it must add up to in the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sihlai.event.v1 import event_pb2
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job

ENDED = (job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_STATE_FAILED)
LOST = job_pb2.ATTEMPT_OUTCOME_LOST
RELEASED = (LOST, job_pb2.ATTEMPT_OUTCOME_HANDED_BACK)
REQUEST_LABEL = "request"


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """A fault of a runner, after which its attempt may rightly be lost: from when to when, by the monotonic clock."""

    runner: str
    begin: float
    end: float


@dataclass(eq=False)
class History:
    """Everything that was recorded; may be written by any thread."""

    submitted: dict[str, str] = field(default_factory=dict)
    """Acknowledged requests, by their label, with the job's uid."""
    tried: set[str] = field(default_factory=set)
    """All requests, answered or not."""
    stopped: dict[str, int] = field(default_factory=dict)
    """Acknowledged stops by uid, with how many attempts the job had then."""
    disturbances: list[Disturbance] = field(default_factory=list)
    seen_active: dict[str, tuple[str, float]] = field(default_factory=dict)
    """For each attempt, `uid/number`, its runner and when it was last seen alive."""
    findings: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def counts(self) -> Counter[str]:
        """How much of each kind was recorded."""
        kinds = {
            "requests": self.tried,
            "acknowledged": self.submitted,
            "stops": self.stopped,
            "attempts seen": self.seen_active,
            "disturbances of runners": self.disturbances,
        }
        return Counter({kind: len(things) for kind, things in kinds.items()})

    def observe(self, active: Sequence[Job]) -> None:
        """A list of active jobs, read in one transaction: each project and each runner has at most one."""
        now = time.monotonic()
        projects = Counter(job.name.split("/")[1] for job in active)
        runners = Counter(job.attempts[-1].runner for job in active if job.attempts)
        with self.lock:
            for what, count in (*projects.items(), *runners.items()):
                if count > 1:
                    self.findings.append(f"{what} had {count} active attempts at once")
            for job in active:
                if job.attempts:
                    last = job.attempts[-1]
                    self.seen_active[f"{job.uid}/{last.number}"] = (last.runner.removeprefix("runners/"), now)

    def disturb(self, runner: str, begin: float, end: float) -> None:
        with self.lock:
            self.disturbances.append(Disturbance(runner=runner, begin=begin, end=end))


def job_findings(history: History, jobs: Sequence[Job], *, lease_seconds: float) -> list[str]:
    """No job lost or doubled, none failed that was healthy, no stop forgotten."""
    findings = list(history.findings)
    by_request: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.source_job:  # a resumed one bears the labels of the one that it goes on from
            by_request.setdefault(job.spec.labels[REQUEST_LABEL], []).append(job)
    for request, uid in history.submitted.items():
        found = by_request.get(request, [])
        if [job.uid for job in found] != [uid]:
            findings.append(f"request {request} was answered with {uid}, and made {[job.uid for job in found]}")
    for request, made in by_request.items():
        if len(made) > 1 or request not in history.tried:
            findings.append(f"request {request} made {len(made)} jobs")
    for job in jobs:
        findings += _findings_of(history, job, lease_seconds)
    return findings


def _findings_of(history: History, job: Job, lease_seconds: float) -> list[str]:
    findings = []
    state = job_pb2.JobState.Name(job.state)
    outcomes = [job_pb2.AttemptOutcome.Name(attempt.outcome) for attempt in job.attempts]
    if job.state not in ENDED:
        return [f"{job.name} is {state} and does not end: {outcomes}, {job.why_not_running or job.progress}"]
    if job.state == job_pb2.JOB_STATE_FAILED:
        findings.append(f"{job.name} was healthy and failed: {job.reason_message[:500]}")
    if job.uid in history.stopped:
        if job.state == job_pb2.JOB_STATE_COMPLETED and job.progress.iteration < job.progress.iterations_max:
            findings.append(f"{job.name}: the stop was forgotten, it is {state}")
        if len(job.attempts) > history.stopped[job.uid]:
            findings.append(f"{job.name} was begun again after its stop: {outcomes}")
    elif job.state == job_pb2.JOB_STATE_STOPPED:
        findings.append(f"{job.name} is stopped, and nobody asked for it")
    if any(attempt.outcome == job_pb2.ATTEMPT_OUTCOME_UNSPECIFIED for attempt in job.attempts):
        findings.append(f"{job.name} has ended with an attempt that has not: {outcomes}")
    lost = [attempt for attempt in job.attempts if attempt.outcome == LOST]
    wrongly = [attempt for attempt in lost if not _rightly_lost(history, job, attempt, lease_seconds)]
    findings += [f"{job.name}: attempt {each.number} was healthy and is lost: {each.message}" for each in wrongly]
    return findings


def _rightly_lost(history: History, job: Job, attempt: job_pb2.Attempt, lease_seconds: float) -> bool:
    """Whether something was done to the attempt's runner around the time when the attempt was seen last."""
    runner, seen_at = history.seen_active.get(f"{job.uid}/{attempt.number}", (attempt.runner.rpartition("/")[2], None))
    around = 3 * lease_seconds
    return any(
        each.runner == runner and (seen_at is None or each.begin - around <= seen_at <= each.end + around)
        for each in history.disturbances
    )


def event_findings(events: Sequence[event_pb2.Event], jobs: Sequence[Job]) -> list[str]:
    """Every fact once, and for each job in its order."""
    findings = []
    ids = Counter(event.id for event in events)
    findings += [f"event {name} came {count} times" for name, count in ids.items() if count > 1]
    told: dict[str, list[str]] = {}
    for event in events:
        kind = event.WhichOneof("fact") or ""
        fact = getattr(event, kind)
        if kind.startswith(("job_", "attempt_")):
            told.setdefault(fact.job.uid, []).append(kind)
    for job in jobs:
        kinds = told.get(job.uid, [])
        counts = Counter(kinds)
        released = sum(attempt.outcome in RELEASED for attempt in job.attempts)
        wanted = {"job_submitted": 1, "job_ended": 1}
        for kind, count in wanted.items():
            if counts[kind] != count:
                findings.append(f"{job.name}: {kind} was told {counts[kind]} times, {count} are right: {kinds}")
        # An attempt that was taken up again after it was lost is told of once more than it is counted.
        if counts["job_started"] < len(job.attempts) or counts["attempt_lost"] < released:
            findings.append(f"{job.name}: of {len(job.attempts)} attempts, {released} released, was told: {kinds}")
        if kinds and (kinds[0] != "job_submitted" or kinds[-1] != "job_ended"):
            findings.append(f"{job.name}: its facts came in another order: {kinds}")
    return findings


def step_findings(job: Job, steps: Sequence[int]) -> list[str]:
    """A completed job has each of its steps once; of a resumed one the first lie with another job."""
    if (
        job.source_job
        or job.state != job_pb2.JOB_STATE_COMPLETED
        or list(steps) == list(range(1, job.progress.iterations_max + 1))
    ):
        return []
    missing = sorted(set(range(1, job.progress.iterations_max + 1)) - set(steps))
    doubled = [step for step, count in Counter(steps).items() if count > 1]
    return [f"{job.name} completed, and steps {missing[:5]} ({len(missing)}) are missing, {doubled[:5]} came twice"]
