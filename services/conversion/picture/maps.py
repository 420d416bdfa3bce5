"""Masks and maps on their image: instances, classes, segments, distances, anomalies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.conversion.formats.anomaly_detection import ANOMALOUS, Anomaly, AnomalyMask
from services.conversion.formats.colors import Color, Colors
from services.conversion.formats.depth_estimation import DepthMap
from services.conversion.formats.instance_segmentation import InstanceMap
from services.conversion.formats.interval import Interval
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap
from services.conversion.formats.semantic_segmentation import SemanticMap
from services.conversion.picture.canvas import Canvas, Paint
from services.conversion.picture.color import IGNORED, depth_colors, lighter
from services.conversion.picture.legend import Entry, Labelled, category_legend, colors_of
from services.conversion.raster.runs import mask_of_runs

MASKS_MAX = 400
"""Instances that are drawn on one image; the legend says where there are more."""
SHADES = (0.0, 0.3, 0.55)
"""Instances of one category are lighter by these shares in turn, so that neighbours differ."""
DEPTH_COLORS = 256
ANOMALY_COLOR: Color = (230, 57, 70)
NORMAL_COLOR: Color = (46, 184, 92)


def draw_instances(canvas: Canvas, annotation: InstanceMap, vocabulary: Colors) -> Sequence[Entry]:
    """Masks in the colours of their categories, large ones below small ones."""
    instances = annotation.instances
    colors = colors_of(vocabulary.names, (each.category for each in instances), vocabulary.colors)
    labels = np.zeros((annotation.height, annotation.width), np.uint16)
    numbered = enumerate(instances[:MASKS_MAX], start=1)
    for number, each in sorted(numbered, key=lambda pair: -pair[1].mask.area):
        labels[mask_of_runs(each.mask, height=annotation.height, width=annotation.width)] = number
    canvas.paint(labels, _paints(instances[:MASKS_MAX], colors), hatched=False)
    legend = category_legend(instances, colors)
    if len(instances) > MASKS_MAX:
        legend.append(Entry(text=f"the first {MASKS_MAX} of {len(instances)} are drawn"))
    return legend


def draw_panoptic(canvas: Canvas, annotation: PanopticMap, vocabulary: PanopticColors) -> Sequence[Entry]:
    """Segments in the colours of their categories; void is hatched."""
    colors = colors_of(vocabulary.names, (each.category for each in annotation.segments), vocabulary.colors)
    canvas.paint(annotation.labels, _paints(annotation.segments, colors), hatched=True)
    void = 1.0 - np.count_nonzero(annotation.labels) / annotation.labels.size
    return [*category_legend(annotation.segments, colors), *_share("void", void)]


def draw_semantic(canvas: Canvas, annotation: SemanticMap, vocabulary: Colors) -> Sequence[Entry]:
    """Classes in their colours, the largest first in the legend; what is ignored is hatched."""
    pixels = annotation.areas
    shares = pixels / annotation.classes.size
    used = [number for number in range(1, len(shares)) if pixels[number]]
    colors = colors_of(vocabulary.names, (annotation.names[number - 1] for number in used), vocabulary.colors)
    paints = [Paint(color=colors.get(name, IGNORED)) for name in annotation.names]
    canvas.paint(annotation.classes, paints, hatched=True)
    legend = []
    for number in sorted(used, key=lambda number: (-pixels[number], number)):
        name = annotation.names[number - 1]
        legend.append(Entry(text=f"{name}: {_percent(shares[number])}", color=colors[name]))
    return [*legend, *_share("ignored", float(shares[0]))]


def draw_depth(canvas: Canvas, annotation: DepthMap, vocabulary: Interval) -> Sequence[Entry]:
    """Near is light and far is dark, over the distances of this image; what is ignored is hatched."""
    levels = annotation.levels
    known = levels > 0
    there = levels[known]
    far, near = int(there.min()), int(there.max())
    positions = (levels.astype(np.int64) - far).clip(0) * (DEPTH_COLORS - 1) // max(1, near - far)
    table = depth_colors(DEPTH_COLORS)
    canvas.replace(table[positions.clip(0, DEPTH_COLORS - 1)], ~known)
    most = np.iinfo(levels.dtype).max

    def distance(level: int) -> str:
        share = (level - 1) / (most - 1)
        return f"{vocabulary.high + (vocabulary.low - vocabulary.high) * share:.3g}"

    nearest = Entry(text=f"nearest: {distance(near)}", color=_triple(table[-1]))
    farthest = Entry(text=f"farthest: {distance(far)}", color=_triple(table[0 if near > far else -1]))
    return [nearest, farthest, *_share("ignored", 1.0 - np.count_nonzero(known) / known.size)]


def draw_anomaly(canvas: Canvas, annotation: Anomaly, vocabulary: object) -> Sequence[Entry]:
    """The state of the image, and where the mask says that something is anomalous."""
    state = annotation.state if isinstance(annotation, AnomalyMask) else annotation
    if isinstance(annotation, AnomalyMask):
        canvas.paint(annotation.pixels.astype(np.uint16), [Paint(color=ANOMALY_COLOR)], hatched=False)
    return [Entry(text=state, color=ANOMALY_COLOR if state == ANOMALOUS else NORMAL_COLOR)]


def _paints(found: Sequence[Labelled], colors: dict[str, Color]) -> list[Paint]:
    seen: dict[str, int] = {}
    paints = []
    for each in found:
        turn = seen.get(each.category, 0)
        seen[each.category] = turn + 1
        color = IGNORED if each.ignore else lighter(colors[each.category], SHADES[turn % len(SHADES)])
        paints.append(Paint(color=color, striped=each.crowd))
    return paints


def _share(name: str, share: float) -> list[Entry]:
    return [Entry(text=f"{name}: {_percent(share)}", color=IGNORED, striped=True)] if share > 0 else []


def _percent(share: float) -> str:
    """A share that is not nothing is never 0%."""
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _triple(color: NDArray[np.uint8]) -> Color:
    red, green, blue = (int(each) for each in color)
    return red, green, blue
