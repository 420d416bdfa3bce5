"""When leases may run out: only while the clocks agree, and never for many runners at once. Pure functions.

A lease says that a runner was silent. It says nothing where the scheduler itself could not hear: its writer was held
up, its machine slept, its clock was set. And where many go silent within one lease it is the network that is gone, not
the runners, who go on training meanwhile.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from services.scheduler.domain.job import SECOND_US


class ClockLimits(Struct, frozen=True, kw_only=True):
    """When the clocks are not believed."""

    outage_seconds: float
    """A look at the leases that comes so much later than the one before, or had to wait so long, says nothing."""
    step_seconds: float
    """The database's clock and the machine's monotonic one may drift apart by so much between two looks."""


class Look(Struct, frozen=True, kw_only=True):
    """A look at the leases: when it was asked for and when it is taken, monotonic, and the database's time then."""

    asked_seconds: float
    taken_seconds: float
    now_us: int


def outage(before: Look | None, look: Look, limits: ClockLimits) -> str:
    """Why nothing may run out at this look, in words; empty where it may."""
    waited = look.taken_seconds - look.asked_seconds
    if waited > limits.outage_seconds:
        return f"the database's writer was held up for {waited:.1f} s"
    if before is None:
        return ""
    passed = look.taken_seconds - before.taken_seconds
    if passed > limits.outage_seconds:
        return f"nobody looked for {passed:.1f} s"
    step = step_us(before, look, limits) / SECOND_US
    if step:
        return f"the clock was set by {step:+.1f} s, or the machine slept"
    return ""


def step_us(before: Look | None, look: Look, limits: ClockLimits) -> int:
    """By how much the clock was set between the looks, less than 0 where it was set back; 0 where it was not.

    A machine that slept looks like a clock that was set forward: the monotonic one stood still meanwhile.
    """
    if before is None:
        return 0
    passed_us = round((look.taken_seconds - before.taken_seconds) * SECOND_US)
    step = look.now_us - before.now_us - passed_us
    return step if abs(step) > limits.step_seconds * SECOND_US else 0


class SilenceLimits(Struct, frozen=True, kw_only=True):
    """When so many runners are silent that it is taken for an outage, and for how long."""

    runners_min: int
    share: float
    minutes_max: float


class Guard(Struct, frozen=True, kw_only=True):
    """Whether leases are held because many runners are silent. `since_seconds`: from when on, monotonic; None while
    they are not.
    """

    since_seconds: float | None = None

    def after(self, *, silent: int, registered: int, now_seconds: float, limits: SilenceLimits) -> Guard:
        """The guard after a look that found so many of the registered runners silent."""
        if silent <= max(limits.runners_min, limits.share * registered):
            return Guard()
        return self if self.since_seconds is not None else replace(self, since_seconds=now_seconds)

    def holds(self, now_seconds: float, limits: SilenceLimits) -> bool:
        """Whether nothing may run out now: for so many minutes at most."""
        return self.since_seconds is not None and now_seconds - self.since_seconds < limits.minutes_max * 60
