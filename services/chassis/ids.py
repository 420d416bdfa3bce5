"""New ids: unique, and nothing that anybody has to be unable to guess."""

from __future__ import annotations

import random

_RANDOMNESS = random.Random()  # noqa: S311 — tells things apart, guards nothing; seeded by the system


def new_id() -> str:
    """32 hexadecimal digits.

    The system's own randomness is a call of it, for each of which Python's other threads may keep this one from running
    for a while.
    """
    return f"{_RANDOMNESS.getrandbits(128):032x}"
