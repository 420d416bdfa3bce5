"""Datasets: looked into, validated, planned, converted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sihlai.conversion.v1 import conversion_service_pb2 as pb
from sihlai.conversion.v1.dataset_pb2 import DatasetSource, Finding
from sihlai.conversion.v1.task_pb2 import Task

from services.chassis.errors import Internal, Reason
from services.client.call import CONVERSION, Transport, ask, read, whole
from services.client.number import INT64_MAX, number, whole_number
from services.client.specification import enum_value, message_from

INSPECT_SECONDS_MAX = 24 * 3_600.0
"""An inspection looks into every image the first time; whoever waits knows how many there are."""
Progress = Callable[[pb.WorkProgress], None]
"""Is told how far a long piece of work is."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation found; `findings` may be fewer than `totals` counts."""

    findings: Sequence[Finding]
    totals: pb.ValidationTotals

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are none."""
        return self.totals.errors == 0


def source_of(place: str | Path | DatasetSource, **settings: Any) -> DatasetSource:
    """A source from a folder, a uri, or one that is made already; `settings` are its other fields."""
    if isinstance(place, DatasetSource):
        return place
    return message_from({"uri": dataset_uri(place), **settings}, DatasetSource)


def dataset_uri(place: str | Path) -> str:
    """A uri as it is; a path becomes a file:// uri."""
    return str(place) if "://" in str(place) else Path(place).expanduser().resolve().as_uri()


def task_of(text: str) -> Task.ValueType:
    """A task as metadata.yaml, the proto or a person in a hurry writes it."""
    return Task.ValueType(enum_value(Task.DESCRIPTOR, text, "task"))


async def inspected(transport: Transport, source: DatasetSource) -> pb.InspectDatasetResponse:
    """Annotation sets, counts, categories, sizes, fingerprint."""
    request = pb.InspectDatasetRequest(source=source)
    return await ask(transport, CONVERSION.InspectDataset, request, INSPECT_SECONDS_MAX)


async def validated(
    transport: Transport,
    source: DatasetSource,
    *,
    validation: DatasetSource | None = None,
    findings_max: int = 0,
    on_progress: Progress = lambda progress: None,
) -> Validation:
    """Everything that is wrong with it, in one pass."""
    request = pb.ValidateDatasetRequest(
        source=source, validation_source=validation, findings_max=whole_number(findings_max, "findings_max")
    )
    findings: list[Finding] = []
    totals: pb.ValidationTotals | None = None
    async with aclosing(read(transport, CONVERSION.ValidateDataset, request)) as answers:
        async for answer in answers:
            match answer.WhichOneof("message"):
                case "finding":
                    findings.append(answer.finding)
                case "progress":
                    on_progress(answer.progress)
                case "totals":
                    totals = answer.totals
    if totals is None:
        raise Internal(Reason.INTERNAL, "the validation ended without its totals: try again")
    return Validation(findings=findings, totals=totals)


async def planned(
    transport: Transport, source: DatasetSource, to: str, *, via: Iterable[str] = (), annotation_set: str = ""
) -> pb.PlanConversionResponse:
    """The steps to the task, and what each one loses."""
    request = pb.PlanConversionRequest(
        source=source, to=task_of(to), via=[task_of(task) for task in via], annotation_set=annotation_set
    )
    return await ask(transport, CONVERSION.PlanConversion, request)


async def converted(
    transport: Transport,
    source: DatasetSource,
    to: str,
    *,
    via: Iterable[str] = (),
    annotation_set: str = "",
    destination: str | Path | DatasetSource | None = None,
    options: pb.ConversionOptions | Mapping[str, Any] | None = None,
    lenient: bool = False,
    on_progress: Progress = lambda progress: None,
) -> pb.ConversionResult:
    """Convert it into a task; into the store where there is no destination. What was made before is found again."""
    request = pb.ConvertDatasetRequest(
        source=source,
        annotation_set=annotation_set,
        to=task_of(to),
        via=[task_of(task) for task in via],
        options=message_from(options or {}, pb.ConversionOptions),
        destination=source_of(destination) if destination is not None else None,
        lenient=lenient,
        request_id=str(uuid.uuid4()),
    )
    result: pb.ConversionResult | None = None
    async with aclosing(read(transport, CONVERSION.ConvertDataset, request)) as answers:
        async for answer in answers:
            if answer.WhichOneof("message") == "progress":
                on_progress(answer.progress)
            else:
                result = answer.result
    if result is None:
        raise Internal(Reason.INTERNAL, "the conversion ended without its result: try again")
    return result


async def images_of(
    transport: Transport,
    source: DatasetSource,
    *,
    to: str | None = None,
    via: Iterable[str] = (),
    annotation_set: str = "",
    category: str = "",
    rule: str = "",
    split: str | None = None,
    share: float | None = None,
    seed: int | None = None,
    heads: Iterable[str] = (),
    thumbnail_side: int = 0,
    limit: int | None = None,
) -> list[pb.DatasetImage]:
    """Its images by name with their annotations, at most `limit`: of a category, with a finding of a rule.

    `split`: `training` or `validation`, as a job splits its training dataset by `share` and `seed`; `heads` are the
    tasks of its heads, none of them what is listed. Raises SpecificationError for what is no side or no task.
    """
    request = pb.ListImagesRequest(
        source=source,
        annotation_set=annotation_set,
        to=task_of(to) if to is not None else Task.TASK_UNSPECIFIED,
        via=[task_of(task) for task in via],
        category=category,
        rule=rule,
        thumbnail_side=whole_number(thumbnail_side, "thumbnail_side"),
    )
    if split is not None:
        side = pb.SplitSide.ValueType(enum_value(pb.SplitSide.DESCRIPTOR, split, "split"))
        split_heads = [pb.SplitHead(task=task_of(task)) for task in heads]
        request.split.CopyFrom(pb.SplitFilter(side=side, heads=split_heads))
        if share is not None:
            request.split.share = number(share, "share", at_most=1)
        if seed is not None:
            request.split.seed = whole_number(seed, "seed", at_least=-INT64_MAX, at_most=INT64_MAX)
    found = await whole(transport, CONVERSION.ListImages, request, limit=limit, seconds_max=INSPECT_SECONDS_MAX)
    return list(found.images)
