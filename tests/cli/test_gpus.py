"""GPUs are divided among the runners of one machine."""

from pathlib import Path

import pytest

from services.cli.machine.definitions import StackConfig, definitions
from services.cli.machine.gpus import TooFewGpusError, divided, gpus_to_use


@pytest.mark.parametrize(
    ("gpus", "runners", "shares"),
    [
        (["a", "b"], 2, [["a"], ["b"]]),
        (["a", "b", "c"], 2, [["a", "b"], ["c"]]),
        (["a"], 3, [["a"], [], []]),
        ([], 2, [[], []]),
        (["a", "b"], 1, [["a", "b"]]),
        (["a"], 0, []),
    ],
)
def test_no_gpu_has_two_runners(gpus: list[str], runners: int, shares: list[list[str]]) -> None:
    assert divided(gpus, runners) == shares


def test_more_runners_than_gpus_are_refused_where_each_wants_one(tmp_path: Path) -> None:
    config = StackConfig(data=tmp_path, runners=2, device="cuda")
    with pytest.raises(TooFewGpusError, match="2 runners want a GPU each, but 1 can be used: give --runners 1"):
        definitions(config, environ={"CUDA_VISIBLE_DEVICES": "0"}, mark="")
    environs = [
        each.environ["CUDA_VISIBLE_DEVICES"]
        for each in definitions(config, environ={"CUDA_VISIBLE_DEVICES": "0,2"}, mark="")
        if each.name.startswith("runner-")
    ]
    assert environs == ["0", "2"]


def test_what_the_environment_allows_is_what_is_divided() -> None:
    assert gpus_to_use({"CUDA_VISIBLE_DEVICES": "3, GPU-5f"}) == ["3", "GPU-5f"]
    assert gpus_to_use({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert gpus_to_use({"CUDA_VISIBLE_DEVICES": "-1"}) == []
