"""How an attempt ended: the trainer's last word, or its death without one, as a typed reason and a message."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from sihlai.scheduler.v1 import job_pb2

from runner.report import Ended, Outcome

MESSAGE_CHARACTERS_MAX = 4_000
VMSTAT = Path("/proc/vmstat")
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
"""Signals by which a program ends for what it did itself. The others but SIGBUS come from outside."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended, and why."""

    outcome: job_pb2.AttemptOutcome.ValueType
    reason: job_pb2.JobReason.ValueType
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Death:
    """How the trainer's process ended. `killed_for`: why the agent killed it; empty where it did not.

    `out_of_memory_kills`: processes that the kernel killed meanwhile for want of memory; None where it does not say.
    """

    exit_code: int
    killed_for: str = ""
    out_of_memory_kills: int | None = None


STOPPED = Ending(outcome=job_pb2.ATTEMPT_OUTCOME_STOPPED, reason=job_pb2.JOB_REASON_USER_STOP)
HANDED_BACK = Ending(outcome=job_pb2.ATTEMPT_OUTCOME_HANDED_BACK, reason=job_pb2.JOB_REASON_UNSPECIFIED)


def ending_of_stop(*, hand_back: bool, message: str) -> Ending:
    """How an attempt ends that was stopped without its trainer having a say."""
    by = HANDED_BACK if hand_back else STOPPED
    return Ending(outcome=by.outcome, reason=by.reason, message=message)


def ending_of_fault(message: str) -> Ending:
    """How an attempt ends that this runner cannot work on, and another can: it is handed back."""
    reason = job_pb2.JOB_REASON_RUNNER_FAULT
    return Ending(outcome=HANDED_BACK.outcome, reason=reason, message=message[:MESSAGE_CHARACTERS_MAX])


def ending_of_outage(message: str) -> Ending:
    """How an attempt ends that waited too long for a store or a service: it is handed back."""
    reason = job_pb2.JOB_REASON_STORE_UNAVAILABLE
    return Ending(outcome=HANDED_BACK.outcome, reason=reason, message=message[:MESSAGE_CHARACTERS_MAX])


def failure(reason: job_pb2.JobReason.ValueType, message: str, tail: str = "") -> Ending:
    """A failure, with the end of the log behind its message."""
    text = message[:MESSAGE_CHARACTERS_MAX]
    room = MESSAGE_CHARACTERS_MAX - len(text) - 2
    if tail and room > 0:
        text = f"{text}\n\n{tail[-room:]}"
    return Ending(outcome=job_pb2.ATTEMPT_OUTCOME_FAILED, reason=reason, message=text)


def ending_of_trainer(last_word: Ended | None, death: Death, *, stopping: bool, hand_back: bool, tail: str) -> Ending:
    """How an attempt ends whose trainer ran. Its last word counts, whatever became of its process afterwards.

    `stopping`: it was told to end, with `hand_back` for another runner to go on from its last checkpoint.
    """
    if last_word is not None:
        return _ending_of_last_word(last_word, tail)
    if death.killed_for:
        return ending_of_stop(hand_back=hand_back, message=death.killed_for)
    if death.exit_code >= 0:
        message = f"the trainer ended with exit code {death.exit_code} and without saying why"
        return failure(job_pb2.JOB_REASON_TRAINER_ERROR, message, tail)
    number = -death.exit_code
    if number in CRASHES:
        return failure(job_pb2.JOB_REASON_TRAINER_ERROR, f"the trainer crashed with {_signal_name(number)}", tail)
    if number == signal.SIGKILL and (death.out_of_memory_kills or (death.out_of_memory_kills is None and not stopping)):
        likely = "" if death.out_of_memory_kills else "most likely "
        message = (
            f"the trainer was killed by SIGKILL, {likely}because the machine's memory was not enough: "
            "lower the batch size or the resolution"
        )
        return failure(job_pb2.JOB_REASON_OUT_OF_MEMORY, message, tail)
    if number == signal.SIGBUS:
        return ending_of_fault("the trainer ended with SIGBUS: the machine's disk, /dev/shm or memory does not work")
    message = f"the trainer was killed by {_signal_name(number)} from outside"
    if stopping:
        return ending_of_stop(hand_back=hand_back, message=f"{message} while it was stopped")
    return ending_of_fault(
        f"{message}, and not by its agent: see what ends processes on the runner's machine, such as a service that is"
        " stopped or a guard of its memory"
    )


def out_of_memory_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it booted; None where it does not say."""
    try:
        text = VMSTAT.read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)


def _ending_of_last_word(last_word: Ended, tail: str) -> Ending:
    try:
        reason = job_pb2.JobReason.Value(f"JOB_REASON_{last_word.reason}")
    except ValueError:
        reason = job_pb2.JOB_REASON_INTERNAL
    if last_word.outcome is Outcome.FAILED:
        by_runner = reason == job_pb2.JOB_REASON_RUNNER_FAULT
        return ending_of_fault(last_word.message) if by_runner else failure(reason, last_word.message, tail)
    return Ending(
        outcome=job_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{last_word.outcome.value}"),
        reason=reason,
        message=last_word.message[:MESSAGE_CHARACTERS_MAX],
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
