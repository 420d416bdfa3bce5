"""Arguments that several commands share: jobs, checkpoints, projects. A shell completes them."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import completion

JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", autocompletion=completion.jobs, help="Such as `digits/first`; `@last` is the newest one."
    ),
]
ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", autocompletion=completion.projects, help="Such as `digits`.")
]
JobsArgument = Annotated[
    list[str],
    typer.Argument(metavar="JOB...", autocompletion=completion.jobs, help="Such as `digits/first digits/second`."),
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        autocompletion=completion.checkpoints,
        help="Such as `digits/first/best`; `digits/first` is its last one.",
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=completion.checkpoints,
        help="A checkpoint such as `digits/first/best`, or the folder of one.",
    ),
]
