"""The scheduler with every part that it has but the one that asks who calls: what tokens cost is measured beside it.

There is no such thing in the product, where tokens cannot be turned off.
"""

from __future__ import annotations

import sys
from typing import Any

from services.chassis.auth.guard import OpenGuard
from services.scheduler import __main__ as scheduler


def everybody(*_: Any) -> OpenGuard:
    """In the place of `token_guard`."""
    return OpenGuard()


if __name__ == "__main__":
    scheduler.token_guard = everybody  # type: ignore[assignment]  # the wiring is one line there
    sys.exit(scheduler.main(sys.argv[1:]))
