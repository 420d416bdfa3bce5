"""The proofs of text and images alone in their short form: that they run, and say what they promise to say."""

from __future__ import annotations

import math

import pytest

from tests.bench.alone import PROOFS, results


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_in_its_short_form_says_every_metric_that_has_a_bar(name: str) -> None:
    found = {result.name.removeprefix(f"{name}: "): result for result in results(name, seeds=1, share=0.01)}
    assert set(PROOFS[name][1]) <= set(found)
    assert all(math.isfinite(result.value) for result in found.values())
    assert all(found[metric].holds in (True, False) for metric in PROOFS[name][1])
