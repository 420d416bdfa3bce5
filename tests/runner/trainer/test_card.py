"""The model card beside a finished model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from runner.report import COMMAND_STOP, CheckpointWritten, Points, Report
from runner.trainer.card import CARD_JSON, CARD_MARKDOWN, CARD_SAMPLES
from tests.runner.trainer.conftest import Workshop, spec_from


def test_a_finished_model_says_what_it_is_and_an_unfinished_one_has_no_card(
    workshop: Workshop, halves: dict[str, str]
) -> None:
    training = workshop.write_dataset({"side": halves})
    spec = spec_from(trainer={"iterations_max": 30, "validations": 3})
    attempt = workshop.write_attempt(training, spec, validation=training, dataset_fingerprint="abc123")
    outcome = workshop.run(attempt)
    *others, last = (Path(each.folder) for each in outcome.of(CheckpointWritten))
    assert others
    assert not any((folder / CARD_JSON).exists() for folder in others)
    card = json.loads((last / CARD_JSON).read_text())
    assert (card["job"], card["iteration"]) == ("projects/halves/jobs/one", 30)
    assert card["dataset_fingerprint"] == "abc123"
    assert card["heads"]["side"]["task"] == "multiclass classification"
    assert card["heads"]["side"]["vocabulary"]["categories"] == ["left", "right", "top", "bottom"]
    assert card["versions"]["torch"]
    assert card["configuration"]["trainer"]["iterations_max"] == "30"
    best = card["selection"]["best_iteration"]
    assert card["selection"]["series"] == "side/valid/accuracy"
    for name, value in card["selection"]["metrics"].items():
        assert value == pytest.approx(outcome.series(name)[best])
    for name, value in card["final_metrics"].items():
        assert value == pytest.approx(outcome.series(name)[30])
    text = (last / CARD_MARKDOWN).read_text()
    assert text.startswith("# projects/halves/jobs/one\n")
    assert "| side | multiclass classification | categories: left, right, top, bottom |" in text
    assert f"best after step {best}" in text
    assert CARD_SAMPLES in text
    assert Image.open(last / CARD_SAMPLES).width > 100


def test_a_job_that_was_stopped_has_no_card(workshop: Workshop, halves: dict[str, str]) -> None:
    def tell(report: Report) -> str | None:
        return COMMAND_STOP if isinstance(report, Points) and report.step >= 2 else None

    outcome = workshop.run(workshop.write_attempt(workshop.write_dataset({"side": halves}), spec_from()), tell=tell)
    (written,) = outcome.of(CheckpointWritten)
    assert not (Path(written.folder) / CARD_MARKDOWN).exists()
