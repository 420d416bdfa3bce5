"""Whether conversion can make each head's task from a project's dataset: asked before a job is taken.

With conversion or the dataset's storage away the job is taken all the same: its attempt checks again.
"""

from __future__ import annotations

import asyncio

import grpc
from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc, dataset_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Head, JobSpec

from services.chassis import rpc
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SihlaiError,
    Violation,
)
from services.chassis.log import get_logger

log = get_logger(__name__)

HEAD_FIELDS = {
    "to": "task",
    "via": "via",
    "annotation_set": "annotation_set",
    "options": "conversion_options",
}
"""What a field of the plan's request is called in a head."""


class Reachability:
    """Asks conversion at `address`; without one everything is taken."""

    def __init__(self, address: str | None, *, plan_seconds: float) -> None:
        self._plan_seconds = plan_seconds
        # One try: with conversion away a submit must not wait for it.
        self._channel = rpc.channel(address, retry_attempts_max=1) if address else None

    async def check(self, spec: JobSpec, source: dataset_pb2.DatasetSource) -> None:
        """Raise what conversion says where a head's task cannot be made from the source."""
        if self._channel is None:
            return
        stub = conversion_service_pb2_grpc.ConversionServiceStub(self._channel)
        results = await asyncio.gather(
            *(self._check_head(stub, head, index, source) for index, head in enumerate(spec.model.heads)),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def _check_head(
        self,
        stub: conversion_service_pb2_grpc.ConversionServiceAsyncStub,
        head: Head,
        index: int,
        source: dataset_pb2.DatasetSource,
    ) -> None:
        request = conversion_service_pb2.PlanConversionRequest(
            source=source,
            annotation_set=head.annotation_set,
            to=head.task,
            via=head.via,
            options=head.conversion_options,
        )
        try:
            await stub.PlanConversion(request, timeout=self._plan_seconds)
        except grpc.aio.AioRpcError as error:
            self._judge(rpc.error_from_rpc(error), index)

    def _judge(self, error: SihlaiError, index: int) -> None:
        """Raise what is about the job; let pass what is about the system."""
        if isinstance(error, InvalidArgument):
            field = f"spec.model.heads[{index}]"
            violations = [
                Violation(field=f"{field}.{HEAD_FIELDS.get(v.field, v.field)}", description=v.description)
                for v in error.violations
            ]
            raise InvalidArgument(violations, reason=error.reason, metadata=error.metadata) from error
        if isinstance(error, FailedPrecondition | PermissionDenied | NotFound):
            raise error
        log.info("plan_not_to_be_had", reason=error.reason.value, problem=error.message)
