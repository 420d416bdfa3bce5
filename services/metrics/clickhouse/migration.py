"""Migrations: numbered SQL files, run once each, in order; a file that changed after it ran is refused.

Every statement of a migration must do nothing the second time: a process may be killed between a statement and the
record that it ran, and replicas may start at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from services.chassis.errors import ConfigurationError, Unavailable
from services.chassis.log import get_logger
from services.metrics.clickhouse.connection import Connection

log = get_logger(__name__)

FOLDER = Path(__file__).parent / "migrations"
TABLE = """
CREATE TABLE IF NOT EXISTS migrations (number UInt32, name String, checksum String, time DateTime DEFAULT now())
ENGINE = MergeTree ORDER BY number SETTINGS fsync_after_insert = 1
"""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One file, `0001_name.sql`."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """Of the whole file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """Statements end with a semicolon at the end of a line."""
        return [statement for part in self.text.split(";\n") if (statement := part.strip())]


def read_migrations(folder: Path = FOLDER) -> list[Migration]:
    """The migrations in a folder, by number."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        number, _, name = path.stem.partition("_")
        found.append(Migration(number=int(number), name=name, text=path.read_text()))
    assert len({migration.number for migration in found}) == len(found), "no two migrations have the same number"
    return found


def migrate(connection: Connection, migrations: list[Migration]) -> None:
    """Run what has not run. ConfigurationError where the database and the files disagree."""
    connection.command(TABLE)
    rows = connection.read("SELECT number, any(checksum) AS checksum FROM migrations GROUP BY number", {}).to_pylist()
    ran = {row["number"]: row["checksum"] for row in rows}
    by_number = {migration.number: migration for migration in migrations}
    problems = [
        f"the database has migration {number}, which this version does not know: start the newer version"
        for number in sorted(ran.keys() - by_number.keys())
    ]
    problems += [
        f"migration {number} ({by_number[number].name}) was changed after it ran: restore it, add a new one"
        for number in sorted(ran.keys() & by_number.keys())
        if ran[number] != by_number[number].checksum
    ]
    if problems:
        raise ConfigurationError(problems)
    for migration in migrations:
        if migration.number not in ran:
            _require_room(connection)
            _run(connection, migration)


def _require_room(connection: Connection) -> None:
    """On a full disk what a table is would be written in half, and nobody told."""
    try:
        connection.require_room()
    except Unavailable as error:
        raise ConfigurationError([f"the tables cannot be made: {error.message}"]) from error


def _run(connection: Connection, migration: Migration) -> None:
    for statement in migration.statements:
        connection.command(statement)
    row = {"number": [migration.number], "name": [migration.name], "checksum": [migration.checksum]}
    connection.insert("migrations", pa.table(row))
    log.info("migration_ran", number=migration.number, name=migration.name)
