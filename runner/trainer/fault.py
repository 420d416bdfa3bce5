"""Of an exception in the trainer: whether this machine is to blame for it, and no job.

The system says so by a number, drivers and the libraries above them in words alone. What a specification or a mistake
of ours brings about as well, such as an assertion on the device, is not the machine's; where nothing tells, the agent
looks at the machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from runner.trainer.failure import Failure

MACHINE_NUMBERS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EREMOTEIO, errno.ESTALE),
        *(errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE),
    }
)
"""Disks, mounts and devices that do not work or are full, and files that a process may not open any more."""
MACHINE_WORDS = (
    *(os.strerror(number) for number in sorted(MACHINE_NUMBERS)),  # torch and safetensors tell no number
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "or a hardware error",
    "busy or unavailable",
    "no CUDA-capable device",
    "no NVIDIA driver",
    "CUDA driver",
    "CUDA error: unknown error",
    "CUDA unknown error",
    "CUDA error: initialization error",
    "driver shutting down",
    "system not yet initialized",
    "display driver / cuda driver combination",
    "forward compatibility was attempted",
    "OS call failed or operation not supported",
    "no kernel image is available",
    "MPS client",
    "MPS server",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "cannot open shared object file",
    "allocate shared memory",
    "open shared memory",
    "can't start new thread",
)
"""Of CUDA's, cuDNN's, the loader's and torch's messages."""
PROGRAM_WORDS = ("device-side assert triggered", "an illegal memory access", "misaligned address")
"""Of messages that may name the driver and mean what the program did. Each error of CUDA ends with advice on
device-side assertions."""


def is_fault_of_machine(error: BaseException) -> bool:
    """Whether the machine is behind an exception, or behind what led to it. A Failure's own words count for nothing."""
    return any(_is_of_machine(each) for each in _chain(error) if not isinstance(each, Failure))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_machine(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in MACHINE_NUMBERS:
        return True
    text = str(error)
    return any(words in text for words in MACHINE_WORDS) and not any(words in text for words in PROGRAM_WORDS)
