"""The demo's chapter on a tenth of the labels: its datasets and jobs are what they say, and so is the difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli.demo import tenth
from services.cli.demo.audit import Audit
from services.cli.demo.digits import write_digits
from services.scheduler.specification import violations


@pytest.mark.parametrize("spec", [tenth.WITHOUT, tenth.WITH])
def test_the_jobs_are_sound(spec: dict[str, object]) -> None:
    assert violations(json_format.ParseDict(spec, JobSpec())) == []


def test_one_digit_in_ten_has_a_label_and_none_is_on_both_sides(tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "digits")
    training, validation = tmp_path / "training", tmp_path / "validation"
    counts = tenth.write_partly_labelled(digits, training, validation)
    known = yaml.safe_load((training / "annotations.yaml").read_text())
    others = yaml.safe_load((validation / "annotations.yaml").read_text())
    assert counts == (len(known), sum(label is not None for label in known.values()), len(others))
    assert counts == (1198, 120, 599)
    assert not known.keys() & others.keys()
    truth = {digit.path.name: digit.category for digit in digits}
    assert others == {name: truth[name] for name in others}
    assert all(label in (None, truth[name]) for name, label in known.items())
    for folder, labels in ((training, known), (validation, others)):
        assert {path.name for path in (folder / "images").iterdir()} == labels.keys()


@pytest.mark.parametrize(
    ("without", "besides", "said", "problems"),
    [(0.9, 0.925, "+2.50 points", 0), (0.9, 0.88, "-2.00 points", 0), (0.9, 0.3, "-60.00", 1), (None, 0.9, "not", 1)],
)
def test_the_difference_is_said_as_it_is_whatever_it_is(
    without: float | None, besides: float | None, said: str, problems: int
) -> None:
    audit = Audit()
    assert said in tenth.difference(without, besides, audit)
    assert len(audit.problems) == problems
