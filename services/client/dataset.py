"""Datasets: looked into, validated, planned, converted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sihlai.conversion.v1 import conversion_service_pb2 as pb
from sihlai.conversion.v1.dataset_pb2 import DatasetSource, Finding
from sihlai.conversion.v1.task_pb2 import Task

from services.chassis.errors import Internal, Reason
from services.client.call import CONVERSION, Operation, ask, consumed, read
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


def inspected(source: DatasetSource) -> Operation[pb.InspectDatasetResponse]:
    """Annotation sets, counts, categories, sizes, fingerprint."""
    return (yield from ask(CONVERSION.InspectDataset, pb.InspectDatasetRequest(source=source), INSPECT_SECONDS_MAX))


def validated(
    source: DatasetSource,
    *,
    validation: DatasetSource | None = None,
    findings_max: int = 0,
    on_progress: Progress = lambda progress: None,
) -> Operation[Validation]:
    """Everything that is wrong with it, in one pass."""
    request = pb.ValidateDatasetRequest(source=source, validation_source=validation, findings_max=findings_max)
    findings: list[Finding] = []
    totals: list[pb.ValidationTotals] = []

    def take(answer: pb.ValidateDatasetResponse) -> None:
        match answer.WhichOneof("message"):
            case "finding":
                findings.append(answer.finding)
            case "progress":
                on_progress(answer.progress)
            case "totals":
                totals.append(answer.totals)

    yield from consumed(read(CONVERSION.ValidateDataset, request), take)
    if not totals:
        raise Internal(Reason.INTERNAL, "the validation ended without its totals: try again")
    return Validation(findings=findings, totals=totals[0])


def planned(
    source: DatasetSource, to: str, *, via: Iterable[str] = (), annotation_set: str = ""
) -> Operation[pb.PlanConversionResponse]:
    """The steps to the task, and what each one loses."""
    request = pb.PlanConversionRequest(
        source=source, to=task_of(to), via=[task_of(task) for task in via], annotation_set=annotation_set
    )
    return (yield from ask(CONVERSION.PlanConversion, request))


def converted(
    source: DatasetSource,
    to: str,
    *,
    via: Iterable[str] = (),
    annotation_set: str = "",
    destination: str | Path | DatasetSource | None = None,
    options: pb.ConversionOptions | Mapping[str, Any] | None = None,
    lenient: bool = False,
    on_progress: Progress = lambda progress: None,
) -> Operation[pb.ConversionResult]:
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
    results: list[pb.ConversionResult] = []

    def take(answer: pb.ConvertDatasetResponse) -> None:
        if answer.WhichOneof("message") == "progress":
            on_progress(answer.progress)
        else:
            results.append(answer.result)

    yield from consumed(read(CONVERSION.ConvertDataset, request), take)
    if not results:
        raise Internal(Reason.INTERNAL, "the conversion ended without its result: try again")
    return results[0]
