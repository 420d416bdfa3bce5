"""What an embedded engine needs beside its queries: merges that pause before the disk is full, and a look at what was
merged when it was.

A merge that finds no room may end in a part that cannot be read (see `repair`), and nobody would notice before somebody
reads it: perhaps not before what it was made of is gone. So whenever writes have failed, every part that was written
since is checked, long before that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from clickhouse_connect.driver import exceptions

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.metrics.clickhouse.connection import EmbeddedConnection
from services.metrics.clickhouse.disk import Disk
from services.metrics.clickhouse.repair import Repairs, is_sound, write_failures

log = get_logger(__name__)

MERGE_AGAIN_RATIO = 1.25
"""Merges go on with so much more free than what they paused at: else they would begin and break off in turn."""
NOW = "SELECT toInt64(toUnixTimestamp(now())) AS now"
WRITTEN_PARTS = """
SELECT table, name FROM system.parts
WHERE database = currentDatabase() AND active AND toInt64(toUnixTimestamp(modification_time)) >= {since:Int64}
ORDER BY table, name
"""
CALM_SECONDS = 60.0
"""Pause between looks at failed writes while the disk is not low; far below `old_parts_lifetime`."""
SINCE_SECONDS = 60
"""Parts have times of whole seconds, and of when they were begun."""


class Upkeep:
    """Of one engine, with a connection of its own. Looks are made one at a time, in a thread."""

    def __init__(
        self,
        connection: EmbeddedConnection,
        disk: Disk,
        repairs: Repairs,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._monotonic = monotonic
        self._looked_at = -CALM_SECONDS
        self._disk = disk
        self._repairs = repairs
        self._paused = False
        self._failures = 0
        """As many as the engine had counted when all parts were sound."""
        self._sound_at = 0
        """By the engine's clock; 0 before the first look. What earlier processes wrote was looked at at the start."""
        self._attached: set[tuple[str, str]] = set()
        """Parts that were found wrong before their tables were attached anew: of those that are still there only
        projections are broken, which the engine does without from then on."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except (exceptions.Error, SihlaiError) as error:  # the next look does what this one could not
                log.warning("upkeep_failed", error=str(error)[:300])
            except Exception:  # whatever it is, the next look must come
                log.exception("upkeep_crashed")
            await asyncio.sleep(self._disk.limits.look_seconds)

    def look(self) -> None:
        """Pause or resume merges, attach what is not attached, check what may be broken."""
        self._mind_merges()
        self._repairs.settle(self._connection)
        self._mind_parts()

    def _mind_merges(self) -> None:
        free_bytes, wanted = self._disk.free_bytes, self._disk.limits.merge_bytes_min
        if free_bytes < wanted:
            if not self._paused:
                log.warning("merges_paused", free_bytes=free_bytes, merge_free_bytes_min=wanted)
            self._paused = True
            # Each time: a table that was attached anew knows nothing of it.
            self._connection.command("SYSTEM STOP MERGES")
        elif self._paused and free_bytes >= wanted * MERGE_AGAIN_RATIO:
            self._connection.command("SYSTEM START MERGES")
            self._paused = False
            log.info("merges_resumed", free_bytes=free_bytes)

    def _mind_parts(self) -> None:
        if not self._disk.is_low and self._monotonic() - self._looked_at < CALM_SECONDS:
            return
        self._looked_at = self._monotonic()
        failures = write_failures(self._connection)
        now = int(self._connection.ask(NOW)[0]["now"])
        if failures > self._failures and not self._all_sound((self._sound_at or now) - SINCE_SECONDS):
            return  # what was attached anew is looked at once more
        self._failures, self._sound_at = failures, now
        self._attached.clear()

    def _all_sound(self, since: int) -> bool:
        """Whether every part can be read that was written since; else its table is attached anew."""
        found = self._connection.ask(WRITTEN_PARTS, since=since)
        parts = {(part["table"], part["name"]) for part in found} - self._attached
        wrong = {part for part in parts if not is_sound(self._connection, *part)}
        log.warning("parts_checked", parts=len(parts), wrong=len(wrong))
        for table in sorted({table for table, _ in wrong}):
            if self._repairs.repair(self._connection, table):
                self._attached |= {part for part in wrong if part[0] == table}
        return not wrong
