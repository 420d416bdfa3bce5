"""`python -m runner.export --checkpoint FOLDER --format onnx --to FILE [IMAGES…]`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path

import safetensors.torch
import torch

from runner.export.excerpt import excerpt
from runner.export.metadata import KEY, metadata_of
from runner.export.program import PICTURES, Program, traced
from runner.samples import sample_pictures
from runner.tasks import task_of
from runner.trainer.failure import Failure, trainer_failure
from runner.trainer.image import BYTE_MAX, canvas_from_data, letterbox, read_on_canvas
from runner.trainer.samples import SAMPLES_FILE
from services.chassis.image import UnreadableImage

FORMATS = ("onnx", "pt2", "safetensors")
EXPORT_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
IMAGES_MADE = 5
SAMPLES_MAX = 8
"""Samples that an export is compared with PyTorch on."""
EXIT_CODE_FAILED = 2


def main() -> int:
    """Export what the flags name; the exit code is 0 if the file is there and was checked."""
    parser = argparse.ArgumentParser(prog="python -m runner.export", description="Export a checkpoint's model.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--to", type=Path, required=True, help="the file to write")
    parser.add_argument("images", type=Path, nargs="*", help="image files to compare the result with PyTorch on")
    arguments = parser.parse_args()
    try:
        said = export(arguments.checkpoint, arguments.format, arguments.to, arguments.images)
    except Failure as failure:
        sys.stderr.write(f"{failure.message}\n")
        return EXIT_CODE_FAILED
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return EXIT_CODE_FAILED
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


def export(checkpoint: Path, kind: str, to: Path, images: list[Path]) -> dict[str, object]:
    """Write a model's file, whole or not at all; what is said of it. Raises Failure."""
    if kind == "onnx":
        missing = [name for name in EXPORT_LIBRARIES if importlib.util.find_spec(name) is None]
        if missing:
            raise trainer_failure(f"ONNX needs {', '.join(missing)}: install sihlai[export]")
    program = Program(checkpoint)
    about = json.dumps(metadata_of(program), ensure_ascii=False)
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    said: dict[str, object] = {"file": str(to), "format": kind}
    try:
        if kind == "safetensors":
            weights = {name: tensor.contiguous() for name, tensor in program.model.state_dict().items()}
            safetensors.torch.save_file(weights, part, metadata={KEY: about})
        elif kind == "pt2":
            with part.open("wb") as file:
                torch.export.save(traced(program), file, extra_files={f"{KEY}.json": about})
        else:
            said |= _write_onnx(program, part, about, *_pictures(program, checkpoint, images))
            example = to.with_name(f"{to.stem}-example.py")
            example.write_text(excerpt(task_of(head.task).name for head in program.spec.model.heads))
            said["example"] = str(example)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)
    return said


def _write_onnx(program: Program, path: Path, about: str, pictures: torch.Tensor, what: str) -> dict[str, object]:
    import onnx

    from runner.export.check import check_onnx

    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = list(program.shapes())
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        program,
        (program.example(),),
        str(path),
        input_names=[PICTURES],
        output_names=names,
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: about})
    onnx.save(model, str(path))
    return {"checked_on": f"{len(pictures)} {what}", "dense_error_max": check_onnx(program, path, pictures)}


def _pictures(program: Program, checkpoint: Path, images: list[Path]) -> tuple[torch.Tensor, str]:
    """What the export is compared with PyTorch on, on the canvas, and what it is.

    The images that are given, else those of the checkpoint's samples, else made-up pictures.
    """
    canvas = canvas_from_data(program.spec.data)
    samples = checkpoint / SAMPLES_FILE
    if images:
        try:
            return _as_input([read_on_canvas(path, canvas)[0] for path in images]), "images"
        except UnreadableImage as error:
            raise trainer_failure(f"an image to check the export on {error}") from error
    if samples.is_file() and (found := sample_pictures(samples.read_bytes())[:SAMPLES_MAX]):
        return _as_input([letterbox(image, canvas) for image in found]), "samples of the training"
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES_MADE, 3, 4, 4, generator=generator)
    size = (canvas.height, canvas.width)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1), "made-up pictures"


def _as_input(pixels: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(pixels).float().div_(BYTE_MAX)


if __name__ == "__main__":
    sys.exit(main())
