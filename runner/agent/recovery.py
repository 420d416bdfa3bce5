"""What an agent does before anything else: it ends, sweeps and takes up what an earlier one left.

An attempt never survives its agent. What runs is ended, datasets are deleted, and the scheduler learns of the loss by
the new session not holding the attempt. What is not stored or not acknowledged is kept, and goes on from here.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError
from sihlai.logs.v1 import log_line_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire

from runner.agent.files.provision import ATTEMPT_FILE
from runner.agent.files.upload import remove_torn
from runner.agent.ledger import Ledger
from runner.agent.telemetry.recorder import Recorder
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk
from runner.agent.telemetry.spool.segment import SUFFIX
from runner.agent.trainer.process import end_group
from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger

log = get_logger(__name__)

ATTEMPTS = "attempts"
SPOOLS = "spools"
LEDGER = "ledger"
UNSAVED = "unsaved"


class _Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of an attempt file."""

    checkpoint_uri: str


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What an earlier agent left to be done: ends to report, oldest first, and closed spools to send."""

    closed: list[wire.ClosedAttempt]
    spools: list[Spool]


def recover(work_folder: Path, ledger: Ledger, disk: SpoolDisk, now_unix_us: Callable[[], int]) -> Recovered:
    """Must run in the event loop's thread, before the first attempt. May take as long as deleting a dataset takes."""
    for group in ledger.groups():
        ended = end_group(group)
        log.warning("earlier_trainer_ended", attempt=group.mark, processes=ended.processes)
        if not ended.surviving:
            ledger.forget_group(group)
    for folder in sorted((work_folder / ATTEMPTS).glob("*")):
        log.warning("earlier_attempt_swept", folder=folder.name)
        _remove_torn_beside(folder / ATTEMPT_FILE)
        shutil.rmtree(folder, ignore_errors=True)
    closed = ledger.closed()
    spools = _spools(work_folder / SPOOLS, disk, now_unix_us)
    if closed or spools:
        log.info("earlier_work_taken_up", closed=len(closed), spools=len(spools))
    return Recovered(closed=closed, spools=spools)


def _remove_torn_beside(attempt_file: Path) -> None:
    """In a thread that nobody waits for: the store may be a mount that hangs, and so would whoever waits."""
    with contextlib.suppress(OSError, msgspec.DecodeError):  # it had not come as far as to upload anything
        uri = msgspec.json.decode(attempt_file.read_bytes(), type=_Attempt).checkpoint_uri
        threading.Thread(target=_remove_torn, args=[uri], name="torn-files", daemon=True).start()


def _remove_torn(uri: str) -> None:
    with contextlib.suppress(OSError, SihlaiError):
        remove_torn(uri)


def _spools(folder: Path, disk: SpoolDisk, now_unix_us: Callable[[], int]) -> list[Spool]:
    spools = []
    for path in sorted(folder.glob("*")):
        try:
            spool = Spool.found(path, disk)
        except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
            log.error("spool_unreadable", folder=str(path), problem=str(error))
            with contextlib.suppress(OSError):
                if not any(path.glob(f"*/*{SUFFIX}")):  # it says whose it is before anything is appended
                    shutil.rmtree(path, ignore_errors=True)
            continue
        if not spool.closed:
            recorder = Recorder(spool, now_unix_us=now_unix_us, on_append=lambda: None)
            text = "the runner's agent ended while it worked on this attempt: the attempt ended with it"
            recorder.line(text, level=log_line_pb2.LOG_LEVEL_WARNING)
            recorder.close()
        spools.append(spool)
    disk.writing.submit(lambda: None).result()  # nothing else is at work yet, so the disk is waited for
    return spools
