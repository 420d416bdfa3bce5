"""Starts the agent: reads the configuration, takes up what an earlier agent left, works until it is told to end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from runner.agent.agent import Agent, Refused, Replaced
from runner.agent.attempt import Parts
from runner.agent.capabilities import capabilities
from runner.agent.config import PREFIX, RunnerConfig
from runner.agent.conversion import Conversion, ConversionLimits
from runner.agent.download import DownloadLimits, Downloads
from runner.agent.gpu import Gpus
from runner.agent.ledger import Ledger, locked
from runner.agent.recorder import SpoolLimits
from runner.agent.recovery import LEDGER, recover
from runner.agent.shipping import Shipper, ShippingLimits
from runner.agent.system import SystemMeter
from services.chassis import log as logs
from services.chassis.config import load
from services.chassis.errors import ConfigurationError
from services.chassis.rpc import channel

TRAINER_COMMAND = (sys.executable, "-m", "runner.train")
TOKEN_RENEWAL = timedelta(minutes=10)
"""A write token that ends sooner is renewed; it lives for about an hour."""


def main(argv: Sequence[str], environ: Mapping[str, str], *, trainer_command: Sequence[str] = TRAINER_COMMAND) -> int:
    """Run one agent; the process's exit code."""
    try:
        config = load(RunnerConfig, argv=argv, environ=environ, prog="python -m runner", prefix=PREFIX)
        logs.configure("runner", format=config.log_format, level=config.log_level)
        lock = locked(config.work_folder)
        try:
            asyncio.run(serve(config, environ, trainer_command))
        finally:
            os.close(lock)
    except ConfigurationError as error:
        sys.stderr.write("".join(f"python -m runner: {problem}\n" for problem in error.problems))
        return 2
    except (Replaced, Refused) as error:
        sys.stderr.write(f"python -m runner: {error}\n")
        return 1
    return 0


async def serve(config: RunnerConfig, environ: Mapping[str, str], trainer_command: Sequence[str]) -> None:
    """Wire the agent and run it; SIGTERM and SIGINT drain it."""
    randomness = random.Random()  # noqa: S311  # spreads retries, guards nothing
    gpus = Gpus()
    ledger = Ledger(config.work_folder / LEDGER)
    spool_limits = SpoolLimits(
        bytes_max=config.spool_bytes_max,
        segment_bytes_max=config.spool_segment_bytes_max,
        batch_points_min=config.batch_points_min,
        batch_seconds_max=config.batch_seconds_max,
    )
    conversion_limits = ConversionLimits(
        reconnect_seconds_first=config.reconnect_seconds_first,
        reconnect_seconds_max=config.reconnect_seconds_max,
        unavailable_seconds_max=config.conversion_unavailable_minutes_max * 60,
    )
    download_limits = DownloadLimits(
        concurrent_max=config.downloads_concurrent_max,
        tries_max=config.download_tries_max,
        disk_free_bytes_min=config.disk_free_bytes_min,
    )
    shipping_limits = ShippingLimits(
        reconnect_seconds_first=config.reconnect_seconds_first,
        reconnect_seconds_max=config.reconnect_seconds_max,
        token_renewal=TOKEN_RENEWAL,
    )
    described = capabilities(config.device, gpus)
    # Its own loops call again, and say something new each time: gRPC must not repeat a call for them.
    addresses = (config.scheduler_address, config.conversion_address, config.metrics_address)
    scheduler, conversion, metrics = (channel(address, retry_attempts_max=1) for address in addresses)
    recovered = recover(config.work_folder, ledger, spool_limits, now_unix_us)
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
            ledger=ledger,
            meter=SystemMeter(gpus, config.work_folder),
            trainer_command=trainer_command,
            environ={name: value for name, value in environ.items() if not name.startswith(PREFIX)},
            now_unix_us=now_unix_us,
            randomness=randomness,
        ),
        spool_limits=spool_limits,
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
