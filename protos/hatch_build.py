"""Compiles the .proto files beside themselves, so that proto path, package and import are the same.

Hatchling runs it as a build hook; `python protos/hatch_build.py` runs it by hand. It writes only files that git
ignores: `*_pb2.py`, `*_pb2.pyi`, for files with a service `*_pb2_grpc.py`, `*_pb2_grpc.pyi`, and an empty
`__init__.py` in each folder. The generated code must never be edited, and never be newer than the protobuf runtime: the
compiler is pinned in pyproject.toml.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROTOS = Path(__file__).resolve().parent
OURS = PROTOS / "sihlai"
"""What is compiled. google/rpc lies beside it for clients in other languages; Python has it from a package."""


def compile_protos() -> list[Path]:
    """Compile every .proto file; return the files that were written. Raises CalledProcessError where protoc fails."""
    sources = sorted(OURS.rglob("*.proto"))
    for generated in OURS.rglob("*_pb2*.py*"):
        if not generated.with_name(generated.name.split("_pb2")[0] + ".proto").exists():
            generated.unlink()
    with_service = [path for path in sources if "\nservice " in path.read_text()]
    _run_protoc(sources, ["--python_out=.", "--mypy_out=readable_stubs:."])
    _run_protoc(with_service, ["--grpc_python_out=.", "--mypy_grpc_out=readable_stubs:."])
    # `sihlai` is a package with code of its own: what lies below is seen as packages only with these.
    folders = {folder for path in sources for folder in path.parents if OURS in folder.parents}
    packages = [folder / "__init__.py" for folder in sorted(folders)]
    for package in packages:
        package.touch()
    return sorted([*OURS.rglob("*_pb2*.py*"), *packages])


def _run_protoc(sources: list[Path], outputs: list[str]) -> None:
    # protoc finds mypy-protobuf's plugins on PATH; an isolated build environment has them beside its interpreter.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    names = [str(path.relative_to(PROTOS)) for path in sources]
    # `-m grpc_tools.protoc` adds the folder of google/protobuf/*.proto; protoc.main() does not.
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=.", *outputs, *names]
    subprocess.run(command, cwd=PROTOS, env=environment, check=True)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run by hand, without the build backend
    pass
else:

    class ProtosBuildHook(BuildHookInterface[Any]):
        """Compiles the protos before a wheel or an editable install is built."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile, and let the wheel hold what git ignores."""
            written = compile_protos()
            build_data["artifacts"] += [f"/{path.relative_to(PROTOS.parent)}" for path in written]


if __name__ == "__main__":
    print(f"compiled {len(compile_protos())} files")
