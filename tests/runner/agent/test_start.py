"""The agent's beginning: settings, capabilities, what an earlier agent left."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.config import PREFIX, Device, RunnerConfig
from runner.agent.disk import Disk
from runner.agent.files.unsaved import Unsaved, UnsavedLimits
from runner.agent.files.upload import write_checkpoint
from runner.agent.ledger import Ledger, ProcessGroup, locked
from runner.agent.recovery import Recovered, recover
from runner.agent.telemetry.capabilities import TASKS, capabilities
from runner.agent.telemetry.gpu import Gpus
from runner.agent.telemetry.spool.disk import SpoolDisk
from runner.agent.trainer.process import ATTEMPT_VARIABLE
from services.chassis.config import load
from services.chassis.errors import ConfigurationError
from tests.runner.agent.recording import LIMITS, Recording
from tests.runner.agent.system import until

UNSAVED = UnsavedLimits(checkpoints_max=1, bytes_max=1, days_max=1, retry_seconds_first=1, retry_seconds_max=1)
ADDRESSES = ["--scheduler-address", "s:1", "--conversion-address", "c:1", "--metrics-address", "m:1"]


def configured(*arguments: str) -> RunnerConfig:
    argv = [*ADDRESSES, "--work-folder", "work", *arguments]
    return load(RunnerConfig, argv=argv, environ={}, prog="runner", prefix=PREFIX)


def recovered(work: Path) -> Recovered:
    async def in_loop() -> Recovered:
        return recover(work, Ledger(work / "ledger"), SpoolDisk(LIMITS), lambda: 1)

    return asyncio.run(in_loop())


def test_the_settings_have_defaults_that_fit_together() -> None:
    config = configured("--runner-id", "gpu-1")
    assert config.runner == "runners/gpu-1"
    assert config.synchronize_wait_seconds * 3 <= 25
    assert config.synchronize_idle_seconds + config.synchronize_margin_seconds <= 25


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--runner-id", "Not A Name"], "--runner-id is 'Not A Name'"),
        (["--runner-id", "r", "--spool-segment-bytes-max", "1000000000"], "at least eight times"),
        ([], "--runner-id is missing"),
    ],
)
def test_a_setting_that_cannot_work_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        configured(*arguments)


def test_help_is_printed_without_torch() -> None:
    program = "import sys, runner.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    shown = subprocess.run([sys.executable, "-m", "runner", "--help"], capture_output=True, text=True, check=True)
    assert "--work-folder" in shown.stdout


def test_a_runner_says_what_it_has() -> None:
    found = capabilities(Device.CPU, Gpus(seconds_max=5))
    assert (len(found.gpus), found.host != "", found.software_version != "") == (0, True, True)
    assert found.cpus >= 1
    assert found.memory_bytes > 2**20
    assert list(found.extras) == ["timm"], "the tests install it"


def test_the_tasks_that_a_runner_offers_are_those_that_its_trainer_has_heads_for() -> None:
    from runner.tasks import TASKS as HEADS  # imports torch, which the other tests here do without

    assert set(TASKS) == set(HEADS)


def test_a_work_folder_has_one_agent_at_a_time(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    with pytest.raises(ConfigurationError, match="in use by another agent"):
        locked(tmp_path)
    os.close(lock)
    os.close(locked(tmp_path))


CLOSED = wire.ClosedAttempt(job_uid="a", epoch=1, outcome=job_pb2.ATTEMPT_OUTCOME_STOPPED, message="x" * 4_000)
TORN = {
    "torn": b"\xff\xff",
    "empty": b"",
    "another attempt's": CLOSED.SerializeToString(),
    "cut": wire.ClosedAttempt(job_uid="b", epoch=2).SerializeToString(),
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN)
def test_an_end_is_reported_until_it_is_acknowledged_whatever_lies_beside_it(tmp_path: Path, content: bytes) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.write_closed(CLOSED)
    (tmp_path / "ledger" / "b-2.closed").write_bytes(content)
    (tmp_path / "ledger" / "b-2.group.json").write_bytes(content)
    assert recovered(tmp_path).closed == recovered(tmp_path).closed == [CLOSED]
    unreadable = ["b-2.closed.unreadable", "b-2.group.json.unreadable"]
    assert sorted(path.name for path in (tmp_path / "ledger").iterdir()) == ["a-1.closed", *unreadable]


def test_nothing_that_an_agent_finds_at_its_start_keeps_it_from_starting(tmp_path: Path) -> None:
    """Folders where files should be: the system answers each call with an error, as for a sector that broke."""
    Ledger(tmp_path / "ledger").write_closed(CLOSED)
    for broken in ("ledger/b-2.closed", "ledger/b-2.group.json", "spools/b-2/spool.json", "attempts/b-2/attempt.json"):
        (tmp_path / broken).mkdir(parents=True)
    for name, content in (("list", "[]"), ("null", "null"), ("other", '{"checkpoint_uri": 5}')):
        for file in ("spools/{}/spool.json", "attempts/{}/attempt.json"):
            path = tmp_path / file.format(name)
            path.parent.mkdir(parents=True)
            path.write_text(content)
    (tmp_path / "unsaved").mkdir()
    loop = tmp_path / "unsaved" / "b-2"
    loop.symlink_to(loop)
    found = recovered(tmp_path)
    disk = Disk(still_seconds_max=20, again_seconds_max=2)
    Unsaved(tmp_path / "unsaved", disk=disk, limits=UNSAVED, randomness=random.Random(1)).sweep()
    assert (found.closed, found.spools) == ([CLOSED], [])


def test_what_an_earlier_agent_left_is_ended_swept_and_taken_up(tmp_path: Path) -> None:
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        start_new_session=True,
        env={**os.environ, ATTEMPT_VARIABLE: "0197-3"},
    )
    started = psutil.Process(orphan.pid).create_time()
    ledger = Ledger(tmp_path / "ledger")
    ledger.write_group(ProcessGroup(mark="0197-3", leader=orphan.pid, start_time=started))
    (tmp_path / "attempts" / "0197-3" / "dataset" / "training").mkdir(parents=True)
    recording = Recording(tmp_path / "spools" / "0197-3")

    async def log() -> None:
        recording.recorder.line("the last line")
        recording.recorder.flush()

    asyncio.run(log())
    recording.settle()
    (tmp_path / "spools" / "half-made").mkdir()
    try:
        (spool,) = recovered(tmp_path).spools
        assert orphan.wait(60) == -9
    finally:
        orphan.kill()
        orphan.wait()
    assert spool.closed
    assert (spool.lines.rows, spool.lines.last_sequence) == (2, 2)
    assert not list((tmp_path / "attempts").iterdir())
    assert not ledger.groups()
    assert [path.name for path in (tmp_path / "spools").iterdir()] == ["0197-3"]
    (again,) = recovered(tmp_path).spools
    assert again.lines.rows == 2


UPLOAD = """
import asyncio, pathlib, sys
from services.chassis.objects.store import open_store
asyncio.run(open_store(sys.argv[1]).write("model.safetensors", pathlib.Path(sys.argv[2])))
"""


def killed_upload(uri: str, folder: Path, source: Path) -> None:
    """What an agent leaves that was killed while it uploaded a large file into a folder of the machine."""
    with source.open("wb") as file:
        file.truncate(4 * 2**30)  # of holes: it takes no room here, and there only until the kill
    uploading = subprocess.Popen([sys.executable, "-c", UPLOAD, uri, str(source)])
    try:
        until(lambda: bool(list(folder.glob("*#*"))))
    finally:
        uploading.kill()
        uploading.wait()
        source.unlink()
    assert not (folder / "model.safetensors").exists()


def test_an_upload_that_a_kill_cut_off_leaves_nothing_once_the_agent_is_back(tmp_path: Path) -> None:
    store = tmp_path / "store" / "uid" / "7"
    killed_upload((store / "5").as_uri(), store / "5", tmp_path / "weights")
    attempt = tmp_path / "work" / "attempts" / "uid-7"
    attempt.mkdir(parents=True)
    (attempt / "attempt.json").write_text(json.dumps({"checkpoint_uri": store.as_uri()}))
    other = tmp_path / "store" / "uid" / "8"  # of another runner, which is at work
    other.mkdir()
    (other / "model.safetensors#1").write_bytes(b"half")
    recovered(tmp_path / "work")
    assert not attempt.exists()
    until(lambda: not list(store.rglob("*#*")))
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["model.safetensors#1"]


def test_an_agent_comes_back_while_the_store_of_what_it_left_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, work, answers = tmp_path / "store", tmp_path / "work", threading.Event()
    store.mkdir()
    torn = store / "model.safetensors#1"
    torn.write_bytes(b"half")
    attempt = work / "attempts" / "uid-7"
    attempt.mkdir(parents=True)
    (attempt / "attempt.json").write_text(json.dumps({"checkpoint_uri": store.as_uri()}))
    closed = wire.ClosedAttempt(job_uid="a", epoch=1, outcome=job_pb2.ATTEMPT_OUTCOME_COMPLETED)
    Ledger(work / "ledger").write_closed(closed)
    glob = Path.glob

    def hanging(folder: Path, pattern: str) -> Iterator[Path]:
        if folder == store:
            answers.wait(20)
        return iter(list(glob(folder, pattern)))

    monkeypatch.setattr(Path, "glob", hanging)
    assert recovered(work).closed == [closed]
    assert torn.exists(), "the store was waited for"
    answers.set()
    until(lambda: not torn.exists())


def test_an_unsaved_checkpoint_is_uploaded_over_what_a_kill_cut_off(tmp_path: Path) -> None:
    store, files = tmp_path / "store" / "5", tmp_path / "files"
    killed_upload(store.as_uri(), store, tmp_path / "weights")
    files.mkdir()
    (files / "model.safetensors").write_bytes(b"weights")
    checkpoint = job_pb2.Checkpoint(uri=store.as_uri())
    checkpoint.files.add(name="model.safetensors", size_bytes=7, sha256=hashlib.sha256(b"weights").hexdigest())
    asyncio.run(write_checkpoint(checkpoint, files))
    assert sorted(path.name for path in store.iterdir()) == ["manifest.json", "model.safetensors"]
