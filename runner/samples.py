"""A contact sheet of samples: `python -m runner.samples --checkpoint FOLDER --sheet FILE [--head ID] [--images N]`.

Needs `samples.json` and `config.json` of a checkpoint. Each row is an image of one head: the truth, and beside it what
the model said after the checkpoint's steps, drawn as `runner.predict` draws.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.drawing import MARGIN, PLATE, with_lines
from runner.tasks.task import Task, Vocabulary, WrongAnnotation
from runner.trainer.checkpoint import read_config
from runner.trainer.failure import Failure, checkpoint_failure
from runner.trainer.samples import SAMPLES_FILE, SAMPLES_FORMAT
from runner.trainer.view import IDENTITY, View

TILE_PIXELS = 320
"""The longer side of a picture on the sheet, without its words."""
PAIRS_ACROSS = 3
IMAGES_DEFAULT = 12
EXIT_CODE_FAILED = 2


def main() -> int:
    """Draw the sheet that the flags name; the exit code is 0 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m runner.samples", description="Draw a checkpoint's samples.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--sheet", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--head", default="", help="only this head")
    parser.add_argument("--images", type=int, default=IMAGES_DEFAULT, help="so many images at most")
    arguments = parser.parse_args()
    try:
        pairs = list(drawn_pairs(arguments.checkpoint, arguments.head, arguments.images))
        if not pairs:
            raise checkpoint_failure(f"{SAMPLES_FILE} has no sample{f' of {arguments.head}' if arguments.head else ''}")
        contact_sheet(pairs).save(arguments.sheet)
    except Failure as failure:
        sys.stderr.write(f"{failure.message}\n")
        return EXIT_CODE_FAILED
    sys.stdout.write(f"{json.dumps({'sheet': str(arguments.sheet), 'pairs': len(pairs)})}\n")
    return 0


def drawn_pairs(checkpoint: Path, head: str, images_max: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Truth and prediction, head by head, drawn on the same picture. Raises Failure."""
    spec, vocabularies = read_config(checkpoint)
    try:
        content = (checkpoint / SAMPLES_FILE).read_bytes()
    except OSError as error:
        raise checkpoint_failure(f"{SAMPLES_FILE} of the checkpoint cannot be read: {error}") from error
    yield from drawn_pairs_of(spec, vocabularies, content, head, images_max)


def drawn_pairs_of(
    spec: job_spec_pb2.JobSpec, vocabularies: Sequence[Vocabulary], content: bytes, head: str, images_max: int
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """The same of the content of a samples.json. Raises Failure."""
    try:
        samples = json.loads(content)
        if samples["format"] != SAMPLES_FORMAT:
            raise checkpoint_failure(f"{SAMPLES_FILE} has format {samples['format']}, {SAMPLES_FORMAT} was wanted")
        with tempfile.TemporaryDirectory(prefix="sihlai-samples-") as temporary:
            folder = Path(temporary)
            _unpack(samples["files"], folder)
            for each, vocabulary in zip(spec.model.heads, vocabularies, strict=True):
                if head in ("", each.id):
                    known = [image for image in samples["images"] if each.id in image["heads"]][:images_max]
                    for image in known:
                        yield _pair(task_of(each.task), vocabulary, image, image["heads"][each.id], folder, each.id)
    except (OSError, ValueError, KeyError, TypeError, WrongAnnotation) as error:
        raise checkpoint_failure(f"{SAMPLES_FILE} of the checkpoint cannot be read: {error}") from error


def sample_pictures(content: bytes) -> list[Image.Image]:
    """The images of a samples.json, made small. Raises Failure."""
    try:
        samples = json.loads(content)
        files = [samples["files"][image["picture"]] for image in samples["images"]]
        return [Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB") for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise checkpoint_failure(f"{SAMPLES_FILE} of the checkpoint cannot be read: {error}") from error


def contact_sheet(pairs: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Pairs beside one another, rows below one another."""
    width = max(left.width + right.width for left, right in pairs) + 3 * MARGIN
    height = max(max(left.height, right.height) for left, right in pairs) + 2 * MARGIN
    across = min(PAIRS_ACROSS, len(pairs))
    sheet = Image.new("RGB", (across * width, -(-len(pairs) // across) * height), PLATE)
    for number, (left, right) in enumerate(pairs):
        x, y = number % across * width + MARGIN, number // across * height + MARGIN
        sheet.paste(left, (x, y))
        sheet.paste(right, (x + left.width + MARGIN, y))
    return sheet


def _unpack(files: Mapping[str, str], folder: Path) -> None:
    """Write the files of a samples.json, which is somebody else's: none of them outside the folder."""
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"{name!r:.100} is no plain path")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(base64.b64decode(content, validate=True))


def _pair(
    task: Task, vocabulary: Vocabulary, image: Mapping[str, Any], entry: Mapping[str, Any], folder: Path, head_id: str
) -> tuple[Image.Image, Image.Image]:
    width, height = int(image["width"]), int(image["height"])
    view = View(width=width, height=height, canvas_width=width, canvas_height=height, matrix=IDENTITY)
    picture = Image.open(io.BytesIO((folder / image["picture"]).read_bytes())).convert("RGB").resize((width, height))
    read = task.reader(vocabulary, folder)

    def drawn(annotation: Any, words: str) -> Image.Image:
        prediction = None if annotation is None else task.shown(vocabulary, read(annotation), view)
        found = with_lines(picture, [words]) if prediction is None else prediction.draw(picture)
        found.thumbnail((TILE_PIXELS, 2 * TILE_PIXELS))
        return with_lines(found, [])

    true = drawn(entry["true"], f"{head_id}, true: {entry['true']!r:.40}")
    return true, drawn(entry["said"], f"{head_id}, said: {entry['words']:.40}")


if __name__ == "__main__":
    sys.exit(main())
