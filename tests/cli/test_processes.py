"""The command as a process: what it costs, what it needs, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from services.cli.commands import PLACES, _loaded
from tests.oidc_issuer import AUDIENCE, Issuer

COMMAND = (sys.executable, "-P", "-m", "services.cli")
WAIT_SECONDS = 300.0
NOT_IN_A_PLAIN_INSTALL = {
    *("structlog", "jwt", "cryptography", "nats", "obstore", "grpc_reflection", "sqlalchemy", "alembic", "numpy"),
    *("torch", "torchvision", "PIL", "pyarrow", "chdb", "clickhouse_connect", "msgspec", "imagecodecs", "pynvml"),
}


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command in an environment of nothing but these variables, PATH and Python's own."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    return subprocess.run(
        [*COMMAND, *words], env=kept | environ, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


def test_help_imports_neither_grpc_nor_a_command() -> None:
    program = (
        "import sys; sys.argv = ['sihlai', '--help']\n"
        "from services.cli.commands import app\n"
        "try: app(obj={})\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'asyncio', 'plotext', 'yaml')))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", PLACES)
def test_a_line_of_help_is_that_of_the_command_itself(name: str) -> None:
    """Who reads `sihlai --help` and who reads `sihlai NAME --help` is told the same."""
    said = PLACES[name][1]
    assert len(said) <= 80
    told = (_loaded(name).help or "").strip().splitlines()[0]
    assert told.startswith(said), told


def test_help_says_no_type_of_a_flag() -> None:
    assert "<bool>" not in run("--help").stdout + run("job", "stop", "--help").stdout


def test_the_version_is_told_without_a_service() -> None:
    assert run("--version").stdout == f"sihlai {version('sihlai')}\n"


def test_contexts_are_added_used_listed_and_removed(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    (tmp_path / "token").write_text("secret")
    added = run("context", "add", "team", "127.0.0.1:1", "--token-file", str(tmp_path / "token"), "--use", **environ)
    assert (added.returncode, added.stdout) == (0, "uses team\n"), added.stderr
    listed = [json.loads(line) for line in run("context", "list", "--json", **environ).stdout.splitlines()]
    assert [(each["context"], each["used"]) for each in listed] == [("local", False), ("team", True)]
    assert "secret" not in run("context", "list", **environ).stdout
    asked = run("project", "list", **environ)
    assert asked.returncode == 3
    assert "no answer from scheduler at 127.0.0.1:1" in asked.stderr
    nowhere = run("project", "list", "--context", "local", **environ)
    assert nowhere.returncode == 3
    assert "sihlai up" in nowhere.stderr
    unknown = run("project", "list", "--context", "nobody", **environ)
    assert (unknown.returncode, "there are local, team" in unknown.stderr) == (2, True)
    assert run("context", "use", "nobody", **environ).returncode == 2
    assert run("context", "remove", "team", **environ).stdout == "removed team\n"
    wrong = run("context", "add", "local", "a:1", **environ)
    assert (wrong.returncode, "choose another name" in wrong.stderr) == (2, True)


def test_an_up_without_a_terminal_is_seen_and_stopped(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "SIHLAI_DATA": str(tmp_path / "data")}
    assert "nothing is up" in run("ps", **environ).stderr
    started = run("up", "-d", "--runners", "0", **environ)
    try:
        assert started.returncode == 0, started.stderr
        found = [json.loads(line) for line in run("ps", "--json", **environ).stdout.splitlines()]
        assert {each["process"] for each in found} == {"nats", "conversion", "scheduler", "metrics"}
        assert all(each["starts"] == 1 for each in found)
        assert run("project", "list", "--json", **environ).returncode == 0
        again = run("up", "-d", **environ)
        assert (again.returncode, "`sihlai ps`" in again.stderr) == (1, True)
    finally:
        stopped = run("down", **environ)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n"), stopped.stderr
    assert run("down", **environ).returncode == 1


def test_an_up_takes_the_tokens_of_an_issuer_too_and_says_what_is_wrong_with_its_file(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "SIHLAI_DATA": str(tmp_path / "data")}
    file = tmp_path / "oidc.yaml"
    file.write_text("issuer: https://login.example.com\n")
    wrong = run("up", "-d", "--runners", "0", "--oidc", str(file), **environ)
    assert (wrong.returncode, "audience" in wrong.stderr, str(file) in wrong.stderr) == (1, True, True), wrong.stderr
    with Issuer() as issuer:
        roles = [
            {"claim": "groups", "value": "vision", "project": "digits", "role": "editor"},
            {"claim": "groups", "value": "ops", "installation": "admin"},
        ]
        file.write_text(json.dumps({"issuer": issuer.url, "audience": AUDIENCE, "roles": roles}))
        started = run("up", "-d", "--runners", "0", "--oidc", "~/oidc.yaml", **environ)
        try:
            assert started.returncode == 0, started.stderr
            mine = {**environ, "SIHLAI_TOKEN": issuer.token(groups=["vision"])}
            asked = run("token", "inspect", "--json", **mine)
            assert asked.returncode == 0, asked.stderr
            grants = [{"project": "projects/digits", "role": "ROLE_EDITOR"}]
            assert json.loads(asked.stdout)["principal"] == {
                "subject": "users/ada",
                "grants": grants,
                "installation_admin": False,
            }
            above = run("project", "create", "cells", "--training", str(tmp_path), **mine)
            assert (above.returncode, "it needs the role admin" in above.stderr) == (1, True), above.stderr
            stranger = {**environ, "SIHLAI_TOKEN": issuer.token(aud="another")}
            refused = run("project", "list", **stranger)
            assert (refused.returncode, "for another audience" in refused.stderr) == (1, True), refused.stderr
            assert run("token", "inspect", **environ).returncode == 0, "the token of this machine is taken as well"
        finally:
            stopped = run("down", **environ)
    assert stopped.returncode == 0, stopped.stderr


def test_a_plain_install_has_all_that_asks_services() -> None:
    """What only services and runners need may not be there: nothing that talks to them imports it."""
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_IN_A_PLAIN_INSTALL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import sihlai
for name in sihlai.__all__: getattr(sihlai, name)
from services.cli.commands import PLACES, _loaded
for name in PLACES:
    if name not in ("up", "demo"): _loaded(name)
from services.cli.commands import app
sys.argv = ["sihlai", "up"]
app(obj={{}})
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "sihlai[up]" in found.stderr.replace("\n", "")
    assert "Traceback" not in found.stderr


def test_without_a_home_and_in_a_plain_locale_there_is_a_sentence_and_no_stack_trace(tmp_path: Path) -> None:
    shown = run("project", "list", LANG="C", SIHLAI_DATA=str(tmp_path / "straße"))
    assert shown.returncode == 3
    assert "Traceback" not in shown.stderr
    assert run("context", "list", LANG="C").returncode == 0
    assert "SIHLAI_CONTEXTS" in run("context", "add", "team", "a:1", LANG="C").stderr
