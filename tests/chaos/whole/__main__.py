"""Disasters over a whole installation, and what was promised beside what came: `make chaos`.

Each round lets users submit, stop and resume on real services and runners, breaks one thing after the other at random,
mends all, waits until every job has ended, and holds the record against what the system says. Rounds take turns on
SQLite and PostgreSQL. Ends with 1 where something was found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import nats
from sihlai.event.v1 import event_pb2
from sihlai.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job

from tests.chaos.whole.faults import FAULTS, Scene, mend
from tests.chaos.whole.history import ENDED, History, event_findings, job_findings, step_findings
from tests.chaos.whole.load import Users
from tests.chaos.whole.stand import LEASE_SECONDS, Stand, stand
from tests.chaos.whole.world import missing
from tests.tokens import carrying

STREAM = "SIHLAI"
ROUND_SECONDS = 60.0
SETTLE_SECONDS = 180.0
UNFINISHED_MAX = 8
CALM_SECONDS = (0.5, 3.0)
"""Between two faults."""
POLL_SECONDS = 0.2


@dataclass(kw_only=True)
class Outcome:
    """One round."""

    number: int
    seed: int
    database: str
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    """How much the history holds that the end was held against."""
    events: int = 0
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        return json.dumps(self.__dict__ | {"seconds": round(self.seconds, 1)})


def play(
    folder: Path, *, seed: int, number: int, seconds: float, on_postgresql: bool, unfinished_max: int = UNFINISHED_MAX
) -> Outcome:
    """One round, with so many jobs at a time; what breaks it off is a finding like any other."""
    outcome = Outcome(number=number, seed=seed, database="postgresql" if on_postgresql else "sqlite")
    began = time.monotonic()
    try:
        with stand(folder, on_postgresql=on_postgresql) as made:
            _play(made, outcome, random.Random(f"{seed}/{number}"), seconds, unfinished_max)
    except Exception:  # noqa: BLE001 — whatever it is, it was not promised
        outcome.findings.append(traceback.format_exc())
    outcome.seconds = time.monotonic() - began
    return outcome


def _play(made: Stand, outcome: Outcome, randomness: random.Random, seconds: float, unfinished_max: int) -> None:
    history = History()
    users = Users(made, history, random.Random(randomness.random()), unfinished_max)
    ticking = threading.Event()
    scene = Scene(stand=made, history=history, random=randomness, wait=ticking.wait)
    users.start()
    deadline = time.monotonic() + seconds
    order = list(FAULTS)
    try:
        while time.monotonic() < deadline:
            if not order:
                order = list(FAULTS)
            fault = order.pop(randomness.randrange(len(order)))  # each comes before one comes again
            ticking.wait(randomness.uniform(*CALM_SECONDS))
            print(f"    {fault.__name__}", file=sys.stderr, flush=True)
            fault(scene)
            outcome.faults[fault.__name__] += 1
    finally:
        mend(made)
        users.stop()
    jobs = _ended(users)
    outcome.jobs = Counter(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_") for job in jobs)
    outcome.attempts = Counter(
        job_pb2.AttemptOutcome.Name(attempt.outcome).removeprefix("ATTEMPT_OUTCOME_")
        for job in jobs
        for attempt in job.attempts
    )
    events = asyncio.run(_events(made, jobs))
    outcome.events = len(events)
    outcome.recorded = history.counts
    outcome.findings += job_findings(history, jobs, lease_seconds=LEASE_SECONDS)
    outcome.findings += event_findings(events, jobs)
    outcome.findings += _step_findings(made, jobs)


def _ended(users: Users) -> list[Job]:
    """All jobs, once they have ended, or as they are when that takes too long."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        jobs = users.all_jobs()
        if all(job.state in ENDED for job in jobs) or time.monotonic() > deadline:
            return jobs
        time.sleep(POLL_SECONDS)


async def _events(made: Stand, jobs: list[Job]) -> list[event_pb2.Event]:
    """All events of the stream, once each job's end is among them, or as many as there are."""
    client = await nats.connect(made.nats_url)
    try:
        found: list[event_pb2.Event] = []
        subscription = await client.jetstream().subscribe("sihlai.>", stream=STREAM, ordered_consumer=True)
        ended: set[str] = set()
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                message = await subscription.next_msg(timeout=2)
            except TimeoutError:
                if ended >= {job.uid for job in jobs}:
                    break
                continue
            event = event_pb2.Event.FromString(message.data)
            found.append(event)
            if event.WhichOneof("fact") == "job_ended":
                ended.add(event.job_ended.job.uid)
        return found
    finally:
        await client.close()


