"""What must outlive the agent, on its disk: attempts that ended and are not acknowledged, and process groups that run.

Each entry is one small file, on the disk as a whole before its writer goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import AttemptKey
from services.chassis.errors import ConfigurationError
from services.chassis.files import replace_file
from services.chassis.log import get_logger

log = get_logger(__name__)

CLOSED_SUFFIX = ".closed"
GROUP_SUFFIX = ".group.json"
UNREADABLE_SUFFIX = ".unreadable"
OUTCOMES = (
    job_pb2.ATTEMPT_OUTCOME_COMPLETED,
    job_pb2.ATTEMPT_OUTCOME_STOPPED,
    job_pb2.ATTEMPT_OUTCOME_FAILED,
    job_pb2.ATTEMPT_OUTCOME_HANDED_BACK,
)
"""Those that a runner reports."""


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """A trainer and all that it started. `mark` stands in the environment of each, as ATTEMPT_VARIABLE."""

    mark: str
    leader: int
    start_time: float
    """Of the leader, in seconds since 1970, as psutil tells it."""


class Ledger:
    """The entries in one folder. Writing raises OSError where the disk takes nothing; removing never fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write_closed(self, closed: wire.ClosedAttempt) -> None:
        """From now on the attempt's end is reported until it is acknowledged, whatever dies."""
        replace_file(self._folder / f"{key_of(closed)}{CLOSED_SUFFIX}", closed.SerializeToString())

    def forget_closed(self, key: AttemptKey) -> None:
        """The end is acknowledged."""
        self._remove(f"{key}{CLOSED_SUFFIX}")

    def closed(self) -> list[wire.ClosedAttempt]:
        """The attempts whose end is not acknowledged, oldest first. A file that the disk does not give is left for the
        next start.
        """
        found = []
        for path in self._folder.glob(f"*{CLOSED_SUFFIX}"):
            try:
                closed = read_closed(path, path.name.removesuffix(CLOSED_SUFFIX))
                found.append((path.stat().st_mtime_ns, path.name, closed))
            except OSError as error:
                log.error("ledger_entry_unread", path=str(path), problem=str(error))
            except ValueError as error:
                _set_aside(path, error)
        return [closed for *_, closed in sorted(found, key=lambda each: each[:2])]

    def write_group(self, group: ProcessGroup) -> None:
        """From now on the next agent ends this group."""
        content = {"mark": group.mark, "leader": group.leader, "start_time": group.start_time}
        replace_file(self._folder / f"{group.mark}{GROUP_SUFFIX}", json.dumps(content).encode())

    def forget_group(self, group: ProcessGroup) -> None:
        """Nothing of the group runs any more."""
        self._remove(f"{group.mark}{GROUP_SUFFIX}")

    def groups(self) -> list[ProcessGroup]:
        """The process groups that an earlier agent recorded."""
        found = []
        for path in self._folder.glob(f"*{GROUP_SUFFIX}"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=ProcessGroup))
            except OSError as error:
                log.error("ledger_entry_unread", path=str(path), problem=str(error))
            except msgspec.DecodeError as error:
                _set_aside(path, error)
        return found

    def _remove(self, name: str) -> None:
        """An entry that stays is dealt with once more by the next agent, which finds nothing left to do."""
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("ledger_entry_not_removed", name=name, problem=error.strerror)


def read_closed(path: Path, name: str) -> wire.ClosedAttempt:
    """The end of the attempt of this name. Raises OSError, ValueError where that is not what the file holds.

    An empty file, too, is a message; one that names no attempt would have the scheduler refuse the whole call.
    """
    try:
        closed = wire.ClosedAttempt.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"it is no attempt's end: {error}") from error
    if str(key_of(closed)) != name:
        raise ValueError(f"the end of attempt {name} was wanted, that of {str(key_of(closed))!r} was found")
    if closed.outcome not in OUTCOMES:
        raise ValueError(f"an outcome was wanted, {closed.outcome} was found")
    return closed


def _set_aside(path: Path, error: Exception) -> None:
    """What cannot be read stays for a person to look at, under a name that no agent reads."""
    log.error("ledger_entry_unreadable", path=str(path), problem=str(error))
    try:
        path.rename(path.with_name(f"{path.name}{UNREADABLE_SUFFIX}"))
    except OSError as failure:
        log.warning("ledger_entry_not_set_aside", path=str(path), problem=failure.strerror)


def key_of(message: wire.ClosedAttempt | wire.ActiveAttempt | wire.Assignment | wire.AttemptKey) -> AttemptKey:
    """The attempt that a message is about."""
    return AttemptKey(job_uid=message.job_uid, epoch=message.epoch)


def locked(work_folder: Path) -> int:
    """A lock on the work folder that ends with this process; raises ConfigurationError where another agent has it."""
    work_folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work_folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigurationError(
            [f"--work-folder {work_folder} is in use by another agent: give each its own"]
        ) from error
    return descriptor
