"""The error of a call to a real server that must be refused, and the fields that it names."""

from __future__ import annotations

import grpc
import pytest

from services.chassis import rpc
from services.chassis.errors import InvalidArgument, SihlaiError


async def refused(call) -> SihlaiError:
    """Our error of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return rpc.error_from_rpc(error.value)


def fields_of(error: SihlaiError) -> list[str]:
    assert isinstance(error, InvalidArgument)
    return [violation.field for violation in error.violations]
