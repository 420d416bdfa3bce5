"""Checkpoints are whole or not there, and run nothing when they are read."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from runner.trainer.average import WeightAverage
from runner.trainer.checkpoint import (
    Position,
    checkpoint_bytes,
    initialize_from,
    read_config,
    read_weights,
    resume_checkpoint,
    write_checkpoint,
)
from runner.trainer.failure import Failure, FailureReason
from runner.trainer.model import Model, build_model
from runner.trainer.optimizer import build_optimizer
from tests.runner.trainer.conftest import spec_from

VOCABULARIES = [{"categories": ["a", "b"]}]
CPU = torch.device("cpu")
BESIDES_TENSORS_BYTES_MAX = 2**16


def parts(seed: int) -> tuple[JobSpec, Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    spec = spec_from()
    model = build_model(spec.model, VOCABULARIES)
    return spec, model, build_optimizer(model, spec.trainer)


def write(folder: Path, position: Position) -> Model:
    spec, model, optimizer = parts(1)
    write_checkpoint(
        folder,
        model=model,
        optimizer=optimizer,
        position=position,
        spec=spec,
        vocabularies=VOCABULARIES,
        device=CPU,
    )
    return model


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    position = Position(iteration=7, training_seconds=1.5, validated_iteration=5, selection_value=0.5, best_value=0.75)
    written = write(tmp_path / "7", position)
    drawn = torch.rand(3)
    _, model, optimizer = parts(2)
    resumed = resume_checkpoint(tmp_path / "7", model=model, optimizer=optimizer, batch_size=8, device=CPU)
    assert resumed.position == position
    assert resumed.differences == ()
    assert torch.equal(torch.rand(3), drawn)
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    spec, vocabularies = read_config(tmp_path / "7")
    assert spec == spec_from()
    assert vocabularies == VOCABULARIES
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["7", "config.json", "model.safetensors", "state.pt"]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("frozen_levels", [0, 3])
@pytest.mark.parametrize("optimizer", [{"adamw": {}}, {"sgd": {"momentum": 0.9}}, {"sgd": {"momentum": 0}}], ids=str)
def test_the_room_that_is_wanted_is_what_is_written(
    tmp_path: Path, optimizer: dict[str, Any], frozen_levels: int, averaged: bool
) -> None:
    spec = spec_from(
        model={"backbone": {"name": "tiny", "frozen_levels": frozen_levels}}, trainer={"adamw": None, **optimizer}
    )
    model = build_model(spec.model, VOCABULARIES)
    average = WeightAverage(model, 0.5) if averaged else None
    built = build_optimizer(model, spec.trainer)
    wanted_bytes = checkpoint_bytes(model, average, built)
    model(torch.rand(4, 3, 16, 16))["side"]["logits"].square().sum().backward()
    built.step()
    write_checkpoint(
        tmp_path / "1",
        model=model,
        average=average,
        optimizer=built,
        position=Position(iteration=1),
        spec=spec,
        vocabularies=VOCABULARIES,
        device=CPU,
    )
    taken_bytes = sum((tmp_path / "1" / name).stat().st_size for name in ("model.safetensors", "state.pt"))
    assert wanted_bytes <= taken_bytes <= wanted_bytes + BESIDES_TENSORS_BYTES_MAX


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match="the checkpoint of step 7 cannot be written") as failure:
        write(tmp_path / "file" / "7", Position(iteration=7))
    assert failure.value.reason is FailureReason.RUNNER_FAULT
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "old").write_text("somebody's")
    with pytest.raises(Failure):
        write(tmp_path / "8", Position(iteration=8))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["8", "file", "old"]


class Intruder:
    def __reduce__(self) -> Any:
        return (Path("intruded").write_text, ("x",))


@pytest.mark.parametrize("damage", ["torn state", "torn weights", "no state", "a program in the state"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "7"
    write(folder, Position(iteration=7))
    state, weights = folder / "state.pt", folder / "model.safetensors"
    match damage:
        case "torn state":
            state.write_bytes(state.read_bytes()[:1000])
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no state":
            state.unlink()
        case "a program in the state":
            state.write_bytes(pickle.dumps(Intruder(), protocol=2))
    _, model, optimizer = parts(2)
    with pytest.raises(Failure, match="of the checkpoint cannot be read") as failure:
        resume_checkpoint(folder, model=model, optimizer=optimizer, batch_size=8, device=CPU)
    assert failure.value.reason is FailureReason.CHECKPOINT_ERROR
    assert not Path("intruded").exists()


def test_the_weights_of_another_model_are_refused_for_a_resume(tmp_path: Path) -> None:
    write(tmp_path / "7", Position(iteration=7))
    spec = spec_from()
    model = build_model(spec.model, [{"categories": ["a", "b", "c"]}])
    optimizer = build_optimizer(model, spec.trainer)
    with pytest.raises(Failure, match="the checkpoint's weights are not this model's"):
        resume_checkpoint(tmp_path / "7", model=model, optimizer=optimizer, batch_size=8, device=CPU)


def test_initialization_takes_what_fits_and_says_what_does_not(tmp_path: Path) -> None:
    written = write(tmp_path / "7", Position(iteration=7))
    other = spec_from(model={"heads": [{"id": "side", "task": 1}, {"id": "new", "task": 1}]})
    model = build_model(other.model, [{"categories": ["a", "b", "c"]}, {"categories": ["x"]}])
    weights = {**read_weights(tmp_path / "7"), "head-gone.linear.bias": torch.zeros(2)}
    lines = "\n".join(initialize_from(model, weights))
    assert "18 of the model's 22 tensors were taken" in lines
    assert "head-side.linear.weight 2x128 → 3x128" in lines
    assert "which the model has no place for: head-gone.linear.bias" in lines
    assert "which the checkpoint lacks: head-new.linear.weight, head-new.linear.bias" in lines
    assert torch.equal(next(model.backbone.parameters()), next(written.backbone.parameters()))
