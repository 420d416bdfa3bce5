"""A runner without a scheduler and a trainer: the real recorder, spool and shipper of some attempts.

`python -m tests.chaos.runner_process PLAN`. It writes numbered points and lines until the file `stop` is there, then
sends its spools to their end, and ends. What a spool has taken is told to a journal at once, which outlives a SIGKILL.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runner.agent.decision import AttemptKey
from runner.agent.telemetry.recorder import Recorder
from runner.agent.telemetry.shipping.shipper import Shipper, Token
from runner.agent.telemetry.shipping.writer import ShippingLimits
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk, SpoolLimits
from services.chassis import log as logs
from services.chassis.rpc import channel
from tests.chaos.wire_client import SERIES

ROWS_A_RUN_MAX = 1_000_000
"""Row numbers of one process follow those of the one before with this distance."""
TURN_SECONDS = 0.005
ROWS_A_TURN = 3
LIMITS = SpoolLimits(
    bytes_max=64 * 2**20,
    disk_free_bytes_min=0,
    segment_bytes_max=8_192,
    last_lines_bytes=4_096,
    waiting_bytes_max=2**20,
    stall_seconds_max=5.0,
    batch_points_min=20,
    batch_seconds_max=0.02,
)
SHIPPING_LIMITS = ShippingLimits(
    reconnect_seconds_first=0.05,
    reconnect_seconds_max=0.3,
    set_aside_seconds=1.0,
    answer_seconds_max=30.0,
    token_renewal=timedelta(minutes=10),
)


@dataclass(eq=False, kw_only=True)
class Writing:
    """One attempt that is written."""

    spool: Spool
    recorder: Recorder
    row: int

    def write(self, rows: int) -> None:
        for _ in range(rows):
            self.recorder.points({SERIES: float(self.row)}, step=self.row)
            self.recorder.line(f"row {self.row}", source="trainer")
            self.row += 1


async def main(plan: dict[str, Any]) -> None:
    journal = os.open(plan["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    metrics = channel(plan["metrics_address"], token=lambda: plan["token"], retry_attempts_max=1)
    shipper = Shipper(
        metrics,
        limits=SHIPPING_LIMITS,
        randomness=random.Random(plan["seed"]),
        now=lambda: datetime.now(UTC),
        on_change=lambda: None,
    )
    disk = SpoolDisk(LIMITS)
    attempts = [taken_up(attempt, plan, shipper, disk, journal) for attempt in plan["attempts"]]
    works = [writing for writing in attempts if writing is not None]
    shipping = asyncio.create_task(shipper.run())
    stop = Path(plan["stop_file"])
    while not stop.exists() and not shipping.done():
        for writing in works:
            writing.write(ROWS_A_TURN)
        await asyncio.sleep(TURN_SECONDS)
    for writing in works:
        written = writing.row - plan["run"] * ROWS_A_RUN_MAX
        note = {"job_uid": writing.spool.key.job_uid, "run": plan["run"], "written": written}
        os.write(journal, json.dumps(note).encode() + b"\n")
        writing.recorder.close()
    while not shipper.empty and not shipping.done():
        await asyncio.wait({shipping}, timeout=TURN_SECONDS)
    if shipping.done():
        shipping.result()
    shipping.cancel()
    await asyncio.wait({shipping})
    await metrics.close()


def taken_up(
    attempt: dict[str, Any], plan: dict[str, Any], shipper: Shipper, disk: SpoolDisk, journal: int
) -> Writing | None:
    """Begin the attempt's spool or go on with it; None where nothing is to be written any more."""
    key = AttemptKey(job_uid=attempt["job_uid"], epoch=attempt["attempt"])
    folder = Path(plan["folder"]) / str(key)
    found = (folder / "spool.json").exists()
    spool = (
        Spool.found(folder, disk)
        if found
        else Spool(folder, job=attempt["job"], key=key, attempt=attempt["attempt"], disk=disk)
    )

    points_before, lines_before = spool.points.rows, spool.lines.rows

    loop = asyncio.get_running_loop()

    def note() -> None:  # in the thread that writes to the disk
        taken = {"points": spool.points.rows - points_before, "lines": spool.lines.rows - lines_before}
        os.write(journal, json.dumps({"job_uid": key.job_uid, "run": plan["run"], **taken}).encode() + b"\n")
        loop.call_soon_threadsafe(shipper.notify)

    shipper.add(spool)
    shipper.set_token(key, Token(text=attempt["token"], expire_time=datetime.now(UTC) + timedelta(hours=1)))
    if spool.closed:
        return None
    recorder = Recorder(spool, now_unix_us=lambda: time.time_ns() // 1_000, on_append=note)
    return Writing(spool=spool, recorder=recorder, row=plan["run"] * ROWS_A_RUN_MAX)


if __name__ == "__main__":
    logs.configure("runner", format="json", level="info")
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
