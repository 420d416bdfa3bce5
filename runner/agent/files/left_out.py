"""What of a dataset a job leaves out where its specification says so (`data.bad_data`), and how much is too much.

Images that are gone, or are others than those that were converted, leave each head's annotations, so that the trainer
never looks for them; the reports of the conversions tell of them as of what conversion itself has left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
from sihlai.conversion.v1 import conversion_service_pb2 as conversion
from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import job_spec_pb2

from runner.agent.files.download import ANNOTATIONS
from services.chassis.errors import FailedPrecondition, Reason, SihlaiError

NOTHING = msgspec.Raw(b"null")
"""The annotation of an image of which nothing is known."""


def skips(spec: job_spec_pb2.JobSpec) -> bool:
    """Whether what is bad before the first step is left out."""
    return spec.data.bad_data == job_spec_pb2.BAD_DATA_SKIP


def check_share(data: job_spec_pb2.Data, bad: int, images: int, what: str) -> None:
    """Raises FailedPrecondition where too many images are bad; `what` says which of them, and why."""
    if bad > max(1.0, data.bad_data_share_max * images):
        message = f"{bad} of {images} {what}: more than data.bad_data_share_max ({data.bad_data_share_max:g}) allows"
        raise FailedPrecondition(Reason.DATASET_INVALID, message)


def forget(folder: Path, names: Collection[str]) -> int:
    """Take images out of a head's annotations; how many annotations they had. Slow: for a thread."""
    path = folder / ANNOTATIONS
    found = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    lost = [found.pop(name) for name in names if name in found]
    path.write_bytes(msgspec.json.encode(found))
    return sum(map(_annotations, lost))


def told(
    result: conversion.ConversionResult, left_out: Mapping[str, SihlaiError], annotations: int
) -> conversion.ConversionResult:
    """The result of a conversion with the images that were left out afterwards, and their annotations, counted."""
    whole = conversion.ConversionResult()
    whole.CopyFrom(result)
    whole.errors += len(left_out)
    whole.images_with_errors += len(left_out)
    whole.annotations_out -= annotations
    whole.dropped.add(rule="image_changed", annotations=annotations, images=len(left_out))
    return whole


def finding(name: str, error: SihlaiError) -> dataset_pb2.Finding:
    """An image that was left out."""
    return dataset_pb2.Finding(
        severity=dataset_pb2.SEVERITY_ERROR,
        rule="image_changed",
        message=error.message,
        file=f"images/{name}",
        image=name,
        index=-1,
        action=dataset_pb2.FINDING_ACTION_DROPPED,
    )


def _annotations(value: msgspec.Raw) -> int:
    if value == NOTHING:
        return 0
    whole = msgspec.json.decode(value)
    return len(whole) if isinstance(whole, list) else 1
