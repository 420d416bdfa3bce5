"""The limits of the scheduler's parts, as its configuration says them."""

from __future__ import annotations

from services.scheduler.config import SchedulerConfig
from services.scheduler.desk import DeskLimits
from services.scheduler.domain.ending import RetryLimits
from services.scheduler.domain.lease import AsideLimits
from services.scheduler.domain.timekeeping import ClockLimits, SilenceLimits
from services.scheduler.loop.adoption import AdoptionLimits
from services.scheduler.loop.clock import TickLimits
from services.scheduler.store.forgetting import KeepingLimits
from services.scheduler.store.gathering import DatabaseLimits
from services.scheduler.store.restart import WaitLimits
from services.scheduler.store.upkeep import UpkeepLimits

IDLE_WAIT_OF_LEASE = 0.7
"""An idle runner that is taken for lost too early loses nothing but its place."""


def database_limits(config: SchedulerConfig) -> DatabaseLimits:
    """The database's queues, threads and waits."""
    return DatabaseLimits(
        batch_max=config.write_batch_max,
        queue_max=config.write_queue_max,
        gather_callers_min=config.write_gather_callers_min,
        gather_seconds=config.write_gather_seconds,
        gather_seconds_max=config.write_gather_seconds_max,
        control_gather_seconds_max=config.control_gather_seconds_max,
        control_queue_max=config.control_queue_max,
        readers=config.readers,
        list_readers=config.list_readers,
        list_queue_max=config.list_queue_max,
        busy_seconds=config.database_busy_seconds,
        log_bytes_max=config.database_log_bytes_max,
    )


def desk_limits(config: SchedulerConfig) -> DeskLimits:
    """What runners are told, and how often."""
    return DeskLimits(
        wait_seconds_max=min(config.synchronize_seconds_max, config.lease_seconds / 2),
        idle_wait_seconds_max=IDLE_WAIT_OF_LEASE * config.lease_seconds,
        idle_calls_per_second=config.idle_calls_per_second,
        resend_seconds=config.resend_seconds,
        stop_grace_seconds=config.stop_grace_seconds,
        forget_seconds=2 * config.lease_seconds,
        gap_seconds=config.idle_gap_seconds,
    )


def clock_limits(config: SchedulerConfig) -> ClockLimits:
    """An outage that was not noticed must leave a lease that was renewed just before it: a third of one at most.

    But never less than two ticks: each look comes a tick after the one before, and somewhat late.
    """
    outage_seconds = min(config.outage_seconds, max(config.lease_seconds / 3, 2 * TickLimits().tick_seconds))
    return ClockLimits(
        outage_seconds=outage_seconds, step_seconds=min(config.clock_step_seconds, config.lease_seconds / 3)
    )


def upkeep_limits(config: SchedulerConfig) -> UpkeepLimits:
    """How long things may take, and how long they are kept."""
    return UpkeepLimits(
        lease_seconds=config.lease_seconds,
        starting_minutes_max=config.starting_minutes_max,
        stalled_minutes_max=config.stalled_minutes_max,
        uploading_minutes_max=config.uploading_minutes_max,
        retry=retry_limits(config),
        clocks=clock_limits(config),
        silence=SilenceLimits(
            runners_min=config.silent_runners_min,
            share=config.silent_share,
            minutes_max=config.silence_minutes_max,
        ),
        keeping=KeepingLimits(
            request_id_hours=config.request_id_hours,
            removed_job_hours=config.removed_job_hours,
            outbox_days_max=config.outbox_days_max,
            lost_runner_days=config.lost_runner_days,
        ),
        waits=WaitLimits(
            retry_seconds_max=config.retry_seconds_max,
            avoid_seconds=60 * config.avoid_minutes,
            put_aside_seconds_max=60 * config.put_aside_minutes_max,
            adopt_seconds_max=AdoptionLimits.retry_seconds_max,
        ),
        parked_minutes=config.parked_minutes,
    )


def retry_limits(config: SchedulerConfig) -> RetryLimits:
    """How often a job is tried again."""
    return RetryLimits(
        lost_attempts_max=config.lost_attempts_max,
        faults_max=config.faults_max,
        hand_backs_max=config.hand_backs_max,
        retry_seconds_first=config.retry_seconds_first,
        retry_seconds_max=config.retry_seconds_max,
        avoid_seconds=60 * config.avoid_minutes,
    )


def aside_limits(config: SchedulerConfig) -> AsideLimits:
    """When a runner is put aside."""
    return AsideLimits(
        failures_max=config.runner_failures_max,
        soon_seconds=config.runner_failure_seconds,
        seconds_first=config.put_aside_minutes_first * 60,
        seconds_max=config.put_aside_minutes_max * 60,
    )
