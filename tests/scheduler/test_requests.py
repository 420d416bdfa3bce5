"""A request takes effect once or not at all, and its answer is kept for some hours, on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from services.chassis.errors import AlreadyExists, NotFound, Reason


def test_same_request_gets_its_first_answer_and_has_one_effect(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        first = await stores.submit("digits", request_id="r1", digest=b"body")
        assert await stores.submit("digits", request_id="r1", digest=b"body") == first
        assert await stores.count("jobs") == 1

    with_stores(test)


def test_same_request_at_once_has_one_effect(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uids = await asyncio.gather(
            *(stores.submit("digits", request_id=f"r{i % 5}", digest=b"body") for i in range(40))
        )
        assert len(set(uids)) == 5
        assert await stores.count("jobs") == 5

    with_stores(test)


def test_request_id_for_another_body_is_refused(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", request_id="r1", digest=b"body")
        with pytest.raises(AlreadyExists) as refused:
            await stores.submit("digits", request_id="r1", digest=b"other")
        assert refused.value.reason is Reason.REQUEST_ID_REUSED

    with_stores(test)


def test_refused_request_leaves_nothing_and_takes_nothing_with_it(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        results = await asyncio.gather(
            stores.submit("digits", "same"),
            stores.submit("digits", "same"),
            stores.submit("nowhere", "lost", request_id="r1", digest=b"body"),
            stores.submit("digits", "other"),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [str, AlreadyExists, NotFound, str]
        assert (await stores.count("jobs"), await stores.count("request_ids")) == (2, 0)
        assert await stores.facts() == ["submitted", "submitted"]

    with_stores(test)


def test_request_id_is_forgotten_after_its_hours(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        first = await stores.submit("digits", request_id="r1", digest=b"body")
        stores.clock.pass_seconds(3_500)
        await stores.upkeep.forget()
        assert await stores.submit("digits", request_id="r1", digest=b"body") == first
        stores.clock.pass_seconds(200)
        await stores.upkeep.forget()
        assert await stores.submit("digits", request_id="r1", digest=b"body") != first

    with_stores(test)


def test_many_old_request_ids_are_forgotten_in_pieces(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        row = "INSERT INTO request_ids (request_id, digest, answer, create_time_us) VALUES (:id, :bytes, :bytes, 0)"
        rows = [{"id": f"r{number}", "bytes": b""} for number in range(12_000)]
        await stores.database.write(lambda tx: tx.connection.execute(text(row), rows).rowcount)
        await stores.upkeep.forget()
        assert await stores.count("request_ids") == 0

    with_stores(test)
