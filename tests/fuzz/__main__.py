"""An hour of fuzzing, or however long: `python -m tests.fuzz --seconds 3600 --seed 1`; ends with 1 after findings."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import Campaign, run
from tests.fuzz.target import TARGETS

TELL_SECONDS = 10.0


class Progress:
    """A line now and then."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._told = 0.0

    def tell(self, running: list[Campaign], executions: int) -> None:
        passed = time.monotonic() - self._begun
        if passed - self._told < TELL_SECONDS:
            return
        self._told = passed
        found = sum(len(each.outcome.problems) for each in running)
        names = ", ".join(each.outcome.target for each in running)
        print(f"{passed:6.0f} s  {executions:9} inputs  {executions / passed:6.0f} a second  {names}", flush=True)
        if found:
            print("\n".join(problem for each in running for problem in each.outcome.problems), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes the readers of datasets.")
    parser.add_argument("targets", nargs="*", help=f"which ones; all of them where none is named: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=3_600.0, help="how long in all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what is tried follows from it")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--folder", type=Path, help="where inputs that found something are kept")
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="sihlai-fuzz-"))
    print(f"seed {given.seed}, findings in {folder}", flush=True)
    outcomes = run(
        given.targets or list(TARGETS),
        seconds=given.seconds,
        seed=given.seed,
        folder=folder,
        workers=given.workers,
        tell=Progress().tell,
    )
    for outcome in sorted(outcomes, key=lambda each: each.target):
        figures = "  ".join(f"{name} {value:.0f}" for name, value in outcome.figures.items())
        print(f"{outcome.target:10} {figures}")
        print("".join(f"  {problem}\n" for problem in outcome.problems), end="")
    sys.exit(1 if any(outcome.problems for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
