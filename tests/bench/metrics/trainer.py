"""What `log()` costs the trainer: 20 scalars of one step through a real pipe, in processor time of its process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.bench.metrics.stage import Stage
from tests.bench.result import Result

CALLS = 20_000
SCALARS = 20
PROGRAM = """
import os, sys, time
from runner.report import ReportWriter
from runner.trainer.reporter import Reporter
calls, scalars = int(sys.argv[1]), int(sys.argv[2])
write_end = int(sys.argv[3])
reporter = Reporter(ReportWriter(write_end))
values = {f"digits/train/metric_{number:02d}": 0.5 + number for number in range(scalars)}
frame = bytes(600)
for step in range(1000):
    reporter.points(step, values)
began = time.process_time()
for step in range(calls):
    reporter.points(step, values)
ours = time.process_time() - began
began = time.process_time()
for step in range(calls):
    os.write(write_end, frame)
print(ours / calls * 1e6, (time.process_time() - began) / calls * 1e6)
"""


def run(stage: Stage) -> Iterator[Result]:
    """Beside a bare write of as many bytes into the same pipe."""
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin is not None
    pipe = reader.stdin.fileno()
    command = [sys.executable, "-c", PROGRAM, str(CALLS), str(SCALARS), str(pipe)]
    result = subprocess.run(command, pass_fds=[pipe], capture_output=True, text=True, check=True)
    reader.stdin.close()
    reader.wait()
    ours, bare = (float(word) for word in result.stdout.split())
    yield Result(name="bare write of 600 bytes into a pipe, processor time", value=bare, unit="us")
    name = f"log() of {SCALARS} scalars in the trainer, processor time"
    yield Result(name=name, value=ours, unit="us", bar="<= 10", ratio=ours / bare)
