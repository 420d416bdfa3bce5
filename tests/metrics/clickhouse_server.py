"""The HTTP front as a process that tests start, kill, hold up and ask."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from services.chassis.leash import on_leash
from tests.metrics.clickhouse_faults import Fault
from tests.metrics.client import until

DATABASE = "metrics"
SECONDS_MAX = 60.0


class ClickHouseError(Exception):
    """ClickHouse has refused a query of the test."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class ClickHouse:
    """An engine behind HTTP, which can be killed and comes back at the same address."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        address_file = self.folder / "address"
        address_file.unlink(missing_ok=True)
        program = [sys.executable, "-m", "tests.metrics.clickhouse_http"]
        with (self.folder / "front.log").open("ab") as log:
            self.process = subprocess.Popen(
                on_leash([*program, str(self.folder), str(self.port), str(address_file)]), stdout=log, stderr=log
            )
        until(lambda: address_file.exists() or self.ended, "the engine's address", SECONDS_MAX)
        assert not self.ended, (self.folder / "front.log").read_text()[-3000:]
        self.port = int(address_file.read_text().rpartition(":")[2])

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL: what it held is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def add(self, fault: Fault) -> int:
        """Let this happen to requests from now on; its number."""
        return int(self._control(do="add", fault=asdict(fault)))

    def remove(self, number: int) -> None:
        """No request meets the fault any more; what it holds goes on."""
        self._control(do="remove", number=number)

    def matched(self, number: int) -> int:
        """How many requests have met the fault."""
        return int(self._control(do="matched", number=number))

    @contextmanager
    def fault(self, match: str, **changes: Any) -> Iterator[int]:
        """Let it happen for as long as the context lasts."""
        number = self.add(Fault(match=match, **changes))
        try:
            yield number
        finally:
            if not self.ended:
                self.remove(number)

    def queries(self) -> list[dict[str, Any]]:
        """What runs there or is held: query_id, sql, state, elapsed_seconds."""
        found: list[dict[str, Any]] = self._control(do="queries")
        return found

    def wait_held(self, match: str) -> dict[str, Any]:
        """Wait until a query with this text in it is held; the query."""
        held: list[dict[str, Any]] = []

        def is_held() -> bool:
            held[:] = [each for each in self.queries() if each["state"] == "held" and match in each["sql"]]
            return bool(held)

        until(is_held, f"a query with {match!r} to be held")
        return held[0]

    def refuse_kills(self, refuse: bool = True) -> None:
        """KILL QUERY is answered with ACCESS_DENIED."""
        self._control(do="refuse_kills", refuse=refuse)

    def rows(self, sql: str, **settings: str) -> list[dict[str, Any]]:
        """The rows of a query; whole numbers of 64 bits come as they are. Raises ClickHouseError."""
        given = {"output_format_json_quote_64bit_integers": "0", "default_format": "JSONEachRow", **settings}
        return [json.loads(line) for line in self.execute(sql, **given).splitlines()]

    def execute(self, sql: str, rows: bytes = b"", **settings: str) -> bytes:
        """Run a query, which takes `rows` where it inserts. Raises ClickHouseError, or OSError where nobody answers."""
        return self._post("/?" + urlencode({"database": DATABASE, "query": sql, **settings}), rows)

    def _control(self, **told: Any) -> Any:
        return json.loads(self._post("/control", json.dumps(told).encode()))

    def _post(self, path: str, body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS_MAX)
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ClickHouseError(int(response.headers["X-ClickHouse-Exception-Code"]), data.decode())
        return data
