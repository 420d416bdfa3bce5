"""The machine's GPUs, asked through NVIDIA's management library; without its driver there are none."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pynvml

from services.chassis.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    model: str
    memory_bytes: int


class Gpus:
    """All GPUs of the machine, in the library's order. Found once, when the agent starts."""

    def __init__(self) -> None:
        self._handles = []
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            log.info("no_gpu", problem=str(error))

    def describe(self) -> list[Gpu]:
        """What they are."""
        return [
            Gpu(model=_text(pynvml.nvmlDeviceGetName(handle)), memory_bytes=_memory(handle).total)
            for handle in self._handles
        ]

    def measure(self) -> list[dict[str, float]]:
        """How each is now, by series name; what a GPU does not tell is left out."""
        return [_measured(handle) for handle in self._handles]


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
