"""What is old is forgotten: request ids, removed jobs, events, surplus checkpoints; and, in a loop of its own,
keys whose tokens have all ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.scheduler.domain.job import Checkpoint
from services.scheduler.keyring import Keyring
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.retention import RetentionRows
from services.scheduler.store.upkeep import Upkeep

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ForgettingLimits:
    """How often things are forgotten."""

    pause_seconds: float = 600.0
    deleted_at_once: int = 16
    """Checkpoints whose files are deleted at once."""
    deletion_seconds: float = 20.0
    """How long the deletion of one checkpoint's files may take."""


class Forgetting:
    """Rows and checkpoints. One for each process."""

    def __init__(
        self,
        upkeep: Upkeep,
        checkpoints: CheckpointStore,
        retention: RetentionRows,
        *,
        limits: ForgettingLimits,
    ) -> None:
        self._upkeep = upkeep
        self._checkpoints = checkpoints
        self._retention = retention
        self._limits = limits

    async def turn(self) -> None:
        """Forget once, then pause."""
        await self._upkeep.forget()
        await self._prune()
        await asyncio.sleep(self._limits.pause_seconds)

    async def _prune(self) -> None:
        """Take out old checkpoints, then their files. Files that could not be deleted stay, and harm nothing; what is
        left is taken out the next time: a store that hangs holds up nothing else.
        """
        count = 0
        async with contextlib.aclosing(self._retention.prune()) as parts:
            async for part in parts:
                count += len(part)
                if not await self._are_deleted(part):
                    break
        if count:
            log.info("checkpoints_pruned", count=count)

    async def _are_deleted(self, checkpoints: Sequence[Checkpoint]) -> bool:
        """Delete the files of the checkpoints, and return whether those of all are gone."""
        gone: list[bool] = []
        for start in range(0, len(checkpoints), self._limits.deleted_at_once):
            some = checkpoints[start : start + self._limits.deleted_at_once]
            gone += await asyncio.gather(*(self._is_deleted(checkpoint.uri) for checkpoint in some))
        return all(gone)

    async def _is_deleted(self, uri: str) -> bool:
        try:
            async with asyncio.timeout(self._limits.deletion_seconds):
                await self._checkpoints.delete(uri)
        except (SihlaiError, TimeoutError) as error:
            log.error("checkpoint_not_deleted", uri=uri, problem=str(error) or type(error).__name__)
            return False
        return True


class KeyForgetting:
    """Ended keys. A store that hangs holds up no key, and a disk that hangs no checkpoint. One for each process."""

    def __init__(self, keyring: Keyring, *, limits: ForgettingLimits) -> None:
        self._keyring = keyring
        self._limits = limits

    async def turn(self) -> None:
        """Forget once, then pause."""
        await asyncio.to_thread(self._keyring.forget_ended)
        await asyncio.sleep(self._limits.pause_seconds)
