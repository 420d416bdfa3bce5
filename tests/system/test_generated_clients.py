"""Clients in other languages do the main job: they submit, tail the log to its end, watch metrics, stop, read errors.

The time goes to compilers: half a minute of one core for C++, ten seconds for TypeScript.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system import generated
from tests.system.client import Client

SECONDS = 120


@pytest.mark.parametrize("build", [generated.typescript, generated.cpp], ids=["typescript", "cpp"])
def test_a_generated_client_does_the_main_job(
    client: Client, build: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    command = build(tmp_path)
    project = client.create_project(build.__name__)
    addresses = [client.stack.address(service) for service in ("scheduler", "metrics")]
    token = client.stack.folder.token.read_text().strip()
    ran = subprocess.run(
        [*command, *addresses, token, project], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines())
    points, lines = int(found.pop("points")), int(found.pop("lines"))
    assert found == {
        "submitted": "JOB_STATE_QUEUED",
        "stopped": "JOB_STATE_STOPPING",
        "log": "JOB_STATE_STOPPED complete",
        "metrics": "JOB_STATE_STOPPED complete",
        "refused": f"NotFound sihlai JOB_NOT_FOUND {project}/jobs/none",
    }
    (job,) = client.list_jobs(project)
    assert points == job.last_checkpoint.iteration == len(client.points(job.name, "train/loss").steps)
    assert lines == sum(len(answer.batch.lines) for answer in client.tail(job.name))
