"""A feed: live rows of a job that several followers want alike, serialised once, handed on as bytes.

Rows stand in frames. A follower has a position among them, and takes all that is new at once: one that is behind gets
the frames joined, so it costs less the further it is behind. Frames are kept until everyone has passed them, in a
bounded number of bytes; a follower whose frames are gone reads storage again.

Followers are woken in rounds. The pause between two rounds is as long as the last one took: with more followers than
the processor has time for, rounds become fewer and messages larger, and something else gets its turn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.metrics.cursor import Places, encode_cursor
from services.metrics.follow.room import Room
from services.metrics.follow.source import Look, Piece, PieceKey, Source
from services.metrics.rows import Message

log = get_logger(__name__)

FRAME_OVERHEAD_BYTES = 256
RETRY_SECONDS = 1.0
"""Pause before storage is looked at again that did not answer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """Rows of one piece. `cursor` is where a follower is after them."""

    key: PieceKey
    body: bytes
    cursor: str
    named: frozenset[int]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return len(self.body) + len(self.cursor) + FRAME_OVERHEAD_BYTES


NOTHING = Frame(key=(), body=b"", cursor="", named=frozenset())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Joined:
    """Frames as one message, made once for all that are at the same position. `response` is empty without rows."""

    response: bytes
    end: int
    cursor: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Joining:
    """What a stream must be told before it goes on live, and what it knows then."""

    pieces: Sequence[Piece]
    named: frozenset[int]


class Follower:
    """One stream: its position in the feed, and its wait."""

    __slots__ = ("awaited", "cursor", "joined", "position", "sent_at", "waiter")

    def __init__(self, *, position: int, sent_at: float) -> None:
        self.position = position
        self.cursor = ""
        """Of the last message, or of what was passed since without one."""
        self.sent_at = sent_at
        self.joined = False
        self.waiter: asyncio.Future[None] | None = None
        self.awaited = False
        """The round waits for it."""

    def wake(self) -> bool:
        """End the wait; False where there is none."""
        if self.waiter is None or self.waiter.done():
            return False
        self.waiter.set_result(None)
        return True


