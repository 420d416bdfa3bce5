"""The errors for datasets that are not converted as they are."""

from __future__ import annotations

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.finding import Report, Severity

REFUSAL_FINDINGS_MAX = 3
"""Findings that the error of a refused dataset quotes; ValidateDataset tells all."""


def refusal(uri: str, report: Report, *, hint: str = "ValidateDataset tells all") -> FailedPrecondition:
    """The dataset has errors, and the first ones are these; `hint` says what helps, if anything does."""
    errors = [each for each in report.findings if each.severity is Severity.ERROR][:REFUSAL_FINDINGS_MAX]
    quoted = "; ".join(str(each) for each in errors)
    more = f"; and {report.errors - len(errors)} more" if report.errors > len(errors) else ""
    count = f"{report.errors} error{'' if report.errors == 1 else 's'}"
    message = f"the dataset at {uri} has {count}{', ' if hint else ''}{hint}: {quoted}{more}"
    metadata = {"uri": uri, "errors": str(report.errors), "warnings": str(report.warnings)}
    metadata |= {f"finding_{number}": str(each) for number, each in enumerate(errors, start=1)}
    return FailedPrecondition(Reason.DATASET_INVALID, message, metadata)


def changed(uri: str, recorded: str, found: str) -> FailedPrecondition:
    """The dataset is not the one that was recorded."""
    message = (
        f"the dataset at {uri} was recorded with the fingerprint {recorded}, but has {found} now: it changed since"
    )
    return FailedPrecondition(Reason.DATASET_CHANGED, message, {"recorded": recorded, "found": found})
