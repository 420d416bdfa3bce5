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
    checkpoint_root: str = setting(help="where checkpoints are kept: file:///folder, s3://…, gs://… or az://…")
    checkpoint_endpoint_url: str | None = setting(None, "S3-compatible server of checkpoint_root; AWS where left out")
    token_key_file: Path = setting(help="private key that signs tokens; made where missing")
    token_public_keys: tuple[Path, ...] = setting(
        (), "public keys (PEM) of others who sign tokens; a folder means *.pub.pem"
    )
    token_days_default: float = setting(30.0, "life of a token that is given without a time", units="days", minimum=0)
    token_days_max: float = setting(366.0, "longest life of a token that can be given", units="days", minimum=0)
    revocations_seconds: float = setting(
        30.0, "how often services are told anew which tokens were revoked", units="s", minimum=0.1
    )
    credentials_key_file: Path = setting(
        help="keys that seal datasets' credentials, the newest first; made where missing"
    )
    nats_ca_file: Path | None = setting(None, "authority of NATS's certificate, for a url that begins with tls://")
    nats_credentials_file: Path | None = setting(None, "file with NATS's user and password, on two lines")
    nats_url: str | None = setting(None, "event bus; without one events stay in the outbox", units="nats://host:port")
    nats_replicas: int = setting(
        1,
        "servers of a NATS cluster that keep each event, for a stream that is not there yet",
        units="servers",
        minimum=1,
    )
    conversion_address: str | None = setting(
        None, "conversion service; without one jobs are not checked for reachable tasks", units="host:port"
    )
    announced_metrics_address: str | None = setting(
        None, "where clients find metrics, which they are told; without a host at the one they asked", units="host:port"
    )
    announced_conversion_address: str | None = setting(
        None, "the same of conversion; conversion_address where left out", units="host:port"
    )
    allowed_roots: tuple[Path, ...] = setting((), "folders that file:// datasets may lie in")
    allowed_endpoint_hosts: tuple[str, ...] = setting((), "hosts that datasets' endpoint_url may name", units="host")

    lease_seconds: float = setting(25.0, "silence after which a runner's attempt is lost", units="s", minimum=2)
    synchronize_seconds_max: float = setting(8.0, "longest wait of a runner's call", units="s", minimum=0.1)
    idle_calls_per_second: float = setting(
        500.0, "calls of idle runners; those of more runners wait longer, up to 0.7 of the lease", minimum=1
    )
    idle_gap_seconds: float = setting(1.0, "an idle runner keeps its place so long between calls", units="s", minimum=0)
    resend_seconds: float = setting(1.0, "when a runner is told again what it has not done yet", units="s", minimum=0.1)
    starting_minutes_max: float = setting(
        60.0, "time without progress before a job's first step", units="min", minimum=0
    )
    stop_grace_seconds: float = setting(120.0, "time to write the checkpoint of a stop", units="s", minimum=1)
    stop_grace_seconds_max: float = setting(3_600.0, "longest grace period that may be asked for", units="s", minimum=1)
    stop_margin_seconds: float = setting(30.0, "time a runner has beyond the grace period", units="s", minimum=1)
    uploading_minutes_max: float = setting(30.0, "time without progress in an upload", units="min", minimum=0)
    stalled_minutes_max: float = setting(
        60.0, "time without progress of a trainer that runs, after which its attempt fails", units="min", minimum=0
    )
    clock_step_seconds: float = setting(
        3.0, "difference of two clocks between two looks after which leases begin anew", units="s", minimum=0.1
    )
    outage_seconds: float = setting(
        8.0, "delay of a look at the leases after which they begin anew", units="s", minimum=0.1
    )
    silent_runners_min: int = setting(
        3, "runners that may go silent at once before that is taken for an outage", units="runners", minimum=0
    )
    silent_share: float = setting(0.3, "the same as a share of all, where that is more", minimum=0)
    silence_minutes_max: float = setting(
        10.0, "how long nothing expires while so many runners are silent", units="min", minimum=0
    )
    lost_attempts_max: int = setting(3, "runners lost in a row that fail a job", units="attempts", minimum=1)
    faults_max: int = setting(
        5, "attempts in a row that fail a job, where none was the user's fault", units="attempts", minimum=1
    )
    hand_backs_max: int = setting(
        20, "attempts handed back in a row, without a new checkpoint, that fail a job", units="attempts", minimum=1
    )
    retry_seconds_first: float = setting(
        10.0, "pause before a job is tried again after a fault; doubled by each in a row", units="s", minimum=0
    )
    retry_seconds_max: float = setting(600.0, "longest such pause", units="s", minimum=0)
    avoid_minutes: float = setting(
        10.0,
        "how long after that pause a job keeps away from the runner that failed with it, where another could serve it",
        units="min",
        minimum=0,
    )
    runner_failures_max: int = setting(
        3, "attempts that fail soon and through a runner's fault, in a row, that put it aside", minimum=1
    )
    runner_failure_seconds: float = setting(
        600.0, "an attempt that fails later than this after its start is in no row", units="s", minimum=0
    )
    put_aside_minutes_first: float = setting(
        5.0, "how long a runner is put aside; doubled by each failure after that", units="min", minimum=0
    )
    put_aside_minutes_max: float = setting(120.0, "longest such time", units="min", minimum=0)
    overtakes_max: int = setting(
        20, "jobs that may overtake one that no free runner can serve", units="jobs", minimum=0
    )
    checkpoints_kept: int = setting(
        20,
        "checkpoints of a job that stay, spread over its iterations, beside the last and the best one",
        units="checkpoints",
        minimum=1,
    )
    checkpoint_settle_minutes: float = setting(10.0, "a younger checkpoint always stays", units="min", minimum=0)
    adoption_seconds_max: float = setting(
        120.0, "how long a job waits for its lost attempt's checkpoints to be looked for", units="s"
    )
    adoption_days_max: float = setting(
        7.0, "how long checkpoints of an ended attempt are looked for where the store is away", units="days"
    )
    write_token_minutes: float = setting(60.0, "life of a write token", units="min", minimum=2)
    log_drain_hours_max: float = setting(168.0, "how long lines of an ended attempt are taken", units="h", minimum=0)

    plan_seconds: float = setting(5.0, "longest wait for conversion at a submit", units="s", minimum=0.1)
    deletion_seconds: float = setting(
        20.0, "how long the deletion of a project waits for all of it to be gone", units="s", minimum=0
    )
    request_id_hours: float = setting(48.0, "how long request ids are known", units="h", minimum=1)
    removed_job_hours: float = setting(
        504.0,
        "how long a watch's cursor works after deletions, and uploads that come after a job's deletion are deleted too;"
        " longer than a runner keeps unsaved checkpoints",
        units="h",
        minimum=1,
    )
    lost_runner_days: float = setting(30.0, "how long a lost runner is remembered", units="days", minimum=0)
    parked_minutes: float = setting(
        10.0,
        "how long a record that cannot be dealt with is left alone before it is tried again",
        units="min",
        minimum=0,
    )
    outbox_days_max: float = setting(30.0, "how long events wait for the bus", units="days", minimum=1)
    watch_progress_seconds: float = setting(15.0, "silence after which a watch says so", units="s", minimum=0.1)
    watch_page_max: int = setting(500, "jobs that a watch reads at once", units="jobs", minimum=1)
    watch_page_bytes_max: int = setting(
        2**20, "the same in bytes, which it holds until its client has read them", units="bytes", minimum=1
    )
    watch_unread_seconds: float = setting(
        1_800.0, "how long a watch's client may read nothing before the watch ends", units="s", minimum=0.1
    )
    write_batch_max: int = setting(256, "requests in one transaction", units="requests", minimum=1)
    write_gather_callers_min: int = setting(
        8, "callers at once from which a transaction waits for those on their way", units="callers", minimum=1
    )
    write_gather_seconds: float = setting(
        0.002, "where so many call, a transaction begins when nobody has come for so long", units="s", minimum=0
    )
    write_gather_seconds_max: float = setting(0.02, "the longest wait for it", units="s", minimum=0)
    control_gather_seconds_max: float = setting(
        0.005, "the same where a runner, a stop or the upkeep waits", units="s", minimum=0
    )
    write_queue_max: int = setting(20_000, "requests that wait for the database", units="requests", minimum=1)
    control_queue_max: int = setting(
        20_000, "requests of runners, stops and upkeep that wait for the database", units="requests", minimum=1
    )
    readers: int = setting(4, "threads that read the database for runners", units="threads", minimum=1)
    list_readers: int = setting(2, "threads that read the database for lists", units="threads", minimum=1)
    list_queue_max: int = setting(1_000, "lists that wait for the database", units="requests", minimum=1)
    database_busy_seconds: float = setting(
        10.0, "how long a statement waits where another process holds the SQLite file", units="s", minimum=0
    )
    database_log_bytes_max: int = setting(
        64 * 1024 * 1024,
        "size of SQLite's write-ahead log from which on lists wait, so that it can begin anew",
        units="bytes",
        minimum=4 * 1024 * 1024,
    )
    leader_silence_seconds: float = setting(
        3.0,
        "silence, in a transaction too, after which PostgreSQL cuts a leader off",
        units="s",
        minimum=1,
    )
    leader_look_seconds: float = setting(
        0.5, "how often a leader looks at its lock, and one that stands by whether it is free", units="s", minimum=0.05
    )
    watches_max: int = setting(2_000, "watches that are served at once", units="watches", minimum=1)
    watches_bytes_max: int = setting(
        2**27, "what all watches together hold; beyond it each still takes 64 KiB", units="bytes", minimum=1
    )
    watch_window_max: int = setting(2_000, "changes that watches are given from memory", units="jobs", minimum=1)
    watch_window_bytes_max: int = setting(2**25, "the same in bytes", units="bytes", minimum=1)
    progress_reports_max: int = setting(
        200, "reports of progress that all runners together send, beside their renewals", units="1/s", minimum=1
    )
