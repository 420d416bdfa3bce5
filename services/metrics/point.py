"""Points, their series, and which of them count.

An attempt that goes on from a checkpoint logs steps again that an earlier attempt has logged. Nothing is overwritten: a
row of an attempt counts if and only if its step lies below the first step of every later attempt (`Cuts`). Series named
`system/…` go by time and are exempt. Standard library and errors only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.chassis.errors import Violation

NAME_CHARACTERS_MAX = 256
CONTEXT_ENTRIES_MAX = 16
SYSTEM_PREFIX = "system/"
SELECTED_SERIES_MAX = 1_000
WIDTH_MAX = 2**64 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesDefinition:
    """What a series is. `context` is sorted by key, so that equal series compare equal."""

    series_id: int
    name: str
    context: tuple[tuple[str, str], ...]
    unit: str

    @property
    def is_system(self) -> bool:
        """Whether the series goes by time, so that no cut concerns it."""
        return self.name.startswith(SYSTEM_PREFIX)


def series_id_of(job_uid: str, name: str, context: Iterable[tuple[str, str]]) -> int:
    """The same wherever it is made: 8 bytes, little-endian, of sha256; every text is followed by a zero byte."""
    texts = [job_uid, name]
    for key, value in sorted(context):
        texts += [key, value]
    digest = hashlib.sha256(b"".join(text.encode() + b"\0" for text in texts)).digest()
    return int.from_bytes(digest[:8], "little")


def definition_violations(definition: SeriesDefinition, *, job_uid: str, field: str) -> list[Violation]:
    """Everything that is wrong with a definition."""
    problems = []
    texts = [definition.name, definition.unit, *(text for pair in definition.context for text in pair)]
    if not definition.name:
        problems.append(Violation(field=f"{field}.name", description="is empty, but a series has a name"))
    if any("\0" in text or len(text) > NAME_CHARACTERS_MAX for text in texts):
        description = f"name, unit and context are at most {NAME_CHARACTERS_MAX} characters without a zero character"
        problems.append(Violation(field=field, description=description))
    if len(definition.context) > CONTEXT_ENTRIES_MAX:
        description = f"has {len(definition.context)} entries, but at most {CONTEXT_ENTRIES_MAX} are taken"
        problems.append(Violation(field=f"{field}.context", description=description))
    wanted = series_id_of(job_uid, definition.name, definition.context)
    if definition.series_id != wanted:
        description = f"is {definition.series_id}, but {definition.name!r} of this job has the id {wanted}"
        problems.append(Violation(field=f"{field}.series_id", description=description))
    return problems


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Which series are meant: by names, where `*` stands for any text, and by context values. Nothing means all."""

    names: tuple[str, ...] = ()
    context: tuple[tuple[str, str], ...] = ()

    def matches(self, definition: SeriesDefinition) -> bool:
        """Whether the series is meant."""
        if self.names and not any(matches_pattern(definition.name, name) for name in self.names):
            return False
        has = dict(definition.context)
        return all(has.get(key) == value for key, value in self.context)


def matches_pattern(name: str, pattern: str) -> bool:
    """Whether `pattern`, where `*` stands for any text, is the name. A regular expression could take ages."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    place, end = len(first), len(name) - len(last)
    for part in middle:
        # The first place is as good as any: what is left for the other parts is the longest.
        place = name.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


class Cuts:
    """Where each attempt of a job stops to count: at the lowest first step of all later attempts."""

    def __init__(self, from_steps: Mapping[int, int]) -> None:
        bounds: dict[int, int] = {}
        lowest: int | None = None
        for attempt in sorted(from_steps, reverse=True):
            if lowest is not None:
                bounds[attempt] = lowest
            lowest = from_steps[attempt] if lowest is None else min(lowest, from_steps[attempt])
        self._bounds = bounds

    @property
    def bounds(self) -> Mapping[int, int]:
        """The first step that no longer counts, by attempt; attempts that are not cut are not in it."""
        return self._bounds

    def bound(self, attempt: int) -> int | None:
        """The first step of the attempt that no longer counts; None where all count."""
        return self._bounds.get(attempt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Points in short: of one attempt, or of all. `minimum` and `maximum` are finite, or None where nothing is."""

    count: int
    step_min: int
    step_max: int
    last: float
    last_step: int
    minimum: float | None
    minimum_step: int
    maximum: float | None
    maximum_step: int
    nan_count: int
    positive_infinity_count: int
    negative_infinity_count: int


def merged_summary(by_attempt: Mapping[int, Summary]) -> Summary:
    """The summary of all attempts (at least one). At the same step the later attempt is the last."""
    summaries = [by_attempt[attempt] for attempt in sorted(by_attempt)]
    if len(summaries) == 1:
        return summaries[0]
    last = max(enumerate(summaries), key=lambda pair: (pair[1].last_step, pair[0]))[1]
    lowest = min((s for s in summaries if s.minimum is not None), key=_minimum, default=last)
    highest = max((s for s in summaries if s.maximum is not None), key=_maximum, default=last)
    return Summary(
        count=sum(s.count for s in summaries),
        step_min=min(s.step_min for s in summaries),
        step_max=max(s.step_max for s in summaries),
        last=last.last,
        last_step=last.last_step,
        minimum=lowest.minimum,
        minimum_step=lowest.minimum_step,
        maximum=highest.maximum,
        maximum_step=highest.maximum_step,
        nan_count=sum(s.nan_count for s in summaries),
        positive_infinity_count=sum(s.positive_infinity_count for s in summaries),
        negative_infinity_count=sum(s.negative_infinity_count for s in summaries),
    )


@dataclass(frozen=True, kw_only=True)
class BucketBounds:
    """Buckets of equal width over the steps from `first` to `last`, both included."""

    first: int
    last: int
    width: int

    @classmethod
    def over(cls, *, first: int, last: int, buckets_max: int) -> BucketBounds:
        """The narrowest buckets of which at most `buckets_max` cover the range."""
        width = -((first - last - 1) // buckets_max)  # whole numbers: a float would round large steps
        return cls(first=first, last=last, width=min(width, WIDTH_MAX))

    def first_step(self, bucket: int) -> int:
        """The bucket's first step."""
        return self.first + bucket * self.width

    def last_step(self, first_step: int) -> int:
        """The last step of the bucket that begins at `first_step`."""
        return min(self.last, first_step + self.width - 1)


def step_range(ranges: Iterable[tuple[Mapping[int, tuple[int, int]], Cuts]]) -> tuple[int, int] | None:
    """The first and the last step that count, of series with a first and last step by attempt; None where none does."""
    firsts, lasts = [], []
    for by_attempt, cuts in ranges:
        for attempt, (first, last) in by_attempt.items():
            bound = cuts.bound(attempt)
            if bound is None or first < bound:
                firsts.append(first)
                lasts.append(last if bound is None else min(last, bound - 1))
    return (min(firsts), max(lasts)) if firsts else None


def _minimum(summary: Summary) -> float:
    assert summary.minimum is not None
    return summary.minimum


def _maximum(summary: Summary) -> float:
    assert summary.maximum is not None
    return summary.maximum
