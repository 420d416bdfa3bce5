"""Inserts and questions that fail, hang, are slow, or whose answers are cut, under load."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.round import Kind, Played, settle, wire_figures
from tests.chaos.runner import Runner
from tests.chaos.stand import SETTLE_SECONDS, Stand, stand
from tests.metrics.job_book import submit

CLIENTS = 8
FAULTS = 8
INSERTS = r"INSERT\s+INTO\s+\S*(points|logs|series|writers|gaps|finishes|openings)"
QUESTIONS = r"^\s*(WITH|SELECT)\b"
INSERT_SECONDS = 2
FAULT_SECONDS = (0.2, 0.8)
CODES = (159, 202, 241, 243, 252)
"""TIMEOUT_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES, MEMORY_LIMIT_EXCEEDED, NOT_ENOUGH_SPACE, TOO_MANY_PARTS."""


def faults(chance: random.Random) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """What can happen. A share is left alone, so that some of it gets through."""

    def some() -> dict[str, Any]:
        return {"chance": chance.choice((0.3, 0.7, 1.0)), "seed": chance.randrange(2**32)}

    return {
        "fail": lambda: {"match": INSERTS, "fail": "before", "code": chance.choice(CODES), **some()},
        "fail after": lambda: {"match": INSERTS, "fail": "after", "code": chance.choice(CODES), **some()},
        "cut": lambda: {"match": INSERTS, "fail": "before", **some()},
        "cut after": lambda: {"match": INSERTS, "fail": "after", **some()},
        "slow": lambda: {"match": INSERTS, "delay_seconds": chance.uniform(0.05, 0.5), **some()},
        "late": lambda: {"match": INSERTS, "delay_seconds": INSERT_SECONDS + chance.uniform(0, 1), "times": 1},
        "hang": lambda: {"match": INSERTS, "hold": True, "times": chance.choice((1, 2))},
        "questions fail": lambda: {"match": QUESTIONS, "fail": "before", "code": chance.choice(CODES), **some()},
        "questions hang": lambda: {"match": QUESTIONS, "delay_seconds": chance.uniform(0.1, 1), **some()},
        "half answers": lambda: {
            "match": QUESTIONS,
            "answer": "half",
            "framing": chance.choice(("length", "chunked", "close")),
            **some(),
        },
    }


@contextmanager
def open_stand(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with stand(folder, randomness, front=True, flags=("--insert-seconds", str(INSERT_SECONDS))) as made:
        yield made


def play(stand: Stand, folder: Path) -> Played:
    """One fault after the other, or two at once; kills of hanging queries are refused in some rounds."""
    clickhouse = stand.clickhouse
    assert clickhouse is not None
    jobs = stand.write(clients=CLIENTS // 4 if stand.brief else CLIENTS)
    runner_jobs = [submit(stand.scheduler.book)]
    runner = Runner(folder / "runner", stand.servers, runner_jobs, stand.random.randrange(2**32))
    runner.start()
    runner.wait_writing()
    clickhouse.refuse_kills(stand.random.random() < 0.25)
    known = faults(stand.random)
    figures: dict[str, float] = {}
    for _ in range(FAULTS // 2 if stand.brief else FAULTS):
        with ExitStack() as happening:
            names = stand.random.sample(list(known), stand.random.choice((1, 1, 2)))
            met = [(name, happening.enter_context(clickhouse.fault(**known[name]()))) for name in names]
            stand.wait(stand.random.uniform(*FAULT_SECONDS))
            for name, number in met:
                figures[name] = figures.get(name, 0) + clickhouse.matched(number)
        stand.wait(stand.random.uniform(0, 0.3))
    clickhouse.refuse_kills(False)
    runner.finish(SETTLE_SECONDS)
    findings, stored = settle(stand, [*jobs, *runner_jobs])
    findings += runner.audit(stored, stand.server)
    return Played(findings=findings, figures={**wire_figures(stand), **figures})


KIND = Kind(
    name="failing",
    says="inserts and questions that fail, hang, are slow or are answered in half, over HTTP",
    share=0.2,
    stand=open_stand,
    play=play,
)
