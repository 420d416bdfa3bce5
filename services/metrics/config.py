"""The settings of the metrics service. Read once, in `__main__`; the parts get the values that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import ServerConfig, setting
from services.chassis.errors import ConfigurationError
from services.metrics.clickhouse.ownership import LEASE
from services.metrics.writer_key import ROWS_MAX

PREFIX = "SIHLAI_METRICS_"


@dataclass(frozen=True, kw_only=True)
class Config(ServerConfig):
    """Every queue, page, wait and retry of the service has its limit here."""

    clickhouse: str = setting(
        help="chdb:///data/folder for the embedded engine, or http://host:8123/database", units="url"
    )
    scheduler_address: str = setting(help="the scheduler, which knows the jobs", units="host:port")
    nats_ca_file: Path | None = setting(None, "authority of NATS's certificate, for a url that begins with tls://")
    nats_credentials_file: Path | None = setting(None, "file with NATS's user and password, on two lines")
    nats_url: str | None = setting(
        None, "the event bus; without it the rows of deleted jobs stay", units="nats://host:port"
    )
    token_public_keys: tuple[Path, ...] = setting(
        help="public keys (PEM) of who signs tokens; a folder means *.pub.pem"
    )

    engine_lock_seconds: float = setting(20.0, "wait for a killed predecessor to let go of the folder", units="s")
    disk_free_bytes_min: int = setting(
        256 * 2**20, "with less free on ClickHouse's disk nothing is inserted", units="bytes", minimum=0
    )
    merge_free_bytes_min: int = setting(
        512 * 2**20, "with less free on the embedded engine's disk nothing is merged", units="bytes", minimum=0
    )
    disk_watch_bytes_min: int = setting(
        2 * 2**30, "with less free there each insert is looked at: did it find room?", units="bytes", minimum=0
    )
    disk_look_seconds: float = setting(1.0, "pause between looks at that disk", units="s", minimum=0.05)
    query_seconds: float = setting(30.0, "longest query", units="s", minimum=1)
    query_memory_bytes_max: int = setting(2 * 2**30, "what one query may take ClickHouse", units="bytes", minimum=1)
    query_threads_max: int = setting(4, "threads of one query in ClickHouse", units="threads", minimum=1)
    insert_seconds: float = setting(60.0, "longest insert", units="s", minimum=1)
    query_readers: int = setting(4, "queries of users at once", minimum=1)
    follow_readers: int = setting(2, "the same of tails and watches", minimum=1)
    ingest_readers: int = setting(2, "the same of openings and ends of writers", minimum=1)
    reader_wait_seconds: float = setting(10.0, "wait for a free reader", units="s", minimum=0)

    lease_seconds: float = setting(
        LEASE.seconds, "at a server: how long rows may be stored after the last sign of life", units="s", minimum=1
    )
    lease_renew_seconds: float = setting(
        LEASE.renew_seconds, "at a server: pause between two signs of life", units="s", minimum=0.05
    )
    lease_poll_seconds: float = setting(
        LEASE.poll_seconds, "at a server: pause between looks whether others let go", units="s", minimum=0.01
    )
    lease_settle_seconds: float = setting(
        LEASE.settle_seconds, "at a server: time of an insert after its lease, if it may not be killed", units="s"
    )

    block_rows: int = setting(50_000, "waiting rows that are inserted at once", units="rows", minimum=1)
    block_rows_max: int = setting(100_000, "rows of an insert, unless one message has more", units="rows", minimum=1)
    block_seconds: float = setting(1.0, "pause between smaller inserts", units="s", minimum=0)
    watched_block_seconds: float = setting(0.05, "the same while somebody watches", units="s", minimum=0)
    queue_bytes_max: int = setting(128 * 2**20, "rows that wait for their insert", units="bytes", minimum=1)
    credit_bytes_max: int = setting(8 * 2**20, "what one stream may have in flight", units="bytes", minimum=1)
    credit_bytes_min: int = setting(2**18, "the same with very many streams", units="bytes", minimum=1)
    settle_seconds: float = setting(20.0, "wait for rows of a writer's earlier stream", units="s", minimum=0)
    take_over_seconds: float = setting(
        LEASE.wait_seconds, "wait for another process of this service that has a writer", units="s", minimum=0
    )
    writers_per_stream_max: int = setting(256, "writers of one stream", minimum=1)
    message_rows_max: int = setting(100_000, "rows of one message, at most 131072", units="rows", minimum=1)
    line_characters_max: int = setting(2**16, "longest line", units="characters", minimum=1)
    series_per_writer_max: int = setting(20_000, "series that one writer may name", minimum=1)
    series_max: int = setting(1_000_000, "series that all open writers may name", minimum=1)

    points_max: int = setting(150_000, "points of one answer", units="points", minimum=1)
    buckets_max: int = setting(40_000, "buckets of one answer", units="buckets", minimum=1)
    few_rows: int = setting(20_000, "points whose buckets this process makes itself", units="points", minimum=0)
    definitions_cached_max: int = setting(200_000, "series whose definitions are remembered", minimum=0)
    cursor_tries_max: int = setting(3, "readings of an answer with a cursor of a job that is written to", minimum=1)
    page_rows: int = setting(20_000, "points of one page of history", units="points", minimum=1)
    page_lines: int = setting(1_000, "lines of one page of history", units="lines", minimum=1)
    batch_bytes_max: int = setting(2**20, "lines in one answer", units="bytes", minimum=1)
    tail_last_max: int = setting(100_000, "lines that a tail can go back", units="lines", minimum=1)
    scanned_lines_max: int = setting(200_000, "lines that one page looks at", units="lines", minimum=1)
    scanned_messages_max: int = setting(20_000, "messages of points that one page looks at", minimum=1)
    pages_bytes_max: int = setting(32 * 2**20, "pages that are kept for the next who asks", units="bytes", minimum=0)
    follower_bytes_max: int = setting(2**20, "live rows that wait for slow followers", units="bytes", minimum=1)
    followers_bytes_max: int = setting(2**28, "the same and what is sent, of all", units="bytes", minimum=1)
    follower_poll_seconds: float = setting(2.0, "looks for rows of other services", units="s", minimum=0.05)
    follower_pause_seconds_max: float = setting(0.25, "longest pause between live messages", units="s", minimum=0)
    heartbeat_seconds: float = setting(10.0, "silence after which a stream shows that it lives", units="s", minimum=0.1)
    ended_wait_seconds: float = setting(30.0, "wait after a job's end for its last rows", units="s", minimum=0)
    unopened_wait_seconds: float = setting(5.0, "the same for an attempt that never began", units="s", minimum=0)
    ended_check_seconds: float = setting(1.0, "pause between looks for them", units="s", minimum=0.05)

    scheduler_seconds: float = setting(3.0, "longest wait for the scheduler's answer", units="s", minimum=0.1)
    job_fresh_seconds: float = setting(2.0, "how long a job that was read is not asked for again", units="s", minimum=0)
    job_stale_seconds: float = setting(3600.0, "how long it is used with the scheduler away", units="s", minimum=0)
    jobs_cached_max: int = setting(10_000, "jobs that are remembered", minimum=1)
    job_poll_seconds: float = setting(15.0, "pause between looks at followed jobs", units="s", minimum=0.1)
    reconnect_seconds: float = setting(0.2, "first pause before the watch of jobs is opened again", units="s")
    reconnect_seconds_max: float = setting(5.0, "longest such pause", units="s", minimum=0.1)

    def __post_init__(self) -> None:
        """Raise ConfigurationError for more rows than a point's place can tell apart."""
        if self.message_rows_max > ROWS_MAX:
            raise ConfigurationError([f"message_rows_max is {self.message_rows_max}, but {ROWS_MAX} is the most"])
        if self.lease_seconds < 3 * self.lease_renew_seconds:
            raise ConfigurationError(["--lease-seconds must be at least three times --lease-renew-seconds"])
