"""Our errors: the reasons of the proto, and nothing but the standard library."""

import ast
import sys
from pathlib import Path

import pytest
from sihlai.error.v1 import error_reason_pb2

from services.chassis import errors

PREFIX = "ERROR_REASON_"


def test_reasons_are_exactly_those_of_the_proto():
    of_proto = [name.removeprefix(PREFIX) for name, number in error_reason_pb2.ErrorReason.items() if number != 0]
    assert [reason.name for reason in errors.Reason] == of_proto
    assert all(reason.value == reason.name for reason in errors.Reason)


def test_errors_import_the_standard_library_alone():
    tree = ast.parse(Path(errors.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(module).split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_invalid_argument_tells_every_violation():
    error = errors.InvalidArgument(
        [
            errors.Violation(field="spec.trainer.batch_size", description="is 0, but must be at least 1"),
            errors.Violation(field="job_id", description="is 'A', but must start with a small letter"),
        ]
    )
    assert error.reason is errors.Reason.INVALID_FIELDS
    assert str(error) == (
        "spec.trainer.batch_size: is 0, but must be at least 1; job_id: is 'A', but must start with a small letter"
    )


def test_metadata_cannot_be_changed():
    error = errors.NotFound(errors.Reason.JOB_NOT_FOUND, "no job a", {"name": "a"})
    with pytest.raises(TypeError):
        error.metadata["name"] = "b"


def test_configuration_error_is_one_sentence_and_no_status():
    error = errors.ConfigurationError(["--a is wrong", "--b is wrong"])
    assert str(error) == "--a is wrong; --b is wrong"
    assert not isinstance(error, errors.SihlaiError)
