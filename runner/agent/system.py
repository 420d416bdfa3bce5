"""How the machine is, measured now and then while an attempt runs, so that "why is it slow" has an answer."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from runner.agent.gpu import Gpus


class SystemMeter:
    """Measures the machine; rates are since the last measurement, so the first one has none."""

    def __init__(self, gpus: Gpus, work_folder: Path) -> None:
        self._gpus = gpus
        self._work_folder = work_folder
        self._counters: dict[str, float] = {}
        self._counted_at = 0.0
        psutil.cpu_percent()  # the first call only begins the measurement

    def measure(self, trainer: int | None = None) -> dict[str, float]:
        """Values by series name; `trainer` is the process whose memory, children included, is measured too."""
        values = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_bytes": float(psutil.virtual_memory().used),
            "system/disk_free_bytes": float(psutil.disk_usage(str(self._work_folder)).free),
            **self._rates(),
        }
        if trainer is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(trainer)
                family = [process, *process.children(recursive=True)]
                values["system/trainer_memory_bytes"] = float(sum(each.memory_info().rss for each in family))
        return values

    def measure_gpus(self) -> list[dict[str, float]]:
        """Values of each GPU by series name."""
        return self._gpus.measure()

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
