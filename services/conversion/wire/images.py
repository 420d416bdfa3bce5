"""Between the protos of lists of images and the domain."""

from __future__ import annotations

from typing import Any

from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.conversion.passes.catalogue import (
    CatalogueLimits,
    ImagesRequest,
    LearnedTask,
    Side,
    SplitRequest,
)
from services.conversion.passes.page import ImagesPage, ListedImage
from services.conversion.wire.dataset import (
    TEXT_CHARACTERS_MAX,
    Violations,
    finding_to_proto,
    foreign_page_token,
    options_from_proto,
    source_from_proto,
    task_from_proto,
    task_to_proto,
    via_from_proto,
)

PAGE_IMAGES_DEFAULT = 50
SPLIT_HEADS_MAX = 32
SHARE_DEFAULT = 0.2
"""That of a job."""
SIDES = {service_pb2.SPLIT_SIDE_TRAINING: Side.TRAINING, service_pb2.SPLIT_SIDE_VALIDATION: Side.VALIDATION}


def images_request_from_proto(proto: service_pb2.ListImagesRequest, limits: CatalogueLimits) -> ImagesRequest:
    """Which images. Raises InvalidArgument."""
    wrong = Violations()
    base = _dataset_from_proto(proto, proto.thumbnail_side, limits, wrong)
    if proto.page_size < 0:
        wrong.add("page_size", f"is {proto.page_size}, but must be at least 0")
    for name in ("category", "rule"):
        if len(getattr(proto, name)) > TEXT_CHARACTERS_MAX:
            wrong.add(name, f"must have at most {TEXT_CHARACTERS_MAX} characters")
    begin, fingerprint = 0, ""
    if proto.page_token:
        number, _, fingerprint = proto.page_token.partition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 12 and fingerprint):
            raise foreign_page_token()
        begin = int(number)
    split = _split_from_proto(proto.split, wrong) if proto.HasField("split") else None
    wrong.check()
    return ImagesRequest(
        **base,
        category=proto.category,
        rule=proto.rule,
        split=split,
        begin=begin,
        fingerprint=fingerprint,
        count=min(proto.page_size or PAGE_IMAGES_DEFAULT, limits.page_images_max),
    )


def _split_from_proto(proto: service_pb2.SplitFilter, wrong: Violations) -> SplitRequest:
    side = SIDES.get(proto.side)
    if side is None:
        wrong.add("split.side", "must be training or validation")
    share = proto.share if proto.HasField("share") else SHARE_DEFAULT
    if not 0 < share < 1:
        wrong.add("split.share", f"is {share:g}, but must be above 0 and below 1")
    if len(proto.heads) > SPLIT_HEADS_MAX:
        wrong.add("split.heads", f"are {len(proto.heads)}, but at most {SPLIT_HEADS_MAX} may be")
    heads = []
    for number, head in enumerate(proto.heads[:SPLIT_HEADS_MAX]):
        at = f"split.heads[{number}]"
        end = None if head.task == task_pb2.TASK_UNSPECIFIED else task_from_proto(head.task, f"{at}.task", wrong)
        via, options = via_from_proto(head.via, wrong), options_from_proto(head.options, f"{at}.options", wrong)
        heads.append(LearnedTask(annotation_set=head.annotation_set, end=end, via=via, options=options))
    return SplitRequest(side=side or Side.VALIDATION, share=share, seed=proto.seed, heads=tuple(heads))


def image_request_from_proto(proto: service_pb2.GetImageRequest, limits: CatalogueLimits) -> tuple[ImagesRequest, str]:
    """The dataset, and the image's name. Raises InvalidArgument."""
    wrong = Violations()
    base = _dataset_from_proto(proto, proto.side_max, limits, wrong)
    if not proto.image or len(proto.image) > TEXT_CHARACTERS_MAX:
        wrong.add("image", f"must be the name of an image, of 1 to {TEXT_CHARACTERS_MAX} characters")
    wrong.check()
    return ImagesRequest(**base, count=1), proto.image


def images_to_proto(page: ImagesPage) -> service_pb2.ListImagesResponse:
    """A page of images."""
    token = f"{page.next_begin}.{page.fingerprint}" if page.next_begin is not None else ""
    return service_pb2.ListImagesResponse(
        images=map(listed_to_proto, page.images),
        next_page_token=token,
        total_size=page.total,
        task=task_to_proto(page.task),
        fingerprint=page.fingerprint,
    )


def image_to_proto(image: ListedImage) -> service_pb2.GetImageResponse:
    """One image."""
    return service_pb2.GetImageResponse(image=listed_to_proto(image))


def listed_to_proto(image: ListedImage) -> service_pb2.DatasetImage:
    """An image with its annotation, its picture and what is wrong with it."""
    row, entry, shown = image.row, image.row.entry, image.shown
    state = service_pb2.LABEL_STATE_UNLABELLED
    if row.text is not None:
        state = service_pb2.LABEL_STATE_LABELLED if row.count else service_pb2.LABEL_STATE_NEGATIVE
    return service_pb2.DatasetImage(
        name=entry.name,
        width=entry.width,
        height=entry.height,
        size_bytes=entry.size_bytes,
        state=state,
        annotation_json="" if image.annotation_problem else row.text or "null",
        categories=() if image.annotation_problem else row.categories,
        annotation_problem=image.annotation_problem,
        picture=shown.content,
        media_type=shown.media_type,
        picture_width=shown.width,
        picture_height=shown.height,
        picture_problem=shown.problem,
        findings=map(finding_to_proto, image.findings),
    )


def _dataset_from_proto(
    proto: service_pb2.ListImagesRequest | service_pb2.GetImageRequest,
    side: int,
    limits: CatalogueLimits,
    wrong: Violations,
) -> dict[str, Any]:
    """What both calls say of a dataset."""
    end = None if proto.to == task_pb2.TASK_UNSPECIFIED else task_from_proto(proto.to, "to", wrong)
    via = via_from_proto(proto.via, wrong)
    if via and end is None:
        wrong.add("via", "is given, but no task to convert into: give `to`, or leave it out")
    if not 0 <= side <= limits.side_max:
        wrong.add("thumbnail_side", f"is {side}, but must be 0 to {limits.side_max}")
    return {
        "source": source_from_proto(proto.source, "source", wrong),
        "annotation_set": proto.annotation_set,
        "end": end,
        "via": via,
        "options": options_from_proto(proto.options, "options", wrong),
        "side": side,
    }
