"""The fields of a job's specification that have a default or a range: one table, by message and field.

The comments in job_spec.proto say the same (a test compares the two).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SIZE_PIXELS_MIN = 16
SIZE_PIXELS_MAX = 8_192
LEVEL_COARSEST = 5
"""That a backbone has."""
LEVEL_COARSEST_NECK = 7
INT64_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The numbers that a field may hold, and what it holds when nothing is given (None: it stays unset)."""

    default: float | bool | str | None
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside; NaN and infinite ones never do."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        """What is wanted, in words."""
        words = []
        if self.low > -math.inf:
            words.append(f"{'above' if self.low_open else 'at least'} {self.low:.15g}")
        if self.high < math.inf:
            words.append(f"{'below' if self.high_open else 'at most'} {self.high:.15g}")
        return " and ".join(words) or "a finite number"


def _share(default: float) -> Interval:
    return Interval(default=default, low=0, high=1)


def _below_one(default: float) -> Interval:
    return Interval(default=default, low=0, high=1, high_open=True)


def _between(default: float | None, low: float, high: float) -> Interval:
    return Interval(default=default, low=low, high=high)


def _above_zero(default: float, high: float = 1_000) -> Interval:
    return Interval(default=default, low=0, high=high, low_open=True)


ANY = -INT64_MAX - 1, INT64_MAX
EMBEDDING = _between(128, 1, 8_192)
CHANNELS = _between(128, 1, 4_096)
LEVEL_MIN = _between(2, 0, LEVEL_COARSEST_NECK)
INSTANCES = _between(100, 1, 1_000)
OBJECT_LEVEL_MIN = _between(3, 1, LEVEL_COARSEST_NECK)
MASK_LEVEL = _between(None, 1, LEVEL_COARSEST_NECK)
"""Its default depends on the canvas."""

CATEGORY_WEIGHT = _between(1, 0, 1_000_000)
"""Of each entry of a head's category_weights or label_weights."""
WEIGHTS: Mapping[str, str] = {
    "multiclass_classification": "category_weights",
    "multilabel_classification": "label_weights",
    "semantic_segmentation": "category_weights",
}
"""What words of a vocabulary weigh: the field of each task's parameters."""

