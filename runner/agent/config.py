"""The runner's settings: flags and `SIHLAI_RUNNER_…` variables. Limits, waits and queues have their names here."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import LogFormat, LogLevel, setting
from services.chassis.errors import ConfigurationError

PREFIX = "SIHLAI_RUNNER_"
RUNNER_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


class Device(enum.StrEnum):
    """Where the trainer computes: `auto` is a GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """How one runner works. Times are in the unit that ends the name."""

    runner_id: str = setting(help="the runner's name; a later start with the same name takes it over")
    scheduler_address: str = setting(help="where the scheduler answers", units="host:port")
    conversion_address: str = setting(help="where conversion answers", units="host:port")
    metrics_address: str = setting(help="where metrics answers", units="host:port")
    work_folder: Path = setting(help="datasets, checkpoints and spools; one agent at a time may use it")
    once: bool = setting(False, "serve one job, then exit")
    device: Device = setting(Device.AUTO, "where the trainer computes")
    log_format: LogFormat = setting(LogFormat.AUTO, "how log lines look")
    log_level: LogLevel = setting(LogLevel.INFO, "lowest level that is written")

    synchronize_wait_seconds: float = setting(
        8.0, "how long a Synchronize may wait; a third of the lease", units="s", minimum=0.1
    )
    synchronize_margin_seconds: float = setting(
        7.0, "how much longer than that its answer may take", units="s", minimum=0.1
    )
    progress_seconds_min: float = setting(1.0, "progress alone is reported at most this often", units="s", minimum=0.01)
    reconnect_seconds_first: float = setting(0.2, "pause after the first failed call", units="s", minimum=0.01)
    reconnect_seconds_max: float = setting(2.0, "longest pause between two calls", units="s", minimum=0.01)
    disconnected_hours_max: float = setting(
        24.0, "how long it trains with the scheduler away, then it hands the job back", units="h", minimum=0
    )
    drain_grace_seconds: float = setting(
        120.0, "how long the trainer may take for its checkpoint after a SIGTERM", units="s", minimum=0
    )
    drain_spool_seconds: float = setting(
        20.0, "how long points, lines and the end may take to be stored when the agent ends", units="s", minimum=0
    )

    system_metrics_seconds: float = setting(10.0, "how often the machine is measured", units="s", minimum=0.05)

    conversion_unavailable_minutes_max: float = setting(
        60.0, "how long conversion may be away while a job needs it", units="min", minimum=0
    )
    own_credentials_uris: tuple[str, ...] = setting(
        (), "s3:// uris that are read with the runner's own credentials where a dataset has none; as conversion's"
    )
    downloads_concurrent_max: int = setting(16, "files that are downloaded at once", units="files", minimum=1)
    download_tries_max: int = setting(5, "how often a download is tried", units="tries", minimum=1)
    disk_free_bytes_min: int = setting(
        256 * 2**20, "what a dataset must leave free on the disk", units="bytes", minimum=0
    )
    upload_minutes_max: float = setting(
        25.0,
        "how long a checkpoint's upload may be tried once the trainer has ended; less than the scheduler waits",
        units="min",
        minimum=0,
    )
    report_upload_seconds_max: float = setting(
        5.0, "how long reports of conversions may still be uploaded when an attempt has ended", units="s", minimum=0
    )
    checkpoints_waiting_max: int = setting(
        3, "checkpoints that may wait for their upload; older ones are dropped", units="checkpoints", minimum=1
    )
    exit_seconds_max: float = setting(
        10.0, "how long the trainer may take to exit after its last word", units="s", minimum=0.1
    )

    spool_bytes_max: int = setting(
        512 * 2**20,
        "what the points, and what the lines, of one attempt may take on disk",
        units="bytes",
        minimum=2**20,
    )
    spool_segment_bytes_max: int = setting(
        4 * 2**20, "size of a spool's segment; whole segments are let go", units="bytes", minimum=2**10
    )
    spool_sync_seconds: float = setting(
        1.0,
        "how often the spool is synced to disk: what a loss of power may take (a killed process takes nothing)",
        units="s",
        minimum=0.05,
    )
    batch_points_min: int = setting(200, "points that are written to the spool at once", units="points", minimum=1)
    batch_seconds_max: float = setting(0.05, "how long a point or line may wait for others", units="s", minimum=0)

    def __post_init__(self) -> None:
        problems = []
        if not RUNNER_ID.fullmatch(self.runner_id):
            problems.append(f"--runner-id is {self.runner_id!r}, but must match {RUNNER_ID.pattern}")
        if self.spool_bytes_max < 4 * self.spool_segment_bytes_max:
            problems.append("--spool-bytes-max must be at least four times --spool-segment-bytes-max")
        if problems:
            raise ConfigurationError(problems)

    @property
    def runner(self) -> str:
        """The runner's resource name."""
        return f"runners/{self.runner_id}"
