"""Python's collector of cyclic garbage rests while a file is read: a tree of values has no cycles, and looking for them
again and again, as it grows, is half of the time."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_readers = 0


@contextlib.contextmanager
def collector_rests() -> Iterator[None]:
    """Nothing is collected in the block; several threads may be in one. Keep it to seconds: it is the whole process's.

    Where the collector was off before, it stays off.
    """
    global _readers
    with _lock:
        if _readers == 0 and not gc.isenabled():
            begun = False
        else:
            begun = True
            _readers += 1
            gc.disable()
    try:
        yield
    finally:
        if begun:
            with _lock:
                _readers -= 1
                if _readers == 0:
                    gc.enable()
