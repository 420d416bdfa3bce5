"""How each of the tasks is annotated, in words: what ListTasks tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class Description:
    """`keys`: the metadata keys beside `task` and `annotations`, those in brackets may be left out."""

    keys: Sequence[str]
    annotation: str


DESCRIPTIONS: Mapping[Task, Description] = {
    Task.MULTICLASS_CLASSIFICATION: Description(
        keys=("categories", "[ordered]"), annotation="a category; [] is an error"
    ),
    Task.MULTILABEL_CLASSIFICATION: Description(keys=("labels",), annotation="a list of labels; [] is no label"),
    Task.METRIC_LEARNING: Description(keys=("identities",), annotation="an identity; [] is an error"),
    Task.REGRESSION: Description(keys=("range",), annotation="a number in the range; [] is an error"),
    Task.SCENE_TEXT_RECOGNITION: Description(
        keys=("tokens",), annotation="a list of tokens, or a string of them; [] is no text"
    ),
    Task.OBJECT_DETECTION: Description(
        keys=("categories",), annotation="a list of {category, bbox: [xmin, ymin, xmax, ymax]}; [] is no object"
    ),
    Task.QUADRILATERAL_DETECTION: Description(
        keys=("categories",), annotation="a list of {category, quad: [[x, y], four times]}; [] is no object"
    ),
    Task.KEYPOINT_DETECTION: Description(
        keys=("keypoints", "[sigmas]", "[flip_pairs]"),
        annotation="a list of {name: [x, y] or null, [bbox], [area]}; a name left out is not there; [] is no object",
    ),
    Task.INSTANCE_SEGMENTATION: Description(
        keys=("categories", "colors"),
        annotation="an RGB TIFF, one page an instance: black and the category's colour; one black page is no object; "
        "`<stem>.yaml` beside it may list pages, from 1, under `crowd` and `ignore`",
    ),
    Task.SEMANTIC_SEGMENTATION: Description(
        keys=("categories", "colors"), annotation="an RGB PNG of the categories' colours; black is ignored"
    ),
    Task.PANOPTIC_SEGMENTATION: Description(
        keys=("categories", "colors", "[things]"),
        annotation="a TIFF of two pages: the colour map, where black is void, then the instance ids; `<stem>.yaml` "
        "beside it may list pairs [category, id] under `crowd` and `ignore`",
    ),
    Task.DEPTH_ESTIMATION: Description(
        keys=("range",),
        annotation="a gray PNG of 8 or 16 bits: 0 is ignored, 1 is the far end of the range, the maximum the near end",
    ),
    Task.ANOMALY_DETECTION: Description(
        keys=(),
        annotation="none is needed; for validation `normal` or `anomalous`, or a folder of masks, PNG: what is not "
        "black is anomalous",
    ),
    Task.AUTOENCODING: Description(keys=(), annotation="none"),
    Task.VIEW_INVARIANCE_LEARNING: Description(keys=(), annotation="none"),
}
