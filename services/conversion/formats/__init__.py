"""The native format, one file a task behind one Protocol; adding a task edits these tables and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.conversion.formats import (
    anomaly_detection,
    autoencoding,
    depth_estimation,
    instance_segmentation,
    keypoint_detection,
    metric_learning,
    multiclass_classification,
    multilabel_classification,
    object_detection,
    panoptic_segmentation,
    quadrilateral_detection,
    regression,
    scene_text_recognition,
    semantic_segmentation,
    view_invariance_learning,
)
from services.conversion.formats.format import Format
from services.conversion.task import Task

FORMATS: Mapping[Task, Format[Any, Any]] = {
    Task.MULTICLASS_CLASSIFICATION: multiclass_classification.MulticlassClassification(),
    Task.MULTILABEL_CLASSIFICATION: multilabel_classification.MultilabelClassification(),
    Task.METRIC_LEARNING: metric_learning.MetricLearning(),
    Task.REGRESSION: regression.Regression(),
    Task.SCENE_TEXT_RECOGNITION: scene_text_recognition.SceneTextRecognition(),
    Task.OBJECT_DETECTION: object_detection.ObjectDetection(),
    Task.QUADRILATERAL_DETECTION: quadrilateral_detection.QuadrilateralDetection(),
    Task.KEYPOINT_DETECTION: keypoint_detection.KeypointDetection(),
    Task.INSTANCE_SEGMENTATION: instance_segmentation.InstanceSegmentation(),
    Task.SEMANTIC_SEGMENTATION: semantic_segmentation.SemanticSegmentation(),
    Task.PANOPTIC_SEGMENTATION: panoptic_segmentation.PanopticSegmentation(),
    Task.DEPTH_ESTIMATION: depth_estimation.DepthEstimation(),
    Task.ANOMALY_DETECTION: anomaly_detection.AnomalyDetection(),
    Task.AUTOENCODING: autoencoding.Autoencoding(),
    Task.VIEW_INVARIANCE_LEARNING: view_invariance_learning.ViewInvarianceLearning(),
}
