"""The split into training and validation."""

from collections import Counter

import pytest

from runner.trainer.split import validation_names


def images(counts: dict[str, int]) -> dict[str, str]:
    return {f"{category}-{index}.png": category for category, count in counts.items() for index in range(count)}


def test_every_category_keeps_its_share_to_within_one_image() -> None:
    strata = images({"a": 144, "b": 33, "c": 7, "d": 1000})
    taken = Counter(strata[name] for name in validation_names(strata, 0.2, 0))
    for category, count in {"a": 144, "b": 33, "c": 7, "d": 1000}.items():
        assert abs(taken[category] - 0.2 * count) < 1


def test_many_small_categories_keep_the_share_in_all() -> None:
    strata = images({f"c{index}": 2 for index in range(500)})
    assert len(validation_names(strata, 0.2, 0)) == pytest.approx(200, abs=35)


def test_a_category_never_loses_its_last_training_image() -> None:
    strata = images({"a": 1, "b": 2, "c": 100})
    taken = Counter(strata[name] for name in validation_names(strata, 0.99, 0))
    assert taken["a"] == 0
    assert taken["b"] <= 1


def test_the_choice_depends_on_names_and_seed_alone() -> None:
    strata = images({"a": 50, "b": 50})
    backwards = dict(reversed(strata.items()))
    assert validation_names(strata, 0.3, 5) == validation_names(backwards, 0.3, 5)
    assert validation_names(strata, 0.3, 5) != validation_names(strata, 0.3, 6)


def test_images_that_are_added_move_as_few_others_as_possible() -> None:
    before = images({"a": 100, "b": 40})
    after = {**before, "new.png": "a"}
    chosen, chosen_after = validation_names(before, 0.2, 0), validation_names(after, 0.2, 0)
    assert len((chosen ^ chosen_after) - {"new.png"}) <= 1
    assert {name for name in chosen if before[name] == "b"} == {name for name in chosen_after if after[name] == "b"}


def test_two_images_are_one_to_learn_from_and_one_to_validate_on() -> None:
    assert len(validation_names({"a.png": "a", "b.png": "b"}, 0.001, 0)) == 1
    assert not validation_names({"a.png": "a"}, 0.5, 0)
