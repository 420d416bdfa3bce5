"""The computer-vision tasks, by the names that metadata.yaml writes."""

from __future__ import annotations

import enum


class Task(enum.StrEnum):
    """What a dataset is annotated for. The order is that of the proto's enum."""

    MULTICLASS_CLASSIFICATION = "multiclass classification"
    MULTILABEL_CLASSIFICATION = "multilabel classification"
    METRIC_LEARNING = "metric learning"
    REGRESSION = "regression"
    SCENE_TEXT_RECOGNITION = "scene text recognition"
    OBJECT_DETECTION = "object detection"
    QUADRILATERAL_DETECTION = "quadrilateral detection"
    KEYPOINT_DETECTION = "keypoint detection"
    INSTANCE_SEGMENTATION = "instance segmentation"
    SEMANTIC_SEGMENTATION = "semantic segmentation"
    PANOPTIC_SEGMENTATION = "panoptic segmentation"
    DEPTH_ESTIMATION = "depth estimation"
    ANOMALY_DETECTION = "anomaly detection"
    AUTOENCODING = "autoencoding"
    VIEW_INVARIANCE_LEARNING = "view-invariance learning"


IMAGES_ALONE = (Task.ANOMALY_DETECTION, Task.AUTOENCODING, Task.VIEW_INVARIANCE_LEARNING)
"""Tasks that learn from images without annotations; every task leads to them."""
