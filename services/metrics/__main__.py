"""Starts the metrics service: configuration, ClickHouse, migrations, wiring, server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

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
from services.chassis.auth.carrying import TokenFile
from services.chassis.auth.guard import token_guard
from services.chassis.auth.keys import TokenVerifier
from services.chassis.auth.oidc.verifier import AccessVerifier
from services.chassis.auth.revocation import Revocations, follow_revocations
from services.chassis.bus import Bus, BusAccess
from services.chassis.errors import ConfigurationError
from services.chassis.nats_server import require_encrypted_bus
from services.chassis.rpc import Server, channel, run_until_signal
from services.chassis.serialized import serialized_streams
from services.chassis.tls import client_tls
from services.metrics.clickhouse.catalog import Catalog
from services.metrics.clickhouse.deletion import Deletions
from services.metrics.clickhouse.disk import DiskLimits
from services.metrics.clickhouse.engine import Engine, open_engine, require_encrypted_engine
from services.metrics.clickhouse.lane import Lane, LaneLimits
from services.metrics.clickhouse.lines import LineStore
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.clickhouse.ownership import LeaseLimits
from services.metrics.clickhouse.series import SeriesStore
from services.metrics.clickhouse.store import Store
from services.metrics.config import PREFIX, Config
from services.metrics.follow.ending import EndingLimits, Endings
from services.metrics.follow.following import Following
from services.metrics.follow.hub import Hub
from services.metrics.follow.room import FeedLimits
from services.metrics.follow.shared import SharedPages
from services.metrics.follow.tail import PageLimits, Tails
from services.metrics.follow.topic import FollowLimits
from services.metrics.follow.watch import Watches, WatchLimits
from services.metrics.forgetting import Forgetting, ForgettingLimits
from services.metrics.ingest.inserter import BlockLimits, Inserter
from services.metrics.ingest.opening import Openings
from services.metrics.ingest.registry import IngestLimits, Registry
from services.metrics.jobs import JobLimits, Jobs
from services.metrics.query.query import Queries, QueryLimits
from services.metrics.servicer.ingest_servicer import IngestServicer
from services.metrics.servicer.log_servicer import LogServicer
from services.metrics.servicer.metrics_servicer import MetricsServicer
from services.metrics.wire.ingest import MessageLimits
from services.metrics.wire.log import LogWire
from services.metrics.wire.watch import WatchWire

PROG = "python -m services.metrics"
RETRY_ATTEMPTS_MAX = 2
"""Of calls to the scheduler: with it away, what is remembered answers, and soon."""


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    try:
        config = configuration.load(Config, argv=sys.argv[1:], environ=os.environ, prog=PROG, prefix=PREFIX)
        logs.configure("metrics", format=config.log_format, level=config.log_level)
        require_encrypted_engine(config, config.clickhouse)
        engine = open_engine(
            config.clickhouse,
            lock_seconds=config.engine_lock_seconds,
            query_seconds=config.query_seconds,
            insert_seconds=config.insert_seconds,
            query_memory_bytes=config.query_memory_bytes_max,
            query_threads=config.query_threads_max,
            lease=_lease_limits(config),
            disk=_disk_limits(config),
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
    store = Store(engine, lanes=_lane_limits(config))
    scheduler = channel(
        config.scheduler_address,
        token=TokenFile.required(config.token_file) if config.token_file is not None else None,
        tls=client_tls(config.tls_ca_file, config.tls_certificate_file, config.tls_key_file),
        deadline_seconds=config.scheduler_seconds,
        retry_attempts_max=RETRY_ATTEMPTS_MAX,
    )
    revocations = Revocations(config.revocations_file)
    jobs = Jobs(scheduler, limits=_job_limits(config))
    hub = _hub(config, store.on(Lane.FOLLOW), jobs)
    ownership = engine.ownership()
    inserter = Inserter(store, ownership, limits=_block_limits(config), is_watched=hub.is_watched, publish=hub.publish)
    registry = Registry(verifier, limits=_ingest_limits(config), clock=now, on_leave=ownership.release)
    openings = Openings(store=store.on(Lane.INGEST), ownership=ownership, inserter=inserter, registry=registry)
    access_verifier = AccessVerifier.configured(config, verifier)
    server = Server(config, token_guard(config, access_verifier, revocations))
    _add_services(server, config, store=store, hub=hub, openings=openings, jobs=jobs)
    works: list[Coroutine[Any, Any, None]] = [
        inserter.run(),
        ownership.run(registry.lose),
        jobs.run(),
        hub.run(server.stopping),
        engine.upkeep(),
        follow_revocations(revocations, scheduler, verifier.learn),
        access_verifier.run(),
    ]
    async with contextlib.AsyncExitStack() as stack:
        if config.nats_url:
            require_encrypted_bus(config, config.nats_url)
            access = BusAccess(
                credentials_file=config.nats_credentials_file,
                tls=client_tls(config.nats_ca_file, config.tls_certificate_file, config.tls_key_file),
            )
            bus = await stack.enter_async_context(await Bus.connect(config.nats_url, name="metrics", access=access))
            deletions = Deletions(engine)
            stack.callback(deletions.close)
            works.append(Forgetting(bus, deletions, limits=ForgettingLimits()).run())
        background = [asyncio.create_task(work) for work in works]
        try:
            await run_until_signal(server, background=background)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await scheduler.close()
            store.close()
            ownership.close()


def now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def _add_services(server: Server, config: Config, *, store: Store, hub: Hub, openings: Openings, jobs: Jobs) -> None:
    query_store, follow_store = store.on(Lane.QUERY), store.on(Lane.FOLLOW)
    following = Following(hub, heartbeat_seconds=config.heartbeat_seconds, monotonic=time.monotonic)
    pages = SharedPages(bytes_max=config.pages_bytes_max)
    page_limits = PageLimits(lines=config.page_lines, scanned_lines=config.scanned_lines_max)
    tails = Tails(follow_store, LineStore(follow_store), pages, LogWire(), limits=page_limits)
    watch_limits = WatchLimits(rows=config.page_rows, scanned_messages=config.scanned_messages_max)
    followed = Catalog(follow_store, definitions_max=config.definitions_cached_max)
    watches = Watches(follow_store, followed, SeriesStore(follow_store), pages, WatchWire(), limits=watch_limits)
    catalog = Catalog(query_store, definitions_max=config.definitions_cached_max)
    queries = Queries(catalog, SeriesStore(query_store), limits=_query_limits(config))
    message_limits = MessageLimits(rows=config.message_rows_max, line_characters=config.line_characters_max)
    ingest_servicer = IngestServicer(
        openings, limits=message_limits, on_finish=hub.writer_finished, stopping=server.stopping
    )
    metrics_servicer = MetricsServicer(jobs, queries, following, watches, message_bytes_max=config.message_bytes_max)
    log_servicer = LogServicer(jobs, following, tails, LineStore(query_store), tail_last_max=config.tail_last_max)

    def add_ingest(to: grpc.aio.Server) -> None:
        ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(ingest_servicer, to)

    def add_metrics(to: grpc.aio.Server) -> None:
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
            metrics_servicer, serialized_streams(to, {"WatchMetrics"})
        )

    def add_logs(to: grpc.aio.Server) -> None:
        log_service_pb2_grpc.add_LogServiceServicer_to_server(log_servicer, serialized_streams(to, {"TailLogs"}))

    server.add(ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name, add_ingest, for_runners=True)
    server.add(metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name, add_metrics)
    server.add(log_service_pb2.DESCRIPTOR.services_by_name["LogService"].full_name, add_logs)


def _hub(config: Config, store: Store, jobs: Jobs) -> Hub:
    ending_limits = EndingLimits(
        wait_seconds=config.ended_wait_seconds, unopened_wait_seconds=config.unopened_wait_seconds
    )
    limits = FollowLimits(heartbeat_seconds=config.heartbeat_seconds, ended_check_seconds=config.ended_check_seconds)
    feed_limits = FeedLimits(
        bytes_max=config.follower_bytes_max,
        total_bytes_max=config.followers_bytes_max,
        message_bytes_max=config.batch_bytes_max,
        pause_seconds_max=config.follower_pause_seconds_max,
        poll_seconds=config.follower_poll_seconds if store.is_shared else None,
    )
    endings = Endings(store, limits=ending_limits, clock=now, monotonic=time.monotonic)
    return Hub(jobs, endings, limits=limits, feed_limits=feed_limits, monotonic=time.monotonic)


def _lane_limits(config: Config) -> LaneLimits:
    readers = {
        Lane.INGEST: config.ingest_readers,
        Lane.FOLLOW: config.follow_readers,
        Lane.QUERY: config.query_readers,
    }
    return LaneLimits(readers=readers, wait_seconds=config.reader_wait_seconds)


def _query_limits(config: Config) -> QueryLimits:
    return QueryLimits(
        points_max=config.points_max,
        buckets_max=config.buckets_max,
        few_rows=config.few_rows,
        cursor_tries_max=config.cursor_tries_max,
    )


def _block_limits(config: Config) -> BlockLimits:
    return BlockLimits(
        rows=config.block_rows,
        rows_max=config.block_rows_max,
        seconds=config.block_seconds,
        watched_seconds=config.watched_block_seconds,
    )


def _lease_limits(config: Config) -> LeaseLimits:
    return LeaseLimits(
        seconds=config.lease_seconds,
        renew_seconds=config.lease_renew_seconds,
        wait_seconds=config.take_over_seconds,
        poll_seconds=config.lease_poll_seconds,
        settle_seconds=config.lease_settle_seconds,
    )


def _disk_limits(config: Config) -> DiskLimits:
    return DiskLimits(
        insert_bytes_min=config.disk_free_bytes_min,
        merge_bytes_min=config.merge_free_bytes_min,
        watch_bytes_min=config.disk_watch_bytes_min,
        look_seconds=config.disk_look_seconds,
    )


def _ingest_limits(config: Config) -> IngestLimits:
    return IngestLimits(
        queue_bytes=config.queue_bytes_max,
        credit_bytes_max=config.credit_bytes_max,
        credit_bytes_min=config.credit_bytes_min,
        settle_seconds=config.settle_seconds,
        writers_per_stream=config.writers_per_stream_max,
        series_per_writer=config.series_per_writer_max,
        series=config.series_max,
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
