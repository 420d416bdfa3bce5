"""How the annotations of each task are drawn: one function a task behind one Protocol, and one table.

A function draws one annotation that is not null on a canvas, and returns the legend that stands below the tile. Adding
a task edits the table and nothing else. Crowds are dashed or striped, what is to be ignored is gray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from services.conversion.formats.interval import Interval
from services.conversion.formats.names import Names
from services.conversion.formats.number import written
from services.conversion.picture.canvas import Canvas
from services.conversion.picture.legend import Entry, colors_of
from services.conversion.picture.maps import draw_anomaly, draw_depth, draw_instances, draw_panoptic, draw_semantic
from services.conversion.picture.objects import draw_boxes, draw_keypoints, draw_quads
from services.conversion.task import Task


class Draw(Protocol):
    """Draws one annotation, with the vocabulary that it was read with."""

    def __call__(self, canvas: Canvas, annotation: Any, vocabulary: Any, /) -> Sequence[Entry]:
        """The legend of what was drawn."""
        ...


def draw_category(canvas: Canvas, category: str, vocabulary: Names) -> Sequence[Entry]:
    """The one category, or identity."""
    return draw_labels(canvas, (category,), vocabulary)


def draw_labels(canvas: Canvas, labels: tuple[str, ...], vocabulary: Names) -> Sequence[Entry]:
    """All labels, in the order of the vocabulary."""
    return [Entry(text=name, color=color) for name, color in colors_of(vocabulary.names, labels, canvas.colors).items()]


def draw_number(canvas: Canvas, number: float, vocabulary: Interval) -> Sequence[Entry]:
    """The number, and the range that it lies in."""
    low, high = written(vocabulary.low), written(vocabulary.high)
    return [Entry(text=str(written(number))), Entry(text=f"of {low} to {high}")]


def draw_text(canvas: Canvas, tokens: tuple[str, ...], vocabulary: Names) -> Sequence[Entry]:
    """The text; tokens that are more than a character are kept apart."""
    separator = "" if all(len(each) == 1 for each in tokens) else " "
    return [Entry(text=separator.join(tokens))]


DRAWINGS: Mapping[Task, Draw] = {
    Task.MULTICLASS_CLASSIFICATION: draw_category,
    Task.MULTILABEL_CLASSIFICATION: draw_labels,
    Task.METRIC_LEARNING: draw_category,
    Task.REGRESSION: draw_number,
    Task.SCENE_TEXT_RECOGNITION: draw_text,
    Task.OBJECT_DETECTION: draw_boxes,
    Task.QUADRILATERAL_DETECTION: draw_quads,
    Task.KEYPOINT_DETECTION: draw_keypoints,
    Task.INSTANCE_SEGMENTATION: draw_instances,
    Task.SEMANTIC_SEGMENTATION: draw_semantic,
    Task.PANOPTIC_SEGMENTATION: draw_panoptic,
    Task.DEPTH_ESTIMATION: draw_depth,
    Task.ANOMALY_DETECTION: draw_anomaly,
}
"""Every task that has annotations."""
