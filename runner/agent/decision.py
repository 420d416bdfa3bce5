"""What the agent does about an answer of the scheduler: a pure function of what it said, what it holds, and the answer.

The answer belongs to what was said in its call; what the agent holds may have changed since. An answer about anything
else than what is held now changes nothing: the next call says how it is, and the scheduler answers again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class AttemptKey:
    """Names an attempt."""

    job_uid: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.job_uid}-{self.epoch}"


class Stopping(IntEnum):
    """How an attempt is being stopped. It only ever grows."""

    NO = 0
    CHECKPOINT = 1
    IMMEDIATE = 2


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What the agent works on. `key` is None when idle; `draining` means that it takes nothing new."""

    key: AttemptKey | None = None
    stopping: Stopping = Stopping.NO
    draining: bool = False


@dataclass(frozen=True, kw_only=True)
class WantIdle:
    """The scheduler wants the runner to do nothing."""


@dataclass(frozen=True, kw_only=True)
class WantRun:
    """The scheduler wants an attempt to be worked on. `assigned`: the answer says all that is needed to begin."""

    key: AttemptKey
    assigned: bool


@dataclass(frozen=True, kw_only=True)
class WantStop:
    """The scheduler wants an attempt to be stopped."""

    key: AttemptKey
    stopping: Stopping
    grace_seconds: float
    hand_back: bool


@dataclass(frozen=True, kw_only=True)
class WantUnknown:
    """A newer scheduler wants what this agent has never heard of: nothing is done for it, and nothing ended."""


Wanted: TypeAlias = WantIdle | WantRun | WantStop | WantUnknown


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """What is done is what is wanted."""


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Begin to work on the attempt."""

    key: AttemptKey


@dataclass(frozen=True, kw_only=True)
class Decline:
    """Close the attempt, which was never begun: as handed back, or as stopped."""

    key: AttemptKey
    hand_back: bool


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Stop the attempt that is held."""

    stopping: Stopping
    grace_seconds: float
    hand_back: bool


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The attempt that is held was superseded: end its trainer, and report nothing of it."""


Action: TypeAlias = Nothing | Begin | Decline | Stop | Drop


def decide(said: Holding, now: Holding, closed: frozenset[AttemptKey], wanted: Wanted) -> Action:
    """`closed`: attempts whose end is not acknowledged; an answer that still wants them has not seen it."""
    if said.key != now.key:
        return Nothing()
    match wanted:
        case WantUnknown():
            return Nothing()
        case WantIdle():
            return Nothing() if now.key is None else Drop()
        case WantRun(key=key):
            return _decide_run(now, closed, key, wanted.assigned)
        case WantStop(key=key) if key == now.key:
            if wanted.stopping <= now.stopping:
                return Nothing()
            return Stop(stopping=wanted.stopping, grace_seconds=wanted.grace_seconds, hand_back=wanted.hand_back)
        case WantStop(key=key):
            if now.key is not None:
                return Drop()
            # The stop overtook an assignment that never arrived.
            return Nothing() if key in closed else Decline(key=key, hand_back=wanted.hand_back)


def _decide_run(now: Holding, closed: frozenset[AttemptKey], key: AttemptKey, assigned: bool) -> Action:
    if key == now.key:
        return Nothing()
    if now.key is not None:  # the new attempt is sent again once this one is gone
        return Drop()
    if key in closed or not assigned:
        return Nothing()
    return Decline(key=key, hand_back=True) if now.draining else Begin(key=key)
