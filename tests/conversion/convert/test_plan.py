from __future__ import annotations

import pytest

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason
from services.conversion.convert import EDGES
from services.conversion.convert.edge import Edge, KeypointToDetection, SemanticToMultilabel
from services.conversion.convert.images import forget_annotations
from services.conversion.convert.plan import Plan, plan, reachable
from services.conversion.formats.description import DESCRIPTIONS
from services.conversion.task import IMAGES_ALONE, Task

T = Task


def path(way: Plan) -> list[Task]:
    return [way.start, *(step.end for step in way.steps)]


def test_the_graph_is_the_designs() -> None:
    annotated = {(edge.start, edge.end) for edge in EDGES if edge.end not in IMAGES_ALONE}
    assert annotated == {
        (T.PANOPTIC_SEGMENTATION, T.SEMANTIC_SEGMENTATION),
        (T.PANOPTIC_SEGMENTATION, T.INSTANCE_SEGMENTATION),
        (T.INSTANCE_SEGMENTATION, T.OBJECT_DETECTION),
        (T.QUADRILATERAL_DETECTION, T.OBJECT_DETECTION),
        (T.OBJECT_DETECTION, T.QUADRILATERAL_DETECTION),
        (T.KEYPOINT_DETECTION, T.OBJECT_DETECTION),
        (T.OBJECT_DETECTION, T.MULTILABEL_CLASSIFICATION),
        (T.SEMANTIC_SEGMENTATION, T.MULTILABEL_CLASSIFICATION),
        (T.MULTICLASS_CLASSIFICATION, T.METRIC_LEARNING),
        (T.METRIC_LEARNING, T.MULTICLASS_CLASSIFICATION),
        (T.MULTICLASS_CLASSIFICATION, T.MULTILABEL_CLASSIFICATION),
    }
    for end in IMAGES_ALONE:
        assert {edge.start for edge in EDGES if edge.end is end} == set(Task) - {end}
    assert len({(edge.start, edge.end) for edge in EDGES}) == len(EDGES) == 11 + 42


def test_every_task_is_described_and_every_edge_says_what_it_does() -> None:
    assert set(DESCRIPTIONS) == set(Task)
    assert all(edge.rule and edge.start is not edge.end for edge in EDGES)


@pytest.mark.parametrize("task", list(Task))
def test_a_task_is_reached_from_itself_in_no_step(task: Task) -> None:
    assert plan(task, task).steps == ()
    assert reachable(task)[0] is task


@pytest.mark.parametrize(
    "tasks",
    [
        (T.PANOPTIC_SEGMENTATION, T.SEMANTIC_SEGMENTATION, T.MULTILABEL_CLASSIFICATION),
        (T.PANOPTIC_SEGMENTATION, T.INSTANCE_SEGMENTATION, T.OBJECT_DETECTION, T.QUADRILATERAL_DETECTION),
        (T.KEYPOINT_DETECTION, T.OBJECT_DETECTION, T.MULTILABEL_CLASSIFICATION),
        (T.METRIC_LEARNING, T.MULTICLASS_CLASSIFICATION, T.MULTILABEL_CLASSIFICATION),
        (T.PANOPTIC_SEGMENTATION, T.ANOMALY_DETECTION),
        (T.REGRESSION, T.AUTOENCODING),
        (T.AUTOENCODING, T.VIEW_INVARIANCE_LEARNING),
    ],
)
def test_the_path_has_the_fewest_steps(tasks: tuple[Task, ...]) -> None:
    assert path(plan(tasks[0], tasks[-1])) == list(tasks)


def test_via_leads_the_path_another_way() -> None:
    way = plan(T.PANOPTIC_SEGMENTATION, T.MULTILABEL_CLASSIFICATION, via=(T.OBJECT_DETECTION,))
    assert path(way)[1:] == [T.INSTANCE_SEGMENTATION, T.OBJECT_DETECTION, T.MULTILABEL_CLASSIFICATION]
    there_and_back = plan(T.OBJECT_DETECTION, T.OBJECT_DETECTION, via=(T.QUADRILATERAL_DETECTION,))
    assert path(there_and_back) == [T.OBJECT_DETECTION, T.QUADRILATERAL_DETECTION, T.OBJECT_DETECTION]


def test_where_there_is_no_path_the_error_says_what_can_be_reached() -> None:
    with pytest.raises(FailedPrecondition) as raised:
        plan(T.MULTILABEL_CLASSIFICATION, T.OBJECT_DETECTION)
    error = raised.value
    assert error.reason is Reason.TASK_NOT_REACHABLE
    assert error.metadata["from"] == "multilabel classification"
    assert error.metadata["to"] == "object detection"
    assert error.metadata["reachable"].split(", ") == [
        "multilabel classification",
        "anomaly detection",
        "autoencoding",
        "view-invariance learning",
    ]


def test_a_via_that_is_not_on_any_way_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="from autoencoding to multilabel classification on the way") as raised:
        plan(T.MULTICLASS_CLASSIFICATION, T.MULTILABEL_CLASSIFICATION, via=(T.AUTOENCODING,))
    assert raised.value.metadata["from"] == "autoencoding"


def test_every_reachable_task_has_a_plan_and_no_other_has() -> None:
    for start in Task:
        for end in Task:
            if end in reachable(start):
                assert path(plan(start, end))[-1] is end
            else:
                with pytest.raises(FailedPrecondition):
                    plan(start, end)


def test_options_go_to_their_step() -> None:
    options = KeypointToDetection(margin=0.1)
    way = plan(T.KEYPOINT_DETECTION, T.MULTILABEL_CLASSIFICATION, options=(options,))
    assert way.options == (options, None)


def test_options_of_a_step_that_is_not_taken_are_refused() -> None:
    with pytest.raises(InvalidArgument) as raised:
        plan(
            T.KEYPOINT_DETECTION,
            T.OBJECT_DETECTION,
            options=(KeypointToDetection(), SemanticToMultilabel(min_pixels=5)),
        )
    assert [violation.field for violation in raised.value.violations] == ["options.steps[1]"]


def test_one_more_edge_is_one_more_entry() -> None:
    edge = Edge(
        start=T.DEPTH_ESTIMATION,
        end=T.SEMANTIC_SEGMENTATION,
        rule="layers of depth become classes",
        step=forget_annotations,
    )
    way = plan(T.DEPTH_ESTIMATION, T.MULTILABEL_CLASSIFICATION, edges=(*EDGES, edge))
    assert path(way) == [T.DEPTH_ESTIMATION, T.SEMANTIC_SEGMENTATION, T.MULTILABEL_CLASSIFICATION]
