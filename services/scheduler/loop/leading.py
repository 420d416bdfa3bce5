"""One scheduler leads: it stands by until it does, and ends as soon as it does not any more.

A scheduler that has lost the lead is of no use: what it has in memory is out of date, and each of its transactions is
refused. It ends, and whoever started it starts it again, to stand by.
"""

from __future__ import annotations

import asyncio

from services.chassis.errors import Unavailable
from services.chassis.log import get_logger
from services.chassis.threads import in_own_thread
from services.scheduler.store.leader import Leader

log = get_logger(__name__)


async def stand_by(leader: Leader) -> None:
    """Return once this process leads. ConfigurationError where no second one may be (SQLite)."""
    told = None
    while True:
        problem = ""
        try:
            if await in_own_thread("leading", leader.take):
                return
        except Unavailable as error:
            problem = error.message
        if problem != told:  # a wrong address, password or certificate waits for ever: the log says for what
            told = problem
            if problem:
                log.warning("database_unreachable", problem=problem)
            else:
                log.info("stands_by")
        await asyncio.sleep(leader.look_seconds)


class Leading:
    """One for each process."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    async def run(self) -> None:
        """Run until cancelled, or until the lead is lost: then Unavailable, which ends the process."""
        while True:
            await asyncio.sleep(self._leader.look_seconds)
            await in_own_thread("leading", self._leader.look)  # whose silence would end the lead
