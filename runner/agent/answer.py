"""What an answer of the scheduler asks for, out of its proto."""

from __future__ import annotations

from sihlai.runner.v1 import runner_service_pb2 as wire
from sihlai.scheduler.v1 import job_pb2

from runner.agent.decision import Stopping, Wanted, WantIdle, WantRun, WantStop, WantUnknown
from runner.agent.ledger import key_of


def wanted_of(response: wire.SynchronizeResponse) -> Wanted:
    """What an answer asks for."""
    match response.WhichOneof("desired"):
        case "run":
            return WantRun(key=key_of(response.run.attempt), assigned=response.run.HasField("assignment"))
        case "stop":
            immediate = response.stop.mode == job_pb2.STOP_MODE_IMMEDIATE
            return WantStop(
                key=key_of(response.stop.attempt),
                stopping=Stopping.IMMEDIATE if immediate else Stopping.CHECKPOINT,
                grace_seconds=response.stop.grace.ToMilliseconds() / 1000,
                hand_back=response.stop.hand_back,
            )
        case "idle":
            return WantIdle()
        case _:
            return WantUnknown()
