"""The time of the scheduler's tests: it stands still until it is moved."""

from __future__ import annotations

SECOND_US = 1_000_000


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_us = 1_800_000_000 * SECOND_US
        self.slept_us = self.now_us

    def __call__(self, _connection: object) -> int:
        return self.now_us

    def monotonic(self) -> float:
        return (self.now_us - self.slept_us) / SECOND_US

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += round(seconds * SECOND_US)

    def step(self, seconds: float) -> None:
        """The clock is set, or the machine sleeps: the monotonic clock does not see it."""
        self.pass_seconds(seconds)
        self.slept_us += round(seconds * SECOND_US)
