import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner.agent.ledger import ProcessGroup
from runner.agent.trainer.process import ATTEMPT_VARIABLE, TrainerProcess, end_group
from runner.report import Line, Points, Progress, Report
from tests.runner.agent.recording import until

MakeTrainer = Callable[[str], list[str]]


async def followed(process: TrainerProcess) -> tuple[list[Report], list[str], list[str], int]:
    """Reports, lines of both streams, exit code."""
    reports: list[Report] = []

    async def read_reports() -> None:
        async for some in process.reports():
            reports.extend(some)

    async def read_output() -> list[str]:
        return [piece.text async for piece in process.output()]

    async def read_errors() -> list[str]:
        return [piece.text async for piece in process.errors()]

    _, output, errors, code = await asyncio.gather(read_reports(), read_output(), read_errors(), process.wait())
    return reports, output, errors, code


async def started(command: list[str], folder: Path, mark: str = "job-1") -> TrainerProcess:
    return await TrainerProcess.start(command, folder=folder, environ=dict(os.environ), mark=mark)


def run(command: list[str], folder: Path) -> tuple[list[Report], list[str], list[str], int]:
    async def start_and_follow() -> tuple[list[Report], list[str], list[str], int]:
        return await followed(await started(command, folder))

    return asyncio.run(start_and_follow())


def test_reports_and_lines_come_as_they_were_sent(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer(
        """
for step in range(1, 2001):
    writer.write(Points(step, 5, {"train/loss": 0.5}))
    writer.write(Progress(step, 2000, 1.5))
writer.write(Line(7, Level.WARNING, "größe"))
print("10%", end="\\r"); print("20%", end="\\r"); print("done")
print("to errors", file=sys.stderr)
print("no end", end="")
sys.exit(4)
"""
    )
    reports, output, errors, code = run(command, tmp_path)
    assert [report.iteration for report in reports if isinstance(report, Progress)] == list(range(1, 2001))
    assert [report for report in reports if isinstance(report, Points)][-1] == Points(2000, 5, {"train/loss": 0.5})
    assert [report.text for report in reports if isinstance(report, Line)] == ["größe"]
    assert (output, errors, code) == (["done", "no end"], ["to errors"], 4)


def test_points_of_more_series_than_a_report_holds_all_arrive(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer(
        """
writer.write(Points(3, 5, {f"head/valid/{index}/{'n' * 60}": float(index) for index in range(20000)}, {"split": "all"}))
"""
    )
    reports, _, _, code = run(command, tmp_path)
    assert code == 0
    points = [report for report in reports if isinstance(report, Points)]
    assert len(points) > 1
    assert {(each.step, each.time_unix_us, each.context["split"]) for each in points} == {(3, 5, "all")}
    assert [value for each in points for value in each.values.values()] == [float(index) for index in range(20_000)]


def test_a_report_that_is_too_long_and_cannot_be_divided_is_refused_where_it_is_written(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    command = make_trainer(
        """
try:
    writer.write(Line(7, Level.INFO, "x" * 2**21))
except ValueError as error:
    print(error)
writer.write(Line(7, Level.INFO, "goes on"))
"""
    )
    reports, output, _, code = run(command, tmp_path)
    assert code == 0
    assert "at most 1048576 bytes" in output[0]
    assert [report.text for report in reports if isinstance(report, Line)] == ["goes on"]


def test_a_frame_that_death_cut_off_is_dropped_and_the_ones_before_it_count(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    command = make_trainer(
        """
writer.write(Progress(1, 2))
os.write(arguments.report_fd, b"\\xff\\x00\\x00\\x00half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    reports, _, _, code = run(command, tmp_path)
    assert reports == [Progress(1, 2)]
    assert code == -signal.SIGKILL


def test_nonsense_on_the_report_pipe_is_an_error_and_not_a_hang(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer('os.write(arguments.report_fd, b"\\xff\\xff\\xff\\xff"); wait_for_command()')

    async def read() -> None:
        process = await started(command, tmp_path)
        try:
            with pytest.raises(ValueError, match="a report of at most"):
                await anext(process.reports())
        finally:
            process.kill()
            await process.wait()

    asyncio.run(read())


def test_a_command_reaches_the_trainer(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer('print("got", wait_for_command()); sys.stdout.flush(); os._exit(0)')

    async def tell() -> tuple[list[Report], list[str], list[str], int]:
        process = await started(command, tmp_path)
        process.tell("stop")
        return await followed(process)

    _, output, _, code = asyncio.run(tell())
    assert (output, code) == (["got stop"], 0)


def test_killing_ends_the_trainer_and_all_that_it_started(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer(
        """
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(worker.pid, flush=True)
wait_for_command()
"""
    )

    async def first_line(process: TrainerProcess) -> str:
        async for piece in process.output():
            return piece.text
        raise AssertionError("no line came")

    async def kill() -> tuple[int, int]:
        process = await started(command, tmp_path)
        worker = int(await first_line(process))
        process.kill()
        code = await process.wait()
        await until(lambda: not alive(worker))
        return worker, code

    _, code = asyncio.run(kill())
    assert code == -signal.SIGKILL


def test_workers_that_outlive_their_trainer_are_ended_with_its_group(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer(
        """
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print(worker.pid, flush=True)
"""
    )

    async def outlive() -> int:
        process = await started(command, tmp_path)
        output = [int(piece.text) async for piece in process.output()]
        await process.wait()
        assert alive(output[0])
        assert (await asyncio.to_thread(end_group, process.group)).processes == 1
        return output[0]

    assert not alive(asyncio.run(outlive()))


def test_a_process_that_only_bears_an_old_number_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        started_at = psutil.Process(other.pid).create_time()
        assert end_group(ProcessGroup(mark="job-1", leader=other.pid, start_time=started_at - 100)).processes == 0
        assert alive(other.pid)
        assert end_group(ProcessGroup(mark="job-1", leader=other.pid, start_time=started_at)).processes == 1
    finally:
        other.kill()
        other.wait()


def test_the_trainer_dies_when_its_agent_is_killed(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    command = make_trainer(
        """
ends_with_agent = False  # only the leash is left
print("running", flush=True)
signal.pause()
"""
    )
    agent = f"""
import asyncio, os, pathlib
from runner.agent.trainer.process import TrainerProcess
async def main():
    folder = pathlib.Path({str(tmp_path)!r})
    process = await TrainerProcess.start({command!r}, folder=folder, environ=dict(os.environ), mark="job-1")
    async for piece in process.output():
        print(process.group.leader, flush=True)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    trainer = int(process.stdout.readline())
    assert alive(trainer)
    process.kill()
    process.wait()
    process.stdout.close()
    asyncio.run(until(lambda: not alive(trainer)))


def test_the_trainer_knows_whose_it_is(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    _, output, _, _ = run(make_trainer(f'print(os.environ["{ATTEMPT_VARIABLE}"])'), tmp_path)
    assert output == ["job-1"]


def alive(process_id: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    return False
