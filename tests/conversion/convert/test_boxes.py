"""What the edges between boxes, quads, keypoints and labels do, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.chassis.rpc import error_from_rpc
from services.conversion.convert.boxes import (
    detection_to_multilabel,
    detection_to_quad,
    keypoint_to_detection,
    quad_to_detection,
)
from services.conversion.convert.edge import KeypointToDetection
from services.conversion.finding import Action, Place, Report, Severity
from services.conversion.formats.bounding_box import Bbox
from services.conversion.formats.keypoint_detection import Instance, Keypoints
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box
from services.conversion.formats.quadrilateral_detection import Quad
from services.conversion.index import ImageSize

MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
DETECTION = task_pb2.TASK_OBJECT_DETECTION
QUADS = task_pb2.TASK_QUADRILATERAL_DETECTION
AUTOENCODING = task_pb2.TASK_AUTOENCODING
NAMES = Names(names=("cat", "dog", "unused"))
POINTS = Keypoints(
    names=Names(names=("nose", "left eye", "right eye")),
    sigmas=(1 / 3, 1 / 3, 1 / 3),
    flip_pairs=(("left eye", "right eye"),),
)
SIZE = ImageSize(width=100, height=80)
PLACE = Place(file="labels.yaml", line=1, image="a.png")


def take(
    function: Any, annotation: Any, *, vocabulary: Any = NAMES, options: Any = None, size: ImageSize = SIZE
) -> tuple[Any, Report]:
    report = Report(findings_max=100)
    return function(vocabulary, options).convert(annotation, size, PLACE, report), report


def box(bbox: Bbox, category: str = "cat", **flags: bool) -> Box:
    return Box(category=category, bbox=bbox, **flags)


def quad(*corners: tuple[float, float], **flags: bool) -> Quad:
    a, b, c, d = corners
    return Quad(category="cat", quad=(a, b, c, d), **flags)


def instance(*points: tuple[float, float] | None, **others: Any) -> Instance:
    return Instance(points=dict(zip(POINTS.names.names, points, strict=False)), **others)


@pytest.mark.parametrize(
    ("corners", "bbox"),
    [
        (((1, 2), (9, 2), (9, 7), (1, 7)), (1, 2, 9, 7)),
        (((9, 7), (1, 7), (1, 2), (9, 2)), (1, 2, 9, 7)),
        (((5, 0), (10, 5.5), (5, 10), (0, 5)), (0, 0, 10, 10)),
        (((1, 1), (9, 9), (9, 1), (1, 9)), (1, 1, 9, 9)),  # a bow-tie
        (((1, 1), (9, 1), (3, 3), (1, 9)), (1, 1, 9, 9)),  # concave
        (((-5, -5), (50, -5), (50, 90), (-5, 90)), (0, 0, 50, 80)),
        (((99, 79), (101, 79), (101, 81), (99, 81)), (99, 79, 100, 80)),
    ],
)
def test_a_quad_becomes_the_bounds_of_its_corners_clipped_to_the_image(corners: Any, bbox: Bbox) -> None:
    found, report = take(quad_to_detection, (quad(*corners),))
    assert (found, report.findings) == ((box(bbox),), [])


def test_a_box_becomes_its_corners_clockwise_from_the_top_left() -> None:
    found, _ = take(detection_to_quad, (box((1, 2, 9, 7), "dog", crowd=True), box((0, 0, 1, 1), ignore=True)))
    assert found == (
        Quad(category="dog", quad=((1, 2), (9, 2), (9, 7), (1, 7)), crowd=True),
        quad((0, 0), (1, 0), (1, 1), (0, 1), ignore=True),
    )


@pytest.mark.parametrize(
    ("given_instance", "options", "bbox"),
    [
        (instance((10, 20), (30, 25)), {}, (10, 20, 30, 25)),
        (instance((10, 20), None, (30, 25)), {}, (10, 20, 30, 25)),
        (instance((-10, 20), (130, 25)), {}, (0, 20, 100, 25)),
        (instance((10, 20), (30, 25), bbox=(1, 2, 3, 4)), {}, (1, 2, 3, 4)),
        (instance(bbox=(-1, 2, 3, 90)), {}, (0, 2, 3, 80)),
        (instance((10, 20), bbox=(1, 2, 3, 4)), {"min_size": 50, "margin": 2}, (1, 2, 3, 4)),
        (instance((10, 20)), {"min_size": 4}, (8, 18, 12, 22)),
        (instance((1, 20)), {"min_size": 4}, (0, 18, 3, 22)),
        (instance((10, 20), (30, 25)), {"min_size": 10}, (10, 17.5, 30, 27.5)),
        (instance((10, 20), (30, 28)), {"margin": 0.25}, (5, 18, 35, 30)),
        (instance((10, 20), (30, 20)), {"margin": 0.25}, (5, 15, 35, 25)),
        (instance((10, 20), (10, 28)), {"margin": 0.25}, (8, 18, 12, 30)),
        (instance((10, 20), (30, 28)), {"margin": 0.25, "min_size": 32}, (4, 8, 36, 40)),
    ],
)
def test_an_instance_becomes_its_bbox_or_the_bounds_of_its_points(
    given_instance: Instance, options: dict[str, float], bbox: Bbox
) -> None:
    chosen = KeypointToDetection(**options)  # type: ignore[arg-type]
    found, report = take(keypoint_to_detection, (given_instance,), vocabulary=POINTS, options=chosen)
    assert (found, report.findings) == ((box(bbox, "instance"),), [])


@pytest.mark.parametrize(
    ("given_instance", "options", "rule"),
    [
        (instance(), {}, "no_keypoints"),
        (instance(None, None), {"min_size": 4, "margin": 1}, "no_keypoints"),
        (instance((10, 20)), {}, "no_area"),
        (instance((10, 20)), {"margin": 1}, "no_area"),
        (instance((10, 20), (10, 20)), {}, "no_area"),
        (instance((10, 20), (30, 20)), {}, "no_area"),
        (instance((10, 20), (10, 30)), {"margin": 0, "min_size": 0}, "no_area"),
        (instance((110, 20), (120, 30)), {}, "outside_image"),
    ],
)
def test_an_instance_without_a_box_is_dropped_and_its_image_unlabelled_where_no_other_is_left(
    given_instance: Instance, options: dict[str, float], rule: str
) -> None:
    chosen = KeypointToDetection(**options)  # type: ignore[arg-type]
    found, report = take(keypoint_to_detection, (given_instance,), vocabulary=POINTS, options=chosen)
    assert found is None
    (finding,) = report.findings
    assert (finding.severity, finding.rule, finding.index) == (Severity.WARNING, rule, 0)
    assert (finding.action, finding.place) == (Action.DROPPED, PLACE)
    assert [(each.rule, each.annotations, each.images) for each in report.dropped()] == [(rule, 1, 1)]
    sound = instance((1, 1), (2, 2))
    found, report = take(keypoint_to_detection, (given_instance, sound), vocabulary=POINTS, options=chosen)
    assert [each.category for each in found] == ["instance"]
    assert [finding.index for finding in report.findings] == [0]


def test_a_quad_of_which_nothing_is_inside_is_dropped() -> None:
    outside = quad((101, 1), (109, 1), (109, 9), (101, 9))
    found, report = take(quad_to_detection, (outside,))
    assert found is None
    assert [(f.rule, f.index, f.action) for f in report.findings] == [("outside_image", 0, Action.DROPPED)]
    found, _ = take(quad_to_detection, (quad((1, 1), (9, 1), (9, 9), (1, 9)), outside))
    assert found == (box((1, 1, 9, 9)),)


def test_the_boxes_of_instances_have_one_category_with_the_name_that_is_asked_for() -> None:
    assert keypoint_to_detection(POINTS, None).vocabulary == Names(names=("instance",))
    options = KeypointToDetection(category_name="person")
    assert keypoint_to_detection(POINTS, options).vocabulary == Names(names=("person",))
    found, _ = take(keypoint_to_detection, (instance((1, 1), (2, 2)),), vocabulary=POINTS, options=options)
    assert found == (box((1, 1, 2, 2), "person"),)


def test_labels_are_the_set_of_categories_with_crowds_and_without_what_is_to_be_ignored() -> None:
    bbox = (1, 1, 2, 2)
    boxes = (box(bbox, "dog"), box(bbox, crowd=True), box(bbox, "dog"), box(bbox, "unused", ignore=True))
    assert take(detection_to_multilabel, boxes)[0] == ("dog", "cat")
    assert take(detection_to_multilabel, (box(bbox, ignore=True),))[0] == ()


@pytest.mark.parametrize("flags", [{}, {"crowd": True}, {"ignore": True}, {"crowd": True, "ignore": True}])
def test_a_crowd_stays_a_crowd_and_ignore_stays_ignore(flags: dict[str, bool]) -> None:
    bbox = (1, 1, 9, 9)
    quads, _ = take(detection_to_quad, (box(bbox, **flags),))
    for boxes in (
        take(quad_to_detection, quads)[0],
        take(keypoint_to_detection, (instance((1, 1), (9, 9), **flags),), vocabulary=POINTS)[0],
        take(keypoint_to_detection, (instance(bbox=bbox, **flags),), vocabulary=POINTS)[0],
    ):
        assert [(each.bbox, each.crowd, each.ignore) for each in boxes] == [(bbox, "crowd" in flags, "ignore" in flags)]


@pytest.mark.parametrize("function", [quad_to_detection, detection_to_quad, detection_to_multilabel])
def test_the_vocabulary_keeps_its_order_and_what_is_not_used_and_nothing_there_stays_so(function: Any) -> None:
    assert function(NAMES, None).vocabulary == NAMES
    assert take(function, ())[0] == ()
    assert take(keypoint_to_detection, (), vocabulary=POINTS)[0] == ()


# Made of hypothesis: coordinates in hundredths, so that some boxes are tiny and many coincide.
def coordinates(low: int, high: int) -> st.SearchStrategy[float]:
    return st.one_of(st.integers(low, high), st.integers(low * 100, high * 100).map(lambda n: n / 100)).map(float)


def spans(high: int) -> st.SearchStrategy[tuple[float, float]]:
    pairs = st.tuples(coordinates(0, high), coordinates(0, high))
    return pairs.filter(lambda pair: pair[0] != pair[1]).map(lambda pair: (min(pair), max(pair)))


BOXES = st.lists(
    st.builds(
        lambda x, y, category, crowd, ignore: box((x[0], y[0], x[1], y[1]), category, crowd=crowd, ignore=ignore),
        spans(SIZE.width),
        spans(SIZE.height),
        st.sampled_from(NAMES.names),
        st.booleans(),
        st.booleans(),
    ),
    max_size=5,
).map(tuple)
WHOLE_POINTS = st.tuples(st.integers(-20, 120), st.integers(-20, 100))
WHOLE_QUADS = st.lists(st.builds(quad, *[WHOLE_POINTS] * 4, crowd=st.booleans()), max_size=4).map(tuple)
WHOLE_INSTANCES = st.lists(
    st.builds(
        lambda points, bbox: instance(*points, bbox=bbox),
        st.lists(st.none() | WHOLE_POINTS, min_size=3, max_size=3),
        st.none() | st.just((3, 4, 50, 60)),
    ),
    max_size=4,
).map(tuple)


def mirrored_box(each: Box) -> Box:
    xmin, ymin, xmax, ymax = each.bbox
    mirrored = (SIZE.width - xmax, ymin, SIZE.width - xmin, ymax)
    return Box(category=each.category, bbox=mirrored, crowd=each.crowd, ignore=each.ignore)


def mirrored_quad(each: Quad) -> Quad:
    a, b, c, d = ((SIZE.width - x, y) for x, y in each.quad)
    return Quad(category=each.category, quad=(a, b, c, d), crowd=each.crowd, ignore=each.ignore)


def mirrored_instance(each: Instance) -> Instance:
    names = {name: name for name in POINTS.names.names}
    for left, right in POINTS.flip_pairs:
        names |= {left: right, right: left}
    points = {names[n]: None if p is None else (SIZE.width - p[0], p[1]) for n, p in each.points.items()}
    bbox = None if each.bbox is None else mirrored_box(box(each.bbox)).bbox
    return Instance(points=points, bbox=bbox, area=each.area, crowd=each.crowd, ignore=each.ignore)


def mirrored(annotation: Sequence[Any] | None, mirror: Any) -> Any:
    return None if annotation is None else tuple(map(mirror, annotation))


def cyclic(quads: Sequence[Quad]) -> list[Any]:
    """Each quad as the set of its cyclic orders, in both directions."""
    found = []
    for each in quads:
        orders = [each.quad[i:] + each.quad[:i] for i in range(4)]
        found.append((each.category, each.crowd, each.ignore, {*orders, *(order[::-1] for order in orders)}))
    return found


@given(BOXES)
def test_boxes_inside_their_image_come_back_from_quads_as_they_were(boxes: Any) -> None:
    assert take(quad_to_detection, take(detection_to_quad, boxes)[0])[0] == boxes


@given(BOXES)
def test_labels_of_boxes_are_those_of_their_quads(boxes: Any) -> None:
    around = take(quad_to_detection, take(detection_to_quad, boxes)[0])[0]
    assert take(detection_to_multilabel, around)[0] == take(detection_to_multilabel, boxes)[0]


@given(WHOLE_QUADS)
def test_a_mirror_before_quads_become_boxes_does_what_one_after_does(quads: Any) -> None:
    after = mirrored(take(quad_to_detection, quads)[0], mirrored_box)
    assert take(quad_to_detection, mirrored(quads, mirrored_quad))[0] == after


@given(st.lists(st.builds(lambda x, y: box((x, y, x + 7, y + 1)), st.integers(0, 93), st.integers(0, 79))).map(tuple))
def test_a_mirror_before_boxes_become_quads_or_labels_does_what_one_after_does(boxes: Any) -> None:
    flipped = mirrored(boxes, mirrored_box)
    after = mirrored(take(detection_to_quad, boxes)[0], mirrored_quad)
    assert cyclic(take(detection_to_quad, flipped)[0]) == cyclic(after)
    assert take(detection_to_multilabel, flipped)[0] == take(detection_to_multilabel, boxes)[0]


@given(
    WHOLE_INSTANCES,
    st.builds(KeypointToDetection, min_size=st.none() | st.integers(0, 40), margin=st.sampled_from([None, 0.25, 2])),
)
@settings(max_examples=200)
def test_a_mirror_before_keypoints_become_boxes_does_what_one_after_does(instances: Any, options: Any) -> None:
    def boxes(given_instances: Any) -> Any:
        return take(keypoint_to_detection, given_instances, vocabulary=POINTS, options=options)[0]

    assert boxes(mirrored(instances, mirrored_instance)) == mirrored(boxes(instances), mirrored_box)


SETS = {
    "object detection": (
        "categories: [cat, dog]\n",
        "[{category: dog, bbox: [1, 1, 3, 4]}, {category: cat, crowd: true, bbox: [0, 0, 5, 4]}]",
        "[{category: cow, bbox: [1, 1, 3, 4]}]",
        [DETECTION, QUADS, MULTILABEL],
    ),
    "quadrilateral detection": (
        "categories: [cat, dog]\n",
        "[{category: dog, quad: [[1, 1], [3, 1], [3, 4], [1, 4]]},"
        " {category: cat, crowd: true, quad: [[0, 0], [5, 0], [5, 4], [0, 4]]}]",
        "[{category: dog, quad: [[1, 1], [1, 1], [1, 1], [1, 1]]}]",
        [QUADS, DETECTION, MULTILABEL],
    ),
    "keypoint detection": (
        "keypoints: [nose]\n",
        "[{nose: [1, 1], bbox: [1, 1, 3, 4]}, {crowd: true, bbox: [0, 0, 5, 4]}]",
        "[{chin: [1, 1]}]",
        [task_pb2.TASK_KEYPOINT_DETECTION, DETECTION, QUADS, MULTILABEL],
    ),
}


@pytest.mark.parametrize("task", SETS)
def test_unlabelled_and_nothing_there_survive_every_path(task: str, run: Any, dataset: Any) -> None:
    vocabulary, value, bad, ends = SETS[task]
    dataset.write(
        f"task: {task}\n{vocabulary}annotations: labels.yaml\n",
        images=("a.png", "b.png", "c.png", "d.png", "e.png"),
        **{"labels.yaml": f"a.png: {value}\nb.png: []\nc.png: null\nd.png: {bad}\n"},
    )

    async def test(service: Any) -> None:
        for end in ends:
            result = await service.convert(dataset.source, end, lenient=True)
            found = service.converted(result)["annotations"]
            assert len(found.pop("a.png")) in (1, 2)
            assert found == {"b.png": [], "c.png": None, "d.png": None, "e.png": None}
            assert (result.labelled_in, result.labelled_out, result.annotations_in) == (3, 2, 3)
            assert [each.annotations for each in result.dropped] == [1]
            again = await service.convert(result.dataset, end)
            assert service.converted(again)["annotations"] == service.converted(result)["annotations"]
        result = await service.convert(dataset.source, AUTOENCODING, lenient=True)
        assert set(service.converted(result)["annotations"].values()) == {None}

    run(test)


@pytest.mark.parametrize(
    ("metadata", "value", "normalised"),
    [
        ("task: regression\nrange: [0, 9]\n", "2.50", 2.5),
        ("task: scene text recognition\ntokens: [n, o]\n", "no", ["n", "o"]),
    ],
)
def test_numbers_and_texts_are_normalised_and_inspected(
    metadata: str, value: str, normalised: Any, run: Any, dataset: Any
) -> None:
    dataset.write(metadata + "annotations: labels.yaml\n", **{"labels.yaml": f"a.png: {value}\nb.png:\n"})

    async def test(service: Any) -> None:
        inspected = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))
        (summary,) = inspected.annotation_sets
        assert (summary.labelled_images, summary.negative_images, summary.unlabelled_images) == (1, 0, 3)
        result = await service.convert(dataset.source, summary.task)
        annotations = service.converted(result)["annotations"]
        assert annotations == {"a.png": normalised, "b.png": None, "c.png": None, "d.png": None}
        assert (result.annotations_in, result.annotations_out) == (1, 1)

    run(test)


def test_what_a_step_leaves_out_is_counted_and_does_not_refuse_the_dataset(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: keypoint detection\nkeypoints: [nose, chin]\nannotations: labels.yaml\n",
        **{
            "labels.yaml": "a.png: [{nose: [1, 1]}]\nb.png:\n- nose: [1, 1]\n- {nose: [1, 1], chin: [2, 3]}\n"
            "c.png:\n- {}\n- nose: [1, 1]\n"
        },
    )

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, DETECTION)
        written = service.converted(result)
        assert written["metadata"]["categories"] == ["instance"]
        assert written["annotations"] == {
            "a.png": None,
            "b.png": [{"category": "instance", "bbox": [1, 1, 2, 3]}],
            "c.png": None,
            "d.png": None,
        }
        dropped = {each.rule: (each.annotations, each.images) for each in result.dropped}
        assert dropped == {"no_area": (3, 3), "no_keypoints": (1, 1)}
        assert (result.annotations_in, result.annotations_out) == (5, 1)
        assert (result.labelled_in, result.labelled_out) == (3, 1)
        options = service_pb2.ConversionOptions(
            steps=[
                service_pb2.ConversionOptions.StepOptions(
                    keypoint_to_detection=service_pb2.ConversionOptions.KeypointToDetection(
                        min_size=2, category_name="head"
                    )
                )
            ]
        )
        padded = await service.convert(dataset.source, DETECTION, options=options)
        assert padded.dataset.uri != result.dataset.uri
        assert service.converted(padded)["annotations"]["a.png"] == [{"category": "head", "bbox": [0, 0, 2, 2]}]

    run(test)


@pytest.mark.parametrize("name", ["crowd", "two\nlines", "x" * 201, " "])
def test_a_name_that_no_category_can_have_is_refused(name: str, run: Any, dataset: Any) -> None:
    options = service_pb2.ConversionOptions.KeypointToDetection(category_name=name)
    request = service_pb2.PlanConversionRequest(from_task=task_pb2.TASK_KEYPOINT_DETECTION, to=DETECTION)
    request.options.steps.add().keypoint_to_detection.CopyFrom(options)

    async def test(service: Any) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await service.stub.PlanConversion(request)
        error: Any = error_from_rpc(raised.value)
        assert [each.field for each in error.violations] == ["options.steps[0].keypoint_to_detection.category_name"]

    run(test)
