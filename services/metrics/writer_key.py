"""Who writes: one process of one attempt, for points or for lines.

A writer numbers its messages from 1 without gaps. Standard library and errors only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

ATTEMPT_BITS = 16
SEQUENCE_BITS = 31
ROW_BITS = 17
"""A point's place is one 128-bit number: step (64 bits), attempt, sequence, row within the message. That is enough: a
writer that sends a message each 50 ms has sent 2^31 after three years, and a message has less than 2^17 points."""
ATTEMPT_MAX = 2**ATTEMPT_BITS - 1
RANK_MAX = 2**16 - 1
SEQUENCE_MAX = 2**SEQUENCE_BITS - 1
ROWS_MAX = 2**ROW_BITS
"""Points of one message."""
LINE_NUMBER_MAX = 2**48 - 1
PROTOCOL_VERSION_MIN = 1
PROTOCOL_VERSION_MAX = 1


class WriterKind(enum.StrEnum):
    """What a writer writes."""

    POINTS = "points"
    LINES = "lines"


@dataclass(frozen=True, kw_only=True, order=True)
class WriterKey:
    """A writer's identity. It outlives streams and processes."""

    job_uid: str
    attempt: int
    rank: int
    kind: WriterKind

    @property
    def shown(self) -> str:
        """For logs and errors."""
        return f"{self.job_uid}/{self.attempt}/{self.rank}/{self.kind.value}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What of a writer is stored: its highest message, and the highest line number; 0 where there is none."""

    sequence: int
    line_number: int


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The recorded end of a writer: its last sequence, and the rows that it had to drop."""

    last_sequence: int
    rows_dropped: int


@dataclass(frozen=True, kw_only=True)
class WriterRecord:
    """What is stored about a writer. `finish` is the newest one, `has_gaps` whether messages are missing for good."""

    attempt: int
    rank: int
    epoch: int
    stored_sequence: int
    finish: Finish | None
    has_gaps: bool

    @property
    def finished(self) -> bool:
        """Nothing follows: the end is recorded, and no message after it."""
        return self.finish is not None and self.finish.last_sequence >= self.stored_sequence

    @property
    def complete(self) -> bool:
        """Everything that was written is stored: an end is recorded only when what it stands for is."""
        return self.finished and self.finish is not None and self.finish.rows_dropped == 0 and not self.has_gaps
