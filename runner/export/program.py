"""What is exported: pictures in, what each head decodes out, with names; no letterbox, and no pixels of an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn

from runner.tasks.task import Vocabulary
from runner.trainer.checkpoint import read_config, read_weights
from runner.trainer.failure import checkpoint_failure
from runner.trainer.image import CHANNELS
from runner.trainer.model import Model, build_model

PICTURES = "pictures"
BATCH_TRACED = 2
BATCH_MAX = 4_096


class Program(nn.Module):
    """A model from pictures, batch x 3 x height x width, RGB from 0 to 1, to `{head}.{name}` of what is decoded."""

    def __init__(self, checkpoint_folder: Path) -> None:
        """Load a checkpoint, on the CPU. Raises Failure."""
        super().__init__()
        self.spec: job_spec_pb2.JobSpec
        self.vocabularies: list[Vocabulary]
        self.spec, self.vocabularies = read_config(checkpoint_folder)
        self.model: Model = build_model(self.spec.model, self.vocabularies)
        try:
            self.model.load_state_dict(read_weights(checkpoint_folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise checkpoint_failure(f"the weights do not fit the checkpoint's own config.json: {reason}") from error
        self.eval().requires_grad_(False)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """All heads' outputs by name."""
        decoded = self.model.decoded(self.model(pictures))
        return {f"{head_id}.{name}": tensor for head_id, found in decoded.items() for name, tensor in found.items()}

    def example(self, images: int = BATCH_TRACED) -> torch.Tensor:
        """Pictures of the size that the model takes."""
        return torch.zeros(images, CHANNELS, self.spec.data.height, self.spec.data.width)

    def shapes(self) -> Mapping[str, list[int]]:
        """The shape of each output without its batch."""
        with torch.inference_mode():
            return {name: list(tensor.shape[1:]) for name, tensor in self(self.example(1)).items()}


def traced(program: Program) -> torch.export.ExportedProgram:
    """The program as a graph, for batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=BATCH_MAX)
    return torch.export.export(program, (program.example(),), dynamic_shapes=({0: batch},))
