"""Who waits for the writer, and when it begins the next transaction."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from services.chassis.errors import Reason, ResourceExhausted
from services.chassis.share import Spending
from services.scheduler.store.committed import Part
from services.scheduler.store.transaction import Question, Transaction

Ahead: TypeAlias = Callable[[Transaction], Iterable[Question]]
"""What a unit will ask first, as far as the transaction does not know it already."""
GATHERED_REMEMBERED = 8
"""Transactions after which it is forgotten how many called at once."""


@dataclass(frozen=True, kw_only=True)
class DatabaseLimits:
    """The database's queues and waits."""

    batch_max: int = 256
    """Requests that one transaction serves at most."""
    queue_max: int = 20_000
    """Requests that may wait for the writer."""
    control_queue_max: int = 20_000
    """Requests of runners, stops and upkeep that may wait for the writer, in a queue of their own."""
    ordinary_min: int = 16
    """Other requests that a transaction takes however many of the former wait."""
    readers: int = 4
    """Threads for what runners and stops ask."""
    list_readers: int = 2
    """Threads for lists and watches, which may be slow, and delay nothing but one another."""
    list_queue_max: int = 1_000
    """Lists that may wait for a thread."""
    busy_seconds: float = 10.0
    """How long a statement waits for a lock that another process holds (a backup, a shell)."""
    log_bytes_max: int = 64 * 1024 * 1024
    """SQLite's write-ahead log, from which on lists wait for one another so that it can begin anew."""
    gather_callers_min: int = 8
    """Where fewer call at once, a transaction waits for nobody."""
    gather_seconds: float = 0.002
    """A transaction begins when nobody has come for so long."""
    gather_seconds_max: float = 0.02
    """The longest wait for it."""
    control_gather_seconds_max: float = 0.005
    """The same for what goes before."""


class Waiting:
    """The writer's two queues: what keeps runners alive goes before everything else."""

    def __init__(self, limits: DatabaseLimits) -> None:
        self._limits = limits
        self._control: deque[Unit] = deque()
        self._ordinary: deque[Unit] = deque()
        self._filled = threading.Condition()
        self._is_due = False
        self._closed = False

    def put(self, unit: Unit, *, control: bool) -> None:
        """Raises ResourceExhausted where the queue is full."""
        queue, name = (self._control, "control_queue_max") if control else (self._ordinary, "write_queue_max")
        limit = self._limits.control_queue_max if control else self._limits.queue_max
        with self._filled:
            if len(queue) >= limit:
                raise ResourceExhausted(
                    Reason.LIMIT_REACHED,
                    f"more than {limit} requests wait for the database: come back in a moment",
                    {"what": name, "limit": str(limit)},
                )
            queue.append(unit)

    @property
    def number(self) -> int:
        """How many wait."""
        return len(self._control) + len(self._ordinary)

    def serve(self) -> None:
        """What waits is to be served now."""
        with self._filled:
            self._is_due = True
            self._filled.notify()

    def close(self) -> None:
        """Nothing more comes; what waits is still served."""
        with self._filled:
            self._closed = True
            self._filled.notify()

    def take(self) -> tuple[list[Unit], list[Unit]]:
        """What the next transaction serves, as soon as there is anything; nothing once it is closed and empty.

        What goes first, and the rest.
        """
        with self._filled:
            while not ((self._is_due and (self._control or self._ordinary)) or self._closed):
                self._filled.wait()
            control = _taken(self._control, self._limits.batch_max)
            room = max(self._limits.batch_max - len(control), self._limits.ordinary_min)
            ordinary = _taken(self._ordinary, room)
            self._is_due = bool(self._control or self._ordinary)
            return control, ordinary


def _taken(queue: deque[Unit], number: int) -> list[Unit]:
    return [queue.popleft() for _ in range(min(number, len(queue)))]


class Gathering:
    """When a transaction begins: once all who call have come, or nobody has come for a moment.

    A transaction alone costs as much as five more calls in it. Where many call, those who are on their way would come
    just after it had begun. Where few call, one after the other, nobody is waited for.
    """

    def __init__(self, waiting: Waiting, *, limits: DatabaseLimits) -> None:
        self._waiting = waiting
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._last = self._latest = 0.0
        self._here = self._most = 0
        """Who waits for the writer or is served by it: now, and at most since the last answers."""
        self._mosts = deque[int](maxlen=GATHERED_REMEMBERED)
        self._most_before = 0

    def came(self, loop: asyncio.AbstractEventLoop, *, control: bool) -> None:
        """Somebody waits."""
        self._last = loop.time()
        self._here += 1
        self._most = max(self._most, self._here)
        callers = max(self._most, self._most_before)
        if callers < self._limits.gather_callers_min or self._waiting.number >= callers:
            self._serve()
            return
        if self._timer is None:
            self._latest = self._last + self._limits.gather_seconds_max
        if control:
            self._latest = min(self._latest, self._last + self._limits.control_gather_seconds_max)
        if self._timer is None or self._latest < self._timer.when():
            self._set_timer(loop)

    def served(self, number: int) -> None:
        """So many have their answers."""
        self._mosts.append(self._most)
        self._most_before = max(self._mosts)
        self._here -= number
        self._most = self._here

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._drop_timer()
        self._timer = loop.call_at(self._due, self._look, loop)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() < self._due:
            self._set_timer(loop)
        else:
            self._serve()

    def _serve(self) -> None:
        self._drop_timer()
        self._waiting.serve()

    @property
    def _due(self) -> float:
        return min(self._last + self._limits.gather_seconds, self._latest)


@dataclass(kw_only=True)
class Unit:
    """What one caller wants of a transaction, and what comes of it."""

    work: Callable[[Transaction], Any]
    then: Callable[[Transaction, Any], Any] | None
    ahead: Ahead
    trace_parent: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    spending: Spending | None
    part: Part = field(init=False)
    """Made when it is run."""
    result: Any = None
    error: BaseException | None = None
