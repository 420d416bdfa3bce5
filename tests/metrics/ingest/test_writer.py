"""A writer's state, and the inserter's rule on top of it: whatever happens, in any order, nothing stored has a hole."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import Internal, Reason, SihlaiError
from services.metrics.clickhouse.connection import Connection, unavailable
from services.metrics.clickhouse.engine import Engine, open_engine
from services.metrics.clickhouse.lane import Lane, LaneLimits
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.clickhouse.ownership import SoleOwnership
from services.metrics.clickhouse.store import Store
from services.metrics.ingest.inserter import BlockLimits, Entry, Inserter
from services.metrics.ingest.writer import TRANSITIONS, Event, State, Writer
from services.metrics.rows import LineRows, Lines, Message
from services.metrics.writer_key import WriterKey, WriterKind

LIMITS = BlockLimits(rows=1, rows_max=5, seconds=0, watched_seconds=0)
EXAMPLES = 12
TURNS = 80
POISON = Internal(Reason.INTERNAL, "ClickHouse does not take these rows")
TOKEN = WriteToken(
    project="p", job_uid="u", attempt=1, epoch=1, from_step=0, expires_at=datetime(2100, 1, 1, tzinfo=UTC)
)


class Told:
    """A stream that notes what it is told."""

    def __init__(self) -> None:
        self.bytes = 0

    def advanced(self, writer: Writer) -> None:
        pass

    def released(self, size_bytes: int) -> None:
        self.bytes -= size_bytes


@dataclass
class Faults:
    """What happens to inserts of lines: some fail, before or after they took effect; poison never goes in."""

    chance: random.Random
    share: float = 0.0
    poison: frozenset[tuple[str, int]] = frozenset()

    def insert(self, insert: Callable[[], None], rows: pa.Table) -> None:
        if self.poison & set(zip(rows["job_uid"].to_pylist(), rows["seq"].to_pylist(), strict=True)):
            raise POISON
        fails = self.chance.random() < self.share
        if not fails or self.chance.random() < 0.5:
            insert()
        if fails:
            raise unavailable()


@dataclass(frozen=True)
class FaultyConnection:
    """A real connection whose inserts of lines meet faults."""

    connection: Connection
    faults: Faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def insert(self, table: str, rows: pa.Table, *, deadline_unix_us: int | None = None) -> None:
        if table == "logs":
            self.faults.insert(lambda: self.connection.insert(table, rows), rows)
        else:
            self.connection.insert(table, rows)


@dataclass(frozen=True)
class FaultyEngine:
    """A real embedded engine whose connections meet faults."""

    engine: Engine
    faults: Faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def connect(self, **options: Any) -> FaultyConnection:
        return FaultyConnection(self.engine.connect(**options), self.faults)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyEngine]:
    folder = tmp_path_factory.mktemp("writer")
    engine = open_engine(f"chdb://{folder}", lock_seconds=20, query_seconds=20, insert_seconds=20)
    with contextlib.closing(engine.connect()) as connection:
        migrate(connection, read_migrations())
    yield FaultyEngine(engine, Faults(random.Random(0)))
    engine.close()


def line(job_uid: str, sequence: int) -> LineRows:
    lines = Lines(
        attempt=1,
        rank=0,
        numbers=[sequence],
        times_unix_us=[0],
        levels=[0],
        sources=["trainer"],
        streams=[0],
        texts=[f"{job_uid} {sequence}"],
        continued=[False],
    )
    return LineRows(sequence=sequence, lines=lines)


def opened(job_uid: str, told: Told, stored: int) -> Writer:
    key = WriterKey(job_uid=job_uid, attempt=1, rank=0, kind=WriterKind.LINES)
    writer = Writer(key, told, 1, TOKEN)
    writer.opened(stored_sequence=stored, next_line_number=stored + 1)
    return writer


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_what_is_stored_never_has_a_hole_but_for_poison(engine: FaultyEngine, seed: int) -> None:
    chance = random.Random(seed)
    uids = [f"{seed}-{number}" for number in range(chance.randint(1, 5))]
    engine.faults.chance, engine.faults.share = chance, chance.choice((0.0, 0.2, 0.6))
    engine.faults.poison = frozenset((chance.choice(uids), chance.randint(1, 12)) for _ in range(chance.randint(0, 3)))
    asyncio.run(never_a_hole(engine, chance, uids))


async def never_a_hole(engine: FaultyEngine, chance: random.Random, uids: Sequence[str]) -> None:
    store = Store(engine, lanes=LaneLimits(readers=dict.fromkeys(Lane, 1), wait_seconds=20))
    told, published = Told(), list[Message]()
    inserter = Inserter(
        store, SoleOwnership(), limits=LIMITS, is_watched=lambda key: False, publish=lambda ms: published.extend(ms)
    )
    running = asyncio.create_task(inserter.run())
    writers = {uid: opened(uid, told, 0) for uid in uids}
    acknowledged = dict.fromkeys(uids, 0)
    skipped: set[tuple[str, int]] = set()
    for _ in range(TURNS):
        uid = chance.choice(uids)
        writer = writers[uid]
        acknowledged[uid] = max(acknowledged[uid], writer.stored_sequence)
        if writer.state is State.WRITING and chance.random() < 0.05:
            writer.take()
        if writer.state is State.WRITING:
            inserter.put(Entry(writer.message(line(uid, writer.next_sequence)), writer, 10))
            told.bytes += 10
        else:
            await settled(inserter, writer)
            first = (await store.progress(writer.key)).sequence
            if writer.refusal is not None and writer.refusal.permanent and writer.refusal.sequence == first + 1:
                skipped.add((uid, first + 1))
                first += 1
            writers[uid] = opened(uid, told, first)
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
    while told.bytes:
        inserter.flush()
        await asyncio.sleep(0.001)
    running.cancel()
    assert skipped <= engine.faults.poison
    for uid, writer in writers.items():
        sql = "SELECT seq FROM logs WHERE job_uid = {job_uid:String} ORDER BY seq"
        found = (await store.read(sql, job_uid=uid))["seq"].to_pylist()
        last = max(found, default=0)
        assert found == [n for n in range(1, last + 1) if (uid, n) not in skipped], "one is missing, or stored twice"
        assert max(acknowledged[uid], writer.stored_sequence) <= max(last, *_skipped(skipped, uid))
        shown = [message.rows.sequence for message in published if message.key.job_uid == uid]
        assert shown == sorted(set(shown)), "followers see what is stored once, in order"
        assert set(shown) <= set(found)
    store.close()


def _skipped(skipped: set[tuple[str, int]], uid: str) -> Sequence[int]:
    return [0, *(sequence for of, sequence in skipped if of == uid)]


async def settled(inserter: Inserter, writer: Writer) -> None:
    """As an opening does: what of the earlier opening is being stored has ended."""
    writer.take()
    inserter.flush()
    await asyncio.wait_for(writer.quiet(), 60)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_no_state_but_opening_and_writing_is_ever_left(state: State, event: Event) -> None:
    assert ((state, event) in TRANSITIONS) <= (state in (State.OPENING, State.WRITING))


def test_a_message_that_is_not_the_next_enters_no_block_and_refuses_its_writer() -> None:
    async def out_of_order() -> None:
        writer = opened("a", Told(), 4)
        assert writer.enters_block(5)
        assert not writer.enters_block(7)
        assert writer.state is State.REFUSED
        assert not writer.enters_block(6)
        assert isinstance(writer.refusal.error, SihlaiError)  # type: ignore[union-attr]  # it was refused

    asyncio.run(out_of_order())
