"""Between the protos and the domain, in pairs. Violations name the request's fields, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import InvalidArgument, Reason, Violation
from services.chassis.ids import is_uuid
from services.chassis.objects.key import key_from_proto, key_violations
from services.chassis.objects.uri import WANTED
from services.conversion.convert.edge import Edge, KeypointToDetection, SemanticToMultilabel, StepOptions
from services.conversion.convert.plan import Plan, edges_from
from services.conversion.conveyor.work import Progress
from services.conversion.finding import Action, Finding, Severity, shortened
from services.conversion.formats.description import DESCRIPTIONS
from services.conversion.formats.names import NAME_CHARACTERS_MAX, RESERVED_NAMES, is_name
from services.conversion.library import ConversionRequest
from services.conversion.passes.conversion import ConversionResult
from services.conversion.passes.examination import Inspection, SetSummary, ValidationTotals
from services.conversion.source.place import DatasetSource
from services.conversion.task import Task

TASK_NUMBERS = {task: task_pb2.Task.Value(f"TASK_{task.name}") for task in Task}
TASKS: dict[int, Task] = {number: task for task, number in TASK_NUMBERS.items()}
SEVERITIES = {
    Severity.WARNING: dataset_pb2.SEVERITY_WARNING,
    Severity.ERROR: dataset_pb2.SEVERITY_ERROR,
}
ACTIONS = {
    Action.REFUSED: dataset_pb2.FINDING_ACTION_REFUSED,
    Action.DROPPED: dataset_pb2.FINDING_ACTION_DROPPED,
    Action.REPAIRED: dataset_pb2.FINDING_ACTION_REPAIRED,
    Action.KEPT: dataset_pb2.FINDING_ACTION_KEPT,
}
VIA_MAX = 8
TEXT_CHARACTERS_MAX = 4_096
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000


class Violations(list[Violation]):
    """Collects what is wrong with a request."""

    def add(self, field: str, description: str) -> None:
        """One field that is wrong."""
        self.append(Violation(field=field, description=description))

    def check(self) -> None:
        """Raise InvalidArgument where anything was."""
        if self:
            raise InvalidArgument(self)


def task_from_proto(number: int, field: str, wrong: Violations) -> Task:
    """The task; what is none becomes a violation, and any task stands in for it until `check`."""
    task = TASKS.get(number)
    if task is None:
        found = "is missing" if number == task_pb2.TASK_UNSPECIFIED else f"is {number}, which is no task"
        wrong.add(field, f"{found}: give one of those that ListTasks names")
    return task or Task.AUTOENCODING


def task_to_proto(task: Task) -> task_pb2.Task.ValueType:
    """The task's number."""
    return TASK_NUMBERS[task]


def source_from_proto(proto: dataset_pb2.DatasetSource, field: str, wrong: Violations) -> DatasetSource:
    """Where a dataset lies, with the credentials for it."""
    if not proto.uri:
        wrong.add(f"{field}.uri", f"is missing: give {WANTED}")
    for name in ("uri", "endpoint_url", "region"):
        if len(getattr(proto, name)) > TEXT_CHARACTERS_MAX:
            wrong.add(f"{field}.{name}", f"is longer than {TEXT_CHARACTERS_MAX} characters")
    credentials = None
    if proto.HasField("credentials"):
        for violation in key_violations(proto.credentials, f"{field}.credentials", proto.uri):
            wrong.add(violation.field, violation.description)
        credentials = key_from_proto(proto.credentials, proto.region)
    return DatasetSource(uri=proto.uri, endpoint_url=proto.endpoint_url, region=proto.region, credentials=credentials)


