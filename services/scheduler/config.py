"""The scheduler's configuration; what each setting means stands beside it, and in `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import ServerConfig, setting

PREFIX = "SIHLAI_SCHEDULER_"


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(ServerConfig):
    """The settings of `python -m services.scheduler`."""

    database_url: str = setting(help="database: sqlite:////folder/scheduler.sqlite or postgresql://user@host/name")
    checkpoint_root: str = setting(help="where checkpoints are kept: file:///folder or s3://bucket/prefix")
    checkpoint_endpoint_url: str | None = setting(None, "S3-compatible server of checkpoint_root; AWS where left out")
    token_key_file: Path = setting(help="private key that signs write tokens; made where missing")
    credentials_key_file: Path = setting(help="key that seals datasets' credentials; made where missing")
    nats_url: str | None = setting(None, "event bus; without one events stay in the outbox", units="nats://host:port")
    conversion_address: str | None = setting(
        None, "conversion service; without one jobs are not checked for reachable tasks", units="host:port"
    )
    allowed_roots: tuple[Path, ...] = setting((), "folders that file:// datasets may lie in")
    allowed_endpoint_hosts: tuple[str, ...] = setting((), "hosts that datasets' endpoint_url may name", units="host")

    lease_seconds: float = setting(25.0, "silence after which a runner's attempt is lost", units="s", minimum=2)
    synchronize_seconds_max: float = setting(8.0, "longest wait of a runner's call", units="s", minimum=0.1)
    resend_seconds: float = setting(1.0, "when a runner is told again what it has not done yet", units="s", minimum=0.1)
    starting_minutes_max: float = setting(
        60.0, "time without progress before a job's first step", units="min", minimum=0
    )
    stop_grace_seconds: float = setting(120.0, "time to write the checkpoint of a stop", units="s", minimum=1)
    stop_grace_seconds_max: float = setting(3_600.0, "longest grace period that may be asked for", units="s", minimum=1)
    stop_margin_seconds: float = setting(30.0, "time a runner has beyond the grace period", units="s", minimum=1)
    uploading_minutes_max: float = setting(30.0, "time without progress in an upload", units="min", minimum=0)
    lost_attempts_max: int = setting(3, "runners lost in a row that fail a job", units="attempts", minimum=1)
    overtakes_max: int = setting(
        20, "jobs that may overtake one that no free runner can serve", units="jobs", minimum=0
    )
    adoption_seconds_max: float = setting(120.0, "how long checkpoints of a lost attempt are looked for", units="s")
    write_token_minutes: float = setting(60.0, "life of a write token", units="min", minimum=2)
    log_drain_hours_max: float = setting(168.0, "how long lines of an ended attempt are taken", units="h", minimum=0)

    plan_seconds: float = setting(5.0, "longest wait for conversion at a submit", units="s", minimum=0.1)
    request_id_hours: float = setting(48.0, "how long request ids are known", units="h", minimum=1)
    removed_job_hours: float = setting(168.0, "how long a watch's cursor works after deletions", units="h", minimum=1)
    outbox_days_max: float = setting(30.0, "how long events wait for the bus", units="days", minimum=1)
    watch_progress_seconds: float = setting(15.0, "silence after which a watch says so", units="s", minimum=0.1)
    watch_page_max: int = setting(500, "jobs that a watch reads at once", units="jobs", minimum=1)
    write_batch_max: int = setting(256, "requests in one transaction", units="requests", minimum=1)
    write_queue_max: int = setting(20_000, "requests that wait for the database", units="requests", minimum=1)
    readers: int = setting(4, "threads that read the database", units="threads", minimum=1)
