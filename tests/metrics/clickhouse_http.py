"""ClickHouse's HTTP interface, as far as clickhouse-connect uses it, in front of a real engine: chDB in this process.

`python -m tests.metrics.clickhouse_http FOLDER PORT ADDRESS_FILE`. It stands in for a ClickHouse server, which is not
among what the tests can install: the service speaks HTTP with it, and the SQL runs in the real engine.
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import chdb

INSERT = re.compile(rb"\s*INSERT INTO .* FORMAT (\w+)\s*", re.IGNORECASE | re.DOTALL)
CODE = re.compile(r"Code: (\d+)")


class Handler(BaseHTTPRequestHandler):
    """One request: a query, or an insert whose rows are the body."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    engine: chdb.state.sqlitelike.Connection
    folder: Path

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(body)

    def chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def answer(self, body: bytes) -> None:
        given = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        query = given.get("query", "").encode()
        try:
            insert = INSERT.fullmatch(query)
            with self.lock:
                self.engine.query(f"USE `{given.get('database', 'default')}`")
                data = self.insert(query, insert[1].decode(), body) if insert else self.read(query or body, given)
        except (RuntimeError, chdb.ChdbError) as error:
            self.reply(500, str(error).encode(), {"X-ClickHouse-Exception-Code": CODE.search(str(error))[1]})
        else:
            self.reply(200, data, {"X-ClickHouse-Format": "Native", "X-ClickHouse-Summary": "{}"})

    def insert(self, query: bytes, form: str, body: bytes) -> bytes:
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(body)
            file.flush()
            head = query.decode()[: query.decode().upper().rindex("FORMAT")]
            self.engine.query(f"{head} FROM INFILE '{file.name}' SETTINGS async_insert = 0 FORMAT {form}")
        return b""

    def read(self, query: bytes, given: dict[str, str]) -> bytes:
        parameters = {name[6:]: value for name, value in given.items() if name.startswith("param_")}
        result = self.engine.query(query.decode(), given.get("default_format", "TabSeparated"), params=parameters)
        return bytes(result.bytes() or b"")

    def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silent."""


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    Handler.engine = chdb.connect(str(Handler.folder / "engine"))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    Path(sys.argv[3]).write_text(f"127.0.0.1:{server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    main()
