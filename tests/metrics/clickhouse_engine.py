"""The engine behind the HTTP front of the tests: handles on one chDB, which run queries beside each other."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chdb

CODE = re.compile(r"Code: (\d+)")
HANDLES_MAX = 16


class Failed(Exception):  # noqa: N818  # an answer
    """The query failed, with ClickHouse's code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(eq=False)
class Handle:
    """One session of the engine: one query at a time."""

    connection: Any
    database: str = ""
    settings: dict[str, str] = field(default_factory=dict)


class Engine:
    """As many queries at once as there are handles."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._killer = chdb.connect(self._folder)
        self._killing = threading.Lock()
        names = self._killer.query("SELECT name FROM system.settings", "TabSeparatedRaw").bytes() or b""
        self._setting_names = frozenset(names.decode().split())
        self._free: list[Handle] = []
        self._lock = threading.Lock()
        self._room = threading.Semaphore(HANDLES_MAX)

    def run(self, mark: str, sql: str, given: dict[str, str]) -> bytes:
        """Run the SQL with the database, the settings and the parameters of a request. Raises Failed."""
        parameters = {name[6:]: value for name, value in given.items() if name.startswith("param_")}
        settings = {name: value for name, value in given.items() if name in self._setting_names}
        with self._room:
            with self._lock:
                handle = self._free.pop() if self._free else Handle(chdb.connect(self._folder))
            try:
                self._prepare(handle, given.get("database", "default"), settings)
                form = given.get("default_format", "TabSeparated")
                result = handle.connection.query(f"{mark} {sql}", form, params=parameters)
                return bytes(result.bytes() or b"")
            except (RuntimeError, chdb.ChdbError) as error:
                found = CODE.search(str(error))
                raise Failed(int(found[1]) if found else 1000, str(error)) from error
            finally:
                with self._lock:
                    self._free.append(handle)

    def kill(self, mark: str) -> None:
        """End the query whose SQL begins with the mark, if it runs."""
        with self._killing:
            self._killer.query(f"KILL QUERY WHERE startsWith(query, {quoted(mark)}) SYNC")

    def _prepare(self, handle: Handle, database: str, settings: dict[str, str]) -> None:
        if handle.database != database:
            handle.connection.query(f"USE `{database}`")
            handle.database = database
        changed = {name: quoted(value) for name, value in settings.items() if handle.settings.get(name) != value}
        changed |= dict.fromkeys(handle.settings.keys() - settings.keys(), "DEFAULT")
        if changed:
            handle.connection.query("SET " + ", ".join(f"{name} = {value}" for name, value in changed.items()))
            handle.settings = settings


def quoted(text: str) -> str:
    """As a literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
