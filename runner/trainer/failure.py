"""Why a training cannot go on: the one exception that the trainer raises on purpose.

Standard library only. Whatever else is raised in the trainer is a mistake of ours or of a library; `train` turns it
into a Failure too, so that no stack trace ever stands where a person looks for the reason.
"""

from __future__ import annotations

from enum import StrEnum


class FailureReason(StrEnum):
    """The names of sihlai.scheduler.v1.JobReason, without prefix, that a trainer may end with."""

    DATASET_ERROR = "DATASET_ERROR"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TRAINER_ERROR = "TRAINER_ERROR"
    CHECKPOINT_ERROR = "CHECKPOINT_ERROR"
    RUNNER_FAULT = "RUNNER_FAULT"


class Failure(Exception):  # noqa: N818 — an error's name is its reason; this is what carries one
    """Ends the job. The message is one sentence: what was wanted, what was found, what to do."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def dataset_failure(message: str) -> Failure:
    """The dataset cannot be learned from."""
    return Failure(FailureReason.DATASET_ERROR, message)


def trainer_failure(message: str) -> Failure:
    """The specification cannot be trained, or the training went wrong."""
    return Failure(FailureReason.TRAINER_ERROR, message)


def checkpoint_failure(message: str) -> Failure:
    """A checkpoint cannot be read or written."""
    return Failure(FailureReason.CHECKPOINT_ERROR, message)


def runner_failure(message: str) -> Failure:
    """The machine cannot train; another one can."""
    return Failure(FailureReason.RUNNER_FAULT, message)
