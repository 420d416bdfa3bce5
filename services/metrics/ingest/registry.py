"""What all streams share: the keys of tokens, the queue's credit, and which opening of each writer is the newest.

A writer belongs to who opened it last. Nothing here is kept on disk: ClickHouse is asked what it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.chassis.auth.keys import TokenVerifier
from services.chassis.auth.write_token import WriteToken
from services.metrics.ingest.writer import Writer
from services.metrics.writer_key import WriterKey


@dataclass(frozen=True, kw_only=True)
class IngestLimits:
    """What streams and writers may do."""

    queue_bytes: int
    credit_bytes_max: int
    credit_bytes_min: int
    settle_seconds: float
    writers_per_stream: int
    series_per_writer: int
    series: int
    """Of all writers that are open in this process."""


class Registry:
    """The newest opening of each writer in this process."""

    def __init__(
        self,
        verifier: TokenVerifier,
        *,
        limits: IngestLimits,
        clock: Callable[[], datetime],
        on_leave: Callable[[WriterKey], None],
    ) -> None:
        self.limits = limits
        self.clock = clock
        self._on_leave = on_leave
        self._verifier = verifier
        self._writers: dict[WriterKey, Writer] = {}
        self.streams_open = 0
        self.series_held = 0
        """Definitions that open writers hold."""

    def verify(self, token: str) -> WriteToken:
        """The token, or Unauthenticated."""
        return self._verifier.verify(token, now=self.clock())

    def credit_window(self) -> int:
        """What one stream may have in flight: its share of the queue, within limits."""
        share = self.limits.queue_bytes // max(1, self.streams_open)
        return max(self.limits.credit_bytes_min, min(self.limits.credit_bytes_max, share))

    def enter(self, writer: Writer) -> Writer | None:
        """Make this the newest opening of its writer. The one before, which is taken now, where there is one."""
        before = self._writers.get(writer.key)
        self._writers[writer.key] = writer
        if before is not None:
            before.take()
        return before

    def leave(self, writer: Writer) -> None:
        """The opening is over: nothing of it is on its way, and nothing will be."""
        self.series_held -= writer.series_held
        writer.series_held = 0
        if self._writers.get(writer.key) is writer:
            del self._writers[writer.key]
            self._on_leave(writer.key)

    async def lose(self, key: WriterKey) -> None:
        """Give a writer up that another process has opened; return when nothing of it is being stored any more."""
        if (writer := self._writers.get(key)) is not None:
            writer.take()
            await writer.quiet()
