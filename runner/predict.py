"""A checkpoint's model, used on images: `python -m runner.predict --checkpoint FOLDER IMAGES… [--json] [--draw TO]`.

Needs nothing but the checkpoint's folder (model.safetensors and config.json). Images go through the decoder and the
letterbox of the training, so the model sees what it learned to see; what is predicted is in the pixels of the image.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import torch

from runner.tasks.task import Prediction
from runner.trainer.checkpoint import read_config, read_weights
from runner.trainer.failure import Failure, checkpoint_failure
from runner.trainer.image import BYTE_MAX, canvas_from_data, read_on_canvas
from runner.trainer.model import build_model
from runner.trainer.preparation import choose_device
from runner.trainer.view import View
from services.chassis.image import FULL_RANGE, ImageRange, UnreadableImage, read_image

BATCH_SIZE_MAX = 64
BATCH_PIXELS_MAX = 4_000_000
"""Of the canvases of one batch: maps have a number for each category in each pixel."""
READERS = 2
"""Threads that decode images; decoding frees the interpreter's lock."""
_Read: TypeAlias = tuple[torch.Tensor, View] | str
"""An image on the canvas, or why it cannot be read."""
EXIT_CODE_UNREADABLE = 1
EXIT_CODE_FAILED = 2


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What each head says about one image, by head id; or why the image cannot be read."""

    image: Path
    heads: Mapping[str, Prediction]
    error: str | None = None
    image_range: ImageRange = FULL_RANGE

    def write_drawn(self, folder: Path, stem: str) -> dict[str, dict[str, str]]:
        """Write pictures of the predictions, and the maps among them as the native format has them; paths by head."""
        files: dict[str, dict[str, str]] = {}
        if self.error is not None:
            return files
        image = read_image(self.image, image_range=self.image_range)
        for head_id, prediction in self.heads.items():
            drawn = folder / f"{stem}.{head_id}.png"
            prediction.draw(image).save(drawn)
            files[head_id] = {"drawn": str(drawn)}
            content = prediction.map_file()
            if content is not None:
                path = folder / f"{stem}.{head_id}.map{prediction.map_suffix}"
                path.write_bytes(content)
                files[head_id]["map"] = str(path)
        return files


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

    def predict(self, paths: Sequence[Path]) -> Iterator[Predicted]:
        """What is predicted for each image, in their order. Batches are full, whatever cannot be read."""
        size = min(BATCH_SIZE_MAX, max(1, BATCH_PIXELS_MAX // (self._canvas.width * self._canvas.height)))
        waiting: list[tuple[Path, _Read]] = []
        with ThreadPoolExecutor(READERS, "reader") as threads:
            # A batch is read while the one before is computed; not all at once, which would take all memory.
            rest = iter(paths)
            ahead = deque((path, threads.submit(self._read, path)) for path in islice(rest, 2 * size))
            while ahead:
                path, read = ahead.popleft()
                waiting.append((path, read.result()))
                ahead.extend((path, threads.submit(self._read, path)) for path in islice(rest, 1))
                if sum(not isinstance(found, str) for _, found in waiting) == size or not ahead:
                    yield from self._predict_batch(waiting)
                    waiting = []

    def _read(self, path: Path) -> _Read:
        try:
            return read_on_canvas(path, self._canvas)
        except UnreadableImage as error:
            return str(error)

    def _predict_batch(self, read: Sequence[tuple[Path, _Read]]) -> Iterator[Predicted]:
        pictures = [found[0] for _, found in read if not isinstance(found, str)]
        views = [found[1] for _, found in read if not isinstance(found, str)]
        heads: dict[str, Iterator[Prediction]] = {}
        if pictures:
            with torch.inference_mode():
                floats = torch.stack(pictures).to(self._device).float().div_(BYTE_MAX)
                decoded = self._model.decoded(self._model(floats.contiguous(memory_format=torch.channels_last)))
            for head_id, head in self._model.heads.items():
                found = {name: tensor.cpu() for name, tensor in decoded[head_id].items()}
                heads[head_id] = iter(head.predictions(found, views))
        for path, said in read:
            if isinstance(said, str):
                yield Predicted(image=path, heads={}, error=said)
            else:
                told = {head_id: next(each) for head_id, each in heads.items()}
                yield Predicted(image=path, heads=told, image_range=self._canvas.image_range)


def main() -> int:
    """Predict what the flags name; the exit code is 0 if every image could be read."""
    parser = argparse.ArgumentParser(prog="python -m runner.predict", description="Use a checkpoint's model on images.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of a line for each head")
    parser.add_argument("--draw", type=Path, help="folder for pictures of the predictions, and for maps")
    parser.add_argument("--list", choices=("-",), help="read image files from standard input, a NUL behind each")
    parser.add_argument("images", type=Path, nargs="*", help="image files")
    arguments = parser.parse_args()
    if arguments.list is not None:
        arguments.images += [Path(os.fsdecode(name)) for name in sys.stdin.buffer.read().split(b"\0") if name]
    if not arguments.images:
        parser.error("images are wanted")
    complete = True
    try:
        predictor = Predictor(arguments.checkpoint, arguments.device)
        if arguments.draw is not None:
            arguments.draw.mkdir(parents=True, exist_ok=True)
        stems = distinct_stems(arguments.images)
        for found, stem in zip(predictor.predict(arguments.images), stems, strict=True):
            files = {} if arguments.draw is None else found.write_drawn(arguments.draw, stem)
            complete &= found.error is None
            _tell(found, files, as_json=arguments.json)
    except Failure as failure:
        sys.stderr.write(f"{failure.message}\n")
        return EXIT_CODE_FAILED
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return EXIT_CODE_FAILED
    return 0 if complete else EXIT_CODE_UNREADABLE


def distinct_stems(images: Sequence[Path]) -> list[str]:
    """A name for each image's files: its stem, with a number where several have the same one."""
    seen: Counter[str] = Counter()
    stems = []
    for image in images:
        seen[image.stem] += 1
        stems.append(image.stem if seen[image.stem] == 1 else f"{image.stem}.{seen[image.stem]}")
    return stems


def _tell(found: Predicted, files: Mapping[str, Mapping[str, str]], *, as_json: bool) -> None:
    if as_json:
        described = {
            "image": str(found.image),
            "error": found.error,
            "heads": {head_id: {**each.to_json(), **files.get(head_id, {})} for head_id, each in found.heads.items()},
            "summaries": {head_id: each.summary() for head_id, each in found.heads.items()},
        }
        sys.stdout.write(json.dumps(described, ensure_ascii=False) + "\n")
    elif found.error is not None:
        sys.stderr.write(f"{found.image} {found.error}\n")
    else:
        for head_id, each in found.heads.items():
            sys.stdout.write(f"{found.image}\t{head_id}\t{each.summary()}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
