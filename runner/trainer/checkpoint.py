"""Checkpoints on the local disk: written whole or not at all, read without running anything that is in them.

A folder holds `model.safetensors` (weights alone), `state.pt` (what a resumed training needs besides), `config.json`
(what the weights are the weights of) and, where a validation went before, its samples. It appears under its name by a
rename, with every file synced before.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from google.protobuf import json_format
from safetensors import SafetensorError
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.tasks.task import Vocabulary
from runner.trainer.average import WeightAverage
from runner.trainer.failure import checkpoint_failure, runner_failure
from runner.trainer.optimizer import load_optimizer_state, state_bytes
from services.chassis.files import sync

STATE_FORMAT = 1
STATE_FORMAT_AVERAGED = 2
"""Of state.pt; it grows where an older reader would misread it. Averaged: model.safetensors holds the average of the
weights, and state.pt those that learn."""
WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
NAMES_SHOWN_MAX = 5
CHECKPOINTS_ON_DISK = 2
"""Room is wanted for so many: one is written while the one before it waits for its upload."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a training is. Everything else follows from it, the specification and the weights."""

    iteration: int = 0
    """Steps done."""
    training_seconds: float = 0.0
    """Summed over attempts."""
    places: int = 0
    """Places of the order of images that were taken; with one batch size throughout its product with the steps."""
    validated_iteration: int = 0
    """Steps done at the last whole validation; 0 before the first."""
    validated_seconds: float = 0.0
    """`training_seconds` there."""
    selection_value: float | None = None
    """The selection metric at the last whole validation."""
    best_iteration: int | None = None
    best_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A checkpoint that was loaded: where it goes on, and what is not as it was, in words."""

    position: Position
    differences: tuple[str, ...]


def checkpoint_bytes(model: nn.Module, average: WeightAverage | None, optimizer: torch.optim.Optimizer) -> int:
    """What the tensors of a checkpoint take: all weights, once more with an average, and the optimizer's state."""
    weights_bytes: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    return weights_bytes * (1 if average is None else 2) + state_bytes(optimizer)


def require_room(
    folder: Path, model: nn.Module, average: WeightAverage | None, optimizer: torch.optim.Optimizer
) -> None:
    """Raise Failure where the disk of the folder has no room for a training's checkpoints; it need not exist."""
    wanted_bytes = CHECKPOINTS_ON_DISK * checkpoint_bytes(model, average, optimizer)
    free_bytes = shutil.disk_usage(folder.parent).free
    if free_bytes < wanted_bytes:
        raise runner_failure(
            f"the runner's disk has {free_bytes} bytes free, but {CHECKPOINTS_ON_DISK} checkpoints of this model may"
            f" take {wanted_bytes}: use a runner with a larger disk"
        )


