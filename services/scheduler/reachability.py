"""Whether conversion can make each head's task from a project's dataset: asked before a job is taken.

With conversion or the dataset's storage away the job is taken all the same: its attempt checks again.
"""

from __future__ import annotations

import asyncio

import grpc
from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc, dataset_pb2
from sihlai.scheduler.v1.job_spec_pb2 import Head, JobSpec

from services.chassis import rpc
from services.chassis.auth.carrying import Token
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SihlaiError,
    Violation,
)
from services.chassis.log import get_logger
from services.chassis.tls import ClientTls
from services.scheduler.specification import PRIMARY_METRICS

log = get_logger(__name__)

LABELLED_TO_SPLIT = 2
"""Of fewer labelled images none is left to validate on."""
HEAD_FIELDS = {
    "to": "task",
    "via": "via",
    "annotation_set": "annotation_set",
    "options": "conversion_options",
}
"""What a field of the plan's request is called in a head."""
TRAINING, VALIDATION = "", "of the validation dataset: "
"""What stands before conversion's words on a dataset."""


class Reachability:
    """Asks conversion at `address`; without one everything is taken."""

    def __init__(self, address: str | None, *, plan_seconds: float, token: Token | None, tls: ClientTls | None) -> None:
        self._plan_seconds = plan_seconds
        # One try: with conversion away a submit must not wait for it.
        self._channel = rpc.channel(address, token=token, tls=tls, retry_attempts_max=1) if address else None

    async def check(
        self, spec: JobSpec, training: dataset_pb2.DatasetSource, validation: dataset_pb2.DatasetSource | None = None
    ) -> None:
        """Raise what conversion says where a head's task cannot be made from a source."""
        if self._channel is None:
            return
        stub = conversion_service_pb2_grpc.ConversionServiceStub(self._channel)
        sources = [(TRAINING, training)] + ([] if validation is None else [(VALIDATION, validation)])
        results = await asyncio.gather(
            *(
                self._check_head(stub, head, index, source, called)
                for called, source in sources
                for index, head in enumerate(spec.model.heads)
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def warnings(
        self, spec: JobSpec, training: dataset_pb2.DatasetSource, validation: dataset_pb2.DatasetSource | None
    ) -> list[str]:
        """A sentence for each supervised head that has no labelled image to validate on, as far as that is known.

        `validation` is None where a share of the training images is validated on.
        """
        if self._channel is None:
            return []
        stub = conversion_service_pb2_grpc.ConversionServiceStub(self._channel)
        request = conversion_service_pb2.InspectDatasetRequest(source=validation or training)
        try:
            found = await stub.InspectDataset(request, timeout=self._plan_seconds)
        except grpc.aio.AioRpcError as error:
            log.info("dataset_not_to_be_inspected", problem=rpc.error_from_rpc(error).message)
            return []
        sets = {each.name: each.labelled_images + each.negative_images for each in found.annotation_sets}
        if len(sets) == 1:
            sets[""] = next(iter(sets.values()))
        wanted = 1 if validation is not None else LABELLED_TO_SPLIT
        return [
            f"head {head.id} has no labelled image to validate on, so it will have no metrics"
            for head in spec.model.heads
            if head.task in PRIMARY_METRICS and sets.get(head.annotation_set, wanted) < wanted
        ]

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
        called: str,
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
            self._judge(rpc.error_from_rpc(error), index, called)

    def _judge(self, error: SihlaiError, index: int, called: str) -> None:
        """Raise what is about the job; let pass what is about the system."""
        if isinstance(error, InvalidArgument):
            field = f"spec.model.heads[{index}]"
            violations = [
                Violation(field=f"{field}.{HEAD_FIELDS.get(v.field, v.field)}", description=f"{called}{v.description}")
                for v in error.violations
            ]
            raise InvalidArgument(violations, reason=error.reason, metadata=error.metadata) from error
        if isinstance(error, FailedPrecondition | PermissionDenied | NotFound):
            raise type(error)(error.reason, f"{called}{error.message}", error.metadata) from error
        log.info("plan_not_to_be_had", reason=error.reason.value, problem=error.message)
