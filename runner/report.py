"""What the trainer process tells the agent, and what the agent tells the trainer.

The trainer writes frames to a pipe: four bytes of length (little-endian), then one MessagePack struct of this module.
The agent writes commands, one line of text each, to the trainer's standard input; its end means that the agent is gone,
and the trainer must end too. Nothing here may import torch or grpc: both processes import it.
"""

import os
import struct
from collections.abc import Iterator
from enum import StrEnum
from typing import BinaryIO

import msgspec

COMMAND_STOP = "stop"  # finish the step, write a checkpoint with cause STOP, end with outcome STOPPED
COMMAND_HAND_BACK = "hand-back"  # the same with cause HAND_BACK and outcome HANDED_BACK

FRAME_BYTES_MAX = 1 << 20
LINE_CHARACTERS_MAX = 16_384


class Level(StrEnum):
    """How grave a line is; the names are those of sihlai.logs.v1.LogLevel."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Outcome(StrEnum):
    """How the trainer ended; the names are those of sihlai.scheduler.v1.AttemptOutcome."""

    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    HANDED_BACK = "HANDED_BACK"


class Points(msgspec.Struct, frozen=True, tag="points", array_like=True):
    """Scalars of one iteration: `values` by series name, time in microseconds since 1970, UTC."""

    step: int
    time_unix_us: int
    values: dict[str, float]
    context: dict[str, str] = {}


class Line(msgspec.Struct, frozen=True, tag="line", array_like=True):
    """A line of the trainer's log."""

    time_unix_us: int
    level: Level
    text: str


class Progress(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    """Steps done. The first one with `iteration` above the attempt's start means that the job is running.

    While it validates, `done` of `total` images are done; else `total` is 0.
    """

    iteration: int
    iterations_max: int
    seconds_left: float | None = None
    done: int = 0
    total: int = 0


class CheckpointStarted(msgspec.Struct, frozen=True, tag="checkpoint_started", array_like=True):
    """The trainer writes its last checkpoint, because it was told to stop or has reached its limit."""

    iteration: int


class CheckpointWritten(msgspec.Struct, frozen=True, tag="checkpoint_written", array_like=True):
    """A checkpoint is whole in `folder` (renamed into place); the agent uploads it, then may remove it.

    `cause` is a name of sihlai.scheduler.v1.CheckpointCause without its prefix.
    """

    folder: str
    iteration: int
    cause: str
    selection_value: float | None = None
    best: bool = False


class Ended(msgspec.Struct, frozen=True, tag="ended", array_like=True):
    """The trainer's last word. `reason` is a name of sihlai.scheduler.v1.JobReason without its prefix.

    `unforeseen`: it failed by what nobody meant to tell the user, so that the machine may be to blame.
    """

    outcome: Outcome
    reason: str
    message: str
    iteration: int
    unforeseen: bool = False


Report = Points | Line | Progress | CheckpointStarted | CheckpointWritten | Ended

_LENGTH = struct.Struct("<I")


class ReportWriter:
    """The trainer's end of the pipe. Not safe for threads other than the one that trains."""

    def __init__(self, file_descriptor: int) -> None:
        self._file_descriptor = file_descriptor
        self._encoder = msgspec.msgpack.Encoder()
        self._frame = bytearray(_LENGTH.size)

    def write(self, report: Report) -> None:
        """Write one frame, or several of points that are too many for one; blocks while the pipe is full.

        Raises BrokenPipeError once the agent is gone, ValueError for a report that is too long and cannot be divided.
        """
        self._encoder.encode_into(report, self._frame, _LENGTH.size)
        length = len(self._frame) - _LENGTH.size
        if length > FRAME_BYTES_MAX:
            for half in _halves(report, length):
                self.write(half)
            return
        _LENGTH.pack_into(self._frame, 0, length)
        view = memoryview(self._frame)
        written = 0
        while written < len(view):
            written += os.write(self._file_descriptor, view[written:])
        view.release()


def _halves(report: Report, length: int) -> Iterator[Points]:
    """The report's points in two reports."""
    if not isinstance(report, Points) or len(report.values) < 2:
        raise ValueError(f"a report of at most {FRAME_BYTES_MAX} bytes was wanted, one of {length} was found")
    values = list(report.values.items())
    for half in (values[: len(values) // 2], values[len(values) // 2 :]):
        yield msgspec.structs.replace(report, values=dict(half))


def read_reports(pipe: BinaryIO) -> Iterator[Report]:
    """Yield the trainer's reports until the pipe ends; a frame that was cut off by the trainer's death is dropped.

    Raises ValueError for a frame longer than FRAME_BYTES_MAX, msgspec.DecodeError for one that is no report.
    """
    decoder = msgspec.msgpack.Decoder(Report)
    while len(head := pipe.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a report of at most {FRAME_BYTES_MAX} bytes was wanted, one of {length} was found")
        body = pipe.read(length)
        if len(body) < length:
            return
        yield decoder.decode(body)
