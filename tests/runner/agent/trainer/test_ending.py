import signal

import pytest
from sihlai.scheduler.v1 import job_pb2

from runner.agent.trainer.ending import MESSAGE_CHARACTERS_MAX, Death, ending_of_trainer, failure
from runner.report import Ended, Outcome

CRASHED, KILLED = Death(exit_code=1), Death(exit_code=-signal.SIGKILL, out_of_memory_kills=1)


@pytest.mark.parametrize(
    ("last_word", "death", "hand_back", "outcome", "reason", "says"),
    [
        (Ended(Outcome.COMPLETED, "LIMIT_REACHED", "", 9), Death(exit_code=0), False, "COMPLETED", "LIMIT_REACHED", ""),
        (Ended(Outcome.COMPLETED, "LIMIT_REACHED", "", 9), KILLED, False, "COMPLETED", "LIMIT_REACHED", ""),
        (Ended(Outcome.STOPPED, "USER_STOP", "", 9), Death(exit_code=0), False, "STOPPED", "USER_STOP", ""),
        (Ended(Outcome.HANDED_BACK, "UNSPECIFIED", "", 9), CRASHED, True, "HANDED_BACK", "UNSPECIFIED", ""),
        (
            Ended(Outcome.FAILED, "OUT_OF_MEMORY", "GPU", 9),
            CRASHED,
            False,
            "FAILED",
            "OUT_OF_MEMORY",
            "GPU\n\nthe tail",
        ),
        (Ended(Outcome.FAILED, "NO_SUCH_REASON", "odd", 9), CRASHED, False, "FAILED", "INTERNAL", "odd"),
        (None, CRASHED, False, "FAILED", "TRAINER_ERROR", "exit code 1 and without saying why\n\nthe tail"),
        (None, Death(exit_code=0), False, "FAILED", "TRAINER_ERROR", "exit code 0"),
        (None, Death(exit_code=-signal.SIGSEGV), False, "FAILED", "TRAINER_ERROR", "crashed with SIGSEGV"),
        (None, KILLED, False, "FAILED", "OUT_OF_MEMORY", "SIGKILL, because the machine's memory was not enough"),
        (None, Death(exit_code=-9), False, "FAILED", "OUT_OF_MEMORY", "most likely because"),
        (None, Death(exit_code=-9, killed_for="too slow"), False, "STOPPED", "USER_STOP", "too slow"),
        (None, Death(exit_code=-9, killed_for="too slow"), True, "HANDED_BACK", "UNSPECIFIED", "too slow"),
    ],
)
def test_every_end_of_a_trainer_has_a_typed_reason(
    last_word: Ended | None, death: Death, hand_back: bool, outcome: str, reason: str, says: str
) -> None:
    stopping = hand_back or bool(death.killed_for)
    ending = ending_of_trainer(last_word, death, stopping=stopping, hand_back=hand_back, tail="the tail")
    assert job_pb2.AttemptOutcome.Name(ending.outcome) == f"ATTEMPT_OUTCOME_{outcome}"
    assert job_pb2.JobReason.Name(ending.reason) == f"JOB_REASON_{reason}"
    assert says in ending.message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGKILL])
@pytest.mark.parametrize(
    ("stopping", "hand_back", "outcome", "reason"),
    [
        (False, False, "HANDED_BACK", "RUNNER_FAULT"),
        (True, False, "STOPPED", "USER_STOP"),
        (True, True, "HANDED_BACK", "UNSPECIFIED"),
    ],
)
def test_a_trainer_that_was_killed_from_outside_fails_no_job(
    number: signal.Signals, stopping: bool, hand_back: bool, outcome: str, reason: str
) -> None:
    death = Death(exit_code=-number, out_of_memory_kills=0)
    ending = ending_of_trainer(None, death, stopping=stopping, hand_back=hand_back, tail="the tail")
    assert job_pb2.AttemptOutcome.Name(ending.outcome) == f"ATTEMPT_OUTCOME_{outcome}"
    assert job_pb2.JobReason.Name(ending.reason) == f"JOB_REASON_{reason}"
    assert f"the trainer was killed by {number.name} from outside" in ending.message


def test_a_stop_makes_no_lack_of_memory_of_a_kill_that_the_kernel_does_not_tell_of() -> None:
    ending = ending_of_trainer(None, Death(exit_code=-signal.SIGKILL), stopping=True, hand_back=True, tail="")
    assert (ending.outcome, ending.reason) == (job_pb2.ATTEMPT_OUTCOME_HANDED_BACK, job_pb2.JOB_REASON_UNSPECIFIED)


def test_a_bus_error_is_the_runners_fault() -> None:
    """Where a file that is mapped cannot be read or written: /dev/shm is full, or a disk fails."""
    ending = ending_of_trainer(None, Death(exit_code=-signal.SIGBUS), stopping=False, hand_back=False, tail="")
    assert (ending.outcome, ending.reason) == (job_pb2.ATTEMPT_OUTCOME_HANDED_BACK, job_pb2.JOB_REASON_RUNNER_FAULT)


def test_a_message_is_bounded_and_keeps_the_end_of_the_log() -> None:
    message = failure(job_pb2.JOB_REASON_TRAINER_ERROR, "first", "x" * 10_000 + "last line").message
    assert len(message) <= MESSAGE_CHARACTERS_MAX
    assert message.startswith("first\n\n")
    assert message.endswith("last line")
