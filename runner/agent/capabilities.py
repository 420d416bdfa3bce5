"""What this runner has and can do, as the scheduler is told."""

from __future__ import annotations

import os
import socket
from importlib import metadata

import psutil
from sihlai.conversion.v1 import task_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire

from runner.agent.config import Device
from runner.agent.gpu import Gpus
from services.chassis.errors import ConfigurationError

TASKS = (task_pb2.TASK_MULTICLASS_CLASSIFICATION,)
"""What the trainer has heads for; a list of its own, because the agent must not import torch. A test compares them."""


def capabilities(device: Device, gpus: Gpus) -> wire.Capabilities:
    """Raises ConfigurationError where a GPU is asked for and none is there."""
    found = [] if device is Device.CPU else gpus.describe()
    if device is Device.CUDA and not found:
        problem = "--device is cuda, but no GPU was found: install NVIDIA's driver, or use --device cpu"
        raise ConfigurationError([problem])
    return wire.Capabilities(
        gpus=[wire.Gpu(model=gpu.model, memory_bytes=gpu.memory_bytes) for gpu in found],
        cpus=_cpus(),
        memory_bytes=psutil.virtual_memory().total,
        tasks=TASKS,
        software_version=software_version(),
        host=socket.gethostname(),
    )


def software_version() -> str:
    """The version of sihlai, `0` where it runs without being installed."""
    try:
        return metadata.version("sihlai")
    except metadata.PackageNotFoundError:
        return "0"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
