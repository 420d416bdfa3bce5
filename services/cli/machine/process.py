"""How a process of ours is started: with which Python, at which address, in which environment."""

from __future__ import annotations

import sys

from services.chassis.context import FILE_VARIABLE, VARIABLE
from services.chassis.endpoints import SERVICES, TOKEN_VARIABLE

FREE_PORT = "127.0.0.1:0"
PYTHON = (sys.executable, "-P")
"""Without the current folder on its path: a stranger's `runner` in it would win over ours."""
CLIENT_VARIABLES = (
    "SIHLAI_DATA",
    VARIABLE,
    FILE_VARIABLE,
    TOKEN_VARIABLE,
    *(f"SIHLAI_{service.upper()}_ADDRESS" for service in SERVICES),
)
"""What commands read. Services must not see them: a variable with a service's prefix is a setting of that service."""