def options_from_proto(proto: service_pb2.ConversionOptions, field: str, wrong: Violations) -> tuple[StepOptions, ...]:
    """The options of the steps, each kind at most once."""
    options: list[StepOptions] = []
    if len(proto.steps) > VIA_MAX:
        wrong.add(f"{field}.steps", f"has {len(proto.steps)} entries, but at most {VIA_MAX} may be")
    for index, step in enumerate(proto.steps[:VIA_MAX]):
        path = f"{field}.steps[{index}]"
        kind = step.WhichOneof("step")
        if kind is None:
            wrong.add(path, "names no step: give its options, or leave it out")
            continue
        each = (
            _keypoint_options(step.keypoint_to_detection, f"{path}.{kind}", wrong)
            if kind == "keypoint_to_detection"
            else _semantic_options(step.semantic_to_multilabel, f"{path}.{kind}", wrong)
        )
        if type(each) in map(type, options):
            wrong.add(path, f"is for {kind} again: give one entry for each kind of step")
        options.append(each)
    return tuple(options)


def check_request_id(text: str, wrong: Violations) -> None:
    """A request's id is a UUID, or left out. It decides nothing: work is known by what it is to make."""
    if text and not is_uuid(text):
        wrong.add("request_id", f"is {shortened(text)!r}, but must be a UUID")


def plan_request_from_proto(
    proto: service_pb2.PlanConversionRequest,
) -> tuple[Task | DatasetSource, str, Task, tuple[Task, ...], tuple[StepOptions, ...]]:
    """Start, annotation set, end, via and options. Raises InvalidArgument."""
    wrong = Violations()
    start: Task | DatasetSource = Task.AUTOENCODING
    match proto.WhichOneof("start"):
        case "from_task":
            start = task_from_proto(proto.from_task, "from_task", wrong)
            if proto.annotation_set:
                wrong.add("annotation_set", "is given, but belongs to a source: give a source, or leave it out")
        case "source":
            start = source_from_proto(proto.source, "source", wrong)
        case None:
            wrong.add("start", "is missing: give a task (`from_task`) or a dataset (`source`)")
    end = task_from_proto(proto.to, "to", wrong)
    via = via_from_proto(proto.via, wrong)
    options = options_from_proto(proto.options, "options", wrong)
    wrong.check()
    return start, proto.annotation_set, end, via, options


