"""The edges from maps: to simpler maps, to boxes, and to labels. Masks are never taken by way of polygons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AnySet

import numpy as np

from services.conversion.convert.edge import Remark, SemanticToMultilabel, Step, StepOptions
from services.conversion.finding import Place, Report
from services.conversion.formats.colors import Colors
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box, Boxes
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.index import ImageSize
from services.conversion.raster.runs import bounds_of_many, runs_of_labels

SHOWN_IDS_MAX = 8
"""Ids that a warning quotes."""


def panoptic_to_semantic(vocabulary: PanopticColors, options: StepOptions | None) -> Step:
    """A pixel gets its segment's class, things and stuff alike; void, and segments to ignore, become ignored.

    Where nothing else is on the map, nothing is known of the image: null.
    """
    numbers = {name: number for number, name in enumerate(vocabulary.names, start=1)}

    def convert(panoptic: PanopticMap, size: ImageSize, place: Place, report: Report) -> SemanticMap | None:
        table = [0, *(0 if each.ignore else numbers[each.category] for each in panoptic.segments)]
        if not any(table):
            return None
        return SemanticMap(classes=np.array(table, np.uint16).take(panoptic.labels), names=vocabulary.names)

    return Step(vocabulary=_colors(vocabulary), convert=convert)


def panoptic_to_instance(vocabulary: PanopticColors, options: StepOptions | None) -> Step:
    """One instance for each segment of the things, in their order, at the map's resolution; stuff and void go.

    The categories of stuff go too: a model would learn them in vain. Where the metadata name no things, every segment
    is an instance.
    """
    things = vocabulary.things

    def convert(panoptic: PanopticMap, size: ImageSize, place: Place, report: Report) -> InstanceMap:
        segments = panoptic.segments
        kept = [index for index, each in enumerate(segments) if things is None or each.category in things]
        if things is not None:
            _warn_of_shared_ids((segments[index] for index in kept), place, report)
            report.drop("stuff", place.image, len(segments) - len(kept))
        masks = runs_of_labels(panoptic.labels, len(segments))
        instances = [
            Instance(category=each.category, mask=masks[index], crowd=each.crowd, ignore=each.ignore)
            for index, each in ((index, segments[index]) for index in kept)
        ]
        height, width = panoptic.labels.shape
        return InstanceMap(width=width, height=height, instances=tuple(instances))

    remarks = () if things is not None else (_NO_THINGS,)
    return Step(vocabulary=_colors(vocabulary, things), convert=convert, remarks=remarks)


def instance_to_detection(vocabulary: Colors, options: StepOptions | None) -> Step:
    """The tight half-open box around all parts of each mask, in pixels of the image."""

    def convert(found: InstanceMap, size: ImageSize, place: Place, report: Report) -> Boxes:
        bounds = bounds_of_many([each.mask for each in found.instances], height=found.height)
        return tuple(
            Box(
                category=each.category,
                # x and y by themselves: the map may have another shape than the image, by a pixel of the map.
                bbox=(
                    xmin * size.width / found.width,
                    ymin * size.height / found.height,
                    xmax * size.width / found.width,
                    ymax * size.height / found.height,
                ),
                crowd=each.crowd,
                ignore=each.ignore,
            )
            for each, (xmin, ymin, xmax, ymax) in zip(found.instances, bounds, strict=True)
        )

    return Step(vocabulary=Names(names=vocabulary.names), convert=convert)


def semantic_to_multilabel(vocabulary: Colors, options: StepOptions | None) -> Step:
    """The classes with at least `min_pixels` pixels of the map, in the vocabulary's order; there may be none."""
    assert options is None or isinstance(options, SemanticToMultilabel), "the plan gives each step its own options"
    least = (options or SemanticToMultilabel()).min_pixels

    def convert(semantic: SemanticMap, size: ImageSize, place: Place, report: Report) -> tuple[str, ...]:
        areas = semantic.areas[1:]
        report.drop("too_few_pixels", place.image, int(np.count_nonzero((areas > 0) & (areas < least))))
        return tuple(semantic.names[number] for number in np.flatnonzero(areas >= least))

    return Step(vocabulary=Names(names=vocabulary.names), convert=convert)


_NO_THINGS = Remark(
    rule="no_things",
    message="the metadata do not name the `things`, so that every segment became an instance, stuff included",
)


def _colors(vocabulary: PanopticColors, kept: AnySet[str] | None = None) -> Colors:
    """The categories with their colours; only those that are `kept`, where that is given."""
    names = tuple(name for name in vocabulary.names if kept is None or name in kept)
    colors = {name: color for name, color in vocabulary.colors.items() if kept is None or name in kept}
    return Colors(names=names, colors=colors)


def _warn_of_shared_ids(segments: Iterable[Segment], place: Place, report: Report) -> None:
    """One thing has one id; what has the same one under another category is perhaps the same thing, cut in two."""
    categories: dict[int, set[str]] = defaultdict(set)
    for each in segments:
        categories[each.id].add(each.category)
    shared = sorted(number for number, names in categories.items() if len(names) > 1)
    if shared:
        first = " and ".join(repr(name) for name in sorted(categories[shared[0]]))
        message = f"the id {shared[0]} stands under several things, {first}: each pair became an instance of its own"
        value = ", ".join(map(str, shared[:SHOWN_IDS_MAX])) + (", …" if len(shared) > SHOWN_IDS_MAX else "")
        report.warn("shared_id", message, place, value=value)
