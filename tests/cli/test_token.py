"""`sihlai token` with a real scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.commands import app
from tests.tokens import token

WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its address, and an admin's token."""
    folder = tmp_path_factory.mktemp("scheduler")
    words = {
        "database-url": f"sqlite:///{folder}/scheduler.sqlite",
        "checkpoint-root": f"file://{folder}/checkpoints",
        "token-key-file": folder / "token.pem",
        "credentials-key-file": folder / "credentials.key",
        "address-file": folder / "address",
    }
    flags = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    access = token(folder / "token.pem", "users/ada")
    process = subprocess.Popen([sys.executable, "-m", "services.scheduler", *flags], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (folder / "address").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield (folder / "address").read_text().strip(), access
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def invoke(scheduler: tuple[str, str], *words: str, access: str | None = None) -> Result:
    address, admin = scheduler
    environ = {"SIHLAI_SCHEDULER_ADDRESS": address, "SIHLAI_TOKEN": admin if access is None else access}
    return CliRunner().invoke(app, ["token", *words], obj=environ)


def test_a_token_is_made_shown_listed_and_revoked(scheduler: tuple[str, str]) -> None:
    made = invoke(scheduler, "create", "bob", "--role", "cells=editor", "--role", "-=viewer", "--description", "night")
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()  # alone, for a pipe
    assert text.count(".") == 2
    who = invoke(scheduler, "inspect", access=text)
    assert "users/bob" in who.stdout
    assert "all projects: viewer, cells: editor" in who.stdout
    (found,) = json.loads(invoke(scheduler, "list", "--json").stdout)["tokens"]
    token_id = found["name"].removeprefix("tokens/")
    assert (found["creator"], found["description"]) == ("users/ada", "night")
    assert token_id in invoke(scheduler, "inspect", token_id).stdout
    assert "revoked" in invoke(scheduler, "revoke", token_id).stdout
    refused = invoke(scheduler, "inspect", access=text)
    assert refused.exit_code == 1
    assert "was revoked" in refused.stderr


def test_a_token_goes_into_a_file_that_nobody_else_reads(scheduler: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "gpu-1.token"
    made = invoke(scheduler, "create", "runners/gpu-1", "--to", str(file), "--json")
    assert made.exit_code == 0, made.output
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(made.stdout)["text"] == ""
    assert "runners/gpu-1" in invoke(scheduler, "inspect", access=file.read_text().strip()).stdout


def test_a_role_that_is_none_is_told_before_anything_is_sent(scheduler: tuple[str, str]) -> None:
    for wrong in ("cells", "cells=owner", "=viewer"):
        shown = invoke(("127.0.0.1:1", ""), "create", "bob", "--role", wrong)
        assert shown.exit_code == 2
        assert "digits=editor" in shown.stderr


def test_without_a_token_nothing_is_sent_to_an_address_that_was_given(
    scheduler: tuple[str, str], tmp_path: Path
) -> None:
    """The token of this machine's `up` is for its own services alone."""
    (tmp_path / "token").write_text(scheduler[1])
    shown = CliRunner().invoke(
        app, ["token", "inspect", "--scheduler", scheduler[0], "--data", str(tmp_path)], obj=dict(os.environ)
    )
    assert shown.exit_code == 1
    assert "needs a token" in shown.stderr


def test_a_context_calls_with_what_its_command_prints(scheduler: tuple[str, str], tmp_path: Path) -> None:
    address, admin = scheduler
    environ = {"SIHLAI_CONTEXTS": str(tmp_path / "contexts.json")}
    words = ["context", "add", "team", address, "--token-command", f"printf {admin}", "--use"]
    added = CliRunner().invoke(app, words, obj=environ)
    assert added.exit_code == 0, added.output
    who = CliRunner().invoke(app, ["token", "inspect"], obj=environ)
    assert "users/ada" in who.stdout, who.output
    both = CliRunner().invoke(app, [*words, "--token-file", "x"], obj=environ)
    assert (both.exit_code, "either" in both.output) == (2, True)
    broken = CliRunner().invoke(app, ["context", "add", "other", address, "--token-command", "false"], obj=environ)
    assert (broken.exit_code, "false ended with exit code 1" in broken.output) == (2, True), broken.output


def test_keys_are_changed_by_a_command(scheduler: tuple[str, str]) -> None:
    text = invoke(scheduler, "create", "bob").stdout.strip()
    rotated = invoke(scheduler, "rotate-key")
    assert rotated.exit_code == 0, rotated.output
    assert "holds until its last token has ended" in rotated.stdout
    for access in (text, invoke(scheduler, "create", "bob").stdout.strip()):
        assert "users/bob" in invoke(scheduler, "inspect", access=access).stdout
    asked = invoke(scheduler, "rotate-key", "--drop-old")
    assert (asked.exit_code, "say --yes" in asked.stderr) == (2, True)
    environ = {"SIHLAI_SCHEDULER_ADDRESS": scheduler[0], "SIHLAI_TOKEN": scheduler[1]}
    resealed = CliRunner().invoke(app, ["project", "rotate-key"], obj=environ)
    assert resealed.stdout.startswith("sealed 0 credentials anew, with key "), resealed.output
