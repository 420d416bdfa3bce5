"""What a head of multilabel classification does with its own options."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import json_format
from sihlai.scheduler.v1.job_spec_pb2 import Head as HeadSpecification
from torch.nn import functional

from runner.tasks.multilabel_classification import MultilabelClassification
from runner.tasks.task import Head, WrongAnnotation

VOCABULARY = {"labels": ["a", "b", "c"]}


def head(**parameters: object) -> Head:
    specification = HeadSpecification()
    json_format.ParseDict({"multilabel_classification": parameters}, specification)
    return MultilabelClassification().head(specification, VOCABULARY, {3: 8})


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_label_weighs_what_the_specification_says(asymmetric: bool) -> None:
    logits = torch.randn(4, 3)
    targets = {"present": torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])}

    def loss(**weights: float) -> torch.Tensor:
        return head(label_weights=weights, asymmetric=asymmetric).loss({"logits": logits}, targets)["labels"]

    torch.testing.assert_close(loss(b=3.0), loss() + 2 * loss(a=0.0, c=0.0))
    if not asymmetric:
        torch.testing.assert_close(loss(), functional.binary_cross_entropy_with_logits(logits, targets["present"]))
    with pytest.raises(WrongAnnotation, match="names 'd', which is no label"):
        head(label_weights={"d": 2.0})
