"""The scheduler's process: configuration, wiring, life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sihlai.auth.v1 import token_service_pb2_grpc
from sihlai.runner.v1 import runner_admin_service_pb2_grpc, runner_service_pb2_grpc
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2_grpc,
    conversion_report_service_pb2_grpc,
    job_service_pb2_grpc,
    project_service_pb2_grpc,
)
from sqlalchemy import inspect

from services.chassis import config as chassis_config
from services.chassis import log as logs
from services.chassis.auth.carrying import TokenFile
from services.chassis.auth.guard import token_guard
from services.chassis.auth.keys import TokenSigner, TokenVerifier, public_key_files
from services.chassis.auth.oidc.verifier import AccessVerifier
from services.chassis.auth.revocation import Revocations
from services.chassis.bus import Bus, BusAccess
from services.chassis.errors import ConfigurationError, SihlaiError
from services.chassis.ids import new_id
from services.chassis.loop import keep_turning
from services.chassis.machine import collect_seldom
from services.chassis.nats_server import require_encrypted_bus
from services.chassis.rpc import Server, run_until_signal
from services.chassis.tls import client_tls
from services.scheduler.assignment import Assignments
from services.scheduler.config import PREFIX, SchedulerConfig
from services.scheduler.deletion import Deletion, DeletionLimits
from services.scheduler.desk import RunnerDesk
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.retention import Retention
from services.scheduler.keyring import Keyring
from services.scheduler.limits import (
    aside_limits,
    database_limits,
    desk_limits,
    retry_limits,
    upkeep_limits,
)
from services.scheduler.loop.adoption import Adoption, AdoptionLimits
from services.scheduler.loop.clock import Clock, TickLimits
from services.scheduler.loop.forgetting import Forgetting, ForgettingLimits, KeyForgetting
from services.scheduler.loop.leading import Leading, stand_by
from services.scheduler.loop.publishing import OutboxLimits, Publisher
from services.scheduler.loop.stragglers import StragglerLimits, Stragglers
from services.scheduler.migrations import migrate
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.objects.conversion_reports import ConversionReportStore
from services.scheduler.reachability import Reachability
from services.scheduler.restoring import Restoring, RestoringLimits
from services.scheduler.seal import Seal
from services.scheduler.servicer.checkpoint_servicer import CheckpointServicer
from services.scheduler.servicer.conversion_report_servicer import ConversionReportServicer
from services.scheduler.servicer.job_servicer import JobServicer, StopLimits
from services.scheduler.servicer.project_servicer import ProjectServicer
from services.scheduler.servicer.runner_servicer import RunnerAdminServicer, RunnerLimits, RunnerServicer
from services.scheduler.servicer.submissions import Submissions
from services.scheduler.servicer.token_servicer import TokenLimits, TokenServicer
from services.scheduler.servicer.watch import JobWatch, WatchLimits
from services.scheduler.store.access_tokens import AccessTokenStore
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.database import Database
from services.scheduler.store.jobs import JobStore
from services.scheduler.store.leader import LeaderLimits, require_encrypted_database
from services.scheduler.store.orphans import OrphanRows
from services.scheduler.store.outbox import OutboxStore
from services.scheduler.store.placing import Placing
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.queue import QueueLimits
from services.scheduler.store.restored import RestoredRows
from services.scheduler.store.retention import RetentionRows
from services.scheduler.store.runners import RunnerStore
from services.scheduler.store.upkeep import Upkeep
from services.scheduler.tokens import TokenMint
from services.scheduler.wire.checkpoint import pinned_checkpoint
from services.scheduler.wire.event import fact_to_event
from services.scheduler.wire.project import SourceBounds

log = logs.get_logger(__name__)

PROG = "python -m services.scheduler"
SWITCH_SECONDS = 0.001
"""How long the database's threads may keep the event loop from running; at Python's default of 5 ms each hand-over of a
busy moment costs that much, and a runner waits for several."""
COLLECTION_THRESHOLDS = (10_000, 20, 1_000)
"""As gc.set_threshold has them: what a request makes holds no cycles. Python's default looks for some every few of
them, which takes a tenth of a submit."""


RESTORED = "restored"
"""As the first argument: a backup was put back; do what is to be done once before a scheduler starts, and end."""


def main(argv: Sequence[str]) -> int:
    """Run the scheduler until a signal, or what follows `restored`; return the exit status."""
    is_restored = argv[:1] == [RESTORED]
    prog, argv = (f"{PROG} {RESTORED}", argv[1:]) if is_restored else (PROG, argv)
    try:
        config = chassis_config.load(SchedulerConfig, argv=argv, environ=os.environ, prog=prog, prefix=PREFIX)
        logs.configure("scheduler", format=config.log_format, level=config.log_level)
        asyncio.run(restore(config) if is_restored else serve(config))
    except (ConfigurationError, SihlaiError, TimeoutError) as error:
        sys.stderr.write(f"scheduler: {error}\n")
        return 2
    return 0


def _migrate(database: Database) -> None:
    with database.writing.connect() as connection, connection.begin():
        migrate(connection)


def _has_tables(database: Database) -> bool:
    return inspect(database.writing).has_table("jobs")


def tune_interpreter() -> None:
    """For many short requests at once; after all that stays has been made."""
    sys.setswitchinterval(SWITCH_SECONDS)
    collect_seldom(*COLLECTION_THRESHOLDS)


async def serve(config: SchedulerConfig) -> None:
    """Serve until a signal."""
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await Scheduler.build(config, stack)
        tune_interpreter()
        await run_until_signal(scheduler.server, background=scheduler.start_background(stack))


async def restore(config: SchedulerConfig) -> None:
    """Make a database that was put back from a backup fit what happened since; say what was done."""
    async with contextlib.AsyncExitStack() as stack:
        database = _database(config, Dispatcher(overtakes_max=config.overtakes_max))
        stack.callback(database.close)
        if not await asyncio.to_thread(database.leader.take):
            raise ConfigurationError(["a scheduler uses this database: end it, and those that stand by, first"])
        if not await asyncio.to_thread(_has_tables, database):
            raise ConfigurationError(["this database is empty: put the backup back first"])
        await _led(database, stack)
        restoring = Restoring(
            RestoredRows(database),
            CheckpointStore(config.checkpoint_root, endpoint_url=config.checkpoint_endpoint_url),
            limits=RestoringLimits(),
            on_progress=lambda restored: log.info("restoring", **asdict(restored)),
        )
        restored = await restoring.run()
    sys.stdout.write(
        f"jobs that have not ended: {restored.jobs}\n"
        f"checkpoints of theirs that were found and that the backup did not know: {restored.checkpoints_found}\n"
        f"checkpoints of theirs that the backup knew and that are gone: {restored.checkpoints_gone}\n"
        "Start the scheduler now. Tokens that were revoked since the backup are good again: revoke them anew.\n"
    )


def _database(config: SchedulerConfig, dispatcher: Dispatcher) -> Database:
    require_encrypted_database(config, config.database_url)
    return Database(
        config.database_url,
        encode_fact=fact_to_event,
        new_id=new_id,
        dispatcher=dispatcher,
        limits=database_limits(config),
        leader_limits=LeaderLimits(
            look_seconds=config.leader_look_seconds, silence_seconds=config.leader_silence_seconds
        ),
    )


async def _led(database: Database, stack: contextlib.AsyncExitStack) -> asyncio.Task[None]:
    """Migrate and start the database, whose lead was taken. Whose loss ends what is returned."""
    leading = asyncio.create_task(Leading(database.leader).run())  # from now on: what comes next may take its time
    stack.callback(leading.cancel)
    await asyncio.to_thread(_migrate, database)
    await asyncio.to_thread(database.leader.begin)
    database.start()
    return leading


class Scheduler:
    """All parts of one scheduler, wired. `server` is not started yet."""

    def __init__(self, config: SchedulerConfig, database: Database, leading: asyncio.Task[None]) -> None:
        self.config = config
        self.database = database
        self.leading = leading
        TokenSigner.from_file(config.token_key_file)  # makes it where it is missing
        verifier = TokenVerifier.from_files([*public_key_files(config.token_key_file), *config.token_public_keys])
        self.keyring = Keyring(config.token_key_file, verifier, now=_now)
        self.revocations = Revocations(config.revocations_file)
        self.access = AccessVerifier.configured(config, verifier)
        self.server = Server(config, token_guard(config, self.access, self.revocations), addresses=_announced(config))
        self.seal = Seal.from_file(config.credentials_key_file)
        self.checkpoints = CheckpointStore(config.checkpoint_root, endpoint_url=config.checkpoint_endpoint_url)
        placing = Placing(lease_seconds=config.lease_seconds)
        self.projects = ProjectStore(database)
        self.jobs = JobStore(database, queue_limits=QueueLimits())
        self.runners = RunnerStore(
            database,
            placing,
            lease_seconds=config.lease_seconds,
            retry=retry_limits(config),
            aside=aside_limits(config),
        )
        self.upkeep = Upkeep(database, placing, upkeep_limits(config), monotonic=time.monotonic)
        self.desk = RunnerDesk(self.runners, limits=desk_limits(config), monotonic=time.monotonic)
        self.watch = JobWatch(
            self.jobs,
            self.projects,
            limits=WatchLimits(
                page_max=config.watch_page_max,
                page_bytes_max=config.watch_page_bytes_max,
                bytes_max=config.watches_bytes_max,
                unread_seconds=config.watch_unread_seconds,
                progress_seconds=config.watch_progress_seconds,
                watches_max=config.watches_max,
                window_max=config.watch_window_max,
                window_bytes_max=config.watch_window_bytes_max,
            ),
        )
        self.reachability = Reachability(
            config.conversion_address,
            plan_seconds=config.plan_seconds,
            token=TokenFile.required(config.token_file) if config.token_file is not None else None,
            tls=client_tls(config.tls_ca_file, config.tls_certificate_file, config.tls_key_file),
        )
        self.clock = Clock(self.upkeep, self.desk, limits=TickLimits())
        self.adoption = Adoption(
            OrphanRows(database),
            self.checkpoints,
            limits=AdoptionLimits(seconds_max=config.adoption_seconds_max, days_max=config.adoption_days_max),
            monotonic=time.monotonic,
        )
        self.deletion = Deletion(self.projects, self.checkpoints, limits=DeletionLimits())
        self.stragglers = Stragglers(self.projects, self.checkpoints, limits=StragglerLimits())
        self.forgetting = Forgetting(
            self.upkeep,
            self.checkpoints,
            RetentionRows(
                database,
                Retention(kept=config.checkpoints_kept, settle_minutes=config.checkpoint_settle_minutes),
                pinned_by=pinned_checkpoint,
            ),
            limits=ForgettingLimits(),
        )
        self.key_forgetting = KeyForgetting(self.keyring, limits=ForgettingLimits())
        self.tokens = TokenServicer(
            AccessTokenStore(database),
            self.keyring,
            self.revocations,
            limits=TokenLimits.configured(config),
            new_id=new_id,
            now=_now,
            stopping=self.server.stopping,
        )
        self.publisher: Publisher | None = None
        database.renew_sealed = self.seal.renewed
        database.on_reload.append(placing.reload)
        database.before_commit.append(placing.place)
        database.after_commit += [self.desk.on_committed, self.watch.on_committed, self.adoption.on_committed]
        database.after_commit.append(self.stragglers.on_committed)
        self._add_services()

    @classmethod
    async def build(cls, config: SchedulerConfig, stack: contextlib.AsyncExitStack) -> Scheduler:
        """Open and migrate the database, connect, wire; what is opened is closed by `stack`."""
        database = _database(config, Dispatcher(overtakes_max=config.overtakes_max))
        stack.callback(database.close)
        await stand_by(database.leader)
        scheduler = cls(config, database, await _led(database, stack))
        stack.push_async_callback(scheduler.reachability.close)
        if config.nats_url:
            require_encrypted_bus(config, config.nats_url)
            connecting = Bus.connect(
                config.nats_url,
                name="scheduler",
                access=BusAccess(
                    credentials_file=config.nats_credentials_file,
                    tls=client_tls(config.nats_ca_file, config.tls_certificate_file, config.tls_key_file),
                ),
            )
            bus = await stack.enter_async_context(await connecting)
            scheduler.publisher = Publisher(
                OutboxStore(database), bus, limits=OutboxLimits(stream_replicas=config.nats_replicas)
            )
            database.after_commit.append(scheduler.publisher.on_committed)
        if resealed := await scheduler.projects.reseal(scheduler.seal.sealed_anew):
            log.info("credentials_sealed_anew", count=resealed)
        await scheduler.tokens.load()
        # Nobody could renew while this scheduler was away.
        await scheduler.upkeep.restart_clocks()
        return scheduler

    def start_background(self, stack: contextlib.AsyncExitStack) -> list[asyncio.Task[Any]]:
        """Start what runs beside the calls; it ends with `stack`."""
        work = [
            keep_turning("clock", self.clock.turn),
            keep_turning("adoption", self.adoption.turn),
            keep_turning("watches", self.watch.turn),
            keep_turning("deletion", self.deletion.turn),
            keep_turning("stragglers", self.stragglers.turn),
            keep_turning("forgetting", self.forgetting.turn),
            keep_turning("key-forgetting", self.key_forgetting.turn),
            self._end_waits(),
            self.access.run(),
            self.revocations.keep(),
        ]
        if self.publisher is not None:
            work.append(keep_turning("publishing", self.publisher.turn))
        tasks = [self.leading, *(asyncio.create_task(each) for each in work)]

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        stack.push_async_callback(end)
        return tasks

    async def _end_waits(self) -> None:
        await self.server.stopping.wait()
        self.desk.stop()
        self.watch.stop()

    def _add_services(self) -> None:
        config = self.config
        mint = TokenMint(self.keyring, minutes=config.write_token_minutes, now=_now)
        bounds = SourceBounds(allowed_roots=config.allowed_roots, allowed_hosts=config.allowed_endpoint_hosts)
        project_servicer = ProjectServicer(
            self.projects,
            self.deletion,
            seal=self.seal,
            deletion_seconds=config.deletion_seconds,
            bounds=bounds,
            new_project_id=lambda: f"project-{new_id()[:12]}",
        )
        rows = CheckpointRows(self.database)
        job_servicer = JobServicer(
            self.jobs,
            Submissions(self.jobs, self.projects, rows, self.reachability, seal=self.seal, bounds=bounds),
            self.watch,
            self.deletion,
            deletion_seconds=config.deletion_seconds,
            stop_limits=StopLimits(
                grace_seconds=config.stop_grace_seconds,
                grace_seconds_max=config.stop_grace_seconds_max,
                margin_seconds=config.stop_margin_seconds,
            ),
        )
        runner_servicer = RunnerServicer(
            self.desk,
            self.runners,
            Assignments(self.projects, rows, checkpoints=self.checkpoints, seal=self.seal),
            checkpoints=self.checkpoints,
            mint=mint,
            limits=RunnerLimits(
                log_drain_hours_max=config.log_drain_hours_max,
                progress_reports_max=config.progress_reports_max,
            ),
        )
        checkpoint_servicer = CheckpointServicer(rows, self.checkpoints)
        report_servicer = ConversionReportServicer(
            self.jobs, ConversionReportStore(config.checkpoint_root, endpoint_url=config.checkpoint_endpoint_url)
        )
        admin_servicer = RunnerAdminServicer(self.runners)
        add: Callable[..., None] = self.server.add
        add(
            "sihlai.auth.v1.TokenService",
            lambda s: token_service_pb2_grpc.add_TokenServiceServicer_to_server(self.tokens, s),
        )
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
            for_runners=True,
        )
        add(
            "sihlai.runner.v1.RunnerAdminService",
            lambda s: runner_admin_service_pb2_grpc.add_RunnerAdminServiceServicer_to_server(admin_servicer, s),
        )


def _announced(config: SchedulerConfig) -> dict[str, str]:
    """Where clients find the other services, as far as it is known."""
    addresses = {
        "metrics": config.announced_metrics_address,
        "conversion": config.announced_conversion_address or config.conversion_address,
    }
    return {service: address for service, address in addresses.items() if address}


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
