"""The graph of conversions: one table of edges, one function an edge.

Adding an edge is one function in one file of this folder and one entry here. The order of the table decides between
paths of the same length.
"""

from __future__ import annotations

from services.conversion.convert.boxes import (
    detection_to_multilabel,
    detection_to_quad,
    keypoint_to_detection,
    quad_to_detection,
)
from services.conversion.convert.classification import multiclass_to_multilabel, rename
from services.conversion.convert.edge import Edge, KeypointToDetection, SemanticToMultilabel
from services.conversion.convert.images import forget_annotations
from services.conversion.convert.maps import (
    instance_to_detection,
    panoptic_to_instance,
    panoptic_to_semantic,
    semantic_to_multilabel,
)
from services.conversion.task import IMAGES_ALONE, Task

ANNOTATED_EDGES: tuple[Edge, ...] = (
    Edge(
        start=Task.PANOPTIC_SEGMENTATION,
        end=Task.SEMANTIC_SEGMENTATION,
        losses=("which instance a pixel belongs to", "which segments are a crowd"),
        rule="a pixel gets its segment's class, things and stuff alike; void, and segments to ignore, become ignored; "
        "where nothing else is there it is null",
        step=panoptic_to_semantic,
    ),
    Edge(
        start=Task.PANOPTIC_SEGMENTATION,
        end=Task.INSTANCE_SEGMENTATION,
        losses=("stuff", "which pixels are void"),
        rule="one instance for each pair of category and id of the things, all its parts together; without `things` "
        "every pair is an instance",
        step=panoptic_to_instance,
    ),
    Edge(
        start=Task.INSTANCE_SEGMENTATION,
        end=Task.OBJECT_DETECTION,
        losses=("the shape of each instance",),
        rule="the tight half-open box over all parts of the mask, in pixels of the image; an empty mask is dropped",
        step=instance_to_detection,
    ),
    Edge(
        start=Task.QUADRILATERAL_DETECTION,
        end=Task.OBJECT_DETECTION,
        losses=("the corners and their order", "what lies outside the image"),
        rule="minimum and maximum of the corners, clipped to the image; where nothing is left it is dropped",
        step=quad_to_detection,
    ),
    Edge(
        start=Task.OBJECT_DETECTION,
        end=Task.QUADRILATERAL_DETECTION,
        rule="the four corners of the box, clockwise from the top left",
        step=detection_to_quad,
    ),
    Edge(
        start=Task.KEYPOINT_DETECTION,
        end=Task.OBJECT_DETECTION,
        losses=("the points and their names",),
        rule="the instance's bbox where it has one, else minimum and maximum of its points, clipped to the image; what "
        "has no area is dropped unless `min_size` or `margin` is given; one category, `category_name`",
        options=KeypointToDetection,
        step=keypoint_to_detection,
    ),
    Edge(
        start=Task.OBJECT_DETECTION,
        end=Task.MULTILABEL_CLASSIFICATION,
        losses=("where the objects are", "how many objects of a category there are"),
        rule="the set of categories; crowds count, regions to ignore do not",
        step=detection_to_multilabel,
    ),
    Edge(
        start=Task.SEMANTIC_SEGMENTATION,
        end=Task.MULTILABEL_CLASSIFICATION,
        losses=("where the classes are", "classes with fewer than `min_pixels` pixels"),
        rule="the classes with at least `min_pixels` pixels; a map that is all ignored becomes null",
        options=SemanticToMultilabel,
        step=semantic_to_multilabel,
    ),
    Edge(
        start=Task.MULTICLASS_CLASSIFICATION,
        end=Task.METRIC_LEARNING,
        losses=("the order of ordered categories",),
        rule="categories become identities",
        step=rename,
    ),
    Edge(
        start=Task.METRIC_LEARNING,
        end=Task.MULTICLASS_CLASSIFICATION,
        rule="identities become categories",
        step=rename,
    ),
    Edge(
        start=Task.MULTICLASS_CLASSIFICATION,
        end=Task.MULTILABEL_CLASSIFICATION,
        losses=("that an image has exactly one category", "the order of ordered categories"),
        rule="the category becomes the only label; null stays null",
        step=multiclass_to_multilabel,
    ),
)

EDGES: tuple[Edge, ...] = ANNOTATED_EDGES + tuple(
    Edge(
        start=start,
        end=end,
        losses=() if start in (Task.AUTOENCODING, Task.VIEW_INVARIANCE_LEARNING) else ("all annotations",),
        rule="every image file, annotated or not",
        step=forget_annotations,
    )
    for end in IMAGES_ALONE
    for start in Task
    if start is not end
)
