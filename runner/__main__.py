"""Starts the agent: reads the configuration, takes up what an earlier agent left, works until it is told to end."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from runner.agent.agent import Agent, Refused, Replaced
from runner.agent.config import PREFIX, RunnerConfig
from runner.agent.disk import Disk
from runner.agent.files.conversion import Conversion, ConversionLimits
from runner.agent.files.download import DownloadLimits, Downloads
from runner.agent.files.unsaved import Unsaved, UnsavedLimits
from runner.agent.fitness import Fitness, FitnessLimits
from runner.agent.ledger import Ledger, locked
from runner.agent.parts import Parts
from runner.agent.recovery import LEDGER, UNSAVED, recover
from runner.agent.telemetry.capabilities import capabilities
from runner.agent.telemetry.gpu import ORDER, ORDER_VARIABLE, VISIBLE_VARIABLE, Gpus
from runner.agent.telemetry.shipping.shipper import Shipper
from runner.agent.telemetry.shipping.writer import ShippingLimits
from runner.agent.telemetry.spool.disk import SpoolDisk, SpoolLimits
from runner.agent.telemetry.system import SystemMeter
from services.chassis import log as logs
from services.chassis.auth.carrying import TokenFile
from services.chassis.config import load
from services.chassis.errors import ConfigurationError
from services.chassis.rpc import channel
from services.chassis.tls import client_tls

TRAINER_COMMAND = (sys.executable, "-m", "runner.train")
CHECK_COMMAND = (sys.executable, "-m", "runner.trainer.check")
"""Completed by the device."""
UNSAVED_RETRY_SECONDS_FIRST = 5.0
TOKEN_RENEWAL = timedelta(minutes=10)
"""A write token that ends sooner is renewed; it lives for about an hour."""


def main(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    trainer_command: Sequence[str] = TRAINER_COMMAND,
    check_command: Sequence[str] = CHECK_COMMAND,
) -> int:
    """Run one agent; the process's exit code."""
    try:
        config = load(RunnerConfig, argv=argv, environ=environ, prog="python -m runner", prefix=PREFIX)
        logs.configure("runner", format=config.log_format, level=config.log_level)
        faulthandler.enable()
        lock = locked(config.work_folder)
        try:
            asyncio.run(serve(config, environ, trainer_command, check_command))
        finally:
            os.close(lock)
    except ConfigurationError as error:
        sys.stderr.write("".join(f"python -m runner: {problem}\n" for problem in error.problems))
        return 2
    except (Replaced, Refused) as error:
        sys.stderr.write(f"python -m runner: {error}\n")
        return 1
    return 0


async def serve(
    config: RunnerConfig, environ: Mapping[str, str], trainer_command: Sequence[str], check_command: Sequence[str]
) -> None:
    """Wire the agent and run it; SIGTERM and SIGINT drain it."""
    randomness = random.Random()  # noqa: S311  # spreads retries, guards nothing
    gpus = Gpus(seconds_max=config.measure_seconds_max, visible=environ.get(VISIBLE_VARIABLE))
    ledger = Ledger(config.work_folder / LEDGER)
    disk = Disk(still_seconds_max=config.disk_still_seconds_max, again_seconds_max=config.disk_again_seconds_max)
    spool_disk = SpoolDisk(
        SpoolLimits(
            bytes_max=config.spool_bytes_max,
            disk_free_bytes_min=config.spool_disk_free_bytes_min,
            segment_bytes_max=config.spool_segment_bytes_max,
            last_lines_bytes=config.spool_last_lines_bytes,
            waiting_bytes_max=config.spool_waiting_bytes_max,
            stall_seconds_max=config.spool_stall_seconds_max,
            batch_points_min=config.batch_points_min,
            batch_seconds_max=config.batch_seconds_max,
        )
    )
    conversion_limits = ConversionLimits(
        reconnect_seconds_first=config.reconnect_seconds_first,
        reconnect_seconds_max=config.reconnect_seconds_max,
        unavailable_seconds_max=config.conversion_unavailable_minutes_max * 60,
        changed_tries_max=config.dataset_changed_tries_max,
    )
    download_limits = DownloadLimits(
        concurrent_max=config.downloads_concurrent_max,
        unavailable_seconds_max=config.store_unavailable_minutes_max * 60,
        missing_seconds_max=config.mount_missing_seconds_max,
        disk_free_bytes_min=config.disk_free_bytes_min,
    )
    shipping_limits = ShippingLimits(
        reconnect_seconds_first=config.reconnect_seconds_first,
        reconnect_seconds_max=config.reconnect_seconds_max,
        set_aside_seconds=config.set_aside_minutes * 60,
        answer_seconds_max=config.ingest_answer_seconds_max,
        token_renewal=TOKEN_RENEWAL,
    )
    trainer_environ = {ORDER_VARIABLE: ORDER}
    trainer_environ |= {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    unsaved_limits = UnsavedLimits(
        checkpoints_max=config.unsaved_checkpoints_max,
        bytes_max=config.unsaved_bytes_max,
        days_max=config.unsaved_days_max,
        retry_seconds_first=UNSAVED_RETRY_SECONDS_FIRST,
        retry_seconds_max=config.unsaved_retry_seconds_max,
    )
    unsaved = Unsaved(config.work_folder / UNSAVED, disk=disk, limits=unsaved_limits, randomness=randomness)
    fitness_limits = FitnessLimits(
        disk_free_bytes_min=config.disk_free_bytes_min,
        check_seconds_max=config.check_seconds_max,
        again_seconds_first=config.check_again_seconds_first,
        again_seconds_max=config.check_again_seconds_max,
    )
    described = capabilities(config.device, gpus)
    # Its own loops call again, and say something new each time: gRPC must not repeat a call for them.
    addresses = (config.scheduler_address, config.conversion_address, config.metrics_address)
    token = TokenFile.required(config.token_file) if config.token_file is not None else None
    tls = client_tls(config.tls_ca_file, config.tls_certificate_file, config.tls_key_file)
    scheduler, conversion, metrics = (
        channel(address, token=token, tls=tls, retry_attempts_max=1) for address in addresses
    )
    recovered = recover(config.work_folder, ledger, spool_disk, now_unix_us)
    unsaved.sweep()
    agent = Agent(
        config,
        session=str(uuid.uuid4()),
        capabilities=described,
        channel=scheduler,
        parts=Parts(
            config=config,
            conversion=Conversion(conversion, limits=conversion_limits, randomness=randomness),
            downloads=Downloads(
                limits=download_limits, randomness=randomness, own_credentials_uris=config.own_credentials_uris
            ),
            unsaved=unsaved,
            disk=disk,
            fitness=Fitness(
                config.work_folder,
                check_command=[*check_command, config.device.value],
                environ=trainer_environ,
                disk=disk,
                limits=fitness_limits,
                randomness=randomness,
            ),
            ledger=ledger,
            meter=SystemMeter(gpus, config.work_folder, seconds_max=config.measure_seconds_max),
            trainer_command=trainer_command,
            environ=trainer_environ,
            now_unix_us=now_unix_us,
            randomness=randomness,
        ),
        spool_disk=spool_disk,
        make_shipper=lambda on_change: Shipper(
            metrics, limits=shipping_limits, randomness=randomness, now=lambda: datetime.now(UTC), on_change=on_change
        ),
        randomness=randomness,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.drain)
    try:
        await agent.run(recovered)
    finally:
        for each in (scheduler, conversion, metrics):
            await each.close()


def now_unix_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
