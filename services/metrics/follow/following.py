"""What following lines and following points have in common: history, then live rows, then the end.

A stream is in the feed of those who want the same before it reads storage, so that no row falls between the two. It
goes on live from where the feed was at the moment of the look at storage: that is known by the cursor. Whenever the two
do not join (rows that the feed let go, or has not seen), storage is read again. A place never goes back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable
from typing import Any, Generic, TypeAlias

from services.chassis.rpc import server_stopping
from services.metrics.cursor import Places, decode_cursor, encode_cursor
from services.metrics.follow.ending import Verdict
from services.metrics.follow.feed import Feed, Follower
from services.metrics.follow.hub import Hub
from services.metrics.follow.room import Room
from services.metrics.follow.source import AnyLook, Source
from services.metrics.follow.topic import Topic
from services.metrics.job import JobFacts
from services.metrics.writer_key import WriterKind

Begin: TypeAlias = Callable[[], Awaitable[Places]]
"""Finds out where a stream begins."""


class Stored(Generic[AnyLook]):
    """How far one stream is in storage, and what it was told beside rows."""

    def __init__(self, source: Source[AnyLook], places: Places) -> None:
        self.cursor = encode_cursor(source.job_uid, source.kind, places)
        self.named: frozenset[int] = frozenset()
        self._source = source
        self._places = dict(places)

    @property
    def places(self) -> Places:
        """Where it is with each writer."""
        return self._places

    def go_on_from(self, cursor: str) -> None:
        """Rows up to here came another way."""
        self.cursor = cursor
        self._places = decode_cursor(cursor, job_uid=self._source.job_uid, kind=self._source.kind)

    async def rows(self, room: Room) -> AsyncIterator[bytes]:
        """Messages of everything that is stored now and was not passed yet, attempt after attempt.

        Where a filter takes nothing for long, heartbeats say how far the stream is: a new call goes on from there.
        """
        source = self._source
        look = await source.look()
        for piece in await source.greeting(look, self.named, bytes_max=room.message_bytes):
            yield source.rows(piece.key, piece.body, self.cursor)
            self.named = self.named | piece.named if self.named else piece.named
        for writer, upto in sorted(look.places.items()):
            while (after := self._places.get(writer, 0)) < upto:
                page = await source.page(look, writer, after=after, size=room.page_size)
                for piece in page.pieces:
                    self._pass(piece.places)
                    yield source.rows(piece.key, piece.body, self.cursor)
                if self._places.get(writer, 0) < page.end:
                    self._pass({writer: page.end})
                    if page.end < upto:
                        yield source.heartbeat(self.cursor)

    def _pass(self, places: Places) -> None:
        self._places |= places
        self.cursor = encode_cursor(self._source.job_uid, self._source.kind, self._places)


class Following:
    """Everything that a stream needs."""

    def __init__(self, hub: Hub, *, heartbeat_seconds: float, monotonic: Callable[[], float]) -> None:
        self._hub = hub
        self._heartbeat_seconds = heartbeat_seconds
        self._monotonic = monotonic

    async def read(self, source: Source[Any], begin: Begin) -> AsyncGenerator[bytes, None]:
        """Messages of what is stored, then `caught_up`."""
        with self._hub.room.stream():
            stored = Stored(source, await begin())
            async for response in stored.rows(self._hub.room):
                self._require_running()
                yield response
            yield source.caught_up(stored.cursor)

    async def follow(
        self,
        job: JobFacts,
        kind: WriterKind,
        wanted: Hashable,
        make_source: Callable[[], Source[Any]],
        begin: Begin,
    ) -> AsyncGenerator[bytes, None]:
        """Messages of what is stored, `caught_up`, then live rows until `ended`.

        Streams with an equal `wanted` share the source of the first of them.
        """
        with (
            self._hub.room.stream(),
            self._hub.follow(job, kind, wanted, make_source) as (topic, feed, follower),
        ):
            stored = Stored(feed.source, await begin())
            async for response in self._stored(stored, feed, follower):
                yield response
            yield feed.source.caught_up(stored.cursor)
            async for response in self._live(stored, topic, feed, follower):
                yield response
            async for response in self._stored(stored, feed, follower):
                yield response
            verdict = topic.verdict or Verdict(complete=False)
            yield feed.source.ended(stored.cursor, state=topic.job.state, complete=verdict.complete)

    async def _live(self, stored: Stored[Any], topic: Topic, feed: Feed, follower: Follower) -> AsyncIterator[bytes]:
        """Until the job's rows have ended; then `stored` says how far the stream is."""
        while True:
            self._require_running()
            topic.require_whole()
            if follower.joined and (feed.lost(follower) or topic.verdict is not None):
                follower.joined = False
                stored.go_on_from(follower.cursor)
                if not feed.lost(follower):
                    stored.named = feed.named(follower)
            if topic.verdict is not None:
                return
            if follower.joined:
                if response := feed.take(follower):
                    follower.sent_at = self._monotonic()
                    yield response
                    continue
            elif (joining := feed.join(follower, stored.cursor, stored.named)) is not None:
                stored.named = joining.named
                for piece in joining.pieces:
                    yield feed.source.rows(piece.key, piece.body, stored.cursor)
                continue
            elif feed.is_past(stored.places):
                async for response in self._stored(stored, feed, follower):
                    yield response
                continue
            if self._monotonic() - follower.sent_at >= self._heartbeat_seconds:
                follower.sent_at = self._monotonic()
                yield feed.source.heartbeat(follower.cursor)
            await feed.wait(follower)

    async def _stored(self, stored: Stored[Any], feed: Feed, follower: Follower) -> AsyncIterator[bytes]:
        feed.looks(follower)
        async for response in stored.rows(self._hub.room):
            self._require_running()
            follower.sent_at = self._monotonic()
            yield response
        follower.cursor = stored.cursor

    def _require_running(self) -> None:
        if self._hub.stopping:
            raise server_stopping()
