"""Lists of jobs, and of what changed since a revision, on both databases."""

from __future__ import annotations

import asyncio
import threading

import pytest
from google.protobuf.struct_pb2 import ListValue, Value
from google.protobuf.wrappers_pb2 import StringValue

from services.chassis.aside import AT_ONCE_MAX, aside, in_turns
from services.scheduler.domain.job import JobState
from services.scheduler.domain.view import JobFilter
from services.scheduler.wire.page import page_of


def test_jobs_are_listed_newest_first_by_state_label_and_time(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.create_project("letters")
        for number in range(5):
            labels = {"parity": "odd" if number % 2 else "even"}
            await stores.submit("digits", f"job-{number}", labels=labels)
            stores.clock.pass_seconds(1)
        await stores.submit("letters", "other")
        await stores.stop((await stores.jobs.batch([("digits", "job-3")], []))[0].job.uid)

        async def ids(before=None, **conditions):
            page = await stores.jobs.page(JobFilter(**conditions), before=before, limit=2)
            return [view.job.job_id for view in page], page[-1].job.sequence if page else None

        assert (await ids())[0] == ["other", "job-4"]
        first, last = await ids(project_id="digits")
        assert first == ["job-4", "job-3"]
        assert (await ids(last, project_id="digits"))[0] == ["job-2", "job-1"]
        assert (await ids(states=frozenset({JobState.STOPPED})))[0] == ["job-3"]
        assert (await ids(labels={"parity": "odd"}))[0] == ["job-3", "job-1"]
        start_us = stores.clock.now_us - 5_000_000
        assert (await ids(created_after_us=start_us + 1_000_000, created_before_us=start_us + 3_000_000))[0] == [
            "job-2",
            "job-1",
        ]

    with_stores(test)


def test_revisions_follow_the_order_of_the_changes(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uids = await asyncio.gather(*(stores.submit("digits") for _ in range(20)))
        await stores.stop(uids[3])
        seen, after = [], 0
        while True:
            changes = await stores.jobs.changes(project_uid=None, after=after, limit=7)
            seen += [item.job for item in changes.items]
            after = changes.revision
            if changes.complete:
                break
        revisions = [job.revision for job in seen]
        assert revisions == sorted(set(revisions))
        assert seen[-1].uid == uids[3]
        assert len(seen) == 20
        assert after == await stores.jobs.revision()

    with_stores(test)


def test_cursor_is_too_old_once_deletions_after_it_are_forgotten(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        seen = await stores.jobs.revision()
        await stores.stop(uid)
        await stores.delete_project("digits")
        stores.clock.pass_seconds(7_200)
        await stores.upkeep.forget()
        assert (await stores.jobs.changes(project_uid=None, after=seen, limit=10)).oldest > seen

    with_stores(test)


def test_a_short_page_waits_for_no_turn_of_a_long_list():
    """The event loop makes it: whatever it waited for, everybody would."""
    entered, goes_on = threading.Event(), threading.Event()

    def hold(_items) -> None:
        entered.set()
        goes_on.wait(60)

    long = threading.Thread(target=lambda: list(in_turns([1], hold)))
    long.start()
    try:
        assert entered.wait(60)
        made = threading.Thread(target=lambda: asyncio.run(aside(range(AT_ONCE_MAX), len)), daemon=True)
        made.start()
        made.join(20)
        assert not made.is_alive()
    finally:
        goes_on.set()
        long.join()


@pytest.mark.parametrize(("number", "beside"), [(AT_ONCE_MAX, False), (AT_ONCE_MAX + 1, True)])
def test_a_long_page_is_made_beside_the_event_loop(number: int, beside: bool):
    """A thousand jobs take a tenth of a second, in which nobody could stop one."""
    threads = set()

    def to_proto(item: int) -> StringValue:
        threads.add(threading.get_ident())
        return StringValue(value=str(item))

    def answer(items, token: str) -> ListValue:
        return ListValue(values=[Value(string_value=item.value) for item in items])

    page = asyncio.run(page_of(range(number), to_proto, limit=number, place=str, scope="", answer=answer))
    assert [item.string_value for item in ListValue.FromString(page).values] == [str(item) for item in range(number)]
    assert (threads == {threading.get_ident()}) is not beside