def inspect_request_from_proto(
    proto: service_pb2.InspectDatasetRequest | service_pb2.StreamInspectionRequest,
) -> DatasetSource:
    """The dataset. Raises InvalidArgument."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    wrong.check()
    return source


def validate_request_from_proto(
    proto: service_pb2.ValidateDatasetRequest,
) -> tuple[DatasetSource, DatasetSource | None, int]:
    """The dataset, the validation dataset if there is one, and how many findings are wanted (0: the server's limit)."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    validation = None
    if proto.HasField("validation_source"):
        validation = source_from_proto(proto.validation_source, "validation_source", wrong)
    if proto.findings_max < 0:
        wrong.add("findings_max", f"is {proto.findings_max}, but must be at least 0")
    wrong.check()
    return source, validation, proto.findings_max


def convert_request_from_proto(proto: service_pb2.ConvertDatasetRequest) -> ConversionRequest:
    """What is to be converted. Raises InvalidArgument."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    end = task_from_proto(proto.to, "to", wrong)
    via = via_from_proto(proto.via, wrong)
    options = options_from_proto(proto.options, "options", wrong)
    check_request_id(proto.request_id, wrong)
    destination = None
    if proto.HasField("destination"):
        destination = source_from_proto(proto.destination, "destination", wrong)
    wrong.check()
    return ConversionRequest(
        source=source,
        annotation_set=proto.annotation_set,
        end=end,
        via=via,
        options=options,
        lenient=proto.lenient,
        fingerprint=proto.fingerprint,
        destination=destination,
    )


def foreign_page_token() -> InvalidArgument:
    """A page token that no list of this service gave."""
    description = "is not a token that this list gave: start from the first page"
    violation = Violation(field="page_token", description=description, reason=Reason.INVALID_PAGE_TOKEN)
    return InvalidArgument([violation], reason=Reason.INVALID_PAGE_TOKEN)


def page_from_proto(page_size: int, page_token: str, length: int) -> tuple[int, int]:
    """Where a page of a list begins and ends. Raises InvalidArgument."""
    if page_size < 0:
        raise InvalidArgument([Violation(field="page_size", description=f"is {page_size}, but must be at least 0")])
    begin = int(page_token) if page_token.isdecimal() and len(page_token) < 10 else 0
    if page_token and not 0 < begin < length:
        raise foreign_page_token()
    return begin, min(begin + min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX), length)


def description_to_proto(task: Task) -> service_pb2.TaskDescription:
    """A task, its format and its edges."""
    description = DESCRIPTIONS[task]
    return service_pb2.TaskDescription(
        task=task_to_proto(task),
        name=str(task),
        metadata_keys=description.keys,
        annotation_format=description.annotation,
        conversions=[step_to_proto(edge) for edge in edges_from(task)],
    )


def step_to_proto(edge: Edge) -> service_pb2.ConversionStep:
    """One edge."""
    return service_pb2.ConversionStep(
        from_task=task_to_proto(edge.start), to=task_to_proto(edge.end), losses=edge.losses, rule=edge.rule
    )


def plan_to_proto(way: Plan, annotation_set: str) -> service_pb2.PlanConversionResponse:
    """A path."""
    return service_pb2.PlanConversionResponse(
        steps=[step_to_proto(edge) for edge in way.steps],
        from_task=task_to_proto(way.start),
        annotation_set=annotation_set,
    )


def inspection_to_proto(inspection: Inspection) -> service_pb2.InspectDatasetResponse:
    """What a dataset holds."""
    return service_pb2.InspectDatasetResponse(
        fingerprint=inspection.fingerprint,
        images=inspection.images,
        image_bytes=inspection.image_bytes,
        annotation_sets=[_summary_to_proto(each) for each in inspection.sets],
        sizes=[
            dataset_pb2.ImageSizeCount(width=width, height=height, images=count)
            for (width, height), count in inspection.sizes
        ],
        reachable=[
            service_pb2.ReachableTasks(annotation_set=each.name, tasks=map(task_to_proto, each.reachable))
            for each in inspection.sets
        ],
    )


def streamed_inspection_to_proto(item: Progress | Inspection) -> service_pb2.StreamInspectionResponse:
    """One message of a streamed inspection."""
    if isinstance(item, Progress):
        return service_pb2.StreamInspectionResponse(progress=progress_to_proto(item))
    return service_pb2.StreamInspectionResponse(inspection=inspection_to_proto(item))


def validation_to_proto(item: Finding | Progress | ValidationTotals) -> service_pb2.ValidateDatasetResponse:
    """One message of a validation."""
    if isinstance(item, Finding):
        return service_pb2.ValidateDatasetResponse(finding=finding_to_proto(item))
    if isinstance(item, Progress):
        return service_pb2.ValidateDatasetResponse(progress=progress_to_proto(item))
    totals = service_pb2.ValidationTotals(
        errors=item.errors,
        warnings=item.warnings,
        findings_omitted=item.omitted,
        images=item.images,
        findings_by_rule=dict(item.rules),
    )
    return service_pb2.ValidateDatasetResponse(totals=totals)


def conversion_to_proto(item: Progress | ConversionResult) -> service_pb2.ConvertDatasetResponse:
    """One message of a conversion."""
    if isinstance(item, Progress):
        return service_pb2.ConvertDatasetResponse(progress=progress_to_proto(item))
    result = result_to_proto(item)
    result.findings.extend(map(finding_to_proto, item.findings))
    return service_pb2.ConvertDatasetResponse(result=result)


def result_to_proto(item: ConversionResult) -> service_pb2.ConversionResult:
    """What a conversion, an import or an export gave, but for findings, which the latter two have told already."""
    return service_pb2.ConversionResult(
        dataset=dataset_pb2.DatasetSource(uri=item.uri, endpoint_url=item.endpoint_url),
        source_fingerprint=item.source_fingerprint,
        steps=[step_to_proto(edge) for edge in item.steps],
        images_in=item.images_in,
        labelled_in=item.labelled_in,
        labelled_out=item.labelled_out,
        annotations_in=item.annotations_in,
        annotations_out=item.annotations_out,
        dropped=[
            service_pb2.DroppedCount(rule=each.rule, annotations=each.annotations, images=each.images)
            for each in item.dropped
        ],
        reused=item.reused,
        errors=item.errors,
        images_with_errors=item.images_with_errors,
        warnings=item.warnings,
        contact_sheet=item.contact_sheet,
    )


def _summary_to_proto(summary: SetSummary) -> dataset_pb2.AnnotationSetSummary:
    counts = summary.counts
    return dataset_pb2.AnnotationSetSummary(
        name=summary.name,
        task=task_to_proto(summary.task),
        labelled_images=counts.labelled,
        negative_images=counts.negative,
        unlabelled_images=counts.unlabelled,
        categories=[
            dataset_pb2.CategoryCount(
                category=name,
                images=counts.images_by_category[name],
                annotations=counts.annotations_by_category[name],
            )
            for name in summary.categories
        ],
    )


def finding_to_proto(finding: Finding) -> dataset_pb2.Finding:
    """One thing that is wrong."""
    return dataset_pb2.Finding(
        severity=SEVERITIES[finding.severity],
        rule=finding.rule,
        message=finding.message,
        file=finding.place.file,
        line=finding.place.line,
        image=finding.place.image,
        index=finding.index,
        value=finding.value,
        action=ACTIONS[finding.action],
    )


def progress_to_proto(progress: Progress) -> service_pb2.WorkProgress:
    """How far a piece of work is."""
    proto = service_pb2.WorkProgress(
        phase=progress.phase,
        done=progress.done,
        total=progress.total,
        rate=progress.rate,
        warnings=progress.warnings,
    )
    if progress.seconds_left is not None:
        proto.time_left.FromTimedelta(timedelta(seconds=progress.seconds_left))
    return proto


def via_from_proto(numbers: Sequence[int], wrong: Violations) -> tuple[Task, ...]:
    """The tasks that a path must pass."""
    if len(numbers) > VIA_MAX:
        wrong.add("via", f"has {len(numbers)} tasks, but at most {VIA_MAX} may be")
    return tuple(task_from_proto(number, f"via[{index}]", wrong) for index, number in enumerate(numbers[:VIA_MAX]))


def _keypoint_options(
    proto: service_pb2.ConversionOptions.KeypointToDetection, path: str, wrong: Violations
) -> KeypointToDetection:
    for name in ("min_size", "margin"):
        value = getattr(proto, name)
        if not 0 <= value < float("inf"):
            wrong.add(f"{path}.{name}", f"is {value}, but must be at least 0")
    if proto.HasField("category_name"):
        if not is_name(proto.category_name):
            wanted = f"1 to {NAME_CHARACTERS_MAX} printable characters"
            wrong.add(f"{path}.category_name", f"is no name: give {wanted}, or leave it out")
        elif proto.category_name in RESERVED_NAMES:
            wrong.add(f"{path}.category_name", f"is {proto.category_name!r}, which is reserved: choose another name")
    return KeypointToDetection(
        min_size=proto.min_size if proto.HasField("min_size") else None,
        margin=proto.margin if proto.HasField("margin") else None,
        category_name=proto.category_name or KeypointToDetection.category_name,
    )


def _semantic_options(
    proto: service_pb2.ConversionOptions.SemanticToMultilabel, path: str, wrong: Violations
) -> SemanticToMultilabel:
    if not proto.HasField("min_pixels"):
        return SemanticToMultilabel()
    if proto.min_pixels < 1:
        wrong.add(f"{path}.min_pixels", f"is {proto.min_pixels}, but must be at least 1")
    return SemanticToMultilabel(min_pixels=proto.min_pixels)
