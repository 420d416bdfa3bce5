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
    token_file: Path | None = setting(None, "file with the runner's token")
    tls_ca_file: Path | None = setting(None, "authority of the services' certificates; with it they are called by TLS")
    tls_certificate_file: Path | None = setting(None, "certificate that the services are shown (mTLS)")
    tls_key_file: Path | None = setting(None, "its private key")
    work_folder: Path = setting(help="datasets, checkpoints and spools; one agent at a time may use it")
    once: bool = setting(False, "serve one job, then exit")
    device: Device = setting(Device.AUTO, "where the trainer computes")
    log_format: LogFormat = setting(LogFormat.AUTO, "how log lines look")
    log_level: LogLevel = setting(LogLevel.INFO, "lowest level that is written")

    synchronize_wait_seconds: float = setting(
        8.0, "how long a Synchronize may wait; a third of the lease", units="s", minimum=0.1
    )
    synchronize_idle_seconds: float = setting(
        17.5, "the same while it is idle, where the scheduler has very many runners", units="s", minimum=0.1
    )
    synchronize_margin_seconds: float = setting(
        7.0, "how much longer than that its answer may take", units="s", minimum=0.1
    )
    progress_seconds_min: float = setting(1.0, "progress alone is reported at most this often", units="s", minimum=0.01)
    reconnect_seconds_first: float = setting(0.2, "pause after the first failed call", units="s", minimum=0.01)
    reconnect_seconds_max: float = setting(2.0, "longest pause between two calls", units="s", minimum=0.01)
    set_aside_minutes: float = setting(
        10.0,
        "pause before points or lines that metrics refused as a whole are offered again",
        units="min",
        minimum=0.01,
    )
    ingest_answer_seconds_max: float = setting(
        120.0, "how long metrics may say nothing of what it was sent; then it is called anew", units="s", minimum=1
    )
    disconnected_hours_max: float = setting(
        24.0, "how long it trains with the scheduler away, then it hands the job back", units="h", minimum=0
    )
    drain_grace_seconds: float = setting(
        120.0, "how long the trainer may take for its checkpoint after a SIGTERM", units="s", minimum=0
    )
    hurried_end_seconds_max: float = setting(
        30.0,
        "how long an attempt may take to end after a second signal; then the agent ends all the same",
        units="s",
        minimum=0,
    )
    drain_spool_seconds: float = setting(
        20.0, "how long points, lines and the end may take to be stored when the agent ends", units="s", minimum=0
    )

    system_metrics_seconds: float = setting(10.0, "how often the machine is measured", units="s", minimum=0.05)

    measure_seconds_max: float = setting(
        5.0, "how long the system, or a GPU's driver, may take to answer; it is asked again when it has", units="s"
    )

    conversion_unavailable_minutes_max: float = setting(
        60.0, "how long conversion may be away while a job needs it", units="min", minimum=0
    )
    dataset_changed_tries_max: int = setting(
        3,
        "so often a dataset that changed while it was read is read anew, where its job leaves out bad data",
        minimum=0,
    )
    own_credentials_uris: tuple[str, ...] = setting(
        (), "uris of buckets that are read with the runner's own credentials where a dataset has none; as conversion's"
    )
    downloads_concurrent_max: int = setting(16, "files that are downloaded at once", units="files", minimum=1)
    store_unavailable_minutes_max: float = setting(
        30.0,
        "how long an object store may be away while a job needs it, then it is handed back",
        units="min",
        minimum=0,
    )
    mount_missing_seconds_max: float = setting(
        60.0, "how long a folder that holds a dataset may be missing on this machine", units="s", minimum=0
    )
    disk_free_bytes_min: int = setting(
        256 * 2**20, "what a dataset must leave free on the disk", units="bytes", minimum=0
    )
    upload_minutes_max: float = setting(
        25.0,
        "how long nothing of a checkpoint's upload may move once the trainer has ended; less than the scheduler waits",
        units="min",
        minimum=0,
    )
    report_upload_seconds_max: float = setting(
        5.0, "how long reports of conversions may still be uploaded when an attempt has ended", units="s", minimum=0
    )
    checkpoints_waiting_max: int = setting(
        3, "checkpoints that may wait for their upload; older ones are dropped", units="checkpoints", minimum=1
    )
    unsaved_checkpoints_max: int = setting(
        5,
        "last checkpoints, each of another job, that wait on this disk for an object store that was away",
        units="checkpoints",
        minimum=0,
    )
    unsaved_bytes_max: int = setting(
        32 * 2**30, "what they may take together; the newest is kept whatever it takes", units="bytes", minimum=0
    )
    unsaved_days_max: float = setting(14.0, "how long they wait while an agent runs", units="days", minimum=0)
    unsaved_retry_seconds_max: float = setting(300.0, "longest pause between two tries", units="s", minimum=0.1)
    check_seconds_max: float = setting(
        60.0, "how long disk and trainer may take to say that they work, at the start and after a fault", units="s"
    )
    check_again_seconds_first: float = setting(
        15.0,
        "how long a runner takes no job after it could not train one; twice as long each time",
        units="s",
        minimum=0,
    )
    check_again_seconds_max: float = setting(600.0, "longest time until it is looked at again", units="s", minimum=0)
    disk_still_seconds_max: float = setting(
        30.0,
        "how long the disk may stand still when an attempt ends; then its end is told without what waits for the disk",
        units="s",
        minimum=0.1,
    )
    disk_again_seconds_max: float = setting(
        2.0,
        "the same once it has stood still and has not answered since, or after a second signal",
        units="s",
        minimum=0.1,
    )
    ledger_seconds_max: float = setting(
        10.0,
        "how long the disk may take to write down an attempt's end; then it is reported all the same",
        units="s",
        minimum=0.1,
    )
    exit_seconds_max: float = setting(
        10.0, "how long the trainer may take to exit after its last word", units="s", minimum=0.1
    )
    kill_seconds_max: float = setting(
        15.0,
        "how long the system may take to end a killed trainer; then the attempt ends without that, as a runner's fault",
        units="s",
        minimum=0.1,
    )

    spool_bytes_max: int = setting(
        2 * 2**30,
        "what the points and lines of all attempts may take on disk; a writer may take half of what the others leave",
        units="bytes",
        minimum=2**20,
    )
    spool_disk_free_bytes_min: int = setting(
        64 * 2**20, "with less than this free on its disk a spool counts as full", units="bytes", minimum=0
    )
    spool_last_lines_bytes: int = setting(
        64 * 2**10, "set aside for an attempt's last lines, should its spool be full", units="bytes", minimum=2**10
    )
    spool_waiting_bytes_max: int = setting(
        8 * 2**20,
        "points and lines that may wait in memory for a slow disk; a killed agent loses them",
        units="bytes",
        minimum=2**18,
    )
    spool_stall_seconds_max: float = setting(
        1.0, "a disk that takes nothing for so long is not waited for", units="s", minimum=0.01
    )
    spool_open_seconds_max: float = setting(
        10.0, "how long the disk may take to begin and to end a spool", units="s", minimum=0.1
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
        if self.spool_bytes_max < 8 * self.spool_segment_bytes_max:
            problems.append("--spool-bytes-max must be at least eight times --spool-segment-bytes-max")
        if problems:
            raise ConfigurationError(problems)

    @property
    def runner(self) -> str:
        """The runner's resource name."""
        return f"runners/{self.runner_id}"
