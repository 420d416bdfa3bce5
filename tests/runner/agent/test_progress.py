"""How often an agent says how far it is."""

import time
from pathlib import Path

import grpc
from sihlai.runner.v1 import runner_service_pb2, runner_service_pb2_grpc

from tests import tokens
from tests.runner.agent.system import System, end

OTHERS = 3
SECONDS = 8.0
ARGUMENTS = ["--progress-reports-max", "1", "--lease-seconds", "60", "--synchronize-seconds-max", "20"]
"""Runners are known, and their calls wait, for longer than the test takes: each call would bring progress too."""


def test_an_agent_says_how_far_it_is_as_seldom_as_the_scheduler_asks(tmp_path: Path) -> None:
    system = System(folder=tmp_path / "system", scheduler=ARGUMENTS)
    system.folder.mkdir()
    try:
        system.start()
        be_there(system)
        agent = system.agent(tmp_path / "work" / "agent")
        name = system.submit(system.project(), iterations=10_000, step_ms="20")
        system.wait_step(name, 2)
        began, seen = time.monotonic(), set()
        while time.monotonic() - began < SECONDS:
            seen.add(system.job(name).progress.iteration)
            time.sleep(0.1)
        # One report a second of all four: each every four seconds. It would like to say so ten times a second.
        assert 2 <= len(seen) <= 1 + SECONDS / (1 + OTHERS) + 1
        system.stop_job(name, immediate=True)
        assert end(agent) == 0
    finally:
        system.stop()


def be_there(system: System) -> None:
    """Other runners that can do nothing, and count."""
    with grpc.insecure_channel(system.services["scheduler"].address) as channel:
        carrying = tokens.carrying(channel, tokens.runner_token(system.folder / "token.pem"))
        for number in range(OTHERS):
            request = runner_service_pb2.SynchronizeRequest(
                runner=f"runners/other-{number}",
                session="its",
                sequence=time.monotonic_ns(),
                protocol_version=1,
                idle={},
            )
            runner_service_pb2_grpc.RunnerServiceStub(carrying).Synchronize(request, timeout=20)
