"""Two files or folders that change places at one moment."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""As Linux numbers them."""
LIBRARY = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Let them change places: whoever works there would make a folder anew where there is none for a moment."""
    here, how = ctypes.c_int(AT_FDCWD), ctypes.c_uint(RENAME_EXCHANGE)
    if LIBRARY.renameat2(here, bytes(one), here, bytes(other), how):
        number = ctypes.get_errno()
        raise OSError(number, f"{one} and {other} do not change places: {os.strerror(number)}")
