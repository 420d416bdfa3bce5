"""The log: one JSON object a line, ids of the context on every line, libraries' lines alike, no local variables."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
import time

import pytest

from services.chassis import log as logs


@pytest.fixture
def stream():
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield io.StringIO()
    root.handlers[:], root.level = before


def written(stream):
    logs.flush()
    return stream.getvalue()


def lines(stream):
    return [json.loads(line) for line in written(stream).splitlines()]


def test_event_and_its_fields_are_one_json_object(stream):
    logs.configure("example", format="json", level="info", stream=stream)
    logs.get_logger("x").info("job_claimed", job="projects/a/jobs/b", attempt=2)
    (line,) = lines(stream)
    assert line["event"] == "job_claimed"
    assert (line["job"], line["attempt"], line["level"], line["service"]) == ("projects/a/jobs/b", 2, "info", "example")
    assert line["timestamp"].endswith("Z")


def test_bound_ids_stand_on_our_lines_and_on_libraries_lines(stream):
    logs.configure("example", format="json", stream=stream)
    with logs.bound_contextvars(request_id="r-1", trace_id="t-1"):
        logs.get_logger("x").info("ours")
        logging.getLogger("library").warning("theirs %d", 7)
    logs.get_logger("x").info("after")
    ours, theirs, after = lines(stream)
    assert (ours["request_id"], theirs["request_id"], theirs["trace_id"]) == ("r-1", "r-1", "t-1")
    assert (theirs["event"], theirs["service"]) == ("theirs 7", "example")
    assert "request_id" not in after


def test_lines_below_the_level_are_not_written(stream):
    logs.configure("example", format="json", level="warning", stream=stream)
    logs.get_logger("x").info("quiet")
    logs.get_logger("x").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_traceback_shows_no_local_variables(stream, form):
    logs.configure("example", format=form, stream=stream)
    secret = "do-not-show-" + "me"
    try:
        raise ValueError(len(secret))
    except ValueError:
        logs.get_logger("x").exception("failed")
    assert "ValueError" in written(stream)
    assert secret not in written(stream)


def test_auto_means_json_where_there_is_no_terminal(stream):
    logs.configure("example", format="auto", stream=stream)
    logs.get_logger("x").info("plain")
    assert lines(stream)[0]["event"] == "plain"


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_value_makes_a_line_of_megabytes(stream, form):
    logs.configure("example", format=form, stream=stream)
    large = "x" * 5_000_000
    log = logs.get_logger("x")
    log.info("refused", message=large, names=[large] * 1_000, by={large: large}, nested=[[[[[large]]]]], data=b"y" * 9)
    logging.getLogger("library").warning("theirs %s", large)
    try:
        raise ValueError(large)
    except ValueError as error:
        log.error("crashed", exc_info=error)
        log.warning("failed", problem=error)
    found = written(stream).splitlines()
    assert max(map(len, found)) < 40_000
    if form == "json":
        refused, theirs, crashed, failed = (json.loads(line) for line in found)
        assert refused["message"].endswith("… (5000000 characters)")
        assert (len(refused["names"]), refused["names"][-1]) == (9, "… 992 more")
        assert refused["data"] == "(9 bytes)"
        assert len(theirs["event"]) < 3_000
        assert crashed["exception"].startswith("Traceback")
        assert len(crashed["exception"]) < 17_000
        assert len(failed["problem"]) < 3_000


class Program:
    """Python that logs to a pipe, which nobody reads before `rest`."""

    def __init__(self, text):
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def rest(self):
        return self.process.communicate(timeout=60)[1].decode()


FLOOD = """
import asyncio, sys
from services.chassis import log as logs

async def main():
    log = logs.get_logger("x")
    for number in range(20_000):
        log.info("line", number=number)
        if number % 1_000 == 0:
            await asyncio.sleep(0)
    print("goes on", flush=True)

