"""Clients in other languages, generated from the protos as they are shipped, and built with what is installed.

All that is generated from all protos is compiled, so that no name in them stands in a language's way. Where a tool is
not there a test is skipped with the tool's name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"
TYPESCRIPT = Path(__file__).with_name("typescript")
CPP = Path(__file__).with_name("cpp") / "client.cpp"
NODE_MAJOR_MIN = 20
INSTALL_SECONDS = 120
BUILD_SECONDS = 900


def typescript(folder: Path) -> list[str]:
    """The command that runs the client in TypeScript, by the steps that the README names."""
    needed("node", "npm")
    major = int(told("node", "--version").removeprefix("v").partition(".")[0])
    if major < NODE_MAJOR_MIN:
        pytest.skip(f"node {major} is installed, {NODE_MAJOR_MIN} is needed")
    by_hand = shutil.ignore_patterns("node_modules", "generated", "built")
    shutil.copytree(TYPESCRIPT, folder, ignore=by_hand, dirs_exist_ok=True)
    install = ["npm", "ci", "--ignore-scripts", "--prefer-offline"]
    installed = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if installed.returncode:
        pytest.skip(f"npm ci gives no packages: {installed.stderr[-300:]}")
    buf = Path(sys.executable).with_name("buf")
    run(str(buf), "generate", str(PROTOS), folder=folder)
    run("npm", "run", "build", folder=folder)
    return ["node", str(folder / "built" / "client.js")]


def cpp(folder: Path) -> list[str]:
    """The command that runs the client in C++. On Debian: g++, protobuf-compiler-grpc and libgrpc++-dev."""
    needed("g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    libraries = ("grpc++", "protobuf")
    if subprocess.run(["pkg-config", "--exists", *libraries], check=False).returncode:
        pytest.skip(f"the headers of {' and '.join(libraries)} are not installed")
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
    outputs = (f"--cpp_out={folder}", f"--grpc_out={folder}")
    run("protoc", f"--proto_path={PROTOS}", plugin, *outputs, *sources, folder=folder)
    (folder / "whole.cc").write_text(in_one_piece(folder))
    compile_flags, link_flags = (told("pkg-config", of, *libraries).split() for of in ("--cflags", "--libs"))
    build = ("g++", "-std=c++17", "-O0", "-w", f"-I{folder}", *compile_flags, "whole.cc", *link_flags, "-o", "client")
    run(*build, folder=folder)
    return [str(folder / "client")]


def in_one_piece(folder: Path) -> str:
    """All generated code and the client: the headers cost most. Two names of each generated file are made its own."""
    headers = ["google/protobuf/wire_format.h", "google/protobuf/generated_message_reflection.h", "grpcpp/grpcpp.h"]
    headers += sorted(str(path.relative_to(folder)) for path in folder.rglob("*.h"))
    lines = [f"#include <{header}>" for header in headers]
    for number, path in enumerate(sorted(folder.rglob("*.pb.cc"))):
        names = ("schemas", "file_default_instances")
        lines += [f"#define {name} {name}_{number}" for name in names]
        lines += [f'#include "{path.relative_to(folder)}"']
        lines += [f"#undef {name}" for name in names]
    return "\n".join([*lines, f'#include "{CPP}"', ""])


def needed(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(*command: str, folder: Path) -> None:
    """A step of a build; what it says is told where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]
