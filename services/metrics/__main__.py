"""Starts the metrics service: configuration, ClickHouse, migrations, wiring, server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from datetime import UTC, datetime

import grpc
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc
from sihlai.metrics.v1 import (
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)

from services.chassis import config as configuration
from services.chassis import log as logs
from services.chassis.auth import TokenVerifier
from services.chassis.errors import ConfigurationError
from services.chassis.rpc import Server, channel, run_until_signal
from services.metrics.block import BlockLimits, Inserter
from services.metrics.config import PREFIX, Config
from services.metrics.ending import Endings
from services.metrics.engine import Engine, open_engine
from services.metrics.following import Following, FollowLimits
from services.metrics.ingest import Ingest, IngestLimits
from services.metrics.jobs import JobLimits, Jobs
from services.metrics.live import Hub
from services.metrics.migration import migrate, read_migrations
from services.metrics.query import Queries, QueryLimits
from services.metrics.series import SeriesStore
from services.metrics.servicer import IngestServicer, LogServicer, MetricsServicer, TailLimits
from services.metrics.store import Store
from services.metrics.wire import MessageLimits

PROG = "python -m services.metrics"
RETRY_ATTEMPTS_MAX = 2
"""Of calls to the scheduler: with it away, what is remembered answers, and soon."""


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    try:
        config = configuration.load(Config, argv=sys.argv[1:], environ=os.environ, prog=PROG, prefix=PREFIX)
        logs.configure("metrics", format=config.log_format, level=config.log_level)
        engine = open_engine(
            config.clickhouse,
            lock_seconds=config.engine_lock_seconds,
            query_seconds=config.query_seconds,
            insert_seconds=config.insert_seconds,
        )
        try:
            with contextlib.closing(engine.connect()) as connection:
                migrate(connection, read_migrations())
            asyncio.run(serve(config, engine))
        finally:
            engine.close()
    except ConfigurationError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 2
    return 0


async def serve(config: Config, engine: Engine) -> None:
    """Wire the parts and serve until a signal."""
    verifier = TokenVerifier.from_files(config.token_public_keys)
    store = Store(engine, readers=config.readers)
    hub = Hub(rows_max=config.follower_rows_max)
    inserter = Inserter(store, limits=_block_limits(config), is_watched=hub.is_watched, publish=hub.publish)
    ingest = Ingest(store, inserter, verifier, limits=_ingest_limits(config), clock=now, on_finish=hub.wake)
    scheduler = channel(
        config.scheduler_address, deadline_seconds=config.scheduler_seconds, retry_attempts_max=RETRY_ATTEMPTS_MAX
    )
    jobs = Jobs(scheduler, limits=_job_limits(config))
    server = Server(config)
    _add_services(server, config, store=store, hub=hub, ingest=ingest, jobs=jobs)
    works = (inserter.run(), jobs.run(), hub.stop_with(server.stopping))
    background = [asyncio.create_task(work) for work in works]
    try:
        await run_until_signal(server, background=background)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await scheduler.close()
        store.close()


def now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def _add_services(server: Server, config: Config, *, store: Store, hub: Hub, ingest: Ingest, jobs: Jobs) -> None:
    endings = Endings(store, wait_seconds=config.ended_wait_seconds, clock=now)
    follow_limits = FollowLimits(
        heartbeat_seconds=config.heartbeat_seconds, ended_check_seconds=config.ended_check_seconds
    )
    following = Following(hub, jobs, endings, limits=follow_limits, clock=now)
    series = SeriesStore(store)
    query_limits = QueryLimits(points_max=config.points_max, buckets_max=config.buckets_max, few_rows=config.few_rows)
    queries = Queries(store, series, limits=query_limits)
    message_limits = MessageLimits(rows=config.message_rows_max, line_characters=config.line_characters_max)
    tail_limits = TailLimits(
        page_lines=config.page_lines, batch_bytes_max=config.batch_bytes_max, last_max=config.tail_last_max
    )
    ingest_servicer = IngestServicer(ingest, limits=message_limits, stopping=server.stopping)
    metrics_servicer = MetricsServicer(jobs, queries, following, store, series, page_rows=config.page_rows)
    log_servicer = LogServicer(jobs, following, store, limits=tail_limits)

    def add_ingest(to: grpc.aio.Server) -> None:
        ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(ingest_servicer, to)

    def add_metrics(to: grpc.aio.Server) -> None:
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics_servicer, to)

    def add_logs(to: grpc.aio.Server) -> None:
        log_service_pb2_grpc.add_LogServiceServicer_to_server(log_servicer, to)

    server.add(ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name, add_ingest)
    server.add(metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name, add_metrics)
    server.add(log_service_pb2.DESCRIPTOR.services_by_name["LogService"].full_name, add_logs)


def _block_limits(config: Config) -> BlockLimits:
    return BlockLimits(
        rows=config.block_rows,
        rows_max=config.block_rows_max,
        seconds=config.block_seconds,
        watched_seconds=config.watched_block_seconds,
    )


def _ingest_limits(config: Config) -> IngestLimits:
    return IngestLimits(
        queue_bytes=config.queue_bytes_max,
        credit_bytes_max=config.credit_bytes_max,
        credit_bytes_min=config.credit_bytes_min,
        settle_seconds=config.settle_seconds,
        writers_per_stream=config.writers_per_stream_max,
        series_per_writer=config.series_per_writer_max,
    )


def _job_limits(config: Config) -> JobLimits:
    return JobLimits(
        call_seconds=config.scheduler_seconds,
        fresh_seconds=config.job_fresh_seconds,
        stale_seconds=config.job_stale_seconds,
        cached_max=config.jobs_cached_max,
        poll_seconds=config.job_poll_seconds,
        reconnect_seconds=config.reconnect_seconds,
        reconnect_seconds_max=config.reconnect_seconds_max,
    )


if __name__ == "__main__":
    sys.exit(main())