def _step_findings(made: Stand, jobs: list[Job]) -> list[str]:
    """Every step of every completed job is stored; runners may still be sending them."""
    completed = [job for job in jobs if job.state == job_pb2.JOB_STATE_COMPLETED and not job.source_job]
    opened = grpc.insecure_channel(made.metrics_address, options=[("grpc.enable_http_proxy", 0)])
    with carrying(opened, made.token) as channel:
        stub = metrics_service_pb2_grpc.MetricsServiceStub(channel)

        def findings() -> list[str]:
            found = []
            for job in completed:
                request = metrics_service_pb2.QuerySeriesRequest(job=job.name)
                request.selector.names.append("train/loss")
                answer = stub.QuerySeries(request, timeout=20, wait_for_ready=True)
                steps = [step for series in answer.series for step in series.points.steps]
                found += step_findings(job, steps)
            return found

        deadline = time.monotonic() + SETTLE_SECONDS
        while (found := findings()) and time.monotonic() < deadline:
            time.sleep(1)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.whole", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all rounds; a round is one minute of faults")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what happens when follows from it")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--rounds", type=int, default=0, help="play so many rounds, however long they take")
    parser.add_argument("--json", action="store_true", help="one JSON object a round")
    given = parser.parse_args()
    if problem := missing():
        print(f"not played, because {problem}", file=sys.stderr)
        sys.exit(2)
    folder = Path(tempfile.mkdtemp(prefix="sihlai-chaos-whole-"))
    print(f"seed {given.seed}, in {folder}", file=sys.stderr, flush=True)
    began, number, outcomes = time.monotonic(), given.first, list[Outcome]()
    while number < given.first + given.rounds if given.rounds else time.monotonic() - began < given.seconds:
        place = folder / f"round-{number}"
        outcome = play(place, seed=given.seed, number=number, seconds=ROUND_SECONDS, on_postgresql=number % 2 == 1)
        outcomes.append(outcome)
        print(outcome.line() if given.json else _told(outcome), flush=True)
        if not outcome.findings:
            shutil.rmtree(place, ignore_errors=True)
        number += 1
    print(_summed(outcomes, given.seed, time.monotonic() - began), file=sys.stderr, flush=True)
    sys.exit(1 if any(outcome.findings for outcome in outcomes) else 0)


def _summed(outcomes: list[Outcome], seed: int, seconds: float) -> str:
    """All rounds in short: what was done, what was recorded, what was found."""
    faults = sum((outcome.faults for outcome in outcomes), Counter[str]())
    lines = [
        f"{len(outcomes)} rounds in {seconds:.0f} s, seed {seed}: {_listed(faults)}",
        f"recorded: {_listed(sum((outcome.recorded for outcome in outcomes), Counter[str]()))}",
        f"jobs: {_listed(sum((outcome.jobs for outcome in outcomes), Counter[str]()))}",
        f"attempts: {_listed(sum((outcome.attempts for outcome in outcomes), Counter[str]()))}",
        f"{sum(len(outcome.findings) for outcome in outcomes)} findings",
    ]
    lines += [f"  round {outcome.number}: {finding}" for outcome in outcomes for finding in outcome.findings]
    return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name.lower().replace('_', ' ')}" for name, count in sorted(counts.items()))


def _told(outcome: Outcome) -> str:
    """For people."""
    lines = [
        f"round {outcome.number} on {outcome.database}: {outcome.seconds:.0f} s, {outcome.faults.total()} faults; "
        f"jobs: {_listed(outcome.jobs)}; attempts: {_listed(outcome.attempts)}; {outcome.events} events; "
        f"recorded: {_listed(outcome.recorded)}; {len(outcome.findings)} findings",
        *(f"  {finding}" for finding in outcome.findings),
    ]
    if outcome.findings:
        lines.append(f"  again: python -m tests.chaos.whole --seed {outcome.seed} --first {outcome.number} --rounds 1")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
