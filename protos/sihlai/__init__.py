"""A client of an installation (`sihlai.connect()`), and the generated code of its protos (`sihlai.scheduler.v1`).

The client is imported with its first use, so that whoever wants the protos alone pays for nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.chassis.errors import (
        AlreadyExists,
        FailedPrecondition,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        SihlaiError,
        Unauthenticated,
        Unavailable,
    )
    from services.client.connecting import compare, connect, connect_async
    from services.client.face import AsyncClient, AsyncJob, Client, Job
    from services.client.frame import Frame
    from services.client.job import JobFailed
    from services.client.specification import SpecificationError
    from sihlai.scheduler.v1.job_spec_pb2 import Data, Head, JobSpec, Model, Trainer

_PLACES = {
    "services.client.connecting": ("connect", "connect_async", "compare"),
    "services.client.face": ("Client", "Job", "AsyncClient", "AsyncJob"),
    "services.client.frame": ("Frame",),
    "services.client.job": ("JobFailed",),
    "services.client.specification": ("SpecificationError",),
    "services.chassis.errors": (
        "SihlaiError",
        "AlreadyExists",
        "FailedPrecondition",
        "InvalidArgument",
        "NotFound",
        "PermissionDenied",
        "Unauthenticated",
        "Unavailable",
    ),
    "sihlai.scheduler.v1.job_spec_pb2": ("Data", "Head", "JobSpec", "Model", "Trainer"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "connect",
    "connect_async",
    "compare",
    "Client",
    "Job",
    "AsyncClient",
    "AsyncJob",
    "Frame",
    "JobSpec",
    "Model",
    "Head",
    "Data",
    "Trainer",
    "JobFailed",
    "SpecificationError",
    "SihlaiError",
    "AlreadyExists",
    "FailedPrecondition",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Unauthenticated",
    "Unavailable",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
