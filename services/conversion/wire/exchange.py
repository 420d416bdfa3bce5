"""Between the protos of imports and exports and the domain."""

from __future__ import annotations

from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2

from services.conversion.conveyor.work import Progress
from services.conversion.finding import Finding
from services.conversion.foreign import AUTO
from services.conversion.foreign.format import Unannotated
from services.conversion.passes.conversion import ConversionResult
from services.conversion.passes.exchange import ExportRequest, ImportRequest
from services.conversion.wire.dataset import (
    TEXT_CHARACTERS_MAX,
    Violations,
    check_request_id,
    finding_to_proto,
    options_from_proto,
    progress_to_proto,
    result_to_proto,
    source_from_proto,
    task_from_proto,
    via_from_proto,
)

FOREIGN_FORMATS: dict[int, str] = {
    service_pb2.FOREIGN_FORMAT_COCO_INSTANCES: "COCO instances",
    service_pb2.FOREIGN_FORMAT_COCO_KEYPOINTS: "COCO keypoints",
    service_pb2.FOREIGN_FORMAT_COCO_PANOPTIC: "COCO panoptic",
    service_pb2.FOREIGN_FORMAT_YOLO_DETECT: "YOLO detect",
    service_pb2.FOREIGN_FORMAT_YOLO_SEGMENT: "YOLO segment",
    service_pb2.FOREIGN_FORMAT_PASCAL_VOC: "Pascal VOC",
    service_pb2.FOREIGN_FORMAT_IMAGE_FOLDERS: "image folders",
    service_pb2.FOREIGN_FORMAT_YOLO_OBB: "YOLO OBB",
    service_pb2.FOREIGN_FORMAT_YOLO_POSE: "YOLO pose",
    service_pb2.FOREIGN_FORMAT_MASK_FOLDERS: "mask folders",
    service_pb2.FOREIGN_FORMAT_COCO_HOSTED: "COCO hosted",
    service_pb2.FOREIGN_FORMAT_CVAT: "CVAT",
    service_pb2.FOREIGN_FORMAT_ICDAR: "ICDAR",
    service_pb2.FOREIGN_FORMAT_DOTA: "DOTA",
    service_pb2.FOREIGN_FORMAT_LABELME: "LabelMe",
    service_pb2.FOREIGN_FORMAT_LABEL_STUDIO: "Label Studio",
    service_pb2.FOREIGN_FORMAT_DATUMARO: "Datumaro",
    service_pb2.FOREIGN_FORMAT_MVTEC_AD: "MVTec AD",
    service_pb2.FOREIGN_FORMAT_IMAGE_VALUES: "image values",
    service_pb2.FOREIGN_FORMAT_KITTI_DEPTH: "KITTI depth",
    service_pb2.FOREIGN_FORMAT_NYU_DEPTH: "NYU depth",
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
    foreign = AUTO if proto.format == service_pb2.FOREIGN_FORMAT_AUTO else _format_from_proto(proto.format, wrong)
    task = task_from_proto(proto.task, "task", wrong) if proto.task else None
    if proto.unannotated not in UNANNOTATED:
        wrong.add("unannotated", f"is {proto.unannotated}, which means nothing: give null, empty, or leave it out")
    if len(proto.split) > TEXT_CHARACTERS_MAX or not proto.split.isprintable():
        wrong.add("split", "is no name: give that of a part such as train, or leave it out")
    check_request_id(proto.request_id, wrong)
    wrong.check()
    return ImportRequest(
        source=source,
        format=foreign,
        destination=destination,
        unannotated=UNANNOTATED[proto.unannotated],
        split=proto.split,
        lenient=proto.lenient,
        copy_images=proto.copy_images,
        task=task,
    )


def export_request_from_proto(proto: service_pb2.ExportDatasetRequest) -> ExportRequest:
    """What is to be exported. Raises InvalidArgument."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    destination = source_from_proto(proto.destination, "destination", wrong)
    foreign = _format_from_proto(proto.format, wrong)
    via = via_from_proto(proto.via, wrong)
    options = options_from_proto(proto.options, "options", wrong)
    check_request_id(proto.request_id, wrong)
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
    result = result_to_proto(item)
    numbers = {name: number for number, name in FOREIGN_FORMATS.items()}
    result.foreign_format = service_pb2.ForeignFormat.ValueType(numbers[item.foreign_format])
    return service_pb2.ImportDatasetResponse(result=result)


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
