"""What an import takes in: which images of a foreign dataset, and their records for the conveyor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason, Violation
from services.conversion.conveyor.chunk import Recipe
from services.conversion.conveyor.conveyor import Freight
from services.conversion.conveyor.sink import NormalisedWriter
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Place, Report
from services.conversion.foreign.format import ForeignDataset, ForeignImage
from services.conversion.foreign.image_names import common_folder, images_beside
from services.conversion.foreign.source import ForeignSource
from services.conversion.formats import FORMATS
from services.conversion.index import Index


def chosen_images(
    files: ForeignSource, dataset: ForeignDataset, report: Report, *, split: str, copy_images: bool
) -> tuple[tuple[ForeignImage, ...], str]:
    """The images of the native dataset, and the uri of their folder where they are not copied.

    A native dataset is all images of one folder. So those that lie beside are part of it, and unlabelled, unless they
    are other splits'; and where the images lie in several folders they must be copied.
    """
    images = []
    for image in dataset.images:
        if image.name.isprintable() and "\\" not in image.name:
            images.append(image)
            continue
        place = Place(file=image.path, image=image.name)
        message = "the file's name holds a control character or a backslash: rename it"
        report.error("bad_name", message, place, value=image.name)
    if copy_images:
        return tuple(images), ""
    folder = common_folder(dataset.images)
    if folder is None:
        description = "is off, but the images lie in several folders, and natively in one: ask for copies"
        raise InvalidArgument([Violation(field="copy_images", description=description)])
    beside = images_beside(dataset.images, files.paths)
    if beside and split:
        message = (
            f"{len(beside)} images beside those of the split {split!r} belong to others, and natively a dataset is all "
            "images of a folder: ask for copies (copy_images)"
        )
        raise FailedPrecondition(Reason.DATASET_INVALID, message, {"uri": files.uri, "images": str(len(beside))})
    if beside:
        message = (
            f"{len(beside)} images lie beside those of the dataset: they are unlabelled, or copy those that are not"
        )
        report.warn("unlisted_image", message, Place(file=beside[0].path, image=beside[0].name))
    return (*images, *beside), f"{files.uri}/{folder}" if folder else files.uri


def freight_of(files: ForeignSource, dataset: ForeignDataset, index: Index, report: Report) -> Freight:
    """The records of a foreign dataset, to be written natively."""
    reading = Report(findings_max=report.findings_max, lenient=report.lenient)
    return Freight(
        recipe=Recipe(
            reader=dataset.codec,
            source_vocabulary=dataset.vocabulary,
            source=dataset.task,
            target=dataset.task,
            writer=NormalisedWriter(FORMATS[dataset.task]),
            lenient=report.lenient,
            findings_max=report.findings_max,
        ),
        records=_records(files, dataset, index, reading),
        reading=reading,
        maps=bool(FORMATS[dataset.task].map_suffixes),
        load=files.load,
    )


def _records(files: ForeignSource, dataset: ForeignDataset, index: Index, report: Report) -> Iterator[RawRecord]:
    """Every usable image by name, with its annotation."""
    own = {image.name for image in dataset.images}
    for entry in index.images:
        found = dataset.annotation(entry) if entry.name in own else None
        if found is None:
            yield RawRecord(image=entry, annotated=False, value=None, place=Place(file="", image=entry.name))
        elif found.path and not files.fits(found.path):
            message = f"it has {files.paths[found.path]} bytes, too many for the annotations of one image"
            report.error("file_too_large", message, found.place)
            yield RawRecord(image=entry, annotated=True, value=None, place=found.place)
        else:
            yield RawRecord(
                image=entry,
                annotated=True,
                value=found.value,
                place=found.place,
                path=found.path,
                suffix=found.suffix,
                size_bytes=files.paths.get(found.path, 0),
            )


def file_versions(files: ForeignSource, dataset: ForeignDataset, index: Index) -> Mapping[str, str]:
    """The files of single images' annotations; what is listed of them stands for their content."""
    if not dataset.file_an_image:
        return {}
    own = {image.name for image in dataset.images}
    found = (dataset.annotation(entry) for entry in index.images if entry.name in own)
    return {each.path: files.version(each.path) for each in found if each is not None and each.path}
