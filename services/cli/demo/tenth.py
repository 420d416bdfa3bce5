"""The demo's chapter on images alone: one digit in ten keeps its label, and a head that needs none learns beside.

Two jobs, with and without that head, see the same images, and are validated on digits that neither learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.cli.demo.audit import Audit
from services.cli.demo.digits import HEAD, Digit, write_dataset

PROJECT = "projects/tenth"
LABELLED_EVERY = 10
"""One in so many of the digits to train on keeps its label."""
VALIDATED_EVERY = 3
"""One in so many digits is validated on, with its label."""
ALONE = "alone"
ACCURACY = f"{HEAD}/valid/accuracy"
ACCURACY_MIN = 0.7
"""Whatever the other head is good for: ten categories from a dozen digits each are not guessed."""
WITHOUT: dict[str, Any] = {
    "display_name": "a tenth of the labels",
    "model": {"backbone": {"name": "tiny"}, "heads": [{"id": HEAD, "task": "TASK_MULTICLASS_CLASSIFICATION"}]},
    "data": {"height": 16, "width": 16},
    "trainer": {"iterations_max": 200, "validations": 8, "batch_size": 64, "adamw": {"learning_rate": 0.003}},
}
WITH: dict[str, Any] = {
    **WITHOUT,
    "display_name": "a tenth of the labels, and all images alone",
    "model": {
        **WITHOUT["model"],
        "heads": [
            *WITHOUT["model"]["heads"],
            {
                "id": ALONE,
                "task": "TASK_VIEW_INVARIANCE_LEARNING",
                "loss_weight": 0.3,
                "view_invariance_learning": {"embedding_size": 64},
            },
        ],
    },
}


def write_partly_labelled(digits: Sequence[Digit], training: Path, validation: Path) -> tuple[int, int, int]:
    """Write both datasets; how many digits train, how many of them have a label, and how many are validated on."""
    validated = digits[::VALIDATED_EVERY]
    trained = [digit for index, digit in enumerate(digits) if index % VALIDATED_EVERY]
    labels = [digit.category if index % LABELLED_EVERY == 0 else None for index, digit in enumerate(trained)]
    write_dataset(training, trained, labels)
    write_dataset(validation, validated, [digit.category for digit in validated])
    return len(trained), sum(label is not None for label in labels), len(validated)


def difference(without: float | None, besides: float | None, audit: Audit) -> str:
    """What the second head was good for, in a sentence; checks that both jobs learned from the labels there are."""
    shown = {"without it": without, "with it": besides}
    problems = [
        f"{name} wanted at least {ACCURACY_MIN:.0%}, found {'nothing' if value is None else f'{value:.2%}'}"
        for name, value in shown.items()
        if value is None or value < ACCURACY_MIN
    ]
    found = ", ".join(f"{name} {value:.2%}" for name, value in shown.items() if value is not None)
    audit.check("a tenth of the labels is learned from", found=found, problem="; ".join(problems))
    if without is None or besides is None:
        return "one of the two jobs was not validated"
    return (
        f"validation accuracy {without:.2%} without images alone, {besides:.2%} with them:"
        f" {100 * (besides - without):+.2f} points, of one seed"
    )
