"""Pauses between tries: each twice as long as the one before, up to a limit, with a random share taken off."""

from __future__ import annotations

import random


class Backoff:
    """One series of tries."""

    def __init__(self, *, seconds_first: float, seconds_max: float, randomness: random.Random) -> None:
        self._first = seconds_first
        self._max = seconds_max
        self._random = randomness
        self._tries = 0

    def next_seconds(self) -> float:
        """How long to wait before the next try; never less than half of the pause's full length."""
        full = min(self._first * 2.0 ** min(self._tries, 32), self._max)
        self._tries += 1
        return full * (1 - self._random.random() / 2)

    def reset(self) -> None:
        """A try has succeeded."""
        self._tries = 0