class Feed:
    """Live rows for all who want the same of a job. `run` must run beside it."""

    def __init__(self, source: Source[Any], room: Room, *, monotonic: Callable[[], float]) -> None:
        self.source = source
        self.followers: dict[Follower, None] = {}
        self._room = room
        self._monotonic = monotonic
        self._waiting: deque[Sequence[Message]] = deque()
        self._waiting_bytes = 0
        self._work = asyncio.Event()
        self._stale = True
        """Where live rows go on is not known: storage must be looked at."""
        self._missed = False
        """Live rows were let go while storage was looked at."""
        self._places: Places = {}
        self._frames: list[Frame] = []
        self._frames_bytes = 0
        self._first = 0
        """The position of the first frame."""
        self._first_cursor = self._head_cursor = ""
        self._at_head = 0
        """Followers whose position is the head."""
        self._joined: dict[tuple[int, int], Joined] = {}
        self._round_began: float | None = None
        self._awaited = 0
        self._pause: asyncio.TimerHandle | None = None
        self._news = False

    def publish(self, messages: Sequence[Message]) -> None:
        """Rows that were stored by one insert."""
        self._waiting.append(messages)
        self._waiting_bytes += sum(message.rows.size_bytes for message in messages)
        if self._waiting_bytes > self._room.limits.bytes_max:
            self._lose()
        self._hold()
        self._work.set()

    def enter(self) -> Follower:
        """A new follower. It must leave."""
        follower = Follower(position=self._head, sent_at=self._monotonic())
        self.followers[follower] = None
        self._at_head += 1
        return follower

    def leave(self, follower: Follower) -> None:
        """The follower is gone."""
        self._passed(follower)
        self._at_head -= follower.position == self._head
        del self.followers[follower]
        self._forget_passed()
        if not self.followers:
            self.close()

    def close(self) -> None:
        """Nobody follows any more."""
        if self._pause is not None:
            self._pause.cancel()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._drop()

    def looks(self, follower: Follower) -> None:
        """The follower is about to look at storage: frames up to now will be in what it finds."""
        self._move(follower, self._head)

    def join(self, follower: Follower, cursor: str, named: frozenset[int]) -> Joining | None:
        """Go on live after this cursor; None where no position of the feed is known by it."""
        position = None if self._stale else self._position_of(cursor)
        if position is None:
            return None
        follower.joined, follower.cursor = True, cursor
        self._move(follower, position)
        known = self.named(follower)
        unnamed = known - named
        pieces = self.source.naming(unnamed, bytes_max=self._room.message_bytes) if unnamed else ()
        return Joining(pieces=pieces, named=known)

    def named(self, follower: Follower) -> frozenset[int]:
        """What was named up to the position of a follower that has not `lost`; later names come with their frames."""
        later = {name for frame in self._frames[follower.position - self._first :] for name in frame.named}
        return self.source.named - later if later else self.source.named

    def is_past(self, places: Places) -> bool:
        """Whether rows after these places have gone by: they are in storage."""
        return not self._stale and any(place > places.get(writer, 0) for writer, place in self._places.items())

    def lost(self, follower: Follower) -> bool:
        """Whether frames that the follower had not taken are gone."""
        return follower.position < self._first

    def take(self, follower: Follower) -> bytes:
        """Everything new, as one message; empty where there is nothing. Only for a follower that has not `lost`."""
        if follower.position == self._head:
            return b""
        place = (follower.position, self._room.message_bytes)
        joined = self._joined.get(place)
        if joined is None:
            joined = self._joined[place] = self._join(*place)
        follower.cursor = joined.cursor
        self._move(follower, joined.end)
        return joined.response

    async def wait(self, follower: Follower) -> None:
        """Until there is something to look at."""
        if follower.joined and follower.position < self._head:
            if self._pause is None:
                return
            self._news = True
        follower.waiter = asyncio.get_running_loop().create_future()
        try:
            await follower.waiter
        finally:
            follower.waiter = None
            self._passed(follower)

    def wake(self) -> None:
        """Let every follower look."""
        for follower in self.followers:
            follower.wake()

    def give_up(self) -> None:
        """Let go of all rows: followers read storage."""
        self._lose()
        self._drop()

    def _drop(self) -> None:
        """Let go of all frames: followers that have not taken them read storage."""
        self._first = self._head
        self._frames.clear()
        self._joined.clear()
        self._frames_bytes = 0
        self._first_cursor = self._head_cursor
        self._hold()
        self.wake()

    async def run(self) -> None:
        """Make frames of what is published, until cancelled."""
        while True:
            if self._stale:
                await self._look()
            elif self._waiting:
                messages = self._waiting.popleft()
                self._waiting_bytes -= sum(message.rows.size_bytes for message in messages)
                await self._extend(messages)
            else:
                self._work.clear()
                try:
                    async with asyncio.timeout(self._room.limits.poll_seconds):
                        await self._work.wait()
                except TimeoutError:
                    await self._poll()

    @property
    def _head(self) -> int:
        """The position after the last frame."""
        return self._first + len(self._frames)

    async def _look(self) -> None:
        """Find out where live rows go on: rows that are published from now on follow on the look, or are in it."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._missed = False
        try:
            look = await self.source.look()
        except SihlaiError as error:
            log.warning("feed_not_begun", job_uid=self.source.job_uid, reason=error.reason.value)
            await asyncio.sleep(RETRY_SECONDS)
            return
        if self._missed:
            return
        self._begin(look)

    async def _poll(self) -> None:
        """Look for rows that another process has stored."""
        try:
            look = await self.source.look()
        except SihlaiError as error:
            log.warning("feed_not_read", job_uid=self.source.job_uid, reason=error.reason.value)
            return
        # What this process has stored comes as well: it may be in the look already.
        if not self._stale and not self._waiting and not (look.places.items() <= self._places.items()):
            self._begin(look)

    def _begin(self, look: Look) -> None:
        """Live rows go on after this look. Nobody has them all: those who were at the head lack what lies between."""
        self._stale = False
        self._places = dict(look.places)
        self.source.begin_live(look)
        self._head_cursor = self._cursor()
        self._drop()
        self._first += 1
        self._at_head = 0

    async def _extend(self, messages: Sequence[Message]) -> None:
        new = []
        places = dict(self._places)
        for message in messages:
            writer = (message.key.attempt, message.key.rank)
            first, last = self.source.span(message)
            if last <= places.get(writer, 0):
                continue
            if first != places.get(writer, 0) + 1:
                # Rows are missing here: they were never written, or another process has stored them.
                self._lose()
                return
            places[writer] = last
            new.append(message)
        if not new:
            return
        pieces = await self.source.live(new, bytes_max=self._room.message_bytes)
        if self._stale:
            return
        frames = self._framed(pieces)
        self._places = places
        # Where a publication ends is always a position: looks at storage end there too.
        end = frames.pop() if frames else NOTHING
        frames.append(replace(end, cursor=self._cursor()))
        self._append(frames)

    def _framed(self, pieces: Sequence[Piece]) -> list[Frame]:
        """As few frames as messages may be large: each has a cursor, and that costs more than a line."""
        frames = []
        for key, together in itertools.groupby(pieces, lambda piece: piece.key):
            for part in _parts(together, self._room.message_bytes):
                for piece in part:
                    self._places |= piece.places
                body = b"".join(piece.body for piece in part)
                named = frozenset[int]().union(*(piece.named for piece in part))
                frames.append(Frame(key=key, body=body, cursor=self._cursor(), named=named))
        return frames

    def _append(self, frames: list[Frame]) -> None:
        self._head_cursor = frames[-1].cursor
        if not any(frame.body for frame in frames) and not self._frames and self._at_head == len(self.followers):
            # Nobody wants these rows, and everyone has passed what was before: the head itself has moved.
            self._first_cursor = self._head_cursor
            return
        self._frames += frames
        self._frames_bytes += sum(frame.size_bytes for frame in frames)
        self._at_head = 0
        self._joined.clear()
        over = 0
        while self._frames_bytes > self._room.limits.bytes_max and over < len(self._frames):
            self._frames_bytes -= self._frames[over].size_bytes
            self._first_cursor = self._frames[over].cursor
            over += 1
        del self._frames[:over]
        self._first += over
        self._hold()
        if any(frame.body for frame in frames):
            self._news = True
            if self._round_began is None and self._pause is None:
                self._begin_round()

    def _lose(self) -> None:
        """Live rows do not go on: look at storage."""
        self._stale = self._missed = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._work.set()

    def _begin_round(self) -> None:
        self._pause = None
        if not self._news:
            return
        self._news = False
        self._round_began = self._monotonic()
        for follower in self.followers:
            if follower.wake():
                follower.awaited = True
                self._awaited += 1
        if not self._awaited:
            self._round_began = None

    def _passed(self, follower: Follower) -> None:
        """The follower looks, or is gone: the round does not wait for it any more."""
        if not follower.awaited:
            return
        follower.awaited = False
        self._awaited -= 1
        if not self._awaited and self._round_began is not None:
            pause = min(self._monotonic() - self._round_began, self._room.limits.pause_seconds_max)
            self._round_began = None
            self._pause = asyncio.get_running_loop().call_later(pause, self._begin_round)

    def _join(self, position: int, bytes_max: int) -> Joined:
        """The frames from a position on that fit into one message."""
        bodies: list[bytes] = []
        key: PieceKey = ()
        size_bytes, end, cursor = 0, position, ""
        for frame in self._frames[position - self._first :]:
            if frame.body:
                if bodies and (frame.key != key or size_bytes + len(frame.body) > bytes_max):
                    break
                key = frame.key
                bodies.append(frame.body)
                size_bytes += len(frame.body)
            end, cursor = end + 1, frame.cursor
        response = self.source.rows(key, b"".join(bodies), cursor) if bodies else b""
        return Joined(response=response, end=end, cursor=cursor)

    def _position_of(self, cursor: str) -> int | None:
        """The position at which a follower with this cursor has passed all rows and no more."""
        if cursor == self._head_cursor:
            return self._head
        for index in range(len(self._frames) - 2, -1, -1):
            if self._frames[index].cursor == cursor:
                return self._first + index + 1
        return self._first if cursor == self._first_cursor else None

    def _move(self, follower: Follower, position: int) -> None:
        head = self._head
        self._at_head += (position == head) - (follower.position == head)
        follower.position = position
        self._forget_passed()

    def _forget_passed(self) -> None:
        """Let go of the frames once everyone has taken them."""
        if self._frames and self._at_head == len(self.followers):
            self._first = self._head
            self._frames.clear()
            self._joined.clear()
            self._frames_bytes = 0
            self._first_cursor = self._head_cursor
            self._hold()

    def _hold(self) -> None:
        self._room.hold(self, self._frames_bytes + self._waiting_bytes)

    def _cursor(self) -> str:
        return encode_cursor(self.source.job_uid, self.source.kind, self._places)


def _parts(pieces: Iterable[Piece], bytes_max: int) -> Iterator[list[Piece]]:
    """Pieces in parts of so many bytes at most, or of one piece."""
    part: list[Piece] = []
    size_bytes = 0
    for piece in pieces:
        if part and size_bytes + len(piece.body) > bytes_max:
            yield part
            part, size_bytes = [], 0
        part.append(piece)
        size_bytes += len(piece.body)
    if part:
        yield part
