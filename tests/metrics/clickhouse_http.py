"""ClickHouse's HTTP interface, as far as clickhouse-connect uses it, in front of a real engine: chDB in this process.

`python -m tests.metrics.clickhouse_http FOLDER PORT ADDRESS_FILE`. It stands in for a ClickHouse server, which is not
among what the tests can install: the service speaks HTTP with it, and the SQL runs in the real engine. Requests run
beside each other; a query goes on when its client is gone; KILL QUERY ends it. `POST /control` takes faults (see
clickhouse_faults.py), which tests give through `ClickHouse` in clickhouse_server.py.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.metrics.clickhouse_engine import Engine, Failed, quoted
from tests.metrics.clickhouse_faults import Fault, Faults, Killed, Query

INSERT = re.compile(
    r"\s*(?P<head>INSERT\s+INTO\s.*?)(?P<settings>\bSETTINGS\s[^()]*?)?\s*\bFORMAT\s+(?P<form>\w+)\s*",
    re.IGNORECASE | re.DOTALL,
)
INSERT_BEFORE_ROWS = re.compile(rb"\s*INSERT\s+INTO\s.*?\bFORMAT\s+\w+[ \t]*\r?\n", re.IGNORECASE | re.DOTALL)
INPUT = re.compile(r"\binput\s*\(\s*('(?:[^'\\]|\\.|'')*')\s*\)", re.IGNORECASE)
KILL = re.compile(
    r"\s*KILL\s+QUERY\s+WHERE\s+(?P<condition>.*?)\s*(?P<mode>\bSYNC|\bASYNC|\bTEST)?\s*(\bFORMAT\s+\w+)?\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
PROCESSES = re.compile(r"\bsystem\s*\.\s*processes\b", re.IGNORECASE)
HEAD_BYTES = 2**16
ACCESS_DENIED = 497
QUERY_WAS_CANCELLED = 394
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216
KILL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Front:
    """What all requests share."""

    engine: Engine
    faults: Faults
    folder: Path

    def answer(self, sql: str, rows: bytes, given: dict[str, str], query: Query) -> bytes:
        """Run it. Raises Failed."""
        if kill := KILL.fullmatch(sql):
            return self.kill(kill, given, query)
        if insert := INSERT.fullmatch(sql):
            return self.insert(insert, rows, given, query)
        return self.engine.run(query.mark, self.with_processes(sql), given)

    def insert(self, insert: re.Match[str], rows: bytes, given: dict[str, str], query: Query) -> bytes:
        """Rows lie in a file for as long as the engine reads them; `input()` reads that file where it stands."""
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(rows)
            file.flush()
            head, form, settings = insert["head"], insert["form"], insert["settings"] or ""
            if INPUT.search(head):
                source = f"file({quoted(file.name)}, {quoted(form)}, "
                sql = f"{INPUT.sub(lambda found: f'{source}{found[1]})', head)} {settings}"
            else:
                settings = f"{settings or 'SETTINGS'}{',' if settings else ''} async_insert = 0"
                sql = f"{head} FROM INFILE {quoted(file.name)} {settings} FORMAT {form}"
            return self.engine.run(query.mark, sql, given)

    def kill(self, kill: re.Match[str], given: dict[str, str], query: Query) -> bytes:
        """As ClickHouse does it: with SYNC the answer comes when what was meant has ended."""
        condition = f"SELECT query_id FROM system.processes WHERE {kill['condition']}"
        as_json = {**given, "default_format": "JSONColumns"}
        wanted = json.loads(self.engine.run(query.mark, self.with_processes(condition), as_json) or "{}")
        meant = [each for each in self.faults.queries() if each.query_id in wanted.get("query_id", [])]
        if self.faults.kills_refused and meant:
            raise Failed(
                ACCESS_DENIED, "Not enough privileges. To execute this query, grant KILL QUERY (ACCESS_DENIED)"
            )
        for each in meant if (kill["mode"] or "").upper() != "TEST" else ():
            each.killed.set()
            while each.state == "running" and not each.ended.is_set():
                self.engine.kill(each.mark)
                if (kill["mode"] or "").upper() != "SYNC":
                    break
                each.ended.wait(KILL_SECONDS)
            if (kill["mode"] or "").upper() == "SYNC":
                each.ended.wait()
        ended = " UNION ALL ".join(
            f"SELECT 'finished' AS kill_status, {quoted(each.query_id)} AS query_id, {quoted(each.sql)} AS query"
            for each in meant
        )
        return self.engine.run(query.mark, ended, given) if ended else b""

    def with_processes(self, sql: str) -> str:
        """The SQL, with what runs in this front in place of what the engine calls its processes."""
        if not PROCESSES.search(sql):
            return sql
        found = ", ".join(
            f"({quoted(q.query_id)}, {quoted(q.query_id)}, 'default', {quoted(q.sql)}, "
            f"{q.shown()['elapsed_seconds']}, {int(q.killed.is_set())})"
            for q in self.faults.queries()
        )
        structure = (
            "query_id String, initial_query_id String, user String, query String, elapsed Float64, is_cancelled UInt8"
        )
        table = f"(SELECT * FROM values({quoted(structure)}, {found}))"
        return PROCESSES.sub(lambda _: table, sql)

    def control(self, told: dict[str, Any]) -> Any:
        """What a test wants of the front."""
        what: dict[str, Callable[[], Any]] = {
            "add": lambda: self.faults.add(Fault(**told["fault"])),
            "remove": lambda: self.faults.remove(told["number"]),
            "matched": lambda: self.faults.matched(told["number"]),
            "queries": lambda: [query.shown() for query in self.faults.queries()],
            "refuse_kills": lambda: setattr(self.faults, "kills_refused", told["refuse"]),
        }
        return what[told["do"]]()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    front: Front

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        try:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(iter(self.chunk, b""))
            else:
                body = self.whole(int(self.headers.get("Content-Length", 0)))
        except (ConnectionError, EOFError):
            self.close_connection = True  # the client is gone before its request was whole: there is none
            return
        if urlsplit(self.path).path == "/control":
            self.reply(200, json.dumps(self.front.control(json.loads(body))).encode())
        else:
            self.answer(body)

    def chunk(self) -> bytes:
        size = self.rfile.readline()
        if not size.endswith(b"\n"):
            raise EOFError
        data = self.whole(int(size, 16))
        self.rfile.readline()
        return data

    def whole(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def answer(self, body: bytes) -> None:
        """Run one query with what is to happen to it."""
        given = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        sql, rows = given.pop("query", ""), body
        if not sql:
            found = INSERT_BEFORE_ROWS.match(body[:HEAD_BYTES])
            sql, rows = (found[0].decode(), body[found.end() :]) if found else (body.decode(), b"")
        faults, query_id = self.front.faults, given.pop("query_id", "")
        query = faults.begin(query_id, sql)
        if query is None:
            self.fail(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, f"Query with id = {query_id} is already running")
            return
        fault: Fault | None = None
        try:
            fault = faults.meet(query)
            faults.start(query)
            if fault is not None and fault.fail == "before":
                raise Failed(fault.code, "the front was told to fail before")
            data = self.front.answer(sql, rows, given, query)
            if fault is not None and fault.fail == "after":
                raise Failed(fault.code, "the front was told to fail after")
        except Killed:
            self.ended(query, lambda: self.fail(QUERY_WAS_CANCELLED, "Query was cancelled. (QUERY_WAS_CANCELLED)"))
        except Failed as failed:
            code, text = failed.code, failed.text
            self.ended(query, lambda: self.fail(code, text))
        else:
            headers = {"X-ClickHouse-Query-Id": query.query_id, "X-ClickHouse-Summary": "{}"}
            whole = fault is None or fault.answer == "whole"
            framing = fault.framing if fault is not None else "length"
            self.ended(query, lambda: self.reply(200, data, headers, whole=whole, framing=framing))

    def ended(self, query: Query, reply: Callable[[], None]) -> None:
        """Nothing of it can take effect any more: say so, whether or not somebody listens."""
        self.front.faults.end(query)
        try:
            reply()
        except ConnectionError:
            self.close_connection = True

    def fail(self, code: int, text: str) -> None:
        if code == 0:
            self.cut()
        else:
            message = text if text.startswith("Code: ") else f"Code: {code}. DB::Exception: {text}"
            self.reply(500, message.encode(), {"X-ClickHouse-Exception-Code": str(code)})

    def cut(self) -> None:
        """No more of this connection, at once."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        whole: bool = True,
        framing: str = "length",
    ) -> None:
        self.send_response(status)
        framed = {
            "length": {"Content-Length": str(len(data))},
            "chunked": {"Transfer-Encoding": "chunked"},
            "close": {"Connection": "close"},
        }
        for name, value in {"X-ClickHouse-Format": "Native", **(headers or {}), **framed[framing]}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = data if whole else data[: len(data) // 2]
        if framing == "chunked":
            sent = b"%x\r\n%s\r\n" % (len(sent), sent) if sent else b""
            sent += b"0\r\n\r\n" if whole else b""
        self.wfile.write(sent)
        if not whole:
            self.cut()

    def log_message(self, *_: object) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    """A thread a connection; one that its client broke off is nothing to talk about."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    folder = Path(sys.argv[1])
    engine = Engine(folder / "engine")
    Handler.front = Front(engine=engine, faults=Faults(), folder=folder)
    server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
    address_file = Path(sys.argv[3])
    draft = address_file.with_suffix(".draft")
    draft.write_text(f"127.0.0.1:{server.server_port}")
    draft.replace(address_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
