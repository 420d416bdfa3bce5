"""The table of tasks that a head can learn: one file each, behind the types of `task`.

Beside them: `names`, `interval`, `map_file`, `instance_file` and `objects` (what vocabularies and annotations share),
`pyramid_decoder` (maps out of features), `anchor_free` with `assignment` (objects out of features), `dynamic_mask` with
`mask` (their masks), `polygon`, `ranking`, `average_precision` and `panoptic_quality` (metrics), `drawing`, `shapes`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sihlai.conversion.v1 import task_pb2

from runner.tasks.anomaly_detection import AnomalyDetection
from runner.tasks.autoencoding import Autoencoding
from runner.tasks.depth_estimation import DepthEstimation
from runner.tasks.instance_segmentation import InstanceSegmentation
from runner.tasks.keypoint_detection import KeypointDetection
from runner.tasks.metric_learning import MetricLearning
from runner.tasks.multiclass_classification import MulticlassClassification
from runner.tasks.multilabel_classification import MultilabelClassification
from runner.tasks.object_detection import ObjectDetection
from runner.tasks.panoptic_segmentation import PanopticSegmentation
from runner.tasks.quadrilateral_detection import QuadrilateralDetection
from runner.tasks.regression import Regression
from runner.tasks.scene_text_recognition import SceneTextRecognition
from runner.tasks.semantic_segmentation import SemanticSegmentation
from runner.tasks.task import Task
from runner.tasks.view_invariance_learning import ViewInvarianceLearning
from runner.trainer.failure import trainer_failure

TASKS: Mapping[int, Task] = {
    task_pb2.TASK_MULTICLASS_CLASSIFICATION: MulticlassClassification(),
    task_pb2.TASK_MULTILABEL_CLASSIFICATION: MultilabelClassification(),
    task_pb2.TASK_METRIC_LEARNING: MetricLearning(),
    task_pb2.TASK_REGRESSION: Regression(),
    task_pb2.TASK_OBJECT_DETECTION: ObjectDetection(),
    task_pb2.TASK_QUADRILATERAL_DETECTION: QuadrilateralDetection(),
    task_pb2.TASK_KEYPOINT_DETECTION: KeypointDetection(),
    task_pb2.TASK_INSTANCE_SEGMENTATION: InstanceSegmentation(),
    task_pb2.TASK_PANOPTIC_SEGMENTATION: PanopticSegmentation(),
    task_pb2.TASK_SEMANTIC_SEGMENTATION: SemanticSegmentation(),
    task_pb2.TASK_DEPTH_ESTIMATION: DepthEstimation(),
    task_pb2.TASK_SCENE_TEXT_RECOGNITION: SceneTextRecognition(),
    task_pb2.TASK_ANOMALY_DETECTION: AnomalyDetection(),
    task_pb2.TASK_AUTOENCODING: Autoencoding(),
    task_pb2.TASK_VIEW_INVARIANCE_LEARNING: ViewInvarianceLearning(),
}


def task_of(number: int) -> Task:
    """The task with this number of sihlai.conversion.v1.Task. Raises Failure where no head can learn it yet."""
    if number not in TASKS:
        name = task_pb2.Task.Name(task_pb2.Task.ValueType(number)).removeprefix("TASK_").lower().replace("_", " ")
        known = ", ".join(task.name for task in TASKS.values())
        raise trainer_failure(f"no head can learn {name} yet: take {known}")
    return TASKS[number]
