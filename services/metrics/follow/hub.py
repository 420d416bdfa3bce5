"""The hub: live rows that have just been stored go to who follows their job in this process.

Nobody is shown a row that is not stored: only the inserter publishes, after the insert has returned. Rows that other
replicas store will come in here too, from the bus; this version runs as one replica.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from services.metrics.follow.ending import Endings
from services.metrics.follow.feed import Feed, Follower
from services.metrics.follow.room import FeedLimits, Room
from services.metrics.follow.source import Source
from services.metrics.follow.topic import FollowLimits, Topic
from services.metrics.job import JobFacts
from services.metrics.jobs import Jobs
from services.metrics.rows import Message
from services.metrics.writer_key import WriterKey, WriterKind

TICKS_PER_HEARTBEAT = 4


class Hub:
    """Who follows what. `run` must run beside it."""

    def __init__(
        self,
        jobs: Jobs,
        endings: Endings,
        *,
        limits: FollowLimits,
        feed_limits: FeedLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._endings = endings
        self._limits = limits
        self._monotonic = monotonic
        self._topics: dict[tuple[str, WriterKind], Topic] = {}
        self.room = Room(feed_limits)
        self.stopping = False
        """The server stops: followers end as soon as they see this."""

    @contextmanager
    def follow(
        self, job: JobFacts, kind: WriterKind, wanted: Hashable, make_source: Callable[[], Source[Any]]
    ) -> Iterator[tuple[Topic, Feed, Follower]]:
        """Follow a job's rows. Follow first and read storage then: what is stored in between comes twice, not never."""
        key = (job.uid, kind)
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(
                job,
                kind,
                jobs=self._jobs,
                endings=self._endings,
                room=self.room,
                limits=self._limits,
                monotonic=self._monotonic,
            )
        try:
            with topic.follow(wanted, make_source) as (feed, follower):
                yield topic, feed, follower
        finally:
            if not topic.is_followed and self._topics.get(key) is topic:
                del self._topics[key]
                topic.close()

    def is_watched(self, key: WriterKey) -> bool:
        """Whether anybody follows rows of this kind of this job."""
        return (key.job_uid, key.kind) in self._topics

    def publish(self, messages: Sequence[Message]) -> None:
        """Rows that were stored by one insert."""
        by_topic: dict[Topic, list[Message]] = {}
        for message in messages:
            topic = self._topics.get((message.key.job_uid, message.key.kind))
            if topic is not None:
                by_topic.setdefault(topic, []).append(message)
        for topic, its_messages in by_topic.items():
            topic.publish(its_messages)

    def writer_finished(self, key: WriterKey) -> None:
        """The end of a writer was recorded."""
        topic = self._topics.get((key.job_uid, key.kind))
        if topic is not None:
            topic.writer_finished()

    async def run(self, stopping: asyncio.Event) -> None:
        """Wake followers that have been silent for long, and all when the server stops."""
        while not stopping.is_set():
            try:
                async with asyncio.timeout(self._limits.heartbeat_seconds / TICKS_PER_HEARTBEAT):
                    await stopping.wait()
            except TimeoutError:
                for topic in self._topics.values():
                    topic.wake_silent()
        self.stopping = True
        for topic in self._topics.values():
            topic.wake()
