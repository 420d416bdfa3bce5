"""How a program begins: `connect()`. The environment is read here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from services.client.comparison import Comparison
from services.client.endpoints import Endpoints, resolve
from services.client.face import AsyncClient, Client, Job


def connect(
    address: str = "", *, token: str = "", context: str | None = None, data: str | Path | None = None
) -> Client:
    """A client of the installation whose scheduler is at the address.

    Without an address it is what SIHLAI_SCHEDULER_ADDRESS says, or the context (of this name, of SIHLAI_CONTEXT, or the
    one in use), or the `sihlai up` of this machine, whose data folder may be given. Nothing is asked before the first
    call.
    """
    return Client(_endpoints(address, token, context, data))


def connect_async(
    address: str = "", *, token: str = "", context: str | None = None, data: str | Path | None = None
) -> AsyncClient:
    """As `connect`, for an event loop."""
    return AsyncClient(_endpoints(address, token, context, data))


def compare(*jobs: Job, names: Iterable[str] = ()) -> Comparison:
    """Jobs of one installation side by side: where their configurations differ, and the series of these names."""
    assert jobs, "at least one job is compared"
    return jobs[0].compare(*jobs[1:], names=names)


def _endpoints(address: str, token: str, context: str | None, data: str | Path | None) -> Endpoints:
    return resolve(
        environ=os.environ,
        flags={"scheduler": address},
        context=context,
        data=Path(data).expanduser() if data is not None else None,
        token=token,
    )
