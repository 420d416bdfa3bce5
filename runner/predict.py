"""A checkpoint's model, used on images: `python -m runner.predict --checkpoint FOLDER IMAGES… [--json]`.

Needs nothing but the checkpoint's folder (model.safetensors and config.json). Images go through the decoder and the
letterbox of the training, so the model sees what it learned to see.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.trainer.checkpoint import read_config, read_weights
from runner.trainer.failure import Failure, checkpoint_failure
from runner.trainer.image import canvas_from_data, letterbox
from runner.trainer.model import build_model, images_to_float
from runner.trainer.preparation import choose_device
from services.chassis.image import UnreadableImage, read_image

BATCH_SIZE_MAX = 64


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What each head says about one image, by head id; or why the image cannot be read."""

    image: str
    heads: dict[str, dict[str, Any]]
    error: str | None = None


class Predictor:
    """A trained model, ready for images."""

    def __init__(self, checkpoint_folder: Path, device: str = "auto") -> None:
        """Load a checkpoint. Raises Failure."""
        spec, vocabularies = read_config(checkpoint_folder)
        self._canvas = canvas_from_data(spec.data)
        self._device = choose_device(device)
        self._model = build_model(spec.model, vocabularies)
        try:
            self._model.load_state_dict(read_weights(checkpoint_folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise checkpoint_failure(f"the weights do not fit the checkpoint's own config.json: {reason}") from error
        self._model.to(self._device).eval()

    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        """A prediction for each image, in their order."""
        for start in range(0, len(paths), BATCH_SIZE_MAX):
            yield from self._predict_batch(paths[start : start + BATCH_SIZE_MAX])

    def _predict_batch(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        images: list[torch.Tensor] = []
        errors: dict[Path, str] = {}
        for path in paths:
            try:
                images.append(letterbox(read_image(path), self._canvas))
            except UnreadableImage as error:
                errors[path] = str(error)
        decoded: Iterator[tuple[dict[str, Any], ...]] = iter(())
        if images:
            with torch.inference_mode():
                outputs = self._model(images_to_float(torch.stack(images), self._device))
            heads = self._model.heads.items()
            decoded = zip(*(head.decode(outputs[head_id]) for head_id, head in heads), strict=True)
        for path in paths:
            if path in errors:
                yield Prediction(image=str(path), heads={}, error=errors[path])
            else:
                yield Prediction(image=str(path), heads=dict(zip(self._model.heads, next(decoded), strict=True)))


def main() -> int:
    """Predict what the flags name; the exit code is 0 if every image could be read."""
    parser = argparse.ArgumentParser(prog="python -m runner.predict", description="Use a checkpoint's model on images.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a line for each image and head")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    arguments = parser.parse_args()
    try:
        predictions = list(Predictor(arguments.checkpoint, arguments.device).predict(arguments.images))
    except Failure as failure:
        sys.stderr.write(f"{failure.message}\n")
        return 2
    if arguments.json:
        found = [{"image": each.image, "heads": each.heads, "error": each.error} for each in predictions]
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")
    else:
        for each in predictions:
            for head_id, value in each.heads.items():
                sys.stdout.write(f"{each.image}\t{head_id}\t{_shown(value)}\n")
    for each in predictions:
        if each.error is not None:
            sys.stderr.write(f"{each.image} {each.error}\n")
    return 1 if any(each.error is not None for each in predictions) else 0


def _shown(value: dict[str, Any]) -> str:
    """The simple values of a prediction, for a line at the terminal."""
    simple = {key: each for key, each in value.items() if not isinstance(each, dict | list)}
    return "\t".join(f"{each:.4f}" if isinstance(each, float) else str(each) for each in simple.values())


if __name__ == "__main__":
    sys.exit(main())
