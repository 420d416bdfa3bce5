"""Asks conversion for a head's dataset in the head's own task, and goes on asking while it is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
from sihlai.conversion.v1 import conversion_service_pb2 as conversion
from sihlai.conversion.v1 import conversion_service_pb2_grpc

from services.chassis.backoff import Backoff
from services.chassis.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Reason,
    RetryableError,
    SihlaiError,
    Unauthenticated,
)
from services.chassis.log import get_logger
from services.chassis.rpc import error_from_rpc

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConversionLimits:
    """Waits of a conversion; the configuration has a setting for each."""

    reconnect_seconds_first: float
    reconnect_seconds_max: float
    unavailable_seconds_max: float
    changed_tries_max: int


class Conversion:
    """The conversion service, as the agent needs it."""

    def __init__(self, channel: grpc.aio.Channel, *, limits: ConversionLimits, randomness: random.Random) -> None:
        self._stub = conversion_service_pb2_grpc.ConversionServiceStub(channel)
        self._limits = limits
        self._random = randomness

    async def convert(
        self,
        request: conversion.ConvertDatasetRequest,
        *,
        on_progress: Callable[[conversion.WorkProgress], None],
        on_unavailable: Callable[[SihlaiError], None],
    ) -> conversion.ConversionResult:
        """Convert, from the start or joining what a call with the same request id began.

        While conversion is away it is asked again, for `unavailable_seconds_max` after its last sign of life; then, and
        where it refuses, its error is raised. A lenient request is made again, `changed_tries_max` times, for a dataset
        that changed while it was read. A cancelled call stops the work.
        """
        limits = self._limits
        backoff = Backoff(
            seconds_first=limits.reconnect_seconds_first,
            seconds_max=limits.reconnect_seconds_max,
            randomness=self._random,
        )
        last_sign = time.monotonic()
        tries_left = limits.changed_tries_max if request.lenient else 0
        while True:
            try:
                async for response in self._responses(request):
                    last_sign = time.monotonic()
                    backoff.reset()
                    if response.WhichOneof("message") == "result":
                        return response.result
                    on_progress(response.progress)
            except (RetryableError, Aborted, Cancelled, DeadlineExceeded, Unauthenticated) as error:
                if time.monotonic() - last_sign > limits.unavailable_seconds_max:
                    raise
                log.warning("conversion_away", problem=error.message)
                on_unavailable(error)
            except FailedPrecondition as error:
                if error.reason is not Reason.DATASET_CHANGED or not tries_left:
                    raise
                tries_left -= 1
                log.warning("dataset_changed", problem=error.message)
                on_unavailable(error)
            await asyncio.sleep(backoff.next_seconds())

    async def _responses(
        self, request: conversion.ConvertDatasetRequest
    ) -> AsyncIterator[conversion.ConvertDatasetResponse]:
        call = self._stub.ConvertDataset(request)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()
