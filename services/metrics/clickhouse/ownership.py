"""Who stores what of a writer, where several processes share one ClickHouse server.

A process stores rows under a lease: a deadline on the engine's own clock that it writes down before it uses it and that
each of its inserts carries, so that the engine itself refuses an insert that arrives late, however long it was held up
on the way and whoever died meanwhile. Who opens a writer writes that down too and then waits for everybody who had it:
until they say that they let go, or until their lease has run out and what they left running is killed.

Two rules make it safe. A lease can be read by others before it is used: it is written down, then every writer that
somebody else has opened since is given up, and only then it counts. And an opening is written down before the leases of
the others are read. So either the former owner sees the opening, or the opener sees the lease. Order is by generation,
a number, and never by a clock; the clock only says when a lease is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from services.chassis.errors import Aborted, Reason, SihlaiError, Unavailable
from services.chassis.log import get_logger
from services.metrics.clickhouse.connection import Connection
from services.metrics.writer_key import WriterKey, WriterKind

log = get_logger(__name__)

Lose = Callable[[WriterKey], Awaitable[None]]
"""Gives a writer up at once; the answer is awaited until nothing of it is being stored any more."""

NOW = "SELECT toUnixTimestamp64Micro(now64(6)) AS now"
OPENERS = """
SELECT opener, maxIf(generation, NOT let_go) AS opened, maxIf(generation, let_go) AS gone FROM openings
WHERE job_uid = {job_uid:String} AND attempt = {attempt:UInt16} AND rank = {rank:UInt16} AND kind = {kind:String}
GROUP BY opener
"""
LEASES = """
SELECT
    opener,
    argMax(deadline_unix_us, number) AS deadline,
    max(number) AS renewals,
    max(released) AS is_released,
    toUnixTimestamp64Micro(now64(6)) AS now
FROM leases WHERE opener IN {openers:Array(String)} GROUP BY opener
"""
OPENED_BY_OTHERS = """
SELECT job_uid, attempt, rank, kind, max(generation) AS generation FROM openings
WHERE job_uid IN {job_uids:Array(String)} AND opener != {opener:String} AND NOT let_go
GROUP BY job_uid, attempt, rank, kind
"""
JOBS_A_QUERY_MAX = 1_000


@dataclass(frozen=True, kw_only=True)
class LeaseLimits:
    """How long a process may store rows after it was last heard of, and how long others wait for it."""

    seconds: float = 15.0
    renew_seconds: float = 2.0
    wait_seconds: float = 90.0
    """The longest wait of an opening for the other processes that have its writer."""
    poll_seconds: float = 0.2
    settle_seconds: float = 60.0
    """What the engine may take after a deadline for what had begun before it, where nothing can be killed."""


LEASE = LeaseLimits()


class Ownership(Protocol):
    """Makes sure that one process at a time stores the rows of a writer."""

    async def take(self, key: WriterKey) -> None:
        """Own the writer: nobody else stores anything of it any more. Aborted where somebody else came first."""

    def release(self, key: WriterKey) -> None:
        """The writer is not open here any more."""

    def deadline_unix_us(self) -> int | None:
        """The latest time at which the engine may take an insert of what is owned now; None where none is ever late.

        Raises Unavailable while no lease holds.
        """

    async def run(self, lose: Lose) -> None:
        """Keep the lease, and give up what others open, until cancelled."""

    def close(self) -> None:
        """After the last insert: others need not wait for this process."""


class SoleOwnership:
    """There is no other process."""

    async def take(self, key: WriterKey) -> None:
        """Nobody else has it."""

    def release(self, key: WriterKey) -> None:
        """Nobody else wants it."""

    def deadline_unix_us(self) -> int | None:
        """An insert is never late."""
        return None

    async def run(self, lose: Lose) -> None:
        """There is nobody to agree with."""
        await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing is held."""


