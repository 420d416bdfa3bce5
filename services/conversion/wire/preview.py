"""Between the protos of previews and the domain."""

from __future__ import annotations

from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.conversion.passes.preview import Preview, PreviewRequest
from services.conversion.wire.dataset import (
    TEXT_CHARACTERS_MAX,
    Violations,
    options_from_proto,
    source_from_proto,
    task_from_proto,
    via_from_proto,
)

IMAGES_MAX = 1_000
"""Names in a request; of how many a sheet is drawn the configuration says."""


def preview_request_from_proto(proto: service_pb2.PreviewDatasetRequest) -> PreviewRequest:
    """What is to be shown. Raises InvalidArgument."""
    wrong = Violations()
    source = source_from_proto(proto.source, "source", wrong)
    end = None if proto.to == task_pb2.TASK_UNSPECIFIED else task_from_proto(proto.to, "to", wrong)
    via = via_from_proto(proto.via, wrong)
    if via and end is None:
        wrong.add("via", "is given, but no task to convert into: give `to`, or leave it out")
    options = options_from_proto(proto.options, "options", wrong)
    if proto.images_max < 0:
        wrong.add("images_max", f"is {proto.images_max}, but must be at least 0")
    if len(proto.images) > IMAGES_MAX:
        wrong.add("images", f"has {len(proto.images)} names, but at most {IMAGES_MAX} may be")
    for index, name in enumerate(proto.images[:IMAGES_MAX]):
        if not name or len(name) > TEXT_CHARACTERS_MAX:
            wrong.add(f"images[{index}]", f"must be the name of an image, of 1 to {TEXT_CHARACTERS_MAX} characters")
    wrong.check()
    return PreviewRequest(
        source=source,
        annotation_set=proto.annotation_set,
        end=end,
        via=via,
        options=options,
        images_max=proto.images_max,
        images=tuple(proto.images),
    )


def preview_to_proto(preview: Preview) -> service_pb2.PreviewDatasetResponse:
    """A contact sheet."""
    picture = preview.picture
    return service_pb2.PreviewDatasetResponse(
        content=picture.content, media_type=picture.media_type, images=preview.images
    )
