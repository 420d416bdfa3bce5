"""Disasters under load, and what is stored afterwards: `python -m tests.chaos.metrics` or `make chaos-metrics`.

Every round writes numbered rows through real services, engines and runners, breaks something at random, and then looks
at what is stored beside what was made and acknowledged. A finding is printed with what plays its round again. Ends with
1 where something was found.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from services.chassis.errors import SihlaiError
from tests.chaos import damage, failing, full_disk, killing, memory, memory_followers, reconnecting, replicas
from tests.chaos.disk import unmount_left_behind
from tests.chaos.round import Kind, Played
from tests.chaos.stand import Stand

DISASTERS: Sequence[Kind] = (
    killing.EMBEDDED,
    killing.OVER_HTTP,
    failing.KIND,
    replicas.KIND,
    full_disk.KIND,
    damage.KIND,
    reconnecting.KIND,
)
HOARDS: Sequence[Kind] = (
    memory.ENGINE,
    memory.SERIES,
    memory.LINE,
    memory.COLUMNS,
    memory_followers.STALLED,
    memory_followers.COME_AND_GO,
)
LONG: Sequence[Kind] = (memory_followers.WAVES, reconnecting.BREAKING_OFF)
"""Their short forms are tests of followers."""
KINDS = (*DISASTERS, *HOARDS, *LONG)


@dataclass(kw_only=True)
class Outcome:
    """Of one kind, over its rounds."""

    kind: str
    seed: int
    rounds: int = 0
    seconds: float = 0.0
    findings: int = 0
    rounds_with_findings: list[int] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    skipped: str = ""

    def line(self) -> str:
        return json.dumps(
            {
                "kind": self.kind,
                "seed": self.seed,
                "rounds": self.rounds,
                "findings": self.findings,
                "rounds_with_findings": self.rounds_with_findings,
                "seconds": round(self.seconds, 1),
                "skipped": self.skipped or None,
                "figures": {name: round(value, 3) for name, value in self.figures.items()},
            }
        )


class Campaign:
    """All rounds that were asked for, kind by kind, and how far they are."""

    def __init__(self, *, seed: int, folder: Path, brief: bool = False) -> None:
        self._seed = seed
        self._folder = folder
        self._brief = brief
        self._began = time.monotonic()
        self._done = 0
        self._total = 0

    def run(self, plan: Sequence[tuple[Kind, Sequence[int]]]) -> list[Outcome]:
        self._total = sum(len(numbers) for _, numbers in plan)
        return [self._kind(kind, numbers) for kind, numbers in plan]

    def _kind(self, kind: Kind, numbers: Sequence[int]) -> Outcome:
        outcome = Outcome(kind=kind.name, seed=self._seed)
        if missing := kind.missing():
            outcome.skipped = missing
            self._say(f"{kind.name}: not played, because {missing}")
            return outcome
        folder = self._folder / kind.name
        with kind.stand(folder, random.Random(f"{self._seed}/{kind.name}")) as stand:
            for number in numbers:
                stand.brief = self._brief
                stand.random = random.Random(f"{self._seed}/{kind.name}/{number}")
                began = time.monotonic()
                played = self._played(kind, stand, folder / f"round-{number}")
                stand.forget()
                shutil.rmtree(folder / f"round-{number}", ignore_errors=True)
                outcome.rounds += 1
                outcome.seconds += time.monotonic() - began
                outcome.figures.update(played.figures)
                self._done += 1
                self._report(kind, number, played.findings, outcome)
        return outcome

    def _played(self, kind: Kind, stand: Stand, folder: Path) -> Played:
        try:
            return kind.play(stand, folder)
        except (AssertionError, RuntimeError, OSError, grpc.RpcError, SihlaiError):
            # A round that breaks off is a finding like any other; the rounds after it may break off too.
            return Played(findings=[traceback.format_exc()])

    def _report(self, kind: Kind, number: int, findings: Sequence[str], outcome: Outcome) -> None:
        passed = time.monotonic() - self._began
        left = passed / self._done * (self._total - self._done)
        rows = outcome.figures["rows"]
        told = f"{len(findings)} findings" if findings else "sound"
        self._say(f"{passed:6.0f} s, {left:5.0f} s left  {kind.name:14} round {number:3}  {rows:10.0f} rows  {told}")
        if findings:
            outcome.findings += len(findings)
            outcome.rounds_with_findings.append(number)
            again = f"python -m tests.chaos.metrics --only {kind.name} --seed {self._seed} --first {number} --rounds 1"
            self._say("\n".join([*(f"    {finding}" for finding in findings), f"    again: {again}"]))

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def table(outcomes: Sequence[Outcome]) -> str:
    """For people."""
    says = {kind.name: kind.says for kind in KINDS}
    lines = [f"{'':14} {'rounds':>6} {'seconds':>8} {'rows':>10} {'findings':>8}"]
    for each in outcomes:
        figures = "  ".join(f"{name} {value:.0f}" for name, value in each.figures.items() if name != "rows")
        counts = f"{each.rounds:6} {each.seconds:8.0f} {each.figures['rows']:10.0f} {each.findings:8}"
        lines += [f"{each.kind:14} {counts}  {each.skipped or figures}", f"{'':14} {says[each.kind]}"]
    return "\n".join(lines)


def main() -> None:
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.metrics", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="this kind; may be given several times")
    parser.add_argument("--rounds", type=int, default=50, help="of kills; other kinds have their share of it")
    parser.add_argument("--first", type=int, help="play --rounds rounds of each kind, from this number on")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what happens when follows from it")
    parser.add_argument("--brief", action="store_true", help="less of everything, as in the tests")
    parser.add_argument("--json", action="store_true", help="one JSON object a kind")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if not given.only or kind.name in given.only]
    plan = []
    for kind in kinds:
        count = given.rounds if given.first is not None else max(1, round(given.rounds * kind.share))
        first = given.first or 0
        plan.append((kind, range(first, first + count)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does: what is mounted and started is seen to
    unmount_left_behind()
    folder = Path(tempfile.mkdtemp(prefix="sihlai-chaos-metrics-"))
    print(
        f"seed {given.seed}, {sum(len(numbers) for _, numbers in plan)} rounds in {folder}", file=sys.stderr, flush=True
    )
    outcomes = Campaign(seed=given.seed, folder=folder, brief=given.brief).run(plan)
    print("\n".join(outcome.line() for outcome in outcomes) if given.json else table(outcomes), flush=True)
    found = any(outcome.findings for outcome in outcomes)
    if not found:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
