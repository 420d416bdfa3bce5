"""Who leads on PostgreSQL: where the former leader hangs, and where a start takes long."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from services.chassis.errors import Unavailable
from services.scheduler.loop.leading import Leading, stand_by
from services.scheduler.store.leader import Leader, LeaderLimits, checked_url
from services.scheduler.store.together import Step, words

SILENCE_SECONDS = 2.0
"""A busy machine may let a leader that looks every tenth of a second be silent for half of it."""


def test_a_leader_that_hangs_in_the_middle_of_what_it_says_holds_up_no_other(postgresql_url, stores_class):
    """The server waits for the rest without end: for it the transaction is busy, not idle."""
    former, other = stores_class(postgresql_url), None
    entered, goes_on = threading.Event(), threading.Event()

    def say(cursor) -> None:
        cursor.execute("SELECT 1")
        entered.set()
        goes_on.wait(60)

    def hang(transaction) -> None:
        transaction.together([Step(sql="", say=say, hear=lambda _cursor: None), words("SELECT 2")])

    async def test(_stores) -> None:
        nonlocal other
        assert former.database.leader.take()
        former.database.leader.begin()
        writing = asyncio.ensure_future(former.database.write(hang))
        await asyncio.to_thread(entered.wait, 60)
        former.database.leader.close()  # the server has ended the connection of its lock
        other = Leader(former.database.writing.url)
        assert other.take()
        other.begin()
        goes_on.set()
        with pytest.raises(Unavailable):
            await writing

    try:
        former.run(test)
    finally:
        goes_on.set()
        if other is not None:
            other.close()


def test_a_start_that_takes_longer_than_a_leader_may_be_silent_keeps_the_lead(serve, postgresql_url):
    """Here the migration waits for a lock; elsewhere it has much to do."""
    standby = Leader(checked_url(postgresql_url), LeaderLimits(silence_seconds=SILENCE_SECONDS))
    engine = create_engine(postgresql_url)

    async def start() -> None:
        limits = {"leader_silence_seconds": SILENCE_SECONDS, "leader_look_seconds": 0.1}
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE alembic_version"))
            serving = asyncio.create_task(_serve_a_moment(serve, {"database_url": postgresql_url, **limits}))
            await asyncio.sleep(1.5 * SILENCE_SECONDS)
            assert not serving.done(), "it waits for the lock"
            assert not standby.take()
        await serving

    try:
        asyncio.run(start())
    finally:
        standby.close()
        engine.dispose()


def test_a_leader_keeps_the_lead_while_all_shared_threads_hang(postgresql_url):
    limits = LeaderLimits(look_seconds=0.1, silence_seconds=SILENCE_SECONDS)
    leader, standby = (Leader(checked_url(postgresql_url), limits) for _ in range(2))
    goes_on = threading.Event()

    async def lead() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        hanging = [asyncio.ensure_future(asyncio.to_thread(goes_on.wait, 60)) for _ in range(4)]
        try:
            await asyncio.wait_for(stand_by(leader), 60)
            leader.begin()
            leading = asyncio.create_task(Leading(leader).run())
            await asyncio.wait({leading}, timeout=1.5 * SILENCE_SECONDS)
            assert not leading.done(), "it leads still"
            assert not standby.take()
            leading.cancel()
        finally:
            goes_on.set()
            await asyncio.gather(*hanging)

    try:
        asyncio.run(lead())
    finally:
        goes_on.set()
        leader.close()
        standby.close()


def until_unlocked(url: str) -> None:
    """Until the server has taken back the lock of who led."""
    held = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    ends_at = time.monotonic() + 60
    with engine.connect() as connection:
        while connection.execute(held).scalar_one():
            assert time.monotonic() < ends_at, "the lock is held still"
            time.sleep(0.05)  # what is waited for has no event
    engine.dispose()


async def _serve_a_moment(serve, settings) -> None:
    async with serve(**settings) as client:
        await client.create_project("digits")
        assert client.scheduler.database.leader.take(), "it leads still"


def test_a_lead_that_is_lost_before_it_begins_is_said_in_a_sentence(postgresql_url):
    leader = Leader(checked_url(postgresql_url), LeaderLimits(silence_seconds=1))
    try:
        assert leader.take()
        until_unlocked(postgresql_url)  # the server ends a lock's connection that is silent
        with pytest.raises(Unavailable, match="another scheduler has taken the lead"):
            leader.begin()
        with pytest.raises(Unavailable, match="another scheduler has taken the lead"):
            leader.look()
    finally:
        leader.close()
