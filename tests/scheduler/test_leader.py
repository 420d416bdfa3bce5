"""Who leads on PostgreSQL, where the former leader hangs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.chassis.errors import Unavailable
from services.scheduler.store.leader import Leader
from services.scheduler.store.together import Step, words


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