FIELDS: Mapping[str, Interval] = {
    "JobSpec.priority": _between(0, -1_000, 1_000),
    "Resources.gpus": _between(0, 0, 64),
    "Resources.gpu_memory_bytes": _between(0, 0, 2**43),
    "Backbone.frozen_levels": _between(0, 0, LEVEL_COARSEST),
    "FeaturePyramid.channels": _between(256, 1, 4_096),
    "FeaturePyramid.level_min": _between(3, 1, LEVEL_COARSEST),
    "FeaturePyramid.level_max": _between(5, 1, LEVEL_COARSEST_NECK),
    "KeypointToDetection.min_size": _between(None, 0, 65_535),
    "KeypointToDetection.margin": _between(None, 0, 100),
    "KeypointToDetection.category_name": Interval(default="instance"),
    "SemanticToMultilabel.min_pixels": _between(1, 1, 2**40),
    "Head.loss_weight": _between(1, 0, 1_000_000),
    "MulticlassClassification.label_smoothing": _below_one(0),
    "MulticlassClassification.dropout": _below_one(0),
    "MultilabelClassification.dropout": _below_one(0),
    "MultilabelClassification.asymmetric": Interval(default=False),
    "MetricLearning.embedding_size": EMBEDDING,
    "MetricLearning.margin": _share(0),
    "Regression.dropout": _below_one(0),
    "SceneTextRecognition.tokens_max": _between(28, 1, 1_024),
    "SceneTextRecognition.level_min": LEVEL_MIN,
    "SceneTextRecognition.channels": CHANNELS,
    "ObjectDetection.instances_max": INSTANCES,
    "ObjectDetection.channels": CHANNELS,
    "ObjectDetection.level_min": OBJECT_LEVEL_MIN,
    "QuadrilateralDetection.instances_max": INSTANCES,
    "QuadrilateralDetection.channels": CHANNELS,
    "QuadrilateralDetection.level_min": OBJECT_LEVEL_MIN,
    "QuadrilateralDetection.ordered": Interval(default=True),
    "KeypointDetection.instances_max": _between(20, 1, 1_000),
    "KeypointDetection.channels": CHANNELS,
    "KeypointDetection.level_min": OBJECT_LEVEL_MIN,
    "InstanceSegmentation.instances_max": INSTANCES,
    "InstanceSegmentation.channels": CHANNELS,
    "InstanceSegmentation.level_min": OBJECT_LEVEL_MIN,
    "InstanceSegmentation.mask_level": MASK_LEVEL,
    "SemanticSegmentation.channels": CHANNELS,
    "SemanticSegmentation.level_min": LEVEL_MIN,
    "PanopticSegmentation.instances_max": INSTANCES,
    "PanopticSegmentation.channels": CHANNELS,
    "PanopticSegmentation.level_min": OBJECT_LEVEL_MIN,
    "PanopticSegmentation.mask_level": MASK_LEVEL,
    "DepthEstimation.channels": CHANNELS,
    "DepthEstimation.level_min": LEVEL_MIN,
    "AnomalyDetection.channels": CHANNELS,
    "Autoencoding.channels": CHANNELS,
    "ViewInvarianceLearning.embedding_size": EMBEDDING,
    "Data.height": _between(224, SIZE_PIXELS_MIN, SIZE_PIXELS_MAX),
    "Data.width": _between(224, SIZE_PIXELS_MIN, SIZE_PIXELS_MAX),
    "Data.balanced_sampling": Interval(default=False),
    "Data.bad_data_share_max": _share(0.1),
    "ImageRange.black": _between(0, 0, 65_534),
    "ImageRange.white": _between(65_535, 0, 65_535),
    "Scaling.centered": Interval(default=True),
    "Scaling.fill": _share(0),
    "Scaling.enlarge": Interval(default=True),
    "Augmentations.horizontal_flip": _share(0),
    "Augmentations.vertical_flip": _share(0),
    "Augmentations.rotation_degrees": _between(0, 0, 180),
    "Augmentations.translation": _share(0),
    "Augmentations.zoom": _share(0),
    "Augmentations.brightness": _share(0),
    "Augmentations.contrast": _share(0),
    "Augmentations.saturation": _share(0),
    "Augmentations.hue": _between(0, 0, 0.5),
    "Augmentations.gray": _share(0),
    "Augmentations.blur": _between(0, 0, 0.05),
    "Augmentations.crop": _between(0, 0, 0.95),
    "ValidationSplit.share": Interval(default=0.2, low=0, high=1, low_open=True, high_open=True),
    "ValidationSplit.seed": _between(0, *ANY),
    "Trainer.iterations_max": _between(1_000, 1, 1_000_000_000),
    "Trainer.hours_max": _between(0, 0, 24 * 366),
    "Trainer.validations": _between(10, 1, 100_000),
    "Trainer.batch_size": _between(32, 1, 65_536),
    "Trainer.gradient_clip_norm": _between(0, 0, 1e12),
    "Trainer.seed": _between(0, *ANY),
    "Trainer.ema_decay": _below_one(0),
    "Trainer.micro_batches": _between(1, 1, 65_536),
    "Sgd.learning_rate": _above_zero(0.1),
    "Sgd.momentum": _below_one(0.9),
    "Sgd.weight_decay": _between(0.0001, 0, 1_000),
    "Sgd.nesterov": Interval(default=False),
    "Sgd.backbone_rate_factor": _between(1, 0, 1_000),
    "AdamW.learning_rate": _above_zero(0.001),
    "AdamW.beta1": _below_one(0.9),
    "AdamW.beta2": _below_one(0.999),
    "AdamW.epsilon": _above_zero(1e-8, 1),
    "AdamW.weight_decay": _between(0.01, 0, 1_000),
    "AdamW.backbone_rate_factor": _between(1, 0, 1_000),
    "MultiStep.warmup_iterations": _between(0, 0, INT64_MAX),
    "MultiStep.factor": _above_zero(0.1, 1),
    "OneCycle.warmup_share": _below_one(0.25),
    "OneCycle.initial_factor": _share(0.04),
    "OneCycle.final_factor": _share(0.0001),
}
"""By message and field: every field with a default, and every number with a range."""
