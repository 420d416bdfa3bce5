"""Findings: what is wrong with a dataset, all of it in one pass.

A finding never stops the pass. `Report` counts every one and keeps the first so many; whether a dataset with errors is
refused is decided by who asked, once the pass is over.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field, replace

VALUE_CHARACTERS_MAX = 120
"""A value is cut to this in a finding."""


class Severity(enum.StrEnum):
    """How bad it is: a warning is legal and perhaps not what was meant."""

    WARNING = "warning"
    ERROR = "error"


class Action(enum.StrEnum):
    """What was done about it."""

    REFUSED = "refused"
    DROPPED = "dropped"
    REPAIRED = "repaired"
    KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something stands: a file of the dataset, a line from 1 (0: the file has none), the image it is about."""

    file: str
    line: int = 0
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing. `rule` is a stable word; `index` is the position in the image's list, -1 where there is none."""

    severity: Severity
    rule: str
    message: str
    place: Place
    index: int = -1
    value: str = ""
    action: Action

    def __str__(self) -> str:
        """One line for a message."""
        where = f"{self.place.file}:{self.place.line}" if self.place.line else self.place.file
        return f"{where}: {self.message}" if where else self.message


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """How much was left out for one reason."""

    rule: str
    annotations: int
    images: int


@dataclass(kw_only=True)
class Report:
    """Collects findings. `lenient`: what has an error is dropped and counted, otherwise the dataset is refused."""

    findings_max: int
    lenient: bool = False
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[Severity] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    fatal: bool = False
    """Something is wrong that leaves nothing to drop: also the lenient refuse the dataset."""
    annotations_dropped: int = 0
    """Of all images and for all reasons."""
    dropped_by_rule: Counter[str] = field(default_factory=Counter)
    images_by_rule: dict[str, set[str]] = field(default_factory=dict)
    """Images that lost annotations."""

    def fail(self, rule: str, message: str, place: Place, *, value: str = "") -> None:
        """An error without which nothing of the dataset, or of this annotation set, can be understood."""
        self.fatal = True
        self.add(Severity.ERROR, rule, message, place, value=value, action=Action.REFUSED)

    def error(
        self, rule: str, message: str, place: Place, *, index: int = -1, value: str = "", annotations: int = 1
    ) -> None:
        """An error whose `annotations` are left out where the pass is lenient."""
        action = Action.DROPPED if self.lenient else Action.REFUSED
        self.add(Severity.ERROR, rule, message, place, index=index, value=value, action=action)
        self.drop(rule, place.image, annotations)

    def warn(
        self, rule: str, message: str, place: Place, *, index: int = -1, value: str = "", action: Action = Action.KEPT
    ) -> None:
        """Something legal that is perhaps not what was meant."""
        self.add(Severity.WARNING, rule, message, place, index=index, value=value, action=action)

    def drop(self, rule: str, image: str, annotations: int) -> None:
        """Count annotations of an image that are left out, without a finding."""
        if annotations:
            self.annotations_dropped += annotations
            self.dropped_by_rule[rule] += annotations
            self.images_by_rule.setdefault(rule, set()).add(image)

    def add(
        self,
        severity: Severity,
        rule: str,
        message: str,
        place: Place,
        *,
        index: int = -1,
        value: str = "",
        action: Action,
    ) -> None:
        """Count a finding, and keep it while there is room."""
        self.counts[severity] += 1
        self.rules[rule] += 1
        if len(self.findings) < self.findings_max:
            self.findings.append(
                Finding(
                    severity=severity,
                    rule=rule,
                    message=message,
                    place=place,
                    index=index,
                    value=shortened(value),
                    action=action,
                )
            )

    def merge(self, other: Report, *, prefix: str = "") -> None:
        """Take over everything that another report has collected; `prefix` says of which dataset its files are."""
        self.counts.update(other.counts)
        self.rules.update(other.rules)
        self.fatal |= other.fatal
        self.annotations_dropped += other.annotations_dropped
        self.dropped_by_rule.update(other.dropped_by_rule)
        for rule, images in other.images_by_rule.items():
            self.images_by_rule.setdefault(rule, set()).update(images)
        room = max(0, self.findings_max - len(self.findings))
        for each in other.findings[:room]:
            place = replace(each.place, file=prefix + each.place.file) if prefix else each.place
            self.findings.append(replace(each, place=place) if prefix else each)

    def take(self) -> Report:
        """What was collected so far, as a report of its own; this one is empty afterwards."""
        taken = replace(self)
        self.findings = []
        self.counts, self.rules, self.dropped_by_rule = Counter(), Counter(), Counter()
        self.images_by_rule = {}
        self.fatal = False
        self.annotations_dropped = 0
        return taken

    def replay(self, findings: list[Finding]) -> None:
        """Take over findings of an earlier pass, such as the index's."""
        for each in findings:
            if each.severity is Severity.ERROR:
                self.error(each.rule, each.message, each.place, index=each.index, value=each.value, annotations=0)
            else:
                self.warn(each.rule, each.message, each.place, value=each.value, action=each.action)

    @property
    def errors(self) -> int:
        """Errors so far, those not kept included."""
        return self.counts[Severity.ERROR]

    @property
    def warnings(self) -> int:
        """Warnings so far, those not kept included."""
        return self.counts[Severity.WARNING]

    @property
    def omitted(self) -> int:
        """Findings that were counted and not kept."""
        return self.counts.total() - len(self.findings)

    def refuses(self) -> bool:
        """Whether the dataset is refused."""
        return self.fatal or (self.errors > 0 and not self.lenient)

    def dropped(self) -> tuple[Dropped, ...]:
        """What was left out, by rule."""
        return tuple(
            Dropped(rule=rule, annotations=count, images=len(self.images_by_rule[rule]))
            for rule, count in sorted(self.dropped_by_rule.items())
        )


def shortened(value: str) -> str:
    """A value for a finding: one line, cut with a mark."""
    text = value if value.isprintable() else repr(value)[1:-1]
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"
