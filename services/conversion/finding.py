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
RULE_SHARE_MAX = 0.1
"""Of the findings that are kept, those of one rule: what repeats is counted, and hides nothing else."""
WARNINGS_SHARE_MAX = 0.5
"""Of the findings that are kept: whatever warns, there is room for errors."""
RULE_FINDINGS_MIN = 20
"""Of one rule, so many are kept however few there may be."""


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
    """Collects findings. `lenient`: what has an error is dropped and counted, otherwise the dataset is refused.

    Every finding is counted. Kept are at most `findings_max`: a share of them for each rule, a share for all warnings.
    """

    findings_max: int
    lenient: bool = False
    shared: bool = True
    """Rules share what is kept; otherwise the first findings are, whatever their rule."""
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
    images_with_errors: set[str] = field(default_factory=set)
    """Files that an error names; a map by its stem."""
    _kept: Counter[tuple[Severity, str]] = field(default_factory=Counter)
    """The findings that are kept, by severity and rule; under the rule "" those of the severity."""
    _seen: Counter[tuple[Severity, str]] = field(default_factory=Counter)

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
        if place.image:
            self.images_with_errors.add(encodable(place.image))

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
        """Count a finding, and keep it while there is room. Texts that no message can carry are written in ASCII."""
        place = place if is_encodable(place.file + place.image) else _encodable_place(place)
        message, value = encodable(message), encodable(value)
        self.counts[severity] += 1
        self.rules[rule] += 1
        self._seen[severity, rule] += 1
        if self._has_room(severity, rule):
            self._keep(
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
        self._seen.update(other._seen)
        self.fatal |= other.fatal
        self.annotations_dropped += other.annotations_dropped
        self.dropped_by_rule.update(other.dropped_by_rule)
        self.images_with_errors |= other.images_with_errors
        for rule, images in other.images_by_rule.items():
            self.images_by_rule.setdefault(rule, set()).update(images)
        for each in other.findings:
            if self._has_room(each.severity, each.rule):
                place = replace(each.place, file=prefix + each.place.file) if prefix else each.place
                self._keep(replace(each, place=place) if prefix else each)

    def _has_room(self, severity: Severity, rule: str) -> bool:
        """Whether one more finding is kept."""
        if not self.shared:
            return len(self.findings) < self.findings_max
        of_rule = max(RULE_FINDINGS_MIN, int(self.findings_max * RULE_SHARE_MAX))
        if len(self.findings) >= self.findings_max or self._kept[severity, rule] >= of_rule:
            return False
        warnings_max = max(1, int(self.findings_max * WARNINGS_SHARE_MAX))
        return severity is Severity.ERROR or self._kept[severity, ""] < warnings_max

    def _keep(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._kept[finding.severity, finding.rule] += 1
        self._kept[finding.severity, ""] += 1

    def take(self) -> Report:
        """What was collected so far, as a report of its own; this one is empty afterwards."""
        taken = replace(self)
        self.findings = []
        self.counts, self.rules, self.dropped_by_rule = Counter(), Counter(), Counter()
        self._kept, self._seen = Counter(), Counter()
        self.images_by_rule, self.images_with_errors = {}, set()
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

    def repeated(self) -> tuple[Finding, ...]:
        """For each rule of which not all findings are kept one that says how many more there are, errors first."""
        found = []
        for severity in (Severity.ERROR, Severity.WARNING):
            for (of, rule), seen in sorted(self._seen.items()):
                more = seen - self._kept[of, rule]
                if of is severity and more:
                    message = f"{more} more of {rule} {'is' if more == 1 else 'are'} not shown"
                    found.append(
                        Finding(severity=of, rule=rule, message=message, place=Place(file=""), action=Action.KEPT)
                    )
        return tuple(found)

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


def is_encodable(text: str) -> bool:
    """Whether a text is one for others: names of files that are not UTF-8 hold what stands for single bytes."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def encodable(text: str) -> str:
    """The text with what no message can carry as escapes: `caf\\udce9.png`."""
    return text if is_encodable(text) else text.encode("utf-8", "backslashreplace").decode()


def _encodable_place(place: Place) -> Place:
    return replace(place, file=encodable(place.file), image=encodable(place.image))


def shortened(value: str) -> str:
    """A value for a finding: one line, cut with a mark."""
    text = value if value.isprintable() else repr(value)[1:-1]
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"
