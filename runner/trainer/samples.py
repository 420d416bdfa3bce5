"""Samples: a few validation images, always the same ones, with what is true and what the model says of them.

`samples.json` lies beside a checkpoint's weights. Truth and prediction are annotations in the normalised form, the
prediction's with scores; maps are files of the same JSON, as are the images, made small. So whoever has it can draw it
(`runner.samples` does) when dataset and runner are long gone.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from runner.tasks.task import Prediction
from runner.trainer.view import View

SAMPLES_FILE = "samples.json"
SAMPLES_FORMAT = 1
"""Grows when the file changes so that an older reader would misread it."""
IMAGES_MAX = 32
PICTURE_SIDE_MAX = 256
"""Pixels of the longer side of a picture in the file."""
PICTURE_QUALITY = 80
FILE_BYTES_MAX = 4 * 2**20
"""Of the file: images that would make it larger are left out."""


@dataclass(frozen=True, kw_only=True)
class HeadTruth:
    """What the annotations of one head say, by image, as in annotations.json; paths of maps begin in `folder`."""

    folder: Path
    annotations: Mapping[str, Any]


class Samples:
    """What is gathered in one validation. Used from the thread that evaluates."""

    def __init__(self, names: Sequence[str], heads: Mapping[str, HeadTruth]) -> None:
        """`names` are those of the validation images: some of them, evenly spread, are the samples."""
        count = min(IMAGES_MAX, len(names))
        self._chosen = frozenset(names[place * len(names) // count] for place in range(count))
        self._heads = heads
        self._images: dict[str, dict[str, Any]] = {}
        self._files: dict[str, str] = {}
        self._bytes = 0

    def wants(self, name: str) -> bool:
        """Whether an image is one of the samples."""
        return name in self._chosen

    def add(self, name: str, head_id: str, prediction: Prediction, picture: torch.Tensor, view: View) -> None:
        """What a head says of an image; `picture` is as the model saw it, uint8, 3 x height x width."""
        truth = self._heads[head_id]
        files: dict[str, bytes] = {}
        image = self._images.get(name)
        if image is None:
            image = {"name": name, "width": view.width, "height": view.height, "picture": f"{name}.jpg", "heads": {}}
            files[image["picture"]] = _jpeg(picture, view)
        true = truth.annotations.get(name)
        if isinstance(true, Mapping) and isinstance(true.get("map"), str):
            path = truth.folder / true["map"]
            place = f"{head_id}/true/{path.name}"
            files[place] = path.read_bytes()
            kept = {key: value for key, value in true.items() if key in ("crowd", "ignore")}
            true = {"map": place, **kept}
        said = prediction.annotation()
        content = prediction.map_file()
        if content is not None:
            place = f"{head_id}/said/{Path(name).stem}{prediction.map_suffix}"
            files[place] = content
            said = {"map": place}
        entry = {"true": true, "said": said, "words": prediction.summary()}
        encoded = {place: base64.b64encode(content).decode() for place, content in files.items()}
        try:
            size = len(json.dumps(entry, allow_nan=False)) + sum(map(len, encoded.values()))
        except ValueError:  # the model says what is no number: its losses tell of it
            return
        if self._bytes + size > FILE_BYTES_MAX:
            return
        self._bytes += size
        self._files |= encoded
        self._images[name] = image
        image["heads"][head_id] = entry

    def content(self, iteration: int) -> bytes:
        """The file."""
        images = [self._images[name] for name in sorted(self._images)]
        found = {"format": SAMPLES_FORMAT, "iteration": iteration, "images": images, "files": self._files}
        return json.dumps(found, ensure_ascii=False, allow_nan=False).encode()


def _jpeg(picture: torch.Tensor, view: View) -> bytes:
    """The image as it lies on the canvas, without what was padded."""
    a, _, c, _, e, f = view.matrix
    left, top = round(c), round(f)
    shown = picture[:, top : top + max(1, round(view.height * e)), left : left + max(1, round(view.width * a))]
    image = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((PICTURE_SIDE_MAX, PICTURE_SIDE_MAX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=PICTURE_QUALITY)
    return file.getvalue()
