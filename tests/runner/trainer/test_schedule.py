"""Rates and validations are pure functions of the iteration."""

from typing import Any

import pytest
from sihlai.scheduler.v1.job_spec_pb2 import MultiStep, OneCycle, Trainer

from runner.trainer.schedule import rate_factor, validations_due


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
    trainer = Trainer(iterations_max=iterations_max, validations=validations)
    due = [validations_due(iteration, trainer) for iteration in range(iterations_max + 1)]
    assert {step for step in range(1, iterations_max + 1) if due[step] > due[step - 1]} == expected
    assert due[-1] == validations


def test_validations_of_a_job_that_its_hours_end_are_spread_over_the_hours() -> None:
    trainer = Trainer(iterations_max=1_000_000, hours_max=2, validations=4)
    hours = (0.0, 0.49, 0.5, 0.99, 1.0, 1.5, 2.0, 2.1)
    assert [validations_due(10, trainer, each) for each in hours] == [0, 0, 1, 1, 2, 3, 4, 4]
    assert validations_due(500_000, trainer, 0.5) == 2  # what is further counts


@pytest.mark.parametrize(
    "schedule", [{"one_cycle": OneCycle(warmup_share=0.25)}, {"multi_step": MultiStep(factor=0.1)}]
)
def test_a_job_that_its_hours_end_comes_to_the_end_of_its_schedule(schedule: dict[str, Any]) -> None:
    if "multi_step" in schedule:
        schedule["multi_step"].milestones.extend([0.6, 0.85])
    trainer = Trainer(iterations_max=1_000_000, hours_max=2, **schedule)
    assert rate_factor(500, trainer, 0.5) == pytest.approx(1.0, abs=1e-3)
    assert rate_factor(1_000, trainer, 1.999) < 0.02
    few_steps = Trainer(iterations_max=1_001, hours_max=1_000, **schedule)
    assert rate_factor(1_000, few_steps, 0.1) < 0.02
