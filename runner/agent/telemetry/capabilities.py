"""What this runner has and can do, as the scheduler is told."""

from __future__ import annotations

import socket
from importlib import metadata, util

import psutil
from sihlai.conversion.v1 import task_pb2
from sihlai.runner.v1 import runner_service_pb2 as wire

from runner.agent.config import Device
from runner.agent.telemetry.gpu import Gpus
from services.chassis.errors import ConfigurationError
from services.chassis.machine import cores

TASKS = (
    task_pb2.TASK_MULTICLASS_CLASSIFICATION,
    task_pb2.TASK_MULTILABEL_CLASSIFICATION,
    task_pb2.TASK_METRIC_LEARNING,
    task_pb2.TASK_REGRESSION,
    task_pb2.TASK_OBJECT_DETECTION,
    task_pb2.TASK_QUADRILATERAL_DETECTION,
    task_pb2.TASK_KEYPOINT_DETECTION,
    task_pb2.TASK_INSTANCE_SEGMENTATION,
    task_pb2.TASK_PANOPTIC_SEGMENTATION,
    task_pb2.TASK_SEMANTIC_SEGMENTATION,
    task_pb2.TASK_DEPTH_ESTIMATION,
    task_pb2.TASK_SCENE_TEXT_RECOGNITION,
    task_pb2.TASK_ANOMALY_DETECTION,
    task_pb2.TASK_AUTOENCODING,
    task_pb2.TASK_VIEW_INVARIANCE_LEARNING,
)
"""What the trainer has heads for; a list of its own, because the agent must not import torch. A test compares them."""

EXTRAS = ("timm",)
"""Optional parts of sihlai that a job may need; each is named for the package that it installs."""


def capabilities(device: Device, gpus: Gpus) -> wire.Capabilities:
    """Raises ConfigurationError where a GPU is asked for and none is there."""
    found = [] if device is Device.CPU else gpus.found
    if device is Device.CUDA and not found:
        problem = "--device is cuda, but no GPU answered: install NVIDIA's driver, or use --device cpu"
        raise ConfigurationError([problem])
    return wire.Capabilities(
        gpus=[wire.Gpu(model=gpu.model, memory_bytes=gpu.memory_bytes) for gpu in found],
        cpus=cores(),
        memory_bytes=psutil.virtual_memory().total,
        tasks=TASKS,
        extras=[extra for extra in EXTRAS if util.find_spec(extra) is not None],
        software_version=software_version(),
        host=socket.gethostname(),
    )


def software_version() -> str:
    """The version of sihlai, `0` where it runs without being installed."""
    try:
        return metadata.version("sihlai")
    except metadata.PackageNotFoundError:
        return "0"
