"""The learning rate: a pure function of iteration, hours and specification, so a resumed job needs no state for it."""

from __future__ import annotations

import math

from sihlai.scheduler.v1 import job_spec_pb2


def rate_factor(iteration: int, trainer: job_spec_pb2.Trainer, hours: float = 0.0) -> float:
    """The factor of the peak rate in the step that follows `iteration` steps and so many hours of training.

    The larger of the share of the iterations and the share of the hours counts, so that a job which its hours end
    comes to the end of its schedule too.
    """
    hours_share = hours / trainer.hours_max if trainer.hours_max > 0 else 0.0
    if trainer.WhichOneof("schedule") == "multi_step":
        return _multi_step(iteration, hours_share, trainer.multi_step, trainer.iterations_max)
    way = max(iteration / max(1, trainer.iterations_max - 1), hours_share)  # 0 in the first step, 1 in the last
    return _one_cycle(min(1.0, way), trainer.one_cycle)


def peak_rate(trainer: job_spec_pb2.Trainer) -> float:
    """The highest rate that the optimizer's message names."""
    return trainer.sgd.learning_rate if trainer.WhichOneof("optimizer") == "sgd" else trainer.adamw.learning_rate


def validations_due(iteration: int, trainer: job_spec_pb2.Trainer, hours: float = 0.0) -> int:
    """How many of the validations are due after so many steps and hours.

    They are spread evenly over the steps, each at the nearest whole one, the last at the end; and over the hours, where
    those are further: a job which its hours end is validated, and saved, on the way too.
    """
    count = trainer.validations
    # The largest k for which iterations_max * k / count, to the nearest whole number, halves upwards, is reached.
    by_steps = (count * (2 * iteration + 1) - 1) // (2 * trainer.iterations_max)
    by_hours = int(count * hours / trainer.hours_max) if trainer.hours_max > 0 else 0
    return min(count, max(by_steps, by_hours))


def _multi_step(iteration: int, hours_share: float, schedule: job_spec_pb2.MultiStep, iterations_max: int) -> float:
    # The first step already moves: a rate of exactly 0 would be a step thrown away.
    warmup = min(1.0, (iteration + 1) / (schedule.warmup_iterations + 1))
    falls = sum(iteration >= share * iterations_max or hours_share >= share for share in schedule.milestones)
    return float(warmup * schedule.factor**falls)


def _one_cycle(way: float, schedule: job_spec_pb2.OneCycle) -> float:
    peak = schedule.warmup_share
    if way <= peak and peak > 0:
        return _half_cosine(schedule.initial_factor, 1.0, way / peak)
    return _half_cosine(1.0, schedule.final_factor, (way - peak) / (1.0 - peak))


def _half_cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * way)) / 2.0
