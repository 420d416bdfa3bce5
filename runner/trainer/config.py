"""The trainer process's settings: flags and `SIHLAI_TRAINER_…` variables.

They say how the machine is used and never what is learned: that is the job's specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import setting

PREFIX = "SIHLAI_TRAINER_"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How one trainer works."""

    attempt_file: Path = setting(help="the attempt.json that the agent wrote")
    report_fd: int = setting(help="the descriptor that reports are written to", minimum=0)
    threads: int = setting(0, "threads of one operation on the CPU; 0 is one for each core", minimum=0)
    loader_threads: int = setting(
        1, "threads that prepare batches ahead; 0 prepares each when it is needed", units="threads", minimum=0
    )
    image_cache_bytes_max: int = setting(
        2 * 2**30, "memory for images that are decoded and scaled", units="bytes", minimum=0
    )
    weights_folder: Path | None = setting(None, "ImageNet weights; by default torch's own folder for them")
