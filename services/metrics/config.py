"""The settings of the metrics service. Read once, in `__main__`; the parts get the values that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import ServerConfig, setting

PREFIX = "SIHLAI_METRICS_"


@dataclass(frozen=True, kw_only=True)
class Config(ServerConfig):
    """Every queue, page, wait and retry of the service has its limit here."""

    clickhouse: str = setting(
        help="chdb:///data/folder for the embedded engine, or http://host:8123/database", units="url"
    )
    scheduler_address: str = setting(help="the scheduler, which knows the jobs", units="host:port")
    token_public_keys: tuple[Path, ...] = setting(help="public keys (PEM) of who signs write tokens")

    engine_lock_seconds: float = setting(20.0, "wait for a killed predecessor to let go of the folder", units="s")
    query_seconds: float = setting(30.0, "longest query", units="s", minimum=1)
    insert_seconds: float = setting(60.0, "longest insert", units="s", minimum=1)
    readers: int = setting(4, "queries at once", minimum=1)

    block_rows: int = setting(50_000, "waiting rows that are inserted at once", units="rows", minimum=1)
    block_rows_max: int = setting(100_000, "rows of an insert, unless one message has more", units="rows", minimum=1)
    block_seconds: float = setting(1.0, "pause between smaller inserts", units="s", minimum=0)
    watched_block_seconds: float = setting(0.05, "the same while somebody watches", units="s", minimum=0)
    queue_bytes_max: int = setting(128 * 2**20, "rows that wait for their insert", units="bytes", minimum=1)
    credit_bytes_max: int = setting(8 * 2**20, "what one stream may have in flight", units="bytes", minimum=1)
    credit_bytes_min: int = setting(2**18, "the same with very many streams", units="bytes", minimum=1)
    settle_seconds: float = setting(20.0, "wait for rows of a writer's earlier stream", units="s", minimum=0)
    writers_per_stream_max: int = setting(256, "writers of one stream", minimum=1)
    message_rows_max: int = setting(100_000, "rows of one message", units="rows", minimum=1)
    line_characters_max: int = setting(2**16, "longest line", units="characters", minimum=1)
    series_per_writer_max: int = setting(20_000, "series that one writer may name", minimum=1)

    points_max: int = setting(150_000, "points of one answer", units="points", minimum=1)
    buckets_max: int = setting(40_000, "buckets of one answer", units="buckets", minimum=1)
    few_rows: int = setting(20_000, "points whose buckets this process makes itself", units="points", minimum=0)
    page_rows: int = setting(20_000, "points of one page of history", units="points", minimum=1)
    page_lines: int = setting(1_000, "lines of one page of history", units="lines", minimum=1)
    batch_bytes_max: int = setting(2**20, "lines in one answer", units="bytes", minimum=1)
    tail_last_max: int = setting(100_000, "lines that a tail can go back", units="lines", minimum=1)
    follower_rows_max: int = setting(20_000, "rows that wait for a slow follower", units="rows", minimum=1)
    heartbeat_seconds: float = setting(10.0, "silence after which a stream shows that it lives", units="s", minimum=0.1)
    ended_wait_seconds: float = setting(30.0, "wait after a job's end for its last rows", units="s", minimum=0)
    ended_check_seconds: float = setting(1.0, "pause between looks for them", units="s", minimum=0.05)

    scheduler_seconds: float = setting(3.0, "longest wait for the scheduler's answer", units="s", minimum=0.1)
    job_fresh_seconds: float = setting(2.0, "how long a job that was read is not asked for again", units="s", minimum=0)
    job_stale_seconds: float = setting(3600.0, "how long it is used with the scheduler away", units="s", minimum=0)
    jobs_cached_max: int = setting(10_000, "jobs that are remembered", minimum=1)
    job_poll_seconds: float = setting(15.0, "pause between looks at followed jobs", units="s", minimum=0.1)
    reconnect_seconds: float = setting(0.2, "first pause before the watch of jobs is opened again", units="s")
    reconnect_seconds_max: float = setting(5.0, "longest such pause", units="s", minimum=0.1)
