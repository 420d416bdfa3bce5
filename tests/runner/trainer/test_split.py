"""The split into training and validation."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sihlai.conversion.v1 import task_pb2

from services.split.choice import HeadAnnotations, validation_names
from services.split.label import CATEGORY, RULES, Label, labels_of

CATEGORIES = "abcdefgh"
ANNOTATIONS: Mapping[str, tuple[Any, ...]] = {
    "multiclass classification": ("a", "b"),
    "multilabel classification": (["a", "b"], ["b"], []),
    "metric learning": ("somebody", "another"),
    "regression": (0.5, 3),
    "scene text recognition": (["1", "2"], []),
    "object detection": ([{"category": "a", "bbox": [0, 0, 1, 1]}], [{"category": "b", "bbox": [0, 0, 1, 1]}], []),
    "quadrilateral detection": ([{"category": "a", "quad": [[0, 0], [1, 0], [1, 1], [0, 1]], "crowd": True}], []),
    "keypoint detection": ([{"nose": [1, 1], "ear": None}], []),
    "instance segmentation": (
        {"map": "annotations/0.tiff", "bytes": 1, "categories": ["a"], "crowd": [1]},
        {"map": "annotations/1.tiff", "bytes": 1, "categories": []},
    ),
    "semantic segmentation": (
        {"map": "annotations/0.png", "bytes": 1, "categories": ["a", "b"]},
        {"map": "annotations/1.png", "bytes": 1, "categories": ["b"]},
    ),
    "panoptic segmentation": ({"map": "annotations/0.tiff", "bytes": 1},),
    "depth estimation": ({"map": "annotations/0.png", "bytes": 1},),
    "anomaly detection": ("normal", None),
    "autoencoding": (None,),
    "view-invariance learning": (None,),
}


def images(counts: Mapping[str, int]) -> dict[str, str]:
    return {f"{category}-{index}.png": category for category, count in counts.items() for index in range(count)}


def split(annotations: Mapping[str, Any], share: float, seed: int = 0, *, task: str = "multiclass classification"):
    return validation_names([HeadAnnotations(task=task, annotations=annotations)], share, seed)


def image_labels(heads: list[HeadAnnotations]) -> dict[str, set[Label]]:
    found: dict[str, set[Label]] = defaultdict(set)
    for index, head in enumerate(heads):
        for name, annotation in head.annotations.items():
            if annotation is not None:
                found[name].update(labels_of(index, RULES[head.task], annotation))
    return found


def test_every_category_keeps_its_share_to_within_one_image() -> None:
    strata = images({"a": 144, "b": 33, "c": 7, "d": 1000})
    taken = Counter(strata[name] for name in split(strata, 0.2))
    for category, count in {"a": 144, "b": 33, "c": 7, "d": 1000}.items():
        assert abs(taken[category] - 0.2 * count) < 1


def test_many_small_categories_keep_the_share_in_all() -> None:
    strata = images({f"c{index}": 2 for index in range(500)})
    assert len(split(strata, 0.2)) == pytest.approx(200, abs=35)


def test_a_category_never_loses_its_last_training_image() -> None:
    strata = images({"a": 1, "b": 2, "c": 100})
    taken = Counter(strata[name] for name in split(strata, 0.99))
    assert taken["a"] == 0
    assert taken["b"] <= 1


def test_the_choice_depends_on_names_annotations_and_seed_alone() -> None:
    strata = images({"a": 50, "b": 50})
    backwards = dict(reversed(strata.items()))
    assert split(strata, 0.3, 5) == split(backwards, 0.3, 5)
    assert split(strata, 0.3, 5) != split(strata, 0.3, 6)


def test_an_image_that_is_added_moves_at_most_one_other_of_its_category() -> None:
    before = images({"a": 100, "b": 40})
    after = {**before, "new.png": "a"}
    chosen, chosen_after = split(before, 0.2), split(after, 0.2)
    assert len((chosen ^ chosen_after) - {"new.png"}) <= 1
    assert {name for name in chosen if before[name] == "b"} == {name for name in chosen_after if after[name] == "b"}


def test_two_images_are_one_to_learn_from_and_one_to_validate_on() -> None:
    assert len(split({"a.png": "a", "b.png": "b"}, 0.001)) == 1
    assert not split({"a.png": "a"}, 0.5)


def test_the_table_has_every_task() -> None:
    names = {name.removeprefix("TASK_").replace("_", " ").lower() for name in task_pb2.Task.keys()[1:]}
    assert {name.replace("-", " ") for name in RULES} == names
    assert set(ANNOTATIONS) == set(RULES)


@pytest.mark.parametrize("task", RULES)
def test_images_of_every_task_are_split_and_the_unlabelled_ones_only_where_images_alone_are_enough(task: str) -> None:
    kinds = ANNOTATIONS[task]
    annotations = {f"{index}.png": kinds[index % len(kinds)] for index in range(200)}
    if task == "metric learning":
        annotations = {f"{index}.png": f"identity {index % 50}" for index in range(200)}
    nothing_known = {f"unlabelled-{index}.png": None for index in range(200)}
    chosen = split(annotations | nothing_known, 0.25, task=task)
    if RULES[task].images_alone:
        assert len(chosen) == pytest.approx(100, abs=2)
    else:
        assert chosen <= set(annotations)
        assert len(chosen) == pytest.approx(50, abs=4 if task == "metric learning" else 3)


def test_crowds_count_and_what_is_to_be_ignored_does_not() -> None:
    found = [{"category": "a", "crowd": True}, {"category": "b", "ignore": True}]
    labels = labels_of(0, RULES["object detection"], found)
    assert [label.name for label in labels if label.kind == CATEGORY] == ["a"]


@settings(max_examples=60, deadline=None)
@given(identities=st.lists(st.integers(0, 12), min_size=1, max_size=60), share=st.floats(0.05, 0.95))
def test_all_images_of_an_identity_are_on_one_side(identities: list[int], share: float) -> None:
    annotations = {f"{index}.png": f"identity {identity}" for index, identity in enumerate(identities)}
    chosen = split(annotations, share, task="metric learning")
    sides = defaultdict(set)
    for name, identity in annotations.items():
        sides[identity].add(name in chosen)
    assert all(len(side) == 1 for side in sides.values())
    sizes = Counter(annotations.values())
    several = [next(iter(sides[identity])) for identity, count in sizes.items() if count > 1]
    if len(several) > 1:  # a query that can be found is on each side
        assert set(several) == {True, False}
    assert len(chosen) < len(annotations)
    assert chosen or len(sizes) == 1


def test_an_image_that_is_added_to_an_identity_goes_to_its_side_and_moves_no_other() -> None:
    annotations = {f"{identity}-{index}.png": f"{identity}" for identity in range(40) for index in range(5)}
    chosen = split(annotations, 0.25, task="metric learning")
    assert len(chosen) == 50
    for identity in ("3", "17", "39"):
        after = split({**annotations, "new.png": identity}, 0.25, task="metric learning")
        assert after - {"new.png"} == chosen
        assert ("new.png" in after) == (f"{identity}-0.png" in chosen)


def test_identities_of_two_heads_that_share_images_stay_together() -> None:
    people = {f"{index}.png": f"person {index // 2}" for index in range(40)}
    rooms = {f"{index}.png": f"room {(index + 1) // 4}" for index in range(40)}
    heads = [HeadAnnotations(task="metric learning", annotations=each) for each in (people, rooms)]
    assert not validation_names(heads, 0.5, 0)  # one chain of people and rooms: nothing can be taken from it
    apart = [heads[0], HeadAnnotations(task="metric learning", annotations={name: people[name] for name in people})]
    chosen = validation_names(apart, 0.5, 0)
    assert 0 < len(chosen) < 40
    assert all((f"{index}.png" in chosen) == (f"{index + 1}.png" in chosen) for index in range(0, 40, 2))


def test_labelled_anomalies_are_validated_on_unless_another_head_learns_from_their_images() -> None:
    states = {f"{index}.png": "anomalous" if index % 10 == 0 else "normal" for index in range(100)}
    anomaly = HeadAnnotations(task="anomaly detection", annotations=states)
    chosen = validation_names([anomaly], 0.1, 0)
    anomalous = {name for name, state in states.items() if state == "anomalous"}
    assert anomalous < chosen
    assert len(chosen - anomalous) == pytest.approx(9, abs=1)
    kinds = HeadAnnotations(task="multiclass classification", annotations=dict.fromkeys(["0.png", "10.png"], "a"))
    also = validation_names([anomaly, kinds], 0.1, 0)
    assert anomalous - {"0.png", "10.png"} < also
    assert len(also & {"0.png", "10.png"}) == 1


def test_each_partly_annotated_head_has_images_on_both_sides() -> None:
    heads = [
        HeadAnnotations(task="multiclass classification", annotations=images({"a": 300, "b": 100})),
        HeadAnnotations(task="regression", annotations={f"a-{index}.png": index / 3 for index in range(3)}),
        HeadAnnotations(task="depth estimation", annotations={"b-1.png": {"map": "annotations/b-1.png", "bytes": 9}}),
        HeadAnnotations(task="autoencoding", annotations=dict.fromkeys([*images({"a": 300}), "alone.png"])),
    ]
    chosen = validation_names(heads, 0.1, 0)
    assert 0 < len(chosen & heads[1].annotations.keys()) < 3
    assert "b-1.png" not in chosen
    assert len(chosen) == pytest.approx(40, abs=4)


OBJECTS = st.lists(st.sampled_from(CATEGORIES), max_size=4).map(lambda names: [{"category": name} for name in names])
SETS = st.lists(st.sampled_from(CATEGORIES), max_size=4, unique=True)
NAMES = st.integers(0, 200).map(lambda index: f"{index}.png")
HEADS = st.tuples(
    st.dictionaries(NAMES, st.none() | OBJECTS, max_size=60),
    st.dictionaries(NAMES, st.none() | SETS, max_size=60),
    st.dictionaries(NAMES, st.sampled_from([None, *CATEGORIES]), max_size=60),
).map(
    lambda found: [
        HeadAnnotations(task="object detection", annotations=found[0]),
        HeadAnnotations(task="multilabel classification", annotations=found[1]),
        HeadAnnotations(task="multiclass classification", annotations=found[2]),
    ]
)


@settings(max_examples=150, deadline=None)
@given(heads=HEADS, share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_every_label_trains_and_is_validated_on_where_that_leaves_others_something_to_learn(
    heads: list[HeadAnnotations], share: float, seed: int
) -> None:
    labels = image_labels(heads)
    chosen = validation_names(heads, share, seed)
    assert chosen <= labels.keys()
    assert (0 < len(chosen) < len(labels)) or (len(labels) < 2 and not chosen)
    by_label: dict[Label, set[str]] = defaultdict(set)
    for name, found in labels.items():
        for label in found:
            by_label[label].add(name)
    trained = {label: names - chosen for label, names in by_label.items()}
    lonely = set().union(*(names for names in by_label.values() if len(names) == 1))
    last = {next(iter(names)) for names in trained.values() if len(names) == 1}
    for label, names in by_label.items():
        one_by_one = heads[label.head].task == "multiclass classification" and label.kind == CATEGORY
        if not chosen <= lonely or len(chosen) > 1:  # else there was nothing to take but a label's only image
            assert trained[label], "a label lost its last training image"
        if not one_by_one and not names & chosen:
            assert names <= last, "a label could be validated on, and is not"


@settings(max_examples=100, deadline=None)
@given(heads=HEADS, added=HEADS, share=st.floats(0.05, 0.5))
def test_an_image_that_is_added_moves_at_most_two_others_and_two_for_each_of_its_labels(
    heads: list[HeadAnnotations], added: list[HeadAnnotations], share: float
) -> None:
    """Each category has a dozen images of its own, so that no label's first image is the last one of another."""
    own = {f"own-{name}-{index}.png": name for name in CATEGORIES for index in range(12)}
    own_of_heads = [
        {name: [{"category": value}] for name, value in own.items()},
        {f"labels-{name}": [value] for name, value in own.items()} | {f"none-{index}": [] for index in range(12)},
        {f"kinds-{name}": value for name, value in own.items()},
    ]
    own_of_heads[0] |= {f"nothing-{index}": [] for index in range(12)}
    new = [{f"new-{name}": value for name, value in head.annotations.items()} for head in added]
    few, many = [], []
    for head, base, more in zip(heads, own_of_heads, new, strict=True):
        few.append(HeadAnnotations(task=head.task, annotations={**base, **head.annotations}))
        many.append(HeadAnnotations(task=head.task, annotations={**base, **head.annotations, **more}))
    before, after = validation_names(few, share, 0), validation_names(many, share, 0)
    added_labels = [found for name, found in image_labels(many).items() if name.startswith("new-")]
    moved = {name for name in before ^ after if not name.startswith("new-")}
    assert len(moved) <= sum(2 + 2 * len(found) for found in added_labels)


def test_a_tenth_more_images_moves_less_than_one_in_a_hundred() -> None:
    """Sets of categories as in photographs: a few that are everywhere, many that are rare."""

    def objects(index: int) -> list[dict[str, str]]:
        return [{"category": str(rank)} for rank in range(1, 60) if (index * 2654435761 >> 7) % (rank * rank + 3) == 0]

    annotations = {f"{index}.png": objects(index) for index in range(2_200)}
    before = split(
        {f"{index}.png": annotations[f"{index}.png"] for index in range(2_000)}, 0.2, task="object detection"
    )
    after = split(annotations, 0.2, task="object detection")
    assert len({name for name in before ^ after if int(name.removesuffix(".png")) < 2_000}) < 20
    taken = Counter(found["category"] for name in after for found in annotations[name])
    every = Counter(found["category"] for objects in annotations.values() for found in objects)
    assert all(taken[category] for category, count in every.items() if count > 1)
    assert all(abs(taken[category] / count - 0.2) < 0.08 for category, count in every.items() if count > 100)
    assert len(after) == pytest.approx(440, abs=45)
