"""Works measured in turns: what else the machine does meets all of them, so that ratios hold where times do not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What each of several works took, by name: seconds, round by round."""

    seconds: Mapping[str, Sequence[float]]

    def least(self, name: str) -> float:
        """Of all rounds the fastest: what others do on the machine only ever adds."""
        return min(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """What a work took, of what the other one took in the same round; of all rounds the median."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / beside for one, beside in pairs)


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> Turns:
    """Do every work once a round, each of which gives its seconds; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            seconds[name].append(works[name]())
    return Turns(seconds=seconds)
