"""New ids: unique, and nothing that anybody has to be unable to guess. And whether a text is a caller's."""

from __future__ import annotations

import random
import re

_RANDOMNESS = random.Random()  # noqa: S311 — tells things apart, guards nothing; seeded by the system

_UUID = re.compile("[0-9a-fA-F]{8}(-?)([0-9a-fA-F]{4}\\1){3}[0-9a-fA-F]{12}")


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID as people write it, with its hyphens or without."""
    return _UUID.fullmatch(text) is not None


def new_id() -> str:
    """32 hexadecimal digits.

    The system's own randomness is a call of it, for each of which Python's other threads may keep this one from running
    for a while.
    """
    return f"{_RANDOMNESS.getrandbits(128):032x}"
