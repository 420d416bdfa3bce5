"""The machine's GPUs, asked through NVIDIA's management library; without its driver there are none.

A driver may hang in any call: the library is asked in a thread of its own, and with a deadline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import pynvml

from runner.agent.telemetry.worker_thread import WorkerThread
from services.chassis.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    model: str
    memory_bytes: int


VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
ORDER = "PCI_BUS_ID"
"""NVML's order. CUDA's own puts the fastest first, and a number would mean another GPU to it than to us."""


class Gpus:
    """The GPUs that this runner may use, in the library's order. Found once, when the agent starts."""

    def __init__(self, *, seconds_max: float, visible: str | None = None) -> None:
        """Ask for them, for at most `seconds_max`. `visible`: as CUDA_VISIBLE_DEVICES; None allows all."""
        self._visible = visible
        self.thread = WorkerThread("gpu-asking")
        self._handles: list[object] = []
        self.found: list[Gpu] = []
        """What they are."""
        try:
            self.found = self.thread.submit(self._find).result(seconds_max)
        except pynvml.NVMLError as error:
            log.info("no_gpu", problem=str(error))
        except TimeoutError:
            log.error("gpu_driver_hangs", seconds=seconds_max)

    def measure(self) -> list[dict[str, float]]:
        """How each is now, by series name; what a GPU does not tell is left out. In `thread`."""
        return [_measured(handle) for handle in self._handles]

    def _find(self) -> list[Gpu]:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        if self._visible is not None:
            uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            handles = [handles[index] for index in visible_indexes(self._visible, uuids)]
        found = [
            Gpu(model=_text(pynvml.nvmlDeviceGetName(handle)), memory_bytes=_memory(handle).total) for handle in handles
        ]
        self._handles = handles
        return found


def visible_indexes(visible: str, uuids: Sequence[str]) -> list[int]:
    """Which of the GPUs with these uuids CUDA_VISIBLE_DEVICES allows, in its order.

    As CUDA reads it: numbers, or beginnings of uuids that only one GPU has; what is neither hides itself and all behind
    it, and a GPU that is named twice hides all.
    """
    indexes: list[int] = []
    for word in (word.strip() for word in visible.split(",")):
        if word.isdecimal() and int(word) < len(uuids):
            indexes.append(int(word))
            continue
        beginning = [index for index, uuid in enumerate(uuids) if uuid.startswith(word)]
        if not word.startswith("GPU-") or len(beginning) != 1:
            break
        indexes += beginning
    return indexes if len(set(indexes)) == len(indexes) else []


def _measured(handle: object) -> dict[str, float]:
    values: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        values["system/gpu_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with contextlib.suppress(pynvml.NVMLError):
        values["system/gpu_memory_bytes"] = float(_memory(handle).used)
    with contextlib.suppress(pynvml.NVMLError):
        celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        values["system/gpu_temperature_celsius"] = float(celsius)
    with contextlib.suppress(pynvml.NVMLError):
        values["system/gpu_power_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return values


def _memory(handle: object) -> pynvml.c_nvmlMemory_t:
    return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
