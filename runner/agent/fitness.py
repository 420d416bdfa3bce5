"""Whether this runner can train at all: its disk, its driver, the trainer's torch.

It is looked at when the agent starts, whenever an attempt ended by a fault of the runner, and from then on until
nothing is wrong; its disk after every attempt, which may have left a checkpoint there. Meanwhile `problem` says what
is, the scheduler is told, and gives it nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.agent.disk import Disk, DiskStandsStill, on_disk
from runner.agent.fault import fault_of
from services.chassis.backoff import Backoff
from services.chassis.files import replace_file
from services.chassis.leash import on_leash
from services.chassis.log import get_logger

log = get_logger(__name__)

PROBE_FILE = "disk-probe"
PROBLEM_CHARACTERS_MAX = 500


@dataclass(frozen=True, kw_only=True)
class FitnessLimits:
    """What a runner needs, and how often it is looked at; the configuration has a setting for each."""

    disk_free_bytes_min: int
    check_seconds_max: float
    again_seconds_first: float
    again_seconds_max: float


class Fitness:
    """What is wrong with this runner."""

    def __init__(
        self,
        work_folder: Path,
        *,
        check_command: Sequence[str],
        environ: Mapping[str, str],
        disk: Disk,
        limits: FitnessLimits,
        randomness: random.Random,
    ) -> None:
        """`check_command` ends with exit code 0 where a trainer can train; else its last line says why not."""
        self._work_folder = work_folder
        self._check_command = check_command
        self._environ = environ
        self._disk = disk
        self._limits = limits
        self._on_change: Callable[[], None] = lambda: None
        self._backoff = Backoff(
            seconds_first=limits.again_seconds_first, seconds_max=limits.again_seconds_max, randomness=randomness
        )
        self._doubted = asyncio.Event()
        self.problem = ""
        """Why it can train nothing now; empty while it can."""

    async def run(self, on_change: Callable[[], None]) -> None:
        """Look at the start and after each doubt, and go on looking while something is wrong; until cancelled.

        `on_change` is called when `problem` is another one.
        """
        self._on_change = on_change
        self._set_problem(await self.check())
        log.info("runner_looked_at", problem=self.problem)
        while True:
            if not self.problem:
                await self._doubted.wait()
            self._doubted.clear()
            # What failed a moment ago is not asked for another job at once, whatever the look says.
            await asyncio.sleep(self._backoff.next_seconds())
            self._set_problem(await self.check())

    def doubt(self, problem: str) -> None:
        """An attempt ended by this fault: no other until a look finds nothing wrong, later with every fault."""
        self._set_problem(problem)
        self._doubted.set()

    def trust(self) -> None:
        """An attempt trained here: the next fault is the first again."""
        self._backoff.reset()

    async def check(self) -> str:
        """What is wrong now; empty where nothing is."""
        return await self.disk_problem(afresh=True) or await self._trainer_problem()

    async def disk_problem(self, *, afresh: bool = False) -> str:
        """What is wrong with the disk now; empty where nothing is. `afresh`: it has the full time to answer, also where
        it stood still a moment ago.
        """

        def problem() -> str:
            free_bytes, wanted_bytes = shutil.disk_usage(self._work_folder).free, self._limits.disk_free_bytes_min
            if free_bytes < wanted_bytes:
                return f"the disk of {self._work_folder} has {free_bytes} bytes free, {wanted_bytes} are wanted"
            replace_file(self._work_folder / PROBE_FILE, b"written to see whether the disk takes it\n")
            return ""

        try:
            limit_seconds = self._limits.check_seconds_max
            return await self._disk.answer(on_disk(problem), seconds_max=limit_seconds, afresh=afresh)
        except DiskStandsStill:
            return f"the disk of {self._work_folder} stands still"
        except OSError as error:
            return f"the disk of {self._work_folder} does not work: {fault_of(error)}"

    async def _trainer_problem(self) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *on_leash(list(self._check_command)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=dict(self._environ),
            )
        except OSError as error:
            return f"no trainer can be started: {fault_of(error)}"
        try:
            _, said = await asyncio.wait_for(process.communicate(), self._limits.check_seconds_max)
        except TimeoutError:
            return f"the trainer did not say within {self._limits.check_seconds_max:g} s whether it can train"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == 0:
            return ""
        lines = said.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
        return f"the trainer cannot train here: {last}"[:PROBLEM_CHARACTERS_MAX]

    def _set_problem(self, problem: str) -> None:
        if problem == self.problem:
            return
        self.problem = problem
        if problem:
            log.error("runner_unfit", problem=problem)
        else:
            log.info("runner_fit")
        self._on_change()
