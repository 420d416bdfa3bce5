"""What Python itself prints when something fails, line by line."""

import functools
import subprocess
import sys
import textwrap
import time

import pytest
from sihlai.logs.v1 import log_line_pb2

from runner.agent.telemetry.levels import LineLevels
from runner.agent.telemetry.lines import LineSplitter, Piece

UNSPECIFIED, WARNING, ERROR = (
    log_line_pb2.LOG_LEVEL_UNSPECIFIED,
    log_line_pb2.LOG_LEVEL_WARNING,
    log_line_pb2.LOG_LEVEL_ERROR,
)
BEFORE, AFTER = "INFO: epoch 3 begins", "loss: 0.25"
BAR = " 33%|███▎      | 1/3 [00:00<00:00,  9.74it/s]"

PROGRAMS = {
    "plain": "def f():\n    raise RuntimeError('the cause')\nf()",
    "without a message": "raise KeyboardInterrupt",
    "of a module": "import json\njson.loads('{')",
    "of a class of our own": "class Diverged(Exception): pass\nraise Diverged('loss is nan')",
    "with an indented message": "raise RuntimeError('loading failed:\\n\\tMissing key: a\\n\\tMissing key: b')",
    "with a cause": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('x') from error",
    "while handling": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    {}['key']",
    "recursive": "def f(): f()\nf()",
    "a group": "raise ExceptionGroup('several', [ValueError(1), ExceptionGroup('in', [TypeError(2), OSError(3)])])",
    "a group with stacks": """
errors = []
for each in (int, float):
    try:
        each('x')
    except ValueError as error:
        errors.append(error)
try:
    raise ExceptionGroup('several', errors)
except ExceptionGroup as group:
    raise RuntimeError('at last') from group
""",
    "syntax": "compile('a b', 'given.py', 'exec')",
    "in a thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()",
    "a crash": "import faulthandler, os, signal\nfaulthandler.enable()\nos.kill(os.getpid(), signal.SIGSEGV)",
    "an abort": "import faulthandler, os\nfaulthandler.enable()\nos.abort()",
}


@functools.cache
def errors_of(program: str) -> list[str]:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    return run.stderr.splitlines()


def levels_of(lines: list[str]) -> list[int]:
    levels = LineLevels()
    return [levels.level_of(Piece(text=line)) for line in lines]


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_lines_of_a_traceback_are_errors_and_no_others(name: str) -> None:
    lines = errors_of(PROGRAMS[name])
    assert len(lines) >= 2
    if name == "in a thread":  # the first line tells the thread
        lines = lines[1:]
    assert levels_of([BEFORE, *lines, AFTER, AFTER]) == [UNSPECIFIED] + [ERROR] * len(lines) + [UNSPECIFIED] * 2


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("in a thread", "a crash", "an abort")])
def test_tracebacks_of_ranks_with_bars_and_lines_between_are_told_apart(name: str) -> None:
    lines = errors_of(PROGRAMS[name])
    mixed, wanted = [], []
    for line in lines:
        for rank in range(3):
            mixed += [f"[rank{rank}]: {line}", BAR]
            wanted += [ERROR, UNSPECIFIED]
    mixed += [f"[rank0]: {BEFORE}", BEFORE]
    assert levels_of(mixed) == [*wanted, UNSPECIFIED, UNSPECIFIED]


def test_lines_of_others_in_the_middle_of_a_traceback_are_left_as_they_are() -> None:
    lines = errors_of(PROGRAMS["with a cause"])
    mixed = [each for line in lines for each in (line, BEFORE)]
    levels = levels_of(mixed)
    assert {level for line, level in zip(lines, levels[::2], strict=True) if line} == {ERROR}
    assert set(levels[1::2]) == {UNSPECIFIED}


def test_a_traceback_behind_a_progress_bar_is_seen() -> None:
    splitter, levels = LineSplitter(), LineLevels()
    traceback = "\n".join(errors_of(PROGRAMS["plain"])) + "\n"
    pieces = [*splitter.feed((BAR + "\r" + BAR + traceback).encode()), *splitter.end()]
    assert {levels.level_of(piece) for piece in pieces} == {ERROR}


def test_warnings_and_the_line_that_they_quote_are_warnings(tmp_path: object) -> None:
    program = "import warnings\ndef f():\n    warnings.warn('slow', UserWarning, stacklevel=1)\nf()\n"
    lines = errors_of(
        f"import pathlib, runpy; p = pathlib.Path({str(tmp_path)!r}) / 'm.py'; p.write_text({program!r});"
        " runpy.run_path(str(p))"
    )
    assert len(lines) == 2
    assert levels_of([*lines, BEFORE]) == [WARNING, WARNING, UNSPECIFIED]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("[W1128 10:00:00.123 socket.cpp:752] [c10d] retrying", WARNING),
        ("[rank0]:[E1128 10:00:00.123 ProcessGroupNCCL.cpp:616] timeout", ERROR),
        ("terminate called after throwing an instance of 'c10::Error'", ERROR),
        ("the word Traceback alone", UNSPECIFIED),
        ("  indented", UNSPECIFIED),
        ("", UNSPECIFIED),
        (BAR, UNSPECIFIED),
        ("Error: what a program says", UNSPECIFIED),
        ("| a | table |", UNSPECIFIED),
    ],
)
def test_a_line_alone(line: str, level: int) -> None:
    assert levels_of([line]) == [level]


def test_the_pieces_of_a_long_line_have_one_level() -> None:
    levels = LineLevels()
    for piece in errors_of(PROGRAMS["plain"])[:-1]:
        levels.level_of(Piece(text=piece))
    text = "RuntimeError: " + "x" * 100_000
    pieces = LineSplitter().feed(f"{text}\nnext\n".encode())
    assert [levels.level_of(piece) for piece in pieces] == [ERROR] * 7 + [UNSPECIFIED]


@pytest.mark.parametrize("text", ["1" * 16_000, "1." * 8_000, ":1" * 8_000, "[a]" * 5_000, "a." * 8_000, "| " * 8_000])
def test_no_line_takes_long(text: str) -> None:
    levels = LineLevels()
    for line in errors_of(PROGRAMS["plain"])[:-1]:
        levels.level_of(Piece(text=line))
    began = time.process_time()
    for _ in range(100):
        levels.level_of(Piece(text=text))
    assert time.process_time() - began < 0.5


def test_what_is_read_stays_bounded() -> None:
    levels = LineLevels()
    for rank in range(10_000):
        levels.level_of(Piece(text=f"[rank{rank}]: Traceback (most recent call last):"))
    assert len(levels._open) <= 256
    for _ in range(51):
        levels.level_of(Piece(text="[rank9999]: INFO: all is well"))
    assert levels.level_of(Piece(text="[rank9999]:   indented")) == UNSPECIFIED
