"""How the machine is, measured now and then while an attempt runs, so that "why is it slow" has an answer.

A part that fails, or that does not answer in time, is told once in the agent's log and left out; the others are
measured all the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import psutil

from runner.agent.telemetry.gpu import Gpus
from runner.agent.telemetry.worker_thread import WorkerThread
from services.chassis.log import get_logger

log = get_logger(__name__)

T = TypeVar("T")
Measured: TypeAlias = "tuple[dict[str, float], dict[str, str]]"
"""Values by series name, and their context."""


class SystemMeter:
    """Measures the machine; rates are since the last measurement, so the first one has none."""

    def __init__(self, gpus: Gpus, work_folder: Path, *, seconds_max: float) -> None:
        self._gpus = gpus
        self._work_folder = work_folder
        self._seconds_max = seconds_max
        self._thread = WorkerThread("machine-measuring")
        self._counters: dict[str, float] = {}
        self._counted_at = 0.0
        self._asked: set[str] = set()
        """Who has not answered yet."""
        self._told: set[str] = set()
        """What went wrong before."""

    async def measure(self, trainer: int | None = None) -> list[Measured]:
        """What can be measured now; `trainer` is the process whose memory, children included, is measured too."""
        machine = await self._answer("machine", self._thread, lambda: self._machine(trainer))
        gpus = await self._answer("gpu", self._gpus.thread, self._gpus.measure)
        return [(machine or {}, {}), *((values, {"gpu": str(index)}) for index, values in enumerate(gpus or []))]

    async def _answer(self, who: str, thread: WorkerThread, ask: Callable[[], T]) -> T | None:
        """What a thread answers; None where it does not, and it is not asked again before it has."""
        if who in self._asked:
            return None

        def asked() -> T:
            try:
                return ask()
            finally:
                self._asked.discard(who)

        self._asked.add(who)
        try:
            return await thread.run(asked, seconds_max=self._seconds_max)
        except TimeoutError:
            self._tell(who, f"no answer in {self._seconds_max:g} s")
        except Exception as error:  # noqa: BLE001  # whatever a driver raises, the training has nothing to do with it
            self._tell(who, f"{type(error).__name__}: {error}")
        return None

    def _machine(self, trainer: int | None) -> dict[str, float]:
        values: dict[str, float] = {}
        for part in (_processor, _memory, self._disk, self._rates, lambda: _of_trainer(trainer)):
            try:
                values |= part()
            except Exception as error:  # noqa: BLE001  # what one system does not have must not hide the rest
                self._tell("machine", f"{type(error).__name__}: {error}")
        return values

    def _disk(self) -> dict[str, float]:
        return {"system/disk_free_bytes": float(psutil.disk_usage(str(self._work_folder)).free)}

    def _rates(self) -> dict[str, float]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        counters: dict[str, float] = {}
        if disk is not None:
            counters |= {"system/disk_read_rate": disk.read_bytes, "system/disk_write_rate": disk.write_bytes}
        counters |= {"system/network_receive_rate": network.bytes_recv, "system/network_send_rate": network.bytes_sent}
        now = time.monotonic()
        seconds = now - self._counted_at
        rates = {
            name: (value - self._counters[name]) / seconds for name, value in counters.items() if name in self._counters
        }
        self._counters, self._counted_at = counters, now
        return rates

    def _tell(self, who: str, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            log.warning("measuring_failed", of=who, problem=problem)


def _processor() -> dict[str, float]:
    return {"system/cpu_percent": psutil.cpu_percent()}


def _memory() -> dict[str, float]:
    return {"system/memory_bytes": float(psutil.virtual_memory().used)}


def _of_trainer(process_id: int | None) -> dict[str, float]:
    values: dict[str, float] = {}
    if process_id is not None:
        with contextlib.suppress(psutil.Error):  # it has ended
            process = psutil.Process(process_id)
            family = [process, *process.children(recursive=True)]
            values["system/trainer_memory_bytes"] = float(sum(each.memory_info().rss for each in family))
    return values
