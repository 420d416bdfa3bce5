"""Runners as people see them: what they do, what they have, and why they take no job."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sihlai.runner.v1 import runner_admin_service_pb2 as pb

from services.cli.view.listing import Column, Listing
from services.cli.view.table import moment, seconds_text, size_text
from services.cli.view.text import safe
from services.client.name import short

STATE_STYLES = {
    pb.RUNNER_STATE_IDLE: "green",
    pb.RUNNER_STATE_BUSY: "bold cyan",
    pb.RUNNER_STATE_LOST: "bold red",
}


def runners_table(runners: Iterable[pb.Runner], now: datetime) -> Listing:
    """One row a runner. `now` tells how long ago each was heard."""
    table = Listing(
        Column(name="runner"),
        Column(name="state"),
        Column(name="job", goes=2),
        Column(name="GPUs", goes=3, breaks=True),
        Column(name="cores", goes=6),
        Column(name="memory", goes=5),
        Column(name="heard", goes=4),
        Column(name="takes no job because", goes=1, breaks=True),
    )
    for runner in runners:
        has = runner.capabilities
        heard_seconds = (now - runner.heartbeat_time.ToDatetime(tzinfo=UTC)).total_seconds()
        table.add_row(
            safe(runner.name.removeprefix("runners/")),
            state_text(runner),
            safe(short(runner.job)),
            safe(gpus_text(runner)),
            str(has.cpus),
            size_text(has.memory_bytes),
            f"{seconds_text(max(0.0, heard_seconds))} ago",
            safe(takes_none_text(runner)),
        )
    return table


def state_text(runner: pb.Runner) -> str:
    """The state in its colour."""
    name = pb.RunnerState.Name(runner.state).removeprefix("RUNNER_STATE_").lower()
    style = STATE_STYLES.get(runner.state, "default")
    return f"[{style}]{name}[/{style}]"


def gpus_text(runner: pb.Runner) -> str:
    """`2 of NVIDIA H100, 80.0 GiB`; a dash where it trains on the processor."""
    kinds: dict[tuple[str, int], int] = {}
    for gpu in runner.capabilities.gpus:
        kinds[gpu.model, gpu.memory_bytes] = kinds.get((gpu.model, gpu.memory_bytes), 0) + 1
    texts = [f"{count} of {model}, {size_text(memory)}" for (model, memory), count in kinds.items()]
    return "; ".join(texts) or "-"


def takes_none_text(runner: pb.Runner) -> str:
    """Why it gets no new job; empty where it does."""
    reasons = [runner.capabilities.problem]
    if runner.put_aside_reason:
        reasons.append(f"put aside until {moment(runner.put_aside_until_time)}: {runner.put_aside_reason}")
    if runner.draining:
        reasons.append("it is drained")
    return "; ".join(reason for reason in reasons if reason)