def write_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    average: WeightAverage | None = None,
    optimizer: torch.optim.Optimizer,
    position: Position,
    spec: job_spec_pb2.JobSpec,
    vocabularies: Sequence[Vocabulary],
    device: torch.device,
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint to `folder`, which must not exist. Raises Failure, and then leaves nothing behind.

    `more`: other files, by name.
    """
    config = _config(spec, vocabularies, position.iteration)
    state = {
        "format": STATE_FORMAT if average is None else STATE_FORMAT_AVERAGED,
        "position": asdict(position),
        "optimizer": optimizer.state_dict(),
        "random": _random_states(device),
        "circumstances": _circumstances(device),
        "config": json.dumps(config),
    }
    if average is not None:
        state["weights"] = _on_cpu(model)
    _write(folder, _on_cpu(model if average is None else average.model), config, state, more or {})


def write_model(
    folder: Path,
    *,
    model: nn.Module,
    iteration: int,
    spec: job_spec_pb2.JobSpec,
    vocabularies: Sequence[Vocabulary],
    more: Mapping[str, bytes],
) -> None:
    """Write a checkpoint that nothing can be resumed from: the model, and `more`. Raises Failure as the other does."""
    _write(folder, _on_cpu(model), _config(spec, vocabularies, iteration), None, more)


def _config(spec: job_spec_pb2.JobSpec, vocabularies: Sequence[Vocabulary], iteration: int) -> dict[str, Any]:
    return {
        "spec": json_format.MessageToDict(spec, preserving_proto_field_name=True),
        "vocabularies": {head.id: words for head, words in zip(spec.model.heads, vocabularies, strict=True)},
        "iteration": iteration,
        "versions": software_versions(),
    }


def _write(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    more: Mapping[str, bytes],
) -> None:
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        safetensors.torch.save_file(dict(weights), temporary / WEIGHTS_FILE)
        if state is not None:
            torch.save(state, temporary / STATE_FILE)
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        for name, content in more.items():
            (temporary / name).write_bytes(content)
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save says RuntimeError for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        reason = f"the checkpoint of step {config['iteration']} cannot be written to the runner's disk: {error}"
        raise runner_failure(reason) from error


def resume_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    average: WeightAverage | None = None,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    device: torch.device,
) -> Resumed:
    """Load weights, optimizer and random states into what was built for the same job. Raises Failure."""
    state = _read_state(folder)
    shown = read_weights(folder)
    try:
        model.load_state_dict(state.get("weights", shown))
        if average is not None:
            average.load(shown)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise checkpoint_failure(f"the checkpoint's weights are not this model's: {reason:.500}") from error
    try:
        before_spec = json.loads(state["config"])["spec"]["trainer"]
        batch_size_before = int(before_spec["batch_size"])
        found: dict[str, Any] = state["position"]
        position = Position(**{"places": found["iteration"] * batch_size_before, **found})
        misfit = load_optimizer_state(optimizer, state["optimizer"])
        _set_random_states(state["random"], device)
        before: Mapping[str, str] = state["circumstances"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise checkpoint_failure(f"{STATE_FILE} of the checkpoint lacks what a training needs: {error}") from error
    differences = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in _circumstances(device).items()
        if before.get(name) != value
    ]
    if batch_size != batch_size_before:
        differences.append(
            f"trainer.batch_size was {batch_size_before}, is {batch_size}: the order of the images goes on where it was"
        )
    if average is not None and "weights" not in state:
        differences.append("trainer.ema_decay was 0: the average begins with the weights as they are")
    if average is None and "weights" in state:
        differences.append("trainer.ema_decay is 0: the average is given up, and the weights that learned go on")
    if misfit:
        differences.append(f"{misfit}, so it begins anew")
    return Resumed(position=position, differences=tuple(differences))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights by name, on the CPU. Raises Failure."""
    try:
        weights: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise checkpoint_failure(f"{WEIGHTS_FILE} of the checkpoint cannot be read: {error}") from error
    return weights


def initialize_from(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Take the tensors whose name and shape the model has; lines that say what was taken and what was not."""
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    mismatched = [
        f"{name} {_shape(weights[name])} → {_shape(own[name])}"
        for name in weights
        if name in own and name not in fitting
    ]
    skipped = [name for name in weights if name not in own]
    fresh = [name for name in own if name not in weights]
    model.load_state_dict(fitting, strict=False)
    return [
        f"initialization: {len(fitting)} of the model's {len(own)} tensors were taken from the checkpoint",
        *_listed("of another shape, so not taken", mismatched),
        *_listed("of the checkpoint, which the model has no place for", skipped),
        *_listed("of the model, which the checkpoint lacks", fresh),
    ]


def read_config(folder: Path) -> tuple[job_spec_pb2.JobSpec, list[Vocabulary]]:
    """The specification and the heads' vocabularies, in the order of the heads. Raises Failure."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        spec = json_format.ParseDict(config["spec"], job_spec_pb2.JobSpec(), ignore_unknown_fields=True)
        return spec, [config["vocabularies"][head.id] for head in spec.model.heads]
    except (OSError, ValueError, KeyError, TypeError, json_format.ParseError) as error:
        raise checkpoint_failure(f"{CONFIG_FILE} of the checkpoint cannot be read: {error}") from error


def software_versions() -> dict[str, str]:
    """What computed the weights."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": metadata.version("torchvision"),
    }


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load documents no exceptions: a torn file is an OSError, RuntimeError, EOFError or UnpicklingError by turns.
    except Exception as error:
        raise checkpoint_failure(f"{STATE_FILE} of the checkpoint cannot be read: {error}") from error
    if state.get("format") not in (STATE_FORMAT, STATE_FORMAT_AVERAGED):
        wanted = f"{STATE_FORMAT} or {STATE_FORMAT_AVERAGED}"
        raise checkpoint_failure(f"{STATE_FILE} has format {state.get('format')}, {wanted} was wanted")
    return state


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _circumstances(device: torch.device) -> dict[str, str]:
    """What must be the same for a resumed training to compute the same to the last bit."""
    return {
        **software_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return [f"initialization: {len(names)} tensors {what}: {', '.join(names[:NAMES_SHOWN_MAX])}{more}"]


def _on_cpu(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