limits = logs.LogLimits(waiting_characters_max=200_000, flush_seconds_max=SECONDS)
logs.configure("example", format="json", limits=limits)
asyncio.run(main())
"""


def test_a_pipe_that_nobody_reads_stops_nobody_and_what_was_dropped_is_told_once_it_is_read():
    program = Program(FLOOD.replace("SECONDS", "30"))
    assert program.process.stdout.readline() == b"goes on\n"
    found = [json.loads(line) for line in program.rest().splitlines()]
    numbers = [line["number"] for line in found if line["event"] == "line"]
    [told] = [line for line in found if line["event"] == "log_lines_dropped"]
    assert numbers == list(range(len(numbers)))
    assert 500 < len(numbers) < 19_000
    assert told["lines"] == 20_000 - len(numbers)
    assert (told["level"], told["service"]) == ("warning", "example")
    assert found[-1] == told, "it stands where the lines are missing"
    assert program.process.returncode == 0


def test_a_process_ends_in_time_whose_log_nobody_reads():
    program = Program(FLOOD.replace("SECONDS", "0.5"))
    assert program.process.stdout.readline() == b"goes on\n"
    begun = time.monotonic()
    assert program.process.wait(30) == 0
    assert time.monotonic() - begun < 10
    program.rest()


def test_last_lines_and_the_traceback_of_a_crash_come_out():
    program = Program("""
from services.chassis import log as logs
logs.configure("example", format="json", limits=logs.LogLimits(flush_seconds_max=60))
for number in range(3_000):
    logs.get_logger("x").info("line", number=number)
raise RuntimeError("the end")
""")
    time.sleep(1)  # the pipe is full: the writer of the log and that of the traceback wait for the same room
    found = program.rest().splitlines()
    assert "RuntimeError: the end" in found, "it stands between lines, not within one"
    lines = [json.loads(line) for line in found if line.startswith("{")]
    assert [line["number"] for line in lines] == list(range(3_000))
    assert program.process.returncode == 1


def test_what_others_write_to_the_same_pipe_stands_between_lines():
    program = Program("""
import os, threading
from services.chassis import log as logs
logs.configure("example", format="json", limits=logs.LogLimits(flush_seconds_max=60))

def others():
    for number in range(1_000):
        os.write(2, b"theirs\\n")

thread = threading.Thread(target=others)
thread.start()
for number in range(5_000):
    logs.get_logger("x").info("line", number=number)
thread.join()
""")
    time.sleep(1)  # the pipe is full: both wait for the same room, of which there is ever a little more
    read = b""
    while piece := os.read(program.process.stderr.fileno(), 5_000):
        read += piece
        time.sleep(0.001)
    found = read.decode().splitlines()
    assert found.count("theirs") == 1_000
    assert [json.loads(line)["number"] for line in found if line != "theirs"] == list(range(5_000))


class Disk(io.StringIO):
    full = True

    def write(self, text):
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_lines_that_a_full_disk_refuses_are_told_once_there_is_room(stream):
    disk = Disk()
    logs.configure("example", format="json", stream=disk)
    for event in ("lost", "lost too"):
        logs.get_logger("x").info(event)
        logs.flush()
    disk.full = False
    logs.get_logger("x").info("kept")
    assert [(line["event"], line.get("lines")) for line in lines(disk)] == [("log_lines_dropped", 2), ("kept", None)]


FINALIZERS_THAT_LOG = """
import gc, logging, sys
from services.chassis import log as logs

limits = logs.LogLimits(waiting_characters_max=100_000_000, flush_seconds_max=60)
logs.configure("example", format="json", stream=sys.stdout, limits=limits)
is_inside = False

def finalized(phase, _details):
    global is_inside
    if not is_inside:
        is_inside = True
        logging.getLogger("finalizer").warning("collected")
        is_inside = False

gc.callbacks.append(finalized)
gc.set_threshold(2)
for number in range(3_000):
    logs.get_logger("x").info("line", number=number)
gc.callbacks.clear()
logs.flush()
"""


def test_finalizers_that_log_wherever_garbage_is_collected_stop_nobody():
    """It is collected wherever something is made, in the thread that writes the log as well."""
    command = [sys.executable, "-c", FINALIZERS_THAT_LOG]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    events = [json.loads(line) for line in found]
    numbers = [event["number"] for event in events if event["event"] == "line"]
    assert numbers == list(range(3_000))
    assert any(event["event"] == "collected" for event in events)
