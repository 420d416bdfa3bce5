"""A client in C++, generated from the protos as they are shipped, talks to a real scheduler.

Where g++, protoc with gRPC's plugin and the headers of gRPC and protobuf are there (on Debian: libgrpc++-dev and
protobuf-compiler-grpc); the names that C++ could not compile are looked for everywhere, in tests/protos/test_names.py.
All code that is generated from all protos is compiled, in one piece with the client: the headers cost most.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tokens import token

PROTOS = Path(__file__).resolve().parents[2] / "protos"
CLIENT = Path(__file__).with_name("client.cpp")
BUILD_SECONDS = 900


def flags(*arguments: str) -> list[str] | None:
    """What pkg-config says of gRPC and protobuf; None without them."""
    if shutil.which("pkg-config") is None:
        return None
    command = ["pkg-config", *arguments, "grpc++", "protobuf"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else None


def in_one_piece(folder: Path) -> str:
    """All generated code and the client. Headers come first: two names of each generated file are made its own."""
    headers = ["google/protobuf/wire_format.h", "google/protobuf/generated_message_reflection.h", "grpcpp/grpcpp.h"]
    headers += sorted(str(path.relative_to(folder)) for path in folder.rglob("*.h"))
    lines = [f"#include <{header}>" for header in headers]
    for number, path in enumerate(sorted(folder.rglob("*.pb.cc"))):
        names = ("schemas", "file_default_instances")
        lines += [f"#define {name} {name}_{number}" for name in names]
        lines += [f'#include "{path.relative_to(folder)}"']
        lines += [f"#undef {name}" for name in names]
    return "\n".join([*lines, f'#include "{CLIENT}"', ""])


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Path:
    """The program, built; skipped where the tools for it are not there."""
    compiler, protoc, plugin = (shutil.which(name) for name in ("g++", "protoc", "grpc_cpp_plugin"))
    compile_flags, link_flags = flags("--cflags"), flags("--libs")
    if compiler is None or protoc is None or plugin is None or compile_flags is None or link_flags is None:
        pytest.skip("g++, protoc, grpc_cpp_plugin and the headers of gRPC are not all installed")
    folder = tmp_path_factory.mktemp("cpp")
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    generate = [protoc, f"--proto_path={PROTOS}", f"--plugin=protoc-gen-grpc={plugin}"]
    subprocess.run([*generate, f"--cpp_out={folder}", f"--grpc_out={folder}", *sources], check=True)
    whole = folder / "whole.cc"
    whole.write_text(in_one_piece(folder))
    build = [compiler, "-std=c++17", "-O0", "-w", f"-I{folder}", *compile_flags, str(whole), *link_flags]
    command = [*build, "-o", str(folder / "client")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert built.returncode == 0, built.stderr[-4_000:]
    return folder / "client"


def test_a_client_in_cpp_submits_watches_and_reads_errors(client, serve):
    async def test():
        async with serve() as server:
            process = await asyncio.create_subprocess_exec(
                *(str(client), server.address, token(server.folder / "token.pem")),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(60):
                output, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            assert output.decode().splitlines() == [
                "credentials 0 stored 1",
                "projects/digits/jobs/first neck 1",
                "position 1 0",
                "watched projects/digits/jobs/first",
                "sihlai JOB_NOT_FOUND",
            ]

    asyncio.run(test())
