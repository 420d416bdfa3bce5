"""Rates and validations are pure functions of the iteration."""

import pytest
from sihlai.scheduler.v1.job_spec_pb2 import MultiStep, OneCycle, Trainer

from runner.trainer.schedule import rate_factor, validation_iterations


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [
        (0, 0.04),  # the first step
        (25, 0.52),  # halfway up
        (50, 1.0),  # the peak
        (125, (1 + 0.0001) / 2),  # halfway down
        (200, 0.0001),  # the last step
    ],
)
def test_one_cycle_rises_and_falls_along_half_cosines(iteration: int, factor: float) -> None:
    schedule = OneCycle(warmup_share=0.25, initial_factor=0.04, final_factor=0.0001)
    assert rate_factor(iteration, Trainer(iterations_max=201, one_cycle=schedule)) == pytest.approx(factor)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_cycle_may_only_fall_or_only_rise(share: float) -> None:
    schedule = OneCycle(warmup_share=share, initial_factor=0.5, final_factor=0.1)
    trainer = Trainer(iterations_max=11, one_cycle=schedule)
    factors = [rate_factor(iteration, trainer) for iteration in range(11)]
    assert factors == sorted(factors, reverse=share == 0.0)
    assert max(factors) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 0.2), (1, 0.4), (4, 1.0), (59, 1.0), (60, 0.1), (84, 0.1), (85, 0.01), (99, 0.01)],
)
def test_multi_step_warms_up_and_falls_at_each_milestone(iteration: int, factor: float) -> None:
    schedule = MultiStep(warmup_iterations=4, milestones=[0.6, 0.85], factor=0.1)
    assert rate_factor(iteration, Trainer(iterations_max=100, multi_step=schedule)) == pytest.approx(factor)


def test_a_job_of_one_iteration_has_a_rate() -> None:
    schedule = OneCycle(warmup_share=0.25, initial_factor=0.04, final_factor=0.0001)
    assert rate_factor(0, Trainer(iterations_max=1, one_cycle=schedule)) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("iterations_max", "validations", "expected"),
    [
        (100, 4, {25, 50, 75, 100}),
        (10, 3, {3, 7, 10}),
        (2, 10, {1, 2}),  # more validations than steps: one after each step
        (7, 1, {7}),
        (7, 0, set()),
    ],
)
def test_validations_are_spread_evenly_and_the_last_is_at_the_end(
    iterations_max: int, validations: int, expected: set[int]
) -> None:
    assert validation_iterations(Trainer(iterations_max=iterations_max, validations=validations)) == expected
