"""The learning rate: a pure function of the iteration and the specification, so a resumed job needs no state for it."""

from __future__ import annotations

import math

from sihlai.scheduler.v1 import job_spec_pb2


def rate_factor(iteration: int, trainer: job_spec_pb2.Trainer) -> float:
    """The factor of the peak rate in the step that follows `iteration` steps; `iteration` counts from 0."""
    if trainer.WhichOneof("schedule") == "multi_step":
        return _multi_step(iteration, trainer.multi_step, trainer.iterations_max)
    return _one_cycle(iteration, trainer.one_cycle, trainer.iterations_max)


def peak_rate(trainer: job_spec_pb2.Trainer) -> float:
    """The highest rate that the optimizer's message names."""
    return trainer.sgd.learning_rate if trainer.WhichOneof("optimizer") == "sgd" else trainer.adamw.learning_rate


def validation_iterations(trainer: job_spec_pb2.Trainer) -> frozenset[int]:
    """The numbers of steps after which the model is validated: spread evenly, the last at the end."""
    count = trainer.validations
    spread = (_round(trainer.iterations_max * number, count) for number in range(1, count + 1))
    return frozenset(iteration for iteration in spread if iteration > 0)


def _multi_step(iteration: int, schedule: job_spec_pb2.MultiStep, iterations_max: int) -> float:
    # The first step already moves: a rate of exactly 0 would be a step thrown away.
    warmup = min(1.0, (iteration + 1) / (schedule.warmup_iterations + 1))
    falls = sum(iteration >= share * iterations_max for share in schedule.milestones)
    return float(warmup * schedule.factor**falls)


def _one_cycle(iteration: int, schedule: job_spec_pb2.OneCycle, iterations_max: int) -> float:
    way = min(1.0, iteration / max(1, iterations_max - 1))  # 0 in the first step, 1 in the last
    peak = schedule.warmup_share
    if way <= peak and peak > 0:
        return _half_cosine(schedule.initial_factor, 1.0, way / peak)
    return _half_cosine(1.0, schedule.final_factor, (way - peak) / (1.0 - peak))


def _half_cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * way)) / 2.0


def _round(numerator: int, denominator: int) -> int:
    """The quotient to the nearest whole number, halves upwards, without a float's error."""
    return (2 * numerator + denominator) // (2 * denominator)
