"""A process of a pool: `python -m services.conversion.conveyor.worker PIPE STARTER`. `pool` starts it and says why so.

PIPE is the file descriptor of its end of the pipe, STARTER the process that it dies with.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from services.chassis.leash import hold
from services.chassis.machine import keep_memory

HEAP_KEPT_BYTES = 256 * 2**20
"""A worker gives back what it has unused above this."""
HEAP_ARRAY_BYTES_MAX = 32 * 2**20
"""Larger arrays are the kernel's at once."""


def serve(connection: Connection, starter: int) -> None:
    """Do what comes, until nothing more can. Dies with its starter. A terminal's Ctrl-C goes to the whole group."""
    hold(starter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Every image takes and gives back the same megabytes.
    keep_memory(kept_bytes=HEAP_KEPT_BYTES, array_bytes_max=HEAP_ARRAY_BYTES_MAX)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(sent: bytes) -> bytes:
    """What the work gives, or what it raised, with where it did as a note."""
    try:
        return pickle.dumps((pickle.loads(sent)(), None), pickle.HIGHEST_PROTOCOL)  # noqa: S301  # our own service's
    except Exception as error:  # noqa: BLE001  # its caller gets it
        error.add_note(traceback.format_exc())
        with contextlib.suppress(Exception):
            return pickle.dumps((None, error), pickle.HIGHEST_PROTOCOL)
        unsendable = RuntimeError(f"{type(error).__name__}: {error}")
        unsendable.add_note(traceback.format_exc())
        return pickle.dumps((None, unsendable), pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
