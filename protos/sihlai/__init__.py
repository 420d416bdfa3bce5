"""A client of an installation (`sihlai.connect()`), and the generated code of its protos (`sihlai.scheduler.v1`).

The client is imported with its first use, so that whoever wants the protos alone pays for nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.chassis.errors import AlreadyExists as AlreadyExists
    from services.chassis.errors import FailedPrecondition as FailedPrecondition
    from services.chassis.errors import InvalidArgument as InvalidArgument
    from services.chassis.errors import NotFound as NotFound
    from services.chassis.errors import PermissionDenied as PermissionDenied
    from services.chassis.errors import SihlaiError as SihlaiError
    from services.chassis.errors import Unauthenticated as Unauthenticated
    from services.chassis.errors import Unavailable as Unavailable
    from services.client.connecting import compare as compare
    from services.client.connecting import connect as connect
    from services.client.connecting import connect_async as connect_async
    from services.client.face import AsyncClient as AsyncClient
    from services.client.face import AsyncJob as AsyncJob
    from services.client.face import Client as Client
    from services.client.face import Job as Job
    from services.client.frame import Frame as Frame
    from services.client.job import JobFailed as JobFailed
    from services.client.specification import SpecificationError as SpecificationError
    from sihlai.scheduler.v1.job_spec_pb2 import Data as Data
    from sihlai.scheduler.v1.job_spec_pb2 import Head as Head
    from sihlai.scheduler.v1.job_spec_pb2 import JobSpec as JobSpec
    from sihlai.scheduler.v1.job_spec_pb2 import Model as Model
    from sihlai.scheduler.v1.job_spec_pb2 import Trainer as Trainer

_NAMES = {
    "services.client.connecting": "connect connect_async compare",
    "services.client.face": "Client Job AsyncClient AsyncJob",
    "services.client.frame": "Frame",
    "sihlai.scheduler.v1.job_spec_pb2": "JobSpec Model Head Data Trainer",
    "services.client.job": "JobFailed",
    "services.client.specification": "SpecificationError",
    "services.chassis.errors": "SihlaiError AlreadyExists FailedPrecondition InvalidArgument NotFound PermissionDenied "
    "Unauthenticated Unavailable",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
