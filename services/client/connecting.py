"""How a program begins: `connect()`. The environment is read here."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias

from services.chassis.context import tls_of_caller
from services.chassis.endpoints import resolve
from services.client.comparison import Comparison
from services.client.face import AsyncClient, Client, Job

P = ParamSpec("P")
File: TypeAlias = str | Path | None


def connect(
    address: str = "",
    *,
    token: str = "",
    context: str | None = None,
    data: File = None,
    ca_file: File = None,
    client_certificate_file: File = None,
    client_key_file: File = None,
) -> Client:
    """A client of the installation whose scheduler is at the address.

    Without an address it is what SIHLAI_SCHEDULER_ADDRESS says, or the context (of this name, of SIHLAI_CONTEXT, or the
    one in use), or the `sihlai up` of this machine, whose data folder may be given. `ca_file` (PEM) holds the
    authorities that certificates are checked with; without it an address is called in the clear. The client's own
    certificate and key are for services that want one (mTLS); they and the token are told instead of the context's.
    Nothing is asked before the first call. Raises ConfigurationError where the files do not go together, or the
    address can be none.
    """
    folder, *files = (
        Path(path).expanduser() if path is not None else None
        for path in (data, ca_file, client_certificate_file, client_key_file)
    )
    return Client(
        resolve(
            environ=os.environ,
            flags={"scheduler": address},
            context=context,
            data=folder,
            token=token,
            tls=tls_of_caller(*files),
        )
    )


def _for_loops(connecting: Callable[P, Client]) -> Callable[P, AsyncClient]:
    def connect_async(*args: P.args, **kwargs: P.kwargs) -> AsyncClient:
        """As `connect`, for an event loop."""
        return AsyncClient(connecting(*args, **kwargs).driver.endpoints)

    looking: Any = connect_async
    looking.__signature__ = inspect.signature(connecting).replace(return_annotation="AsyncClient")
    return connect_async


connect_async = _for_loops(connect)


def compare(*jobs: Job, names: Iterable[str] = ()) -> Comparison:
    """Jobs of one installation side by side: where their configurations differ, and the series of these names."""
    assert jobs, "at least one job is compared"
    return jobs[0].compare(*jobs[1:], names=names)
