"""The .proto files keep the conventions of the API, without exception."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
SOURCES = sorted((PROTOS / "sihlai").rglob("*.proto"))
MUTATIONS = (
    "Create",
    "Update",
    "Delete",
    "Submit",
    "Stop",
    "Resume",
    "Drain",
    "Undrain",
    "Convert",
    "Import",
    "Export",
)
READS_NAMED_LIKE_MUTATIONS = {"ExportMetrics"}
STATUSES = (
    "INVALID_ARGUMENT|NOT_FOUND|ALREADY_EXISTS|FAILED_PRECONDITION|OUT_OF_RANGE|ABORTED|UNAUTHENTICATED|PERMISSION_DENIED"
    "|RESOURCE_EXHAUSTED|UNAVAILABLE|UNIMPLEMENTED|DEADLINE_EXCEEDED|INTERNAL|CANCELLED"
)


def file_descriptor(source: Path) -> FileDescriptor:
    module = ".".join(source.relative_to(PROTOS).with_suffix("").parts) + "_pb2"
    descriptor: FileDescriptor = importlib.import_module(module).DESCRIPTOR
    return descriptor


SERVICES = [service for source in SOURCES for service in file_descriptor(source).services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]


def run_buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    buf = Path(sys.executable).with_name("buf")
    program = str(buf) if buf.exists() else shutil.which("buf")
    assert program, "buf is in the development dependencies: run `make setup`"
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_buf_lint_has_nothing_to_say() -> None:
    result = run_buf("lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_format_would_change_nothing() -> None:
    result = run_buf("format", "--diff", "--exit-code")
    assert result.returncode == 0, result.stdout


def test_lint_rules_have_no_exception() -> None:
    configuration = (ROOT / "buf.yaml").read_text()
    assert not re.search(r"^\s*(except|ignore|ignore_only|deps):", configuration, re.MULTILINE)
    assert not [source for source in SOURCES if "buf:lint:ignore" in source.read_text()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_mutation_has_a_request_id(method: MethodDescriptor) -> None:
    if method.name.startswith(MUTATIONS) and method.name not in READS_NAMED_LIKE_MUTATIONS:
        assert "request_id" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_list_has_pages(method: MethodDescriptor) -> None:
    if method.name.startswith("List"):
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
        assert "next_page_token" in method.output_type.fields_by_name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_call_has_its_own_request_and_response(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PROTOS)))
def test_a_file_holds_at_most_one_service(source: Path) -> None:
    assert len(file_descriptor(source).services_by_name) <= 1


def test_every_follow_call_answers_with_a_cursor() -> None:
    following = [method for method in METHODS if method.name.startswith(("Watch", "Tail"))]
    assert len(following) == 3
    for method in following:
        assert "cursor" in method.output_type.fields_by_name
        assert "cursor" in method.input_type.fields_by_name


def test_every_error_reason_says_its_status() -> None:
    text = (PROTOS / "sihlai/error/v1/error_reason.proto").read_text()
    entries = re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = \d+;", text)
    assert len(entries) > 30
    for comment, name in entries:
        if name != "UNSPECIFIED":
            assert re.match(rf"  // ({STATUSES})\. ", comment), name
