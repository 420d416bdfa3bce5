"""Between the protos of imports and exports and the domain."""

from __future__ import annotations

from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2

from services.conversion.conversion import ConversionResult
from services.conversion.exchange import ExportRequest, ImportRequest
from services.conversion.finding import Finding
from services.conversion.foreign.foreign_format import Unannotated
from services.conversion.wire import (
    TEXT_CHARACTERS_MAX,
    Violations,
    finding_to_proto,
    is_uuid,
    options_from_proto,
    progress_to_proto,
    result_to_proto,
    source_from_proto,
    via_from_proto,
)
from services.conversion.work import Progress

FOREIGN_FORMATS: dict[int, str] = {
    service_pb2.FOREIGN_FORMAT_COCO_INSTANCES: "COCO instances",
    service_pb2.FOREIGN_FORMAT_COCO_KEYPOINTS: "COCO keypoints",
    service_pb2.FOREIGN_FORMAT_COCO_PANOPTIC: "COCO panoptic",
    service_pb2.FOREIGN_FORMAT_YOLO_DETECT: "YOLO detect",
    service_pb2.FOREIGN_FORMAT_YOLO_SEGMENT: "YOLO segment",
    service_pb2.FOREIGN_FORMAT_PASCAL_VOC: "Pascal VOC",
    service_pb2.FOREIGN_FORMAT_IMAGE_FOLDERS: "image folders",
}
UNANNOTATED: dict[int, Unannotated] = {
    service_pb2.UNANNOTATED_UNSPECIFIED: Unannotated.DEFAULT,
    service_pb2.UNANNOTATED_NULL: Unannotated.NULL,
    service_pb2.UNANNOTATED_EMPTY: Unannotated.EMPTY,
}


def import_request_from_proto(proto: service_pb2.ImportDatasetRequest) -> ImportRequest:
    """What is to be imported. Raises InvalidArgument."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    destination = source_from_proto(proto.destination, "destination", wrong)
    foreign = _format_from_proto(proto.format, wrong)
    if proto.unannotated not in UNANNOTATED:
        wrong.add("unannotated", f"is {proto.unannotated}, which means nothing: give null, empty, or leave it out")
    if len(proto.split) > TEXT_CHARACTERS_MAX or not proto.split.isprintable():
        wrong.add("split", "is no name: give that of a part such as train, or leave it out")
    _check_request_id(proto.request_id, wrong)
    wrong.check()
    return ImportRequest(
        source=source,
        format=foreign,
        destination=destination,
        unannotated=UNANNOTATED[proto.unannotated],
        split=proto.split,
        lenient=proto.lenient,
        copy_images=proto.copy_images,
    )


def export_request_from_proto(proto: service_pb2.ExportDatasetRequest) -> ExportRequest:
    """What is to be exported. Raises InvalidArgument."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    destination = source_from_proto(proto.destination, "destination", wrong)
    foreign = _format_from_proto(proto.format, wrong)
    via = via_from_proto(proto.via, wrong)
    options = options_from_proto(proto.options, "options", wrong)
    _check_request_id(proto.request_id, wrong)
    wrong.check()
    return ExportRequest(
        source=source,
        annotation_set=proto.annotation_set,
        format=foreign,
        destination=destination,
        via=via,
        options=options,
        lenient=proto.lenient,
        copy_images=proto.copy_images,
    )


def import_to_proto(item: Progress | Finding | ConversionResult) -> service_pb2.ImportDatasetResponse:
    """One message of an import."""
    if isinstance(item, Finding):
        return service_pb2.ImportDatasetResponse(finding=finding_to_proto(item))
    if isinstance(item, Progress):
        return service_pb2.ImportDatasetResponse(progress=progress_to_proto(item))
    return service_pb2.ImportDatasetResponse(result=result_to_proto(item))


def export_to_proto(item: Progress | Finding | ConversionResult) -> service_pb2.ExportDatasetResponse:
    """One message of an export."""
    if isinstance(item, Finding):
        return service_pb2.ExportDatasetResponse(finding=finding_to_proto(item))
    if isinstance(item, Progress):
        return service_pb2.ExportDatasetResponse(progress=progress_to_proto(item))
    return service_pb2.ExportDatasetResponse(result=result_to_proto(item))


def _format_from_proto(number: int, wrong: Violations) -> str:
    """The format's name; what is none becomes a violation."""
    found = FOREIGN_FORMATS.get(number, "")
    if not found:
        problem = "is missing" if number == service_pb2.FOREIGN_FORMAT_UNSPECIFIED else f"is {number}, which is none"
        wrong.add("format", f"{problem}: name one of {', '.join(FOREIGN_FORMATS.values())}")
    return found


def _check_request_id(text: str, wrong: Violations) -> None:
    if text and not is_uuid(text):
        wrong.add("request_id", f"is {text[:40]!r}, but must be a UUID")
