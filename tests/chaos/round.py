"""What a round is: a kind of disaster, played once on a stand, and what was found."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.audit import Stored, answer_findings, stored_writers, wire_findings
from tests.chaos.stand import Stand
from tests.metrics.job_book import Job


@dataclass(frozen=True, kw_only=True)
class Played:
    """One round. Findings are promises that did not hold; figures add up over rounds."""

    findings: Sequence[str]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of disaster. `missing` says why it cannot be played on this machine; empty where it can."""

    name: str
    says: str
    share: float
    """How many of its rounds belong to each round that is asked for."""
    stand: Callable[[Path, random.Random], AbstractContextManager[Stand]]
    play: Callable[[Stand, Path], Played]
    missing: Callable[[], str] = str


def settle(stand: Stand, jobs: Sequence[Job]) -> tuple[list[str], dict[str, Stored]]:
    """No more faults: everything is sent to its end, the jobs end, all is read; findings of wire clients."""
    findings = stand.finish()
    for job in jobs:
        stand.scheduler.book.end(job.uid)
    stored = stored_writers(stand, jobs)
    findings += wire_findings(stand.wire_writers, stored)
    findings += answer_findings(stand.server, stand.wire_writers)
    return findings, stored


def wire_figures(stand: Stand) -> dict[str, float]:
    """What the wire clients did."""
    return {
        "rows": sum(writer.rows for writer in stand.wire_writers),
        "refusals": sum(writer.refusals for writer in stand.wire_writers),
        "streams": sum(client.ends.total() for client in stand.clients),
    }
