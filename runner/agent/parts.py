"""What an attempt works with: the same for all attempts of an agent."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runner.agent.config import RunnerConfig
from runner.agent.disk import Disk
from runner.agent.files.conversion import Conversion
from runner.agent.files.download import Downloads
from runner.agent.files.unsaved import Unsaved
from runner.agent.fitness import Fitness
from runner.agent.ledger import Ledger
from runner.agent.telemetry.system import SystemMeter


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts. `trainer_command` is completed by the attempt file and the report pipe."""

    config: RunnerConfig
    conversion: Conversion
    downloads: Downloads
    unsaved: Unsaved
    disk: Disk
    fitness: Fitness
    ledger: Ledger
    meter: SystemMeter
    trainer_command: Sequence[str]
    environ: Mapping[str, str]
    now_unix_us: Callable[[], int]
    randomness: random.Random
