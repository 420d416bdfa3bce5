"""`sihlai model`: export."""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from services.cli.command.arguments import ModelArgument
from services.cli.command.job_samples import SAMPLES_FILE
from services.cli.command.predict import images_in, model_folder
from services.cli.error import CommandError
from services.cli.machine.process import PYTHON
from services.cli.session import Session, command
from services.client.name import short

SECONDS_MAX = 1_800.0
"""How long an export may take."""
app = typer.Typer(no_args_is_help=True, help="Models of jobs: exported for other programs.")


class Format(enum.StrEnum):
    """What a model can be exported as."""

    ONNX = "onnx"
    PT2 = "pt2"
    SAFETENSORS = "safetensors"


@app.callback()
def models() -> None:
    """Models of jobs: exported for other programs."""


@app.command("export")
@command
async def export_model(
    session: Session,
    model: ModelArgument,
    kind: Annotated[Format, typer.Option("--format", help="onnx for onnxruntime, pt2 for torch, or the weights.")],
    to: Annotated[Path | None, typer.Option("--to", help="The file to write; else one of the model's name.")] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option("--check", help="Images, or a folder of them, to compare ONNX with PyTorch on; else its samples."),
    ] = None,
) -> None:
    """Export a model: one file, with vocabularies and letterbox. ONNX is compared with PyTorch before it stands.

    Example: sihlai model export digits/first/best --format onnx
    """
    if importlib.util.find_spec("torch") is None:
        raise CommandError("an export needs the runner's libraries: install sihlai[export]")
    images = images_in(check or [])
    with tempfile.TemporaryDirectory(prefix="sihlai-model-") as temporary:
        besides = (SAMPLES_FILE,) if kind is Format.ONNX else ()
        folder = await model_folder(session, model, Path(temporary), besides)
        target = to or Path(f"{short(model).replace('/', '-').strip('.-') or 'model'}.{kind.value}")
        words = ["-m", "runner.export", "--checkpoint", str(folder), "--format", kind.value, "--to", str(target)]
        process = await asyncio.create_subprocess_exec(
            *PYTHON, *words, "--", *map(str, images), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), SECONDS_MAX)
        except TimeoutError:
            raise CommandError(f"the export took more than {SECONDS_MAX:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
            raise CommandError(f"the export failed: {lines[-1].strip() if lines else 'it said nothing'}")
    said = json.loads(output.decode().splitlines()[-1])
    if session.output.as_json:
        session.output.json(said)
        return
    session.output.line(said["file"])
    if "checked_on" in said:
        session.output.note(
            f"checked against PyTorch on {said['checked_on']}: off by {said['dense_error_max']:.1g} at most;"
            f" {said['example']} shows how to use it"
        )
