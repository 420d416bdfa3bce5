"""A model's predictions, computed by a process of the runner's: this one has no torch."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.error import CommandError
from services.cli.machine.process import PYTHON

MODEL_FILES = ("model.safetensors", "config.json")
"""What of a checkpoint a prediction needs."""
SILENCE_SECONDS_MAX = 600.0
"""How long a prediction may take from one image to the next; loading a model and its libraries is in it."""
LINE_BYTES_MAX = 16 * 2**20
ERROR_LINES_MAX = 100
EXIT_CODE_UNREADABLE = 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one image, by head; or why the image cannot be read."""

    image: str
    heads: Mapping[str, Mapping[str, Any]]
    summaries: Mapping[str, str]
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """As `sihlai predict --json` says it."""
        return {"image": self.image, "error": self.error, "heads": self.heads}


async def predicted(
    model: Path, images: Sequence[Path], *, draw: Path | None = None, device: str = "auto"
) -> AsyncIterator[Prediction]:
    """The predictions for images, in their order, as they come; `draw` is a folder for pictures of them.

    `model` is a folder with MODEL_FILES. Raises CommandError where it cannot be used.
    """
    if importlib.util.find_spec("torch") is None:
        raise CommandError("a prediction needs the runner's libraries: install sihlai[runner]")
    words = ["-m", "runner.predict", "--checkpoint", str(model), "--device", device, "--json"]
    words += [] if draw is None else ["--draw", str(draw)]
    process = await asyncio.create_subprocess_exec(
        *PYTHON,
        *words,
        "--list",
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    # Not as arguments: of a folder's images there may be more than a command line takes.
    names = asyncio.create_task(_write(process.stdin, images))
    errors = asyncio.create_task(_last_lines(process.stderr))
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), SILENCE_SECONDS_MAX):
            yield Prediction(**json.loads(line))
        exit_code = await asyncio.wait_for(process.wait(), SILENCE_SECONDS_MAX)
        if exit_code not in (0, EXIT_CODE_UNREADABLE):
            last = next((text for text in reversed(await errors) if text.strip()), "it said nothing")
            raise CommandError(f"the prediction failed with exit code {exit_code}: {last.strip()}")
    except TimeoutError:
        raise CommandError(f"the model gave no prediction within {SILENCE_SECONDS_MAX:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        errors.cancel()
        names.cancel()


async def _last_lines(stream: asyncio.StreamReader) -> list[str]:
    lines: list[str] = []
    while line := await stream.readline():
        lines = [*lines[-ERROR_LINES_MAX:], line.decode(errors="replace")]
    return lines


async def _write(stream: asyncio.StreamWriter, images: Sequence[Path]) -> None:
    """The paths, each with a NUL behind it."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended, and says why
        stream.write(b"".join(os.fsencode(path) + b"\0" for path in images))
        await stream.drain()
        stream.close()
