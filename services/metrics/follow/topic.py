"""A topic: one job's rows of one kind, and all who follow them in this process.

Followers that want the same share a feed; all of them share what is known of the job, and the look whether its rows
have ended. A topic lives as long as somebody follows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from services.chassis.errors import NotFound, Reason, SihlaiError
from services.chassis.log import get_logger
from services.metrics.follow.ending import Endings, Patience, Verdict
from services.metrics.follow.feed import Feed, Follower
from services.metrics.follow.room import Room
from services.metrics.follow.source import Source
from services.metrics.job import JobFacts
from services.metrics.jobs import Interest, Jobs
from services.metrics.rows import Message
from services.metrics.writer_key import WriterKind

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class FollowLimits:
    """Pauses of followers."""

    heartbeat_seconds: float
    ended_check_seconds: float


class Topic:
    """What followers of a job's rows share. Open it, and close it after the last follower."""

    def __init__(
        self,
        job: JobFacts,
        kind: WriterKind,
        *,
        jobs: Jobs,
        endings: Endings,
        room: Room,
        limits: FollowLimits,
        monotonic: Callable[[], float],
    ) -> None:
        self.verdict: Verdict | None = None
        """The job has ended, and its rows have."""
        self._kind = kind
        self._endings = endings
        self._room = room
        self._limits = limits
        self._monotonic = monotonic
        self._stack = ExitStack()
        self._patience: Patience = endings.patience(job)
        self._interest: Interest = self._stack.enter_context(jobs.follow(job, self._job_changed))
        self._feeds: dict[Hashable, Feed] = {}
        self._runs: dict[Feed, asyncio.Task[None]] = {}
        self._ending: asyncio.Task[None] | None = None
        self._look_again = asyncio.Event()
        self._error: BaseException | None = None
        self._job_changed()

    @property
    def job(self) -> JobFacts:
        """The newest that is known."""
        return self._interest.job

    @property
    def is_followed(self) -> bool:
        """Whether anybody is here."""
        return bool(self._feeds)

    @contextmanager
    def follow(self, wanted: Hashable, make_source: Callable[[], Source[Any]]) -> Iterator[tuple[Feed, Follower]]:
        """Be one of those who want `wanted`. The first of them gives the source."""
        feed = self._feeds.get(wanted)
        if feed is None:
            feed = self._feeds[wanted] = Feed(make_source(), self._room, monotonic=self._monotonic)
            run = self._runs[feed] = asyncio.create_task(feed.run())
            run.add_done_callback(self._failed)
        follower = feed.enter()
        try:
            yield feed, follower
        finally:
            feed.leave(follower)
            if not feed.followers:
                del self._feeds[wanted]
                self._runs.pop(feed).cancel()

    def require_whole(self) -> None:
        """Raise where the job was deleted, or where a feed or the look for the end has failed: nobody waits for it."""
        if self._interest.deleted:
            raise NotFound(Reason.JOB_NOT_FOUND, "the job was deleted", {"name": self.job.name})
        if self._error is not None:
            raise self._error

    def publish(self, messages: Sequence[Message]) -> None:
        """Rows that were stored by one insert."""
        for feed in self._feeds.values():
            feed.publish(messages)

    def writer_finished(self) -> None:
        """Perhaps that was the last one."""
        self._look_again.set()

    def wake(self) -> None:
        """Let every follower look."""
        for feed in self._feeds.values():
            feed.wake()

    def wake_silent(self) -> None:
        """Let followers look that have sent nothing for long: they send a heartbeat."""
        oldest = self._monotonic() - self._limits.heartbeat_seconds
        for feed in self._feeds.values():
            for follower in feed.followers:
                if follower.sent_at <= oldest:
                    follower.wake()

    def close(self) -> None:
        """Nobody is here any more."""
        if self._ending is not None:
            self._ending.cancel()
        self._stack.close()

    def _job_changed(self) -> None:
        job = self.job
        self._patience.hear(job)
        self._look_again.set()
        if not job.ended:
            # A stopped job may be resumed.
            self.verdict = None
            if self._ending is not None:
                self._ending.cancel()
                self._ending = None
        elif self._ending is None:
            self._ending = asyncio.create_task(self._watch_ending())
            self._ending.add_done_callback(self._failed)
        self.wake()

    async def _watch_ending(self) -> None:
        while self.verdict is None:
            self._look_again.clear()
            try:
                self.verdict = await self._endings.verdict(self.job, self._kind, self._patience)
            except SihlaiError as error:
                log.warning("ending_not_read", job=self.job.name, reason=error.reason.value)
            if self.verdict is None:
                try:
                    async with asyncio.timeout(self._limits.ended_check_seconds):
                        await self._look_again.wait()
                except TimeoutError:
                    continue
        self.wake()

    def _failed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self.wake()
