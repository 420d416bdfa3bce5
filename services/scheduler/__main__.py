"""The scheduler's process: configuration, wiring, life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sihlai.runner.v1 import runner_admin_service_pb2_grpc, runner_service_pb2_grpc
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2_grpc,
    conversion_report_service_pb2_grpc,
    job_service_pb2_grpc,
    project_service_pb2_grpc,
)

from services.chassis import config as chassis_config
from services.chassis import log as logs
from services.chassis.auth import TokenSigner
from services.chassis.bus import Bus
from services.chassis.errors import ConfigurationError, SihlaiError
from services.chassis.rpc import Server, run_until_signal
from services.scheduler.checkpoints import CheckpointStore
from services.scheduler.config import PREFIX, SchedulerConfig
from services.scheduler.conversion_reports import ConversionReportStore
from services.scheduler.desk import DeskLimits, RunnerDesk
from services.scheduler.migrations import migrate
from services.scheduler.outbox import OutboxLimits, Publisher
from services.scheduler.reachability import Reachability
from services.scheduler.reconcile import ReconcileLimits, Reconciler
from services.scheduler.seal import Seal
from services.scheduler.servicer.checkpoint_servicer import CheckpointServicer
from services.scheduler.servicer.conversion_report_servicer import ConversionReportServicer
from services.scheduler.servicer.job_servicer import JobServicer, StopLimits
from services.scheduler.servicer.project_servicer import ProjectServicer
from services.scheduler.servicer.runner_servicer import RunnerAdminServicer, RunnerLimits, RunnerServicer
from services.scheduler.servicer.watch import JobWatch, WatchLimits
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.claims import Claims
from services.scheduler.store.database import Database, DatabaseLimits
from services.scheduler.store.jobs import JobStore
from services.scheduler.store.outbox import OutboxStore
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.queue import QueueLimits
from services.scheduler.store.runners import RunnerStore
from services.scheduler.store.upkeep import Upkeep, UpkeepLimits
from services.scheduler.tokens import TokenMint
from services.scheduler.wire.event import fact_to_event
from services.scheduler.wire.project import SourceBounds

PROG = "python -m services.scheduler"
SWITCH_SECONDS = 0.0005
"""How long the database's threads may keep the event loop from running; at Python's default of 5 ms each hand-over of a
busy moment costs that much, and a runner waits for several."""


def main(argv: Sequence[str]) -> int:
    """Run the scheduler until a signal; return the exit status."""
    try:
        config = chassis_config.load(SchedulerConfig, argv=argv, environ=os.environ, prog=PROG, prefix=PREFIX)
        logs.configure("scheduler", format=config.log_format, level=config.log_level)
        sys.setswitchinterval(SWITCH_SECONDS)
        asyncio.run(serve(config))
    except (ConfigurationError, SihlaiError) as error:
        sys.stderr.write(f"scheduler: {error}\n")
        return 2
    return 0


async def serve(config: SchedulerConfig) -> None:
    """Serve until a signal."""
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await Scheduler.build(config, stack)
        await run_until_signal(scheduler.server, background=scheduler.start_background(stack))


class Scheduler:
    """All parts of one scheduler, wired. `server` is not started yet."""

    def __init__(self, config: SchedulerConfig, database: Database) -> None:
        self.config = config
        self.database = database
        self.server = Server(config)
        self.seal = Seal.from_file(config.credentials_key_file)
        self.checkpoints = CheckpointStore(config.checkpoint_root, endpoint_url=config.checkpoint_endpoint_url)
        queue_limits = QueueLimits(overtakes_max=config.overtakes_max)
        claims = Claims(lease_seconds=config.lease_seconds, limits=queue_limits)
        self.projects = ProjectStore(database)
        self.jobs = JobStore(database, queue_limits=queue_limits)
        self.runners = RunnerStore(
            database,
            claims,
            lease_seconds=config.lease_seconds,
            lost_attempts_max=config.lost_attempts_max,
        )
        self.upkeep = Upkeep(database, _upkeep_limits(config))
        self.desk = RunnerDesk(self.runners, limits=_desk_limits(config), monotonic=time.monotonic)
        self.watch = JobWatch(
            self.jobs,
            self.projects,
            limits=WatchLimits(page_max=config.watch_page_max, progress_seconds=config.watch_progress_seconds),
            stopping=self.server.stopping,
        )
        self.reachability = Reachability(config.conversion_address, plan_seconds=config.plan_seconds)
        self.reconciler = Reconciler(
            self.upkeep,
            self.desk,
            self.checkpoints,
            limits=ReconcileLimits(adoption_seconds_max=config.adoption_seconds_max),
            monotonic=time.monotonic,
            now_us=_now_us,
        )
        self.publisher: Publisher | None = None
        database.before_commit.append(claims.place)
        database.after_commit += [self.desk.on_committed, self.watch.on_committed, self.reconciler.on_committed]
        self._add_services()

    @classmethod
    async def build(cls, config: SchedulerConfig, stack: contextlib.AsyncExitStack) -> Scheduler:
        """Open and migrate the database, connect, wire; what is opened is closed by `stack`."""
        limits = DatabaseLimits(
            batch_max=config.write_batch_max, queue_max=config.write_queue_max, readers=config.readers
        )
        database = Database(config.database_url, encode_fact=fact_to_event, new_id=new_id, limits=limits)
        stack.callback(database.close)
        database.hold_alone()
        with database.writing.connect() as connection, connection.begin():
            migrate(connection)
        database.start()
        scheduler = cls(config, database)
        stack.push_async_callback(scheduler.reachability.close)
        if config.nats_url:
            bus = await stack.enter_async_context(await Bus.connect(config.nats_url, name="scheduler"))
            scheduler.publisher = Publisher(OutboxStore(database), bus, limits=OutboxLimits())
            database.after_commit.append(scheduler.publisher.on_committed)
        # Nobody could renew while this scheduler was away.
        await scheduler.upkeep.restart_clocks()
        return scheduler

    def start_background(self, stack: contextlib.AsyncExitStack) -> list[asyncio.Task[Any]]:
        """Start what runs beside the calls; it ends with `stack`."""
        work = [self.reconciler.run(), self._end_waits()]
        if self.publisher is not None:
            work.append(self.publisher.run())
        tasks = [asyncio.create_task(each) for each in work]

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        stack.push_async_callback(end)
        return tasks

    async def _end_waits(self) -> None:
        await self.server.stopping.wait()
        self.desk.stop()

    def _add_services(self) -> None:
        config, now = self.config, _now_us
        mint = TokenMint(
            TokenSigner.from_file(config.token_key_file),
            minutes=config.write_token_minutes,
            now=lambda: datetime.now(UTC),
        )
        project_servicer = ProjectServicer(
            self.projects,
            seal=self.seal,
            bounds=SourceBounds(allowed_roots=config.allowed_roots, allowed_hosts=config.allowed_endpoint_hosts),
            new_project_id=lambda: f"project-{new_id()[:12]}",
        )
        rows = CheckpointRows(self.database)
        job_servicer = JobServicer(
            self.jobs,
            self.projects,
            rows,
            self.watch,
            self.reachability,
            seal=self.seal,
            stop_limits=StopLimits(
                grace_seconds=config.stop_grace_seconds,
                grace_seconds_max=config.stop_grace_seconds_max,
                margin_seconds=config.stop_margin_seconds,
            ),
        )
        runner_servicer = RunnerServicer(
            self.desk,
            self.runners,
            self.projects,
            rows,
            checkpoints=self.checkpoints,
            mint=mint,
            seal=self.seal,
            limits=RunnerLimits(lease_seconds=config.lease_seconds, log_drain_hours_max=config.log_drain_hours_max),
            now_us=now,
        )
        checkpoint_servicer = CheckpointServicer(rows, self.checkpoints)
        report_servicer = ConversionReportServicer(
            self.jobs, ConversionReportStore(config.checkpoint_root, endpoint_url=config.checkpoint_endpoint_url)
        )
        admin_servicer = RunnerAdminServicer(self.runners)
        add: Callable[[str, Callable[[Any], None]], None] = self.server.add
        add(
            "sihlai.scheduler.v1.ProjectService",
            lambda s: project_service_pb2_grpc.add_ProjectServiceServicer_to_server(project_servicer, s),
        )
        add(
            "sihlai.scheduler.v1.JobService",
            lambda s: job_service_pb2_grpc.add_JobServiceServicer_to_server(job_servicer, s),
        )
        add(
            "sihlai.scheduler.v1.CheckpointService",
            lambda s: checkpoint_service_pb2_grpc.add_CheckpointServiceServicer_to_server(checkpoint_servicer, s),
        )
        add(
            "sihlai.scheduler.v1.ConversionReportService",
            lambda s: conversion_report_service_pb2_grpc.add_ConversionReportServiceServicer_to_server(
                report_servicer, s
            ),
        )
        add(
            "sihlai.runner.v1.RunnerService",
            lambda s: runner_service_pb2_grpc.add_RunnerServiceServicer_to_server(runner_servicer, s),
        )
        add(
            "sihlai.runner.v1.RunnerAdminService",
            lambda s: runner_admin_service_pb2_grpc.add_RunnerAdminServiceServicer_to_server(admin_servicer, s),
        )


def new_id() -> str:
    """A new unique id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def _now_us() -> int:
    return time.time_ns() // 1000


def _desk_limits(config: SchedulerConfig) -> DeskLimits:
    return DeskLimits(
        wait_seconds_max=min(config.synchronize_seconds_max, config.lease_seconds / 2),
        resend_seconds=config.resend_seconds,
        stop_grace_seconds=config.stop_grace_seconds,
        forget_seconds=2 * config.lease_seconds,
    )


def _upkeep_limits(config: SchedulerConfig) -> UpkeepLimits:
    return UpkeepLimits(
        lease_seconds=config.lease_seconds,
        starting_minutes_max=config.starting_minutes_max,
        uploading_minutes_max=config.uploading_minutes_max,
        lost_attempts_max=config.lost_attempts_max,
        request_id_hours=config.request_id_hours,
        removed_job_hours=config.removed_job_hours,
        outbox_days_max=config.outbox_days_max,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
