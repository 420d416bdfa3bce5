"""Arguments that several commands share: a job, a project. A shell completes them."""

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
