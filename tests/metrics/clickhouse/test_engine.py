"""The engine's folder and the migrations, on real chDB. Each engine has a process of its own: chDB takes one path."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError
from services.metrics.clickhouse.engine import open_engine, require_encrypted_engine
from services.metrics.clickhouse.migration import Migration, read_migrations
from tests.metrics.client import Metrics

PROGRAM = """
import json, sys
from services.chassis.errors import ConfigurationError
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.migration import Migration, migrate
try:
    engine = open_engine("chdb://" + sys.argv[1], lock_seconds=1, query_seconds=10, insert_seconds=10)
except ConfigurationError as error:
    sys.exit(print(error))
connection = engine.connect()
for texts in json.loads(sys.argv[2]):
    try:
        migrate(connection, [Migration(number=i, name="test", text=text) for i, text in enumerate(texts, 1)])
        tables = connection.read("SELECT name FROM system.tables WHERE database = 'sihlai' ORDER BY name", {})
        print(tables["name"].to_pylist())
    except ConfigurationError as error:
        print(error)
"""
TABLE = "CREATE TABLE IF NOT EXISTS {} (x Int64) ENGINE = MergeTree ORDER BY x;\n"


def migrated(folder: Path, *versions: Sequence[str]) -> list[str]:
    """What is said of each version's migrations, run one after the other."""
    arguments = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(versions)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    said = [line for line in result.stdout.splitlines() if "migration_ran" not in line]
    assert said or result.returncode == 0, result.stderr[-2000:]
    return said


def test_migrations_run_once_a_changed_one_is_refused_and_what_killed_inserts_left_goes(
    tmp_path: Path,
) -> None:
    left = tmp_path / "temporary" / "left.raw"
    left.parent.mkdir()
    left.write_bytes(b"x")
    one, two = TABLE.format("one"), TABLE.format("two")
    said = migrated(tmp_path, [one], [one, two], [one, two], [one + "-- a comment\n", two], [one])
    assert said[0] == "['migrations', 'one']"
    assert said[1] == said[2] == "['migrations', 'one', 'two']"
    assert "migration 1 (test) was changed after it ran" in said[3]
    assert "migration 2, which this version does not know" in said[4]
    assert not left.exists()


REPEATABLE = re.compile(
    r"ALTER TABLE \w+ (UPDATE \w+ = |MODIFY SETTING \w+ = |(ADD|DROP|MODIFY) \w+ IF (NOT )?EXISTS |MATERIALIZE \w+ )"
)


def test_the_migrations_of_this_version_are_numbered_and_each_statement_can_run_twice() -> None:
    migrations = read_migrations()
    statements = [statement for migration in migrations for statement in migration.statements]
    assert statements
    for statement in statements:
        sql = "\n".join(line for line in statement.splitlines() if not line.startswith("--")).strip()
        assert "PARTITION BY" not in sql
        if sql.startswith("CREATE"):
            assert " IF NOT EXISTS " in sql
            assert "fsync_after_insert = 1" in sql
        else:
            assert REPEATABLE.match(sql), sql


def test_statements_end_at_a_semicolon_at_the_end_of_a_line() -> None:
    migration = Migration(number=1, name="test", text="-- a; b\nSELECT ';';\n\nSELECT 2;\n")
    assert migration.statements == ["-- a; b\nSELECT ';'", "SELECT 2"]


def test_a_second_process_on_the_same_folder_says_who_holds_it(server: Metrics) -> None:
    (said,) = migrated(server.folder / "data")
    assert "is in use by another process" in said
    assert server.process is not None
    assert f"id {server.process.pid}" in said


@pytest.mark.parametrize("url", ["sqlite:///x", "chdb://", "chdb:///", "http://host:8123", "http:///database", ""])
def test_an_address_that_is_no_clickhouse_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="chdb:///folder or http"):
        open_engine(url, lock_seconds=0, query_seconds=1, insert_seconds=1)


def test_a_wrong_configuration_is_told_in_one_sentence_with_every_problem() -> None:
    arguments = [sys.executable, "-m", "services.metrics", "--clickhouse", "chdb:///x", "--query-readers", "none"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for word in ("--scheduler-address", "--token-public-keys", "--query-readers"):
        assert word in result.stderr


def test_a_clickhouse_of_another_machine_is_called_with_tls_or_by_an_explicit_word() -> None:
    for url in ("chdb:///x", "http://localhost:8123/points", "http://[::1]:8123/points", "https://far.example/points"):
        require_encrypted_engine(ServerConfig(), url)
    far = "http://sihlai:secret@far.example:8123/points"
    require_encrypted_engine(ServerConfig(plaintext_peers_allowed=True), far)
    arguments = [sys.executable, "-m", "services.metrics", "--clickhouse", far]
    arguments += ["--scheduler-address", "localhost:1", "--token-public-keys", "none.pem"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "clickhouse names far.example" in result.stderr
    assert "begin it with https://, or say --plaintext-peers-allowed" in result.stderr
    assert "secret" not in result.stderr