class SharedOwnership:
    """This process, named `opener`, among others at one server."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        opener: str,
        *,
        limits: LeaseLimits,
        kill: Callable[[str], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kill` ends all inserts of a process and waits for their end; False where it may not."""
        self._opener = opener
        self._limits = limits
        self._kill = kill
        self._monotonic = monotonic
        # The lease has a thread of its own: it must not wait for a thousand openings.
        self._lease = _Desk(connect(), "lease")
        self._openings = _Desk(connect(), "openings")
        self._owned: dict[WriterKey, int] = {}
        self._letting_go: dict[WriterKey, int] = {}
        self._abandoned: dict[WriterKey, int] = {}
        """Generations of openings that came to nothing. Perhaps nobody can read them, and still they are let go of."""
        self._deadline_unix_us = 0
        self._holds_until = 0.0
        self._renewals = 0
        self._renewed = asyncio.Event()
        self._gone: dict[str, int] = {}
        """Other processes whose lease is over and whose inserts were ended, with the number of that lease."""
        self._seen: dict[str, tuple[int, float]] = {}
        """Of other processes: the number of the newest renewal, and when it was first seen."""
        self._works: set[asyncio.Task[None]] = set()

    async def take(self, key: WriterKey) -> None:
        """Write the opening down, then wait for everybody who has the writer."""
        try:
            async with asyncio.timeout(self._limits.wait_seconds):
                await self._renewed.wait()
                if key not in self._owned:
                    await self._take(key)
        except TimeoutError:
            message = f"{key.shown} is still held by another process of this service: open it again"
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message) from None

    def release(self, key: WriterKey) -> None:
        """Let go of it with the next renewal."""
        if (generation := self._owned.pop(key, None)) is not None:
            self._letting_go[key] = generation

    def deadline_unix_us(self) -> int | None:
        """The lease's end, as long as it holds by this process's own clock too."""
        if self._monotonic() >= self._holds_until:
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, "this process has no lease to store rows: try again")
        return self._deadline_unix_us

    async def run(self, lose: Lose) -> None:
        """Renew the lease before it is over; while the server is away there is none."""
        while True:
            try:
                await self._renew(lose)
            except SihlaiError as error:
                log.warning("lease_not_renewed", reason=error.reason.value, problem=error.message)
            except Exception:  # it must go on: without a lease nothing is stored
                log.exception("lease_crashed")
            await asyncio.sleep(self._limits.renew_seconds)

    def close(self) -> None:
        """Nothing more is stored under the lease, so nobody has to wait for its end."""
        self._openings.close()
        try:
            self._lease.connection.insert("leases", self._lease_row(0, released=True))
        except SihlaiError as error:
            log.info("lease_not_released", reason=error.reason.value)
        self._lease.close()

    async def _renew(self, lose: Lose) -> None:
        asked_at = self._monotonic()
        ((now,),) = [row.values() for row in await self._lease.read(NOW)]
        deadline = now + round(self._limits.seconds * 1e6)
        self._renewals += 1
        await self._lease.insert("leases", self._lease_row(deadline, released=False))
        await self._give_up(lose)
        # From here on it counts. By our own clock it began when the engine was asked for the time.
        self._deadline_unix_us = deadline
        self._holds_until = asked_at + self._limits.seconds
        self._renewed.set()
        if self._letting_go:
            released, self._letting_go = self._letting_go, {}
            await self._let_go(released)

    async def _give_up(self, lose: Lose) -> None:
        """Give up what others have opened since."""
        job_uids = sorted({key.job_uid for key in self._owned})
        for start in range(0, len(job_uids), JOBS_A_QUERY_MAX):
            part = job_uids[start : start + JOBS_A_QUERY_MAX]
            for row in await self._lease.read(OPENED_BY_OTHERS, job_uids=part, opener=self._opener):
                key = _key(row)
                if row["generation"] > self._owned.get(key, row["generation"]):
                    del self._owned[key]
                    work = asyncio.create_task(self._let_go_when_quiet(key, row["generation"], lose(key)))
                    self._works.add(work)
                    work.add_done_callback(self._works.discard)

    async def _let_go_when_quiet(self, key: WriterKey, generation: int, quiet: Awaitable[None]) -> None:
        await quiet
        log.info("writer_given_up", writer=key.shown)
        await self._let_go({key: generation})

    async def _let_go(self, released: Mapping[WriterKey, int]) -> None:
        """Write down that these writers are not held; where that fails, with the next renewal."""
        try:
            await self._openings.insert("openings", _openings(self._opener, released, let_go=True))
        except SihlaiError as error:
            log.info("not_let_go", writers=len(released), reason=error.reason.value)
            self._letting_go = {**released, **self._letting_go}

    async def _take(self, key: WriterKey) -> None:
        known = [max(row["opened"], row["gone"]) for row in await self._openers(key)]
        # Never one that was abandoned: to let go of that one would be to let go of this one.
        mine = 1 + max([*known, self._abandoned.get(key, 0)])
        try:
            await self._openings.insert("openings", _openings(self._opener, {key: mine}, let_go=False))
            while await self._is_held(key, mine):  # noqa: ASYNC110  # another process decides it
                await asyncio.sleep(self._limits.poll_seconds)
        except BaseException:
            # Whoever comes next must not wait for an opening that came to nothing.
            self._letting_go[key] = self._abandoned[key] = mine
            raise
        self._owned[key] = mine
        self._abandoned.pop(key, None)  # from here on it can be read that there was a later one

    async def _is_held(self, key: WriterKey, mine: int) -> bool:
        """Whether another process may still store something of the writer; Aborted where one opened it after us."""
        others = []
        for row in await self._openers(key):
            if row["opener"] == self._opener:
                continue
            if (row["opened"], row["opener"]) > (mine, self._opener) and row["gone"] < row["opened"]:
                message = f"{key.shown} was opened by another process: open it again later"
                raise Aborted(Reason.WRITER_TAKEN, message)
            if row["opened"] > row["gone"]:
                others.append(row["opener"])
        if not others:
            return False
        leases = {row["opener"]: row for row in await self._openings.read(LEASES, openers=others)}
        # Each is looked at: what has run out is killed now, while the others are waited for.
        return any([await self._is_alive(opener, leases.get(opener)) for opener in others])

    async def _is_alive(self, opener: str, lease: Mapping[str, Any] | None) -> bool:
        """Whether the engine may still take an insert of this process."""
        if lease is None or lease["is_released"]:
            # Without a lease it has stored nothing, and with its first it will see who opened its writers since.
            return False
        if self._gone.get(opener) == lease["renewals"]:
            return False
        if lease["now"] <= lease["deadline"] and not self._is_silent(opener, lease["renewals"]):
            return True
        killed = await asyncio.to_thread(self._kill, opener)
        if not killed and lease["now"] <= lease["deadline"] + round(self._limits.settle_seconds * 1e6):
            return True
        log.info("opener_gone", opener=opener, killed=killed)
        self._gone[opener] = lease["renewals"]
        return False

    def _is_silent(self, opener: str, number: int) -> bool:
        """Whether it has not renewed its lease for as long as one lasts: then the engine's clock was set back."""
        seen, at = self._seen.get(opener, (0, 0.0))
        if number != seen:
            self._seen[opener] = number, at = number, self._monotonic()
        return self._monotonic() - at > self._limits.seconds + self._limits.settle_seconds

    async def _openers(self, key: WriterKey) -> list[dict[str, Any]]:
        parameters = {"job_uid": key.job_uid, "attempt": key.attempt, "rank": key.rank, "kind": key.kind.value}
        return await self._openings.read(OPENERS, **parameters)

    def _lease_row(self, deadline_unix_us: int, *, released: bool) -> pa.Table:
        return pa.table(
            {
                "opener": [self._opener],
                "number": pa.array([self._renewals], pa.uint64()),
                "deadline_unix_us": [deadline_unix_us],
                "released": [released],
            }
        )


class _Desk:
    """A connection with a thread of its own."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def read(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        rows: list[dict[str, Any]] = (
            await loop.run_in_executor(self._thread, self.connection.read, sql, parameters)
        ).to_pylist()
        return rows

    async def insert(self, table: str, rows: pa.Table) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self.connection.insert, table, rows)

    def close(self) -> None:
        self._thread.shutdown()
        self.connection.close()


def _openings(opener: str, generations: Mapping[WriterKey, int], *, let_go: bool) -> pa.Table:
    keys = list(generations)
    return pa.table(
        {
            "job_uid": [key.job_uid for key in keys],
            "attempt": pa.array([key.attempt for key in keys], pa.uint16()),
            "rank": pa.array([key.rank for key in keys], pa.uint16()),
            "kind": [key.kind.value for key in keys],
            "opener": [opener] * len(keys),
            "generation": pa.array(generations.values(), pa.uint64()),
            "let_go": [let_go] * len(keys),
        }
    )


def _key(row: Mapping[str, Any]) -> WriterKey:
    return WriterKey(job_uid=row["job_uid"], attempt=row["attempt"], rank=row["rank"], kind=WriterKind(row["kind"]))
