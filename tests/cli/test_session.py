"""What a command raises becomes a sentence and an exit code."""

import io

import pytest
import typer

from services.chassis.endpoints import NoEndpointError
from services.chassis.errors import ConfigurationError, InvalidArgument, Violation
from services.cli.error import CommandError
from services.cli.session import reported
from services.cli.view.output import Output
from services.client.specification import SpecificationError


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (TimeoutError(), 1, "it took longer than it may"),
        (TimeoutError("it has not ended after 5 s"), 1, "it has not ended after 5 s"),
        (FileNotFoundError(2, "No such file or directory", "spec.yaml"), 1, "spec.yaml: No such file or directory"),
        (CommandError("[/b] \x1b[31mred", exit_code=4), 4, "[/b] \N{REPLACEMENT CHARACTER}[31mred"),
        (SpecificationError("no field"), 2, "no field"),
        (ConfigurationError(["the key is missing"]), 2, "the key is missing"),
        (
            InvalidArgument([Violation(field="format", description="may be CVAT or LabelMe: say which")]),
            1,
            "format: may be CVAT or LabelMe: say which, before the source",
        ),
        (NoEndpointError("nobody is up"), 3, "nobody is up"),
        (ExceptionGroup("several", [CommandError("the first")]), 1, "the first"),
    ],
)
def test_an_error_is_a_sentence_with_an_exit_code(error: Exception, exit_code: int, sentence: str) -> None:
    told = io.StringIO()
    with pytest.raises(typer.Exit) as ended, reported(Output(stderr=told)):
        raise error
    assert ended.value.exit_code == exit_code
    assert f"error: {sentence}" in told.getvalue()
    assert len(told.getvalue().splitlines()) == 1
