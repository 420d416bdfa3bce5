"""An attempt's spool: one folder with a writer of points, one of lines, and the definitions of all series so far.

The definitions are sent again with every opening of the writer. The folder outlives attempt and agent, until everything
in it is stored.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from sihlai.metrics.v1 import series_pb2

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.spool.disk import SpoolDisk
from runner.agent.telemetry.spool.segment import Record, framed, whole_records
from runner.agent.telemetry.spool.space import SpoolFull
from runner.agent.telemetry.spool.writer_spool import WriterSpool
from services.chassis.files import replace_file
from services.chassis.log import get_logger

log = get_logger(__name__)

SPOOL_FILE = "spool.json"
SERIES_FILE = "series.records"
CLOSED_FILE = "closed"


class Spool:
    """What an attempt has written and what of it is not stored yet: two writers, rank 0.

    Everything that waits for the disk runs in the thread `disk.writing`, but for an agent that has just begun.
    """

    def __init__(self, folder: Path, *, job: str, key: AttemptKey, attempt: int, disk: SpoolDisk) -> None:
        """Open the attempt's spool, or begin it. Raises OSError where the disk does not let it."""
        self.folder = folder
        self.job = job
        self.key = key
        self.attempt = attempt
        self.disk = disk
        self._begun = _is_counted(folder / SPOOL_FILE)
        self.points = self._writer("points")
        self.lines = self._writer("lines")
        self.closed = (folder / CLOSED_FILE).exists()
        self.series: dict[int, series_pb2.SeriesDefinition] = {}
        self._read_series()
        if not (folder / SPOOL_FILE).exists():
            content = {"job": job, "job_uid": key.job_uid, "epoch": key.epoch, "attempt": attempt, "counted": True}
            # Synced: without it nobody would know whose the rest is.
            replace_file(folder / SPOOL_FILE, json.dumps(content).encode())

    @classmethod
    def found(cls, folder: Path, disk: SpoolDisk) -> Spool:
        """The spool that an earlier agent left. Raises ValueError or KeyError where it does not say whose it is."""
        content = json.loads((folder / SPOOL_FILE).read_text())
        key = AttemptKey(job_uid=str(content["job_uid"]), epoch=int(content["epoch"]))
        return cls(folder, job=str(content["job"]), key=key, attempt=int(content["attempt"]), disk=disk)

    def add_series(self, definition: series_pb2.SeriesDefinition) -> None:
        """Keep a series with the spool. Raises SpoolFull where the disk is full: then it is not kept."""
        record = framed(Record(0, 0, definition.SerializeToString()))
        path = self.folder / SERIES_FILE
        size_bytes = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(record) != len(record):
                    raise OSError(28, "the disk is full")
        except OSError as error:
            if path.exists():
                os.truncate(path, size_bytes)
            raise SpoolFull(f"{path.name} cannot be written: {error.strerror}") from error
        self.series = {**self.series, definition.series_id: definition}

    def close(self) -> None:
        """Nothing is recorded any more. What is there is kept until it is stored."""
        self.points.close()
        self.lines.close()
        if not self.closed:
            try:
                (self.folder / CLOSED_FILE).touch()
            except OSError as error:  # for this agent it is closed all the same
                log.warning("spool_close_not_on_disk", folder=str(self.folder), problem=error.strerror)
            self.closed = True

    def sync(self) -> None:
        """Make what was appended survive a loss of power; may run in any thread."""
        self.points.sync()
        self.lines.sync()

    def delete(self) -> bool:
        """Everything is stored, or nobody wants it any more. Whether the folder is gone for good: what is moved away
        meanwhile, with a disk that broke, may come back, and is to be deleted then.
        """
        self.closed = True
        self.points.forget()
        self.lines.forget()
        left: list[object] = []
        shutil.rmtree(self.folder, onerror=lambda _work, path, _error: left.append(path))
        return not left

    def _writer(self, name: str) -> WriterSpool:
        limits = self.disk.limits
        return WriterSpool(
            self.folder / name,
            space=self.disk.space,
            segment_bytes_max=limits.segment_bytes_max,
            begun=self._begun,
        )

    def _read_series(self) -> None:
        path = self.folder / SERIES_FILE
        if not path.exists():
            return
        records = whole_records(path.read_bytes())
        os.truncate(path, sum(len(framed(record)) for record in records))
        for record in records:
            definition = series_pb2.SeriesDefinition.FromString(record.body)
            self.series[definition.series_id] = definition


def _is_counted(path: Path) -> bool:
    """Whether the spool's writers have noted their counts: those that an earlier version began have not."""
    return path.exists() and bool(json.loads(path.read_text()).get("counted", False))
