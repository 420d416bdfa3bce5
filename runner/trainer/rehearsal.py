"""A training step and a prediction on blank images before the first step: says what does not fit, and loses nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import Vocabulary
from runner.trainer.failure import trainer_failure
from runner.trainer.image import CHANNELS, canvas_from_data, view_of
from runner.trainer.model import Model
from runner.trainer.targets import Targets


def rehearse(
    model: Model, spec: job_spec_pb2.JobSpec, vocabularies: Sequence[Vocabulary], autocast: torch.autocast
) -> None:
    """Compute losses and gradients of a whole batch whose targets are crowded, as a step does; leave no trace.

    Where a batch is learned from in parts, those are the largest and the smallest one. And what one image alone would
    be said to be: the last batch of a validation may have no more.

    Raises Failure where the model cannot take such a batch. Memory that is not enough is raised as torch does.
    """
    device = next(model.parameters()).device
    canvas = canvas_from_data(spec.data)
    view = view_of(canvas.width, canvas.height, canvas)
    parts = min(spec.trainer.batch_size, max(1, spec.trainer.micro_batches))
    images, fewest = math.ceil(spec.trainer.batch_size / parts), spec.trainer.batch_size // parts
    tasks = [task_of(head.task) for head in spec.model.heads]
    targets = [
        Targets.of(task, [task.crowded(vocabulary, view)] * images)
        for task, vocabulary in zip(tasks, vocabularies, strict=True)
    ]
    size = (images * max(task.views for task in tasks), CHANNELS, canvas.height, canvas.width)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}  # norms learn from what passes them
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            pictures = torch.zeros(size, device=device).contiguous(memory_format=torch.channels_last)
            with autocast:
                outputs = model(pictures, images)
            losses = model.losses(outputs, [None if each is None else each.to(device) for each in targets])
            losses.total.backward()  # type: ignore[no-untyped-call]
            # AdamW will want two numbers more for each weight; what cannot be had is missing now.
            moments = [
                torch.empty_like(weight) for weight in model.parameters() if weight.requires_grad for _ in range(2)
            ]
            del moments
            with autocast:
                model(pictures[: len(pictures) * fewest // images], fewest)
            model.eval()
            with torch.inference_mode():
                model.decoded(model(pictures[: len(pictures) // images], 1))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        if "memory" in str(error):
            raise
        reason = " ".join(str(error).split())
        what = "data.height and data.width, or trainer.batch_size" if fewest == 1 else "data.height and data.width"
        raise trainer_failure(
            f"the model cannot take batches of {fewest} images of {canvas.height} x {canvas.width}, raise {what}:"
            f" {reason:.300}"
        ) from error
    finally:
        model.train()
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
