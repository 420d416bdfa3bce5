"""Names in the .proto files compile in every main language, and the code that comes out reads as it should."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from tests.protos.reserved_words import RESERVED

PROTOS = Path(__file__).resolve().parents[2] / "protos"
SOURCES = sorted((PROTOS / "sihlai").rglob("*.proto"))
ACCESSOR_PREFIXES = ("add", "clear", "get", "has", "mutable", "release", "remove", "set", "unsafe_arena_release")
"""`has_x()` of a field `x` and the accessor of a field `has_x` are one name in C++."""
REPEATED_SUFFIXES = ("size", "count", "list", "map")
TEXT_SUFFIXES = ("bytes", "value", "case", "or_builder")


def descriptor_of(source: Path) -> FileDescriptor:
    module = ".".join(source.relative_to(PROTOS).with_suffix("").parts) + "_pb2"
    descriptor: FileDescriptor = importlib.import_module(module).DESCRIPTOR
    return descriptor


def within(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for nested in message.nested_types:
        yield from within(nested)


FILES = [descriptor_of(source) for source in SOURCES]
MESSAGES = [each for file in FILES for message in file.message_types_by_name.values() for each in within(message)]


def all_names() -> Iterator[tuple[str, str]]:
    """Every name that a person wrote, with where it stands."""
    for file in FILES:
        yield from ((part, file.name) for part in file.package.split("."))
        for service in file.services_by_name.values():
            yield service.name, service.full_name
            yield from ((method.name, method.full_name) for method in service.methods)
        for enum in file.enum_types_by_name.values():
            yield enum.name, enum.full_name
            yield from ((value.name, enum.full_name) for value in enum.values)
    for message in MESSAGES:
        yield message.name, message.full_name
        yield from ((field.name, field.full_name) for field in message.fields)
        yield from ((oneof.name, oneof.full_name) for oneof in message.oneofs)


# A package's part is capitalised in C#, so that `event` is no keyword there.
ALLOWED = {("event", "sihlai/event/v1/event.proto", "C#")}


@pytest.mark.parametrize("language", RESERVED)
def test_no_name_is_a_word_of_the_language(language: str) -> None:
    found = [
        where for name, where in all_names() if name in RESERVED[language] and (name, where, language) not in ALLOWED
    ]
    assert found == []


def accessors(field: FieldDescriptor) -> Iterator[str]:
    """What generators make of a field besides its own name."""
    yield from (f"{prefix}_{field.name}" for prefix in ACCESSOR_PREFIXES)
    suffixes = REPEATED_SUFFIXES if field.is_repeated else TEXT_SUFFIXES
    yield from (f"{field.name}_{suffix}" for suffix in suffixes)


def test_no_field_has_the_name_of_anothers_accessor() -> None:
    found = []
    for message in MESSAGES:
        names = {field.name for field in message.fields} | {oneof.name for oneof in message.oneofs}
        made = {name for field in message.fields for name in accessors(field)}
        made |= {
            f"{verb}{oneof.name}{end}" for oneof in message.oneofs for verb, end in (("", "_case"), ("clear_", ""))
        }
        found += [f"{message.full_name}.{name}" for name in sorted(names & made)]
    assert found == []


def test_no_two_fields_of_a_message_differ_in_case_or_underscores_alone() -> None:
    for message in MESSAGES:
        names = [field.name.replace("_", "").lower() for field in message.fields]
        assert len(set(names)) == len(names), message.full_name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_says_its_package_in_go_and_a_class_for_each_message_in_java(file: FileDescriptor) -> None:
    root, service, version = file.package.split(".")
    assert file.GetOptions().go_package == f"{root}/{service}/{version};{service}{version}"
    assert file.GetOptions().java_multiple_files


@pytest.mark.parametrize("name", ["code", "error_details", "status"])
def test_what_errors_carry_is_shipped_as_its_makers_wrote_it(name: str) -> None:
    module = importlib.import_module(f"google.rpc.{name}_pb2")
    original = Path(str(module.__file__)).with_name(f"{name}.proto")
    assert (PROTOS / f"google/rpc/{name}.proto").read_bytes() == original.read_bytes()
