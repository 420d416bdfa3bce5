"""The `sihlai` command. The environment is read here, and nowhere else."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run one command and exit with its code."""
    environ = dict(os.environ)
    # gRPC's core writes to standard error by itself, before anybody can be asked; what matters is in our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows few letters gets a table all the same
    from services.cli.commands import app

    app(obj=environ)


if __name__ == "__main__":
    main()
