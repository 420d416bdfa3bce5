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
    loader_threads: int | None = setting(
        None,
        "threads that prepare batches ahead; 0 prepares each when it is needed, by default one, and beside a GPU all"
        " cores but one",
        units="threads",
        minimum=0,
    )
    image_cache_share: float = setting(
        0.25, "share of the free memory for images that are decoded and scaled", minimum=0
    )
    weights_folder: Path | None = setting(None, "ImageNet weights; by default torch's own folder for them")
