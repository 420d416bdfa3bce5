"""The runner's own fault: it cannot do what any other runner could, and no job is to blame."""

from __future__ import annotations


class RunnerFault(Exception):  # noqa: N818  # what it is; the reason's name is RUNNER_FAULT
    """This runner cannot train now. The message is one sentence for who runs it, and for whose job it was."""


def fault_of(error: OSError) -> RunnerFault:
    """What a call of this machine's system refused, such as a full disk."""
    place = f"{error.filename}: " if error.filename else ""
    return RunnerFault(f"{place}{error.strerror or error}")
