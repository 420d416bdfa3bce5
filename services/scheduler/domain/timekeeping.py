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
    step = (look.now_us - before.now_us) / SECOND_US - passed
    if abs(step) > limits.step_seconds:
        return f"the clock was set by {step:+.1f} s, or the machine slept"
    return ""


class SilenceLimits(Struct, frozen=True, kw_only=True):
    """When so many runners are silent that it is taken for an outage, and for how long."""

    runners_min: int
    share: float
    minutes_max: float


class Guard(Struct, frozen=True, kw_only=True):
    """Whether leases are held because many runners are silent. `since_us`: from when on; None while they are not."""

    since_us: int | None = None

    def after(self, *, silent: int, registered: int, now_us: int, limits: SilenceLimits) -> Guard:
        """The guard after a look that found so many of the registered runners silent."""
        if silent <= max(limits.runners_min, limits.share * registered):
            return Guard()
        return self if self.since_us is not None else replace(self, since_us=now_us)

    def holds(self, now_us: int, limits: SilenceLimits) -> bool:
        """Whether nothing may run out now: for so many minutes at most."""
        return self.since_us is not None and now_us - self.since_us < limits.minutes_max * 60 * SECOND_US
