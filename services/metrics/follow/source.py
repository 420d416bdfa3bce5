"""What following lines and following points differ in: how rows are found in storage, and how they look on the wire.

A place is how far a stream is with one writer; what it counts is the source's affair. Rows leave here as bytes: they
are serialised once for all who want the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from services.metrics.cursor import Places
from services.metrics.rows import Message
from services.metrics.writer_key import WriterKind

PieceKey: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """Rows on the wire. Bodies of pieces with the same key, put one behind the other, are the body of one message."""

    key: PieceKey
    body: bytes
    """Empty where a filter has left nothing."""
    places: Places
    """Where the writers of the rows are after it."""
    named: frozenset[int] = frozenset()
    """What it names for the first time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Page:
    """Stored rows of one writer after a place: the pieces, the last of which may be empty, and where they end."""

    pieces: tuple[Piece, ...]
    end: int

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return sum(len(piece.body) for piece in self.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSize:
    """What a page and each of its pieces hold at most; but always one row."""

    page_bytes: int
    message_bytes: int


class Look(Protocol):
    """What is stored of a job at one moment."""

    @property
    def places(self) -> Places:
        """The highest place of each writer."""


AnyLook = TypeVar("AnyLook", bound=Look)


class Source(Protocol[AnyLook]):
    """Rows of one kind of one job, as far as a filter takes them. All who want the same share one."""

    kind: WriterKind
    job_uid: str

    async def look(self) -> AnyLook:
        """What is stored now. Who looks at the same time shares the look, but never one that began before."""

    async def greeting(self, look: AnyLook, named: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        """What a stream that knows `named` must be told before rows of this look. The pieces have no places."""

    async def page(self, look: AnyLook, writer: tuple[int, int], *, after: int, size: PageSize) -> Page:
        """The next stored rows of a writer after a place, up to the look. A page is bounded, not only its rows."""

    def span(self, message: Message) -> tuple[int, int]:
        """The first and the last place of live rows."""

    def begin_live(self, look: AnyLook) -> None:
        """Live rows follow on this look."""

    async def live(self, messages: Sequence[Message], *, bytes_max: int) -> Sequence[Piece]:
        """Live rows, each message once and in order."""

    @property
    def named(self) -> frozenset[int]:
        """What live rows may speak of without naming it."""

    def naming(self, ids: frozenset[int], *, bytes_max: int) -> Sequence[Piece]:
        """What tells a stream of these."""

    def rows(self, key: PieceKey, body: bytes, cursor: str) -> bytes:
        """A message of rows."""

    def caught_up(self, cursor: str) -> bytes:
        """A message: everything that was stored when the call began has been sent."""

    def heartbeat(self, cursor: str) -> bytes:
        """A message: nothing happened, or nothing that is meant."""

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """A message: the job has ended, and nothing more will come."""
