"""The room that watches have: bytes of messages that wait for their clients to read, of one watch and of all."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from services.scheduler.servicer.watch_change import Change, Scope

PAGE_BYTES_MIN = 2**16
"""A watch may hold so much, however many there are and however little their clients read."""
PAGES_LEFT = 8
"""Nobody takes more than this part of what is left: the last to come still find something."""


class Room:
    """What all watches hold together: beyond `bytes_max` no more than `PAGE_BYTES_MIN` each."""

    def __init__(self, *, page_bytes_max: int, bytes_max: int) -> None:
        self._page_bytes_max = page_bytes_max
        self._bytes_max = bytes_max
        self.held_bytes = 0

    @property
    def page_bytes(self) -> int:
        """What the next page of a watch may have."""
        share = (self._bytes_max - self.held_bytes) // PAGES_LEFT
        return min(self._page_bytes_max, max(PAGE_BYTES_MIN, share))

    def sent(self, messages: Sequence[bytes]) -> Generator[bytes, None, None]:
        """The messages, each let go of when it is sent; the others are held until this is closed."""
        left = list(reversed(messages))
        waiting = sum(map(len, left))
        self.held_bytes += waiting
        try:
            while left:
                size_bytes = len(left[-1])
                yield left.pop()
                waiting -= size_bytes
                self.held_bytes -= size_bytes
        finally:
            self.held_bytes -= waiting


class Page:
    """The messages of the first changes that fit, at least of one, in their order. `looked` counts these changes."""

    def __init__(self, scope: Scope, *, removals_after: int | None, bytes_max: int) -> None:
        self._scope = scope
        self._removals_after = removals_after
        self._bytes_left = bytes_max
        self._is_full = False
        self.messages: list[bytes] = []
        self.looked = 0

    def write(self, changes: Sequence[Change]) -> None:
        """These changes, or those of them that fit."""
        for change in changes:
            message = None if self._is_full else self._scope.told(change, removals_after=self._removals_after)
            self._bytes_left -= len(message or b"")
            self._is_full = self._is_full or (self._bytes_left < 0 and bool(self.messages))
            if self._is_full:
                return
            if message is not None:
                self.messages.append(message)
            self.looked += 1
