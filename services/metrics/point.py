"""Points, their series, and which of them count.

An attempt that goes on from a checkpoint logs steps again that an earlier attempt has logged. Nothing is overwritten: a
row of an attempt counts if and only if its step lies below the first step of every later attempt that has logged
(`Cuts`). Series named `system/…` go by time and are exempt. Standard library and errors only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.chassis.errors import Violation

NAME_CHARACTERS_MAX = 256
CONTEXT_ENTRIES_MAX = 16
SYSTEM_PREFIX = "system/"
RANK_KEY = "rank"
"""In the context of the series of every process but the first."""
SELECTED_SERIES_MAX = 1_000
"""Series of one answer with points or buckets."""
SELECTOR_NAMES_MAX = 1_000
SELECTOR_PATTERNS_MAX = 100
SELECTOR_PATTERN_CHARACTERS_MAX = 4_096


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesDefinition:
    """What a series is. `context` is sorted by key, so that equal series compare equal."""

    series_id: int
    name: str
    context: tuple[tuple[str, str], ...]
    unit: str

    @property
    def is_system(self) -> bool:
        """Whether the series goes by time: its order, its last point and its buckets; and no cut concerns it."""
        return self.name.startswith(SYSTEM_PREFIX)


def series_id_of(job_uid: str, name: str, context: Iterable[tuple[str, str]]) -> int:
    """The same wherever it is made: 8 bytes, little-endian, of sha256; every text is followed by a zero byte."""
    texts = [job_uid, name]
    for key, value in sorted(context):
        texts += [key, value]
    digest = hashlib.sha256(b"".join(text.encode() + b"\0" for text in texts)).digest()
    return int.from_bytes(digest[:8], "little")


def definition_violations(definition: SeriesDefinition, *, job_uid: str, field: str, rank: int = 0) -> list[Violation]:
    """Everything that is wrong with a definition of a writer of this rank.

    A series is one process's: points of two with one step, attempt and message number would have no order.
    """
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
    if rank > 0 and dict(definition.context).get(RANK_KEY) != str(rank):
        description = f"has no {RANK_KEY!r} of {rank}, but the writer is of this rank: its series carry it"
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

    @property
    def exact_names(self) -> tuple[str, ...]:
        """The names without a star."""
        return tuple(name for name in self.names if "*" not in name)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names with one."""
        return tuple(name for name in self.names if "*" in name)

    def matches(self, definition: SeriesDefinition) -> bool:
        """Whether the series is meant. For one at a time: very many are chosen by ClickHouse, in the same way."""
        if self.names and not any(matches_pattern(definition.name, name) for name in self.names):
            return False
        has = dict(definition.context)
        return all(has.get(key) == value for key, value in self.context)


def selector_violations(selector: Selector, *, field: str) -> list[Violation]:
    """Everything that makes a selector too large to be matched against very many series."""
    problems = []
    patterns = selector.patterns
    characters = sum(map(len, patterns))
    if len(selector.names) > SELECTOR_NAMES_MAX:
        description = f"has {len(selector.names)} names, but {SELECTOR_NAMES_MAX} is the most: name fewer"
        problems.append(Violation(field=f"{field}.names", description=description))
    if len(patterns) > SELECTOR_PATTERNS_MAX or characters > SELECTOR_PATTERN_CHARACTERS_MAX:
        description = (
            f"has {len(patterns)} names with a star, of {characters} characters in all, but at most "
            f"{SELECTOR_PATTERNS_MAX} of {SELECTOR_PATTERN_CHARACTERS_MAX} characters are taken: name fewer"
        )
        problems.append(Violation(field=f"{field}.names", description=description))
    if len(selector.context) > CONTEXT_ENTRIES_MAX:
        description = f"has {len(selector.context)} entries, but no series has more than {CONTEXT_ENTRIES_MAX}"
        problems.append(Violation(field=f"{field}.context", description=description))
    texts = [*selector.names, *(text for pair in selector.context for text in pair)]
    if any("\0" in text or len(text) > NAME_CHARACTERS_MAX for text in texts):
        description = f"holds a text above {NAME_CHARACTERS_MAX} characters or with a zero character: no series has one"
        problems.append(Violation(field=field, description=description))
    return problems


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


def logged_from_steps(from_steps: Mapping[int, int], logged: Collection[int]) -> dict[int, int]:
    """What makes `Cuts`: the first steps of those attempts that have logged a point of a series that goes by step.

    An attempt that has opened its writer, or sent system metrics alone, hides nothing of the attempts before it.
    """
    return {attempt: step for attempt, step in from_steps.items() if attempt in logged}


class Cuts:
    """Where each attempt of a job stops to count: at the lowest first step of all later attempts that have logged."""

    def __init__(self, logged_from_steps: Mapping[int, int]) -> None:
        bounds: dict[int, int] = {}
        lowest: int | None = None
        for attempt in sorted(logged_from_steps, reverse=True):
            if lowest is not None:
                bounds[attempt] = lowest
            step = logged_from_steps[attempt]
            lowest = step if lowest is None else min(lowest, step)
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
    axis_min: int
    """Of the series' own axis: steps, or times where it goes by time."""
    axis_max: int
    time_min: int
    """Of all points of the attempt, also of those that do not count any more."""
    time_max: int
    last: float
    last_step: int
    last_time_unix_us: int
    minimum: float | None
    minimum_step: int
    maximum: float | None
    maximum_step: int
    nan_count: int
    positive_infinity_count: int
    negative_infinity_count: int


def merged_summary(by_attempt: Mapping[int, Summary]) -> Summary:
    """The summary of all attempts (at least one). At the same place the later attempt is the last."""
    return joined_summary([by_attempt[attempt] for attempt in sorted(by_attempt)])


def joined_summary(summaries: Sequence[Summary]) -> Summary:
    """The summary of at least one part. Of parts that reach equally far the one that comes later has the last point."""
    if len(summaries) == 1:
        return summaries[0]
    last = max(enumerate(summaries), key=lambda pair: (pair[1].axis_max, pair[0]))[1]
    lowest = [(s.minimum, s.minimum_step) for s in summaries if s.minimum is not None]
    highest = [(-s.maximum, s.maximum_step) for s in summaries if s.maximum is not None]
    minimum, minimum_step = min(lowest, default=(None, 0))
    negated, maximum_step = min(highest, default=(None, 0))
    return Summary(
        count=sum(s.count for s in summaries),
        axis_min=min(s.axis_min for s in summaries),
        axis_max=max(s.axis_max for s in summaries),
        time_min=min(s.time_min for s in summaries),
        time_max=max(s.time_max for s in summaries),
        last=last.last,
        last_step=last.last_step,
        last_time_unix_us=last.last_time_unix_us,
        minimum=minimum,
        minimum_step=minimum_step,
        maximum=None if negated is None else 0.0 - negated,
        maximum_step=maximum_step,
        nan_count=sum(s.nan_count for s in summaries),
        positive_infinity_count=sum(s.positive_infinity_count for s in summaries),
        negative_infinity_count=sum(s.negative_infinity_count for s in summaries),
    )
