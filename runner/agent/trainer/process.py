"""The trainer's process: started, told, listened to, ended with all that it started.

It has a process group of its own, so that Ctrl-C at a terminal reaches the agent alone, and a leash: it dies with the
agent. What it says comes as reports on a pipe of its own and as lines on standard output and error. It must be started
from the thread that lives as long as the agent (the event loop's), because the leash is tied to that thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from runner.agent.ledger import ProcessGroup
from runner.agent.telemetry.lines import LineSplitter, Piece
from runner.report import FRAME_BYTES_MAX, Report
from services.chassis.leash import on_leash
from services.chassis.log import get_logger

log = get_logger(__name__)

ATTEMPT_VARIABLE = "SIHLAI_ATTEMPT"
TRAINER_VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONFAULTHANDLER": "1"}
"""A crash leaves the stacks of all threads in the job's log, also of processes that the trainer started.

A trainer shares its cores with the agent and the data's threads. With OpenMP's default, threads that wait for each
other burn the time of whom they wait for: with one more busy process on two cores a step took 90 to 400 ms instead of
45. What the agent's environment says wins."""
CHUNK_BYTES = 64 * 2**10
GROUP_END_SECONDS = 5.0
"""How long the processes of a group may take to vanish after SIGKILL."""
GROUP_POLL_SECONDS = 0.02
START_TIME_SECONDS = 1.0
"""How far two readings of one process's start time may lie apart: it is derived from the clock."""

_LENGTH = struct.Struct("<I")


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells of the exit itself; asyncio's own wait also waits for the pipes, which an orphan may hold open for ever."""

    def __init__(self) -> None:
        super().__init__(limit=CHUNK_BYTES, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class TrainerProcess:
    """A trainer that was started. Its three streams must all be read, or it will stand still."""

    def __init__(
        self, transport: asyncio.SubprocessTransport, protocol: _Protocol, reports: asyncio.StreamReader, mark: str
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._process = asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())
        self._reports = reports
        process_id = self._process.pid
        self.group = ProcessGroup(mark=mark, leader=process_id, start_time=_start_time(process_id))

    @classmethod
    async def start(
        cls, command: Sequence[str], *, folder: Path, environ: Mapping[str, str], mark: str
    ) -> TrainerProcess:
        """Start `command` with `--report-fd N` behind it, in `folder`; who cannot enter that ends. Raises OSError."""
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        try:
            transport, protocol = await loop.subprocess_exec(
                _Protocol,
                *on_leash([*command, "--report-fd", str(write_end)], folder=str(folder.absolute())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(write_end,),
                env={**TRAINER_VARIABLES, **environ, ATTEMPT_VARIABLE: mark, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        reports = asyncio.StreamReader(limit=FRAME_BYTES_MAX)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reports), os.fdopen(read_end, "rb", buffering=0)
        )
        return cls(transport, protocol, reports, mark)

    async def wait(self) -> int:
        """Wait for the end; the exit code, negative for a signal. Pipes may still be open: others may hold them."""
        await self._protocol.exited.wait()
        exit_code = self._process.returncode
        assert exit_code is not None, "it has exited"
        return exit_code

    def close(self) -> None:
        """Let go of the pipes, after the end."""
        self._transport.close()

    def tell(self, command: str) -> None:
        """Send a command; nothing happens where the trainer has ended."""
        assert self._process.stdin is not None
        if self._process.returncode is None and not self._process.stdin.is_closing():
            self._process.stdin.write(f"{command}\n".encode())

    def kill(self) -> None:
        """SIGKILL to the trainer and all of its group; the end is seen by `wait`."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def reports(self) -> AsyncIterator[list[Report]]:
        """The trainer's reports, as many as are there, until the pipe ends. A frame that was cut off is dropped.

        Raises ValueError for a frame that is too long, msgspec.DecodeError for one that is no report.
        """
        decoder = msgspec.msgpack.Decoder(Report)
        pending = bytearray()
        while chunk := await self._reports.read(CHUNK_BYTES):
            pending += chunk
            if found := _whole_reports(pending, decoder):
                yield found

    async def output(self) -> AsyncIterator[Piece]:
        """Lines of standard output until its end."""
        assert self._process.stdout is not None
        async for piece in _lines(self._process.stdout):
            yield piece

    async def errors(self) -> AsyncIterator[Piece]:
        """Lines of standard error until its end."""
        assert self._process.stderr is not None
        async for piece in _lines(self._process.stderr):
            yield piece


@dataclass(frozen=True, kw_only=True)
class EndedGroup:
    """How many processes there were, and which the system does not let go: a disk that they wait for may hang."""

    processes: int
    surviving: Sequence[int] = ()


def end_group(group: ProcessGroup) -> EndedGroup:
    """SIGKILL to whatever is left of the group, and wait until it is gone, for GROUP_END_SECONDS at most.

    Safe long after the group was recorded: a process that only bears the leader's old number is left alone.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + GROUP_END_SECONDS
    while members := _members(group):
        ended.update(process.pid for process in members)
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if time.monotonic() > deadline:
            surviving = sorted(process.pid for process in members)
            log.error("process_group_survives", mark=group.mark, processes=surviving)
            return EndedGroup(processes=len(ended), surviving=surviving)
        time.sleep(GROUP_POLL_SECONDS)
    return EndedGroup(processes=len(ended))


def _members(group: ProcessGroup) -> list[psutil.Process]:
    """The group's living processes. A group's number is not given to a new process while one of its members lives."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) != group.leader or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.pid == group.leader:
                ours = abs(process.create_time() - group.start_time) <= START_TIME_SECONDS
            else:
                ours = process.environ().get(ATTEMPT_VARIABLE) == group.mark
            if ours:
                members.append(process)
    return members


def _start_time(process_id: int) -> float:
    try:
        return psutil.Process(process_id).create_time()
    except psutil.NoSuchProcess:  # it has ended already: whoever bears the number later began later
        return 0.0


def _whole_reports(pending: bytearray, decoder: msgspec.msgpack.Decoder[Report]) -> list[Report]:
    """Take the whole frames off the front of `pending`."""
    reports: list[Report] = []
    position = 0
    while len(pending) - position >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(pending, position)
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a report of at most {FRAME_BYTES_MAX} bytes was wanted, one of {length} was found")
        end = position + _LENGTH.size + length
        if end > len(pending):
            break
        reports.append(decoder.decode(memoryview(pending)[position + _LENGTH.size : end]))
        position = end
    del pending[:position]
    return reports


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[Piece]:
    splitter = LineSplitter()
    while chunk := await stream.read(CHUNK_BYTES):
        for piece in splitter.feed(chunk):
            yield piece
    for piece in splitter.end():
        yield piece
