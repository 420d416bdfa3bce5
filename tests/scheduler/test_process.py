"""The scheduler as a process: started, killed, started again, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import grpc
import pytest
from sihlai.scheduler.v1 import job_service_pb2

from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError
from services.scheduler.store.leader import require_encrypted_database


class Process:
    """`python -m services.scheduler` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address_file = folder / "address"
        self.process: subprocess.Popen | None = None

    def arguments(self) -> list[str]:
        folder = self.folder
        return [
            *(sys.executable, "-m", "services.scheduler"),
            *("--database-url", f"sqlite:///{folder}/scheduler.sqlite"),
            *("--checkpoint-root", f"file://{folder}/checkpoints"),
            *("--token-key-file", f"{folder}/token.pem"),
            *("--credentials-key-file", f"{folder}/credentials.key"),
            *("--allowed-roots", f"{folder}/datasets"),
            *("--address-file", str(self.address_file)),
        ]

    def start(self) -> str:
        self.address_file.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.arguments(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self.address_file.exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        return self.address_file.read_text().strip()

    def restored(self) -> subprocess.CompletedProcess[str]:
        """What its command says after a backup was put back."""
        python, module, name, *settings = self.arguments()
        command = [python, module, name, "restored", *settings]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def process(tmp_path):
    process = Process(tmp_path)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.end(signal.SIGKILL)


def test_what_was_acknowledged_survives_a_kill_and_a_repeat_has_one_effect(process, client_of):
    address = process.start()

    async def submit_until_the_kill() -> dict[str, str]:
        """The jobs that were acknowledged, by request id, and None for those that were not."""
        client = client_of(address)
        await client.create_project()
        asked: dict[str, str] = {}

        async def submit() -> None:
            while True:
                request_id = str(uuid.uuid4())
                asked[request_id] = ""
                try:
                    asked[request_id] = (await client.submit(request_id=request_id)).uid
                except grpc.aio.AioRpcError:
                    return  # killed

        callers = [asyncio.ensure_future(submit()) for _ in range(8)]
        await client.when(lambda: _async(sum(map(bool, asked.values())) > 50))
        process.process.kill()
        await asyncio.gather(*callers)
        await client.close()
        return asked

    async def check(asked: dict[str, str]) -> None:
        client = client_of(process.start())
        for request_id, uid in asked.items():
            again = await client.submit(request_id=request_id)
            assert uid in ("", again.uid)
        number, request = 0, job_service_pb2.ListJobsRequest(parent="projects/digits", page_size=1_000)
        while True:
            page = await client.jobs.ListJobs(request)
            number, request.page_token = number + len(page.jobs), page.next_page_token
            if not page.next_page_token:
                break
        assert number == len(asked)
        await client.close()

    asked = asyncio.run(submit_until_the_kill())
    process.process.wait(30)
    asyncio.run(check(asked))
    assert process.end(signal.SIGTERM) == 0
    assert not process.address_file.exists()


async def _async(value: bool) -> bool:
    return value


def test_second_scheduler_on_the_same_database_is_refused_in_one_sentence(process):
    process.start()
    second = subprocess.run(process.arguments(), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    assert second.stderr.startswith("scheduler: another scheduler works on sqlite:///")
    assert len(second.stderr.splitlines()) == 1
    assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("sqlite:////folder/scheduler.sqlite", True),
        ("postgresql://u@/name?host=/run/postgresql", True),
        ("postgresql://u@localhost/name", True),
        ("postgresql://u@127.0.0.1:5432/name", True),
        ("postgresql://u@[::1]/name", True),
        ("postgresql://u@far.example/name?sslmode=require", True),
        ("postgresql://u@far.example/name?sslmode=verify-ca", True),
        ("postgresql://u@far.example/name?sslmode=verify-full&sslrootcert=/ca.pem", True),
        ("postgresql://u@far.example/name", False),
        ("postgresql://u@far.example/name?sslmode=prefer", False),
        ("postgresql://u@far.example/name?sslmode=disable", False),
        ("postgresql://u@localhost/name?hostaddr=10.0.0.1", False),
        ("postgresql://u@/name?host=localhost,far.example", False),
        ("postgresql://u@/name?host=localhost&host=far.example", False),
        ("postgresql://u@/name?host=localhost:1&host=far.example:2", False),
    ],
)
def test_a_database_of_another_machine_is_called_with_tls_or_by_an_explicit_word(url, allowed):
    require_encrypted_database(ServerConfig(plaintext_peers_allowed=True), url)
    if allowed:
        require_encrypted_database(ServerConfig(), url)
    else:
        with pytest.raises(ConfigurationError, match=r"sslmode=verify-full.*or say --plaintext-peers-allowed"):
            require_encrypted_database(ServerConfig(), url)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--database-url", "postgresql://u:secret@far.example/name"), ("--nats-url", "nats://u:secret@far.example:4222")],
)
def test_a_scheduler_that_would_speak_in_the_clear_does_not_start(process, flag, value):
    said = subprocess.run([*process.arguments(), flag, value], capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2
    assert "far.example" in said.stderr.splitlines()[-1]
    assert "or say --plaintext-peers-allowed" in said.stderr
    assert "secret" not in said.stderr


def test_a_backup_made_of_a_running_scheduler_is_put_back_by_the_commands_that_the_readme_names(process, client_of):
    address, database = process.start(), process.folder / "scheduler.sqlite"

    async def submit(number: int) -> str:
        client = client_of(address)
        try:
            if not number:
                await client.create_project()
            return (await client.submit(job_id=f"job-{number}")).name
        finally:
            await client.close()

    asyncio.run(submit(0))
    copy = process.folder / "copy.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as used, contextlib.closing(sqlite3.connect(copy)) as backup:
        used.backup(backup)
    asyncio.run(submit(1))
    refused = process.restored()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Traceback" not in refused.stderr
    process.end(signal.SIGKILL)
    for ending in ("-wal", "-shm"):
        Path(f"{database}{ending}").unlink(missing_ok=True)
    copy.replace(database)
    done = process.restored()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("jobs that have not ended: 1\n")
    address = process.start()
    assert asyncio.run(submit(1)) == "projects/digits/jobs/job-1", "the backup knows nothing of it"
