"""What the demo checks about itself."""

import pytest

from services.cli.demo.audit import Audit, numbering_problem, same_problem


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ([1, 2, 3], ""),
        ([3, 1, 2], ""),
        ([1, 3], "1 missing (2)"),
        ([1, 2, 2, 3], "1 doubled (2)"),
        ([1, 2, 3, 4], "1 too many (4)"),
        ([2, 2], "2 missing (1, 3), 1 doubled (2)"),
    ],
)
def test_each_number_must_be_there_once(found: list[int], problem: str) -> None:
    assert numbering_problem(found, range(1, 4)) == problem


def test_a_message_names_a_few_numbers_of_many() -> None:
    assert numbering_problem([], range(100)) == "100 missing (0, 1, 2, 3, 4, …)"


def test_what_was_seen_must_be_what_is_stored_in_its_order() -> None:
    assert same_problem("it", [(1,), (2,)], [(1,), (2,)]) == []
    assert same_problem("it", [(2,), (1,)], [(1,), (2,)]) == ["it saw another order"]
    assert same_problem("it", [(1,), (1,)], [(1,), (2,)]) == ["it missed 1 and saw 1 too many"]


def test_only_what_does_not_hold_is_a_problem() -> None:
    audit = Audit()
    audit.check("one", found="1")
    audit.check("two", found="2", problem="wanted 3, found 2")
    assert audit.problems == ["two: wanted 3, found 2"]
