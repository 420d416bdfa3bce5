"""Rows of deleted jobs. What is to go is written down first: nothing is forgotten, and what comes late goes too.

A job's uid is never used again, so to delete twice does no harm, whichever process does it.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from clickhouse_connect.driver import exceptions

from services.chassis.log import get_logger
from services.metrics.clickhouse.connection import unavailable
from services.metrics.clickhouse.engine import Engine

log = get_logger(__name__)

TABLES = ("points", "logs", "series", "writers", "finishes", "gaps", "openings")
"""All that is kept by job."""
JOBS_TOGETHER_MAX = 500
"""Jobs that one statement looks for or deletes."""
_UID = re.compile("[a-z0-9-]{1,64}")

WRITTEN_DOWN = "SELECT DISTINCT job_uid FROM deletions ORDER BY job_uid"
FOUND = "SELECT DISTINCT job_uid FROM {table} WHERE job_uid IN {{uids:Array(String)}} ORDER BY job_uid"
PENDING = """
SELECT count() AS count FROM system.mutations
WHERE database = currentDatabase() AND table = {table:String} AND NOT is_done
"""
DELETE = "ALTER TABLE {table} DELETE WHERE job_uid IN ({uids}) SETTINGS mutations_sync = 1"


class Deletions:
    """A connection and a thread of their own: a deletion rewrites what it takes rows out of, and holds nobody up."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="delete")

    async def write_down(self, job_uid: str) -> None:
        """The job's rows are to go. What is no uid of ours has none."""
        if not _UID.fullmatch(job_uid):
            log.warning("deletion_of_no_job", job_uid=job_uid[:100])
            return
        rows = pa.table({"job_uid": [job_uid]})
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.insert, "deletions", rows)

    async def sweep(self) -> set[str]:
        """Delete all rows of the jobs that are written down; return the uids of those that had any."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._sweep)

    def close(self) -> None:
        """After the last call. Waits for what is running."""
        self._thread.shutdown()
        self._connection.close()

    def _sweep(self) -> set[str]:
        gone: set[str] = set()
        uids = self._column(WRITTEN_DOWN)
        for start in range(0, len(uids), JOBS_TOGETHER_MAX):
            for table in TABLES:
                found = self._column(FOUND.format(table=table), uids=uids[start : start + JOBS_TOGETHER_MAX])
                if found and not self._is_at_it(table):
                    self._delete(table, found)
                    gone |= set(found)
        return gone

    def _is_at_it(self, table: str) -> bool:
        """Whether the engine still works at an earlier deletion: one more would only wait behind it."""
        return bool(self._connection.read(PENDING, {"table": table}).to_pylist()[0]["count"])

    def _delete(self, table: str, uids: list[str]) -> None:
        try:
            self._connection.command(DELETE.format(table=table, uids=", ".join(f"'{uid}'" for uid in uids)))
        except exceptions.Error as error:  # the engine goes on with it; the next sweep looks again
            log.warning("deletion_not_done", table=table, jobs=len(uids), error=str(error)[:300])
            raise unavailable() from error

    def _column(self, sql: str, **parameters: list[str]) -> list[str]:
        return [str(row["job_uid"]) for row in self._connection.read(sql, parameters).to_pylist()]
