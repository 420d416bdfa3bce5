"""The agent's commands to the trainer, read from standard input by a thread of its own.

The end of the input means that the agent is gone: the process then ends at once, because nobody is left to hear it or
to delete the dataset behind it. Signals are the agent's: a service that is stopped, or a machine that shuts down, sends
them to every process, and the trainer must live on to write the checkpoint that the agent then asks for.
"""

from __future__ import annotations

import os
import signal
import threading

from runner.report import COMMAND_HAND_BACK, COMMAND_STOP

EXIT_CODE_ORPHANED = 3
CHUNK_BYTES = 4_096
LINE_BYTES_MAX = 1_024
SIGNALS_FOR_AGENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def leave_signals_to_agent() -> None:
    """From now on end by the agent's word alone. In the main thread; what is started later is as deaf."""
    for number in SIGNALS_FOR_AGENT:
        signal.signal(number, signal.SIG_IGN)


class Commands:
    """What the agent has asked for so far. `wish` may be read from any thread at any time; reading it costs nothing."""

    def __init__(self) -> None:
        self.wish: str | None = None
        """COMMAND_STOP or COMMAND_HAND_BACK, once one of them came; the first one counts."""

    def listen(self, file_descriptor: int) -> None:
        """Begin to read commands; the thread ends with the process."""
        threading.Thread(target=self._read, args=(file_descriptor,), name="commands", daemon=True).start()

    def _read(self, file_descriptor: int) -> None:
        # os.read and no buffered reader: a daemon thread that holds a buffer's lock aborts the interpreter's end.
        pending = b""
        while chunk := os.read(file_descriptor, CHUNK_BYTES):
            *lines, pending = (pending + chunk).split(b"\n")
            pending = pending[-LINE_BYTES_MAX:]
            for line in lines:
                self._take(line.decode(errors="replace").strip())
        os._exit(EXIT_CODE_ORPHANED)

    def _take(self, command: str) -> None:
        if command in (COMMAND_STOP, COMMAND_HAND_BACK) and self.wish is None:
            self.wish = command
