"""The database's writer and readers: what delays nobody, who is served first, and what it refuses itself."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from services.chassis.errors import ResourceExhausted
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.store.database import Database
from services.scheduler.store.gathering import DatabaseLimits
from services.scheduler.wire.event import fact_to_event
from tests.scheduler.recording import record
from tests.scheduler.silence import at_work


def test_slow_lists_delay_nothing_that_runners_ask(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits")
        await stores.report("one")
        goes_on = threading.Event()
        lists = [asyncio.ensure_future(stores.database.list(lambda _connection: goes_on.wait(60))) for _ in range(10)]
        assert (await stores.runners.standing("one")).attempt is not None
        assert not any(each.done() for each in lists)
        goes_on.set()
        await asyncio.gather(*lists)

    with_stores(test)


def test_full_queue_of_the_writer_is_refused_with_a_time_to_come_back(sqlite_url):
    limits, dispatcher = DatabaseLimits(queue_max=2), Dispatcher(overtakes_max=0)
    database = Database(
        sqlite_url, encode_fact=fact_to_event, new_id=lambda: "id", dispatcher=dispatcher, limits=limits
    )

    async def test():
        waiting = [asyncio.ensure_future(database.write(lambda tx: tx.now_us)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted):
            await database.write(lambda tx: tx.now_us)
        database.start()
        assert all(await asyncio.gather(*waiting))

    try:
        asyncio.run(test())
    finally:
        database.close()


def test_sqlites_log_begins_anew_beside_lists_that_overlap_without_end(sqlite_url, stores_class):
    """It is not begun anew while somebody reads in it; without lists that wait there is no such moment."""
    limits = DatabaseLimits(log_bytes_max=4 * 1024 * 1024)
    stores = stores_class(sqlite_url, limits=limits)
    path, ends = Path(f"{stores.database.writing.url.database}-wal"), threading.Event()

    def read_slowly(connection) -> int:
        count = connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()
        ends.wait(0.05)
        return int(count)

    async def list_for_ever(offset: float) -> None:
        await asyncio.sleep(offset)
        while True:
            await stores.database.list(read_slowly)

    async def test(_stores) -> None:
        await stores.create_project("digits")
        lists = [asyncio.create_task(list_for_ever(0.025 * number)) for number in range(2)]
        largest = 0
        for number in range(400):
            await asyncio.gather(*(stores.submit("digits", f"job-{number}-{each}") for each in range(4)))
            largest = max(largest, path.stat().st_size)
        for each in lists:
            each.cancel()
        ends.set()
        await asyncio.gather(*lists, return_exceptions=True)
        assert largest > limits.log_bytes_max, "it was large once"
        assert largest < 4 * limits.log_bytes_max, "it is more than twice that without"
        assert await stores.count("jobs") == 1_600

    stores.run(test)


def test_somebody_else_who_reads_on_in_sqlites_file_holds_up_neither_writer_nor_lists(sqlite_url, stores_class):
    """A backup, a shell: the log grows until it is done."""
    limits = DatabaseLimits(log_bytes_max=4 * 1024 * 1024)
    stores = stores_class(sqlite_url, limits=limits)
    path = Path(f"{stores.database.writing.url.database}-wal")

    async def test(_stores) -> None:
        groups = record(stores.database.writing)
        await stores.create_project("digits")
        with contextlib.closing(sqlite3.connect(stores.database.writing.url.database)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM jobs").fetchone()
            for number in range(300):
                await asyncio.gather(*(stores.submit("digits", f"job-{number}-{each}") for each in range(4)))
            for number in range(50):
                await stores.submit("digits", f"late-{number}")
                await stores.database.list(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
            assert path.stat().st_size > limits.log_bytes_max
            tries = [each for group in groups for each in group if "wal_checkpoint" in each.statement]
            assert 1 <= len(tries) <= 2, "not with each transaction"

    stores.run(test)


def test_what_keeps_runners_alive_goes_before_all_that_waits(with_stores):
    async def test(stores):
        stalls, goes_on, order = threading.Event(), threading.Event(), []

        def stall(_transaction) -> None:
            stalls.set()
            goes_on.wait(60)

        def note(what: str):
            return lambda _transaction: order.append(what)

        waiting = [asyncio.ensure_future(stores.database.write(stall))]
        await asyncio.to_thread(stalls.wait, 60)
        waiting += [asyncio.ensure_future(stores.database.write(note("submit"))) for _ in range(600)]
        waiting += [asyncio.ensure_future(stores.database.write(note("renew"), control=True)) for _ in range(300)]
        await asyncio.sleep(0)
        goes_on.set()
        await asyncio.gather(*waiting)
        assert order[:256] == ["renew"] * 256
        assert order[256:272] == ["submit"] * 16, "what waits otherwise is never left out altogether"
        assert order.index("submit", 272) == 272 + 44

    with_stores(test)


@pytest.mark.parametrize("same", ["project_uid", "runner_id"])
def test_database_itself_refuses_a_second_active_attempt(with_stores, same):
    async def test(stores):
        await at_work(stores, 2)
        double = text(f"UPDATE attempts SET {same} = (SELECT min({same}) FROM attempts)")
        with pytest.raises(IntegrityError):
            await stores.database.write(lambda transaction: transaction.connection.execute(double).rowcount)

    with_stores(test)


@pytest.mark.parametrize("same", ["job_id", "sequence"])
def test_database_itself_refuses_two_jobs_of_one_name_or_one_place(with_stores, same):
    async def test(stores):
        await stores.create_project("digits")
        for _ in range(2):
            await stores.submit("digits")
        double = text(f"UPDATE jobs SET {same} = (SELECT min({same}) FROM jobs)")
        with pytest.raises(IntegrityError):
            await stores.database.write(lambda transaction: transaction.connection.execute(double).rowcount)

    with_stores(test)
