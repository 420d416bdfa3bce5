"""Where the services are looked for, and where the token goes."""

import base64
import json
import shlex
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.chassis.context import (
    Context,
    Contexts,
    CurrentToken,
    NoContextError,
    contexts_file,
    read_contexts,
    write_contexts,
)
from services.chassis.endpoints import Endpoints, NoEndpointError, data_folder, resolve
from services.chassis.errors import ConfigurationError, Unavailable
from services.cli.commands import app
from services.cli.machine.folder import DataFolder, FolderInUseError, held, write_endpoints
from services.client.connecting import connect

ALL = {"scheduler": "file:1", "metrics": "file:2", "conversion": "file:3"}


def contexts(folder: Path, used: str = "local") -> dict[str, str]:
    """An environment with a context."""
    environ = {"SIHLAI_CONTEXTS": str(folder / "contexts.json"), "SIHLAI_DATA": str(folder / "data")}
    team = Context(address="team:1", token="secret")
    write_contexts(contexts_file(environ), Contexts(by_name={"team": team}, used=used))
    return environ


def test_what_is_said_wins_over_the_environment_and_that_over_a_context_and_that_over_the_data_folder(
    tmp_path: Path,
) -> None:
    environ = contexts(tmp_path, used="team")
    (tmp_path / "data").mkdir(mode=0o700)
    write_endpoints(DataFolder(root=tmp_path / "data"), ALL)
    with held(DataFolder(root=tmp_path / "data")):
        of_environment = {**environ, "SIHLAI_SCHEDULER_ADDRESS": "environment:1"}
        assert resolve(environ=of_environment, flags={"scheduler": "flag:1"}).address("scheduler") == "flag:1"
        assert resolve(environ=of_environment).address("scheduler") == "environment:1"
        assert resolve(environ=environ).address("scheduler") == "team:1"
        assert resolve(environ=environ, context="local").address("scheduler") == "file:1"
        assert resolve(environ=environ, data=tmp_path / "data").address("scheduler") == "file:1"
        assert resolve(environ={**environ, "SIHLAI_CONTEXT": "local"}).address("metrics") == "file:2"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", ":99999", "host:99999", "host:0", "a b:c", "::1", "http://a:1", "a:1/"]
)
def test_what_can_be_no_address_is_told_wherever_it_is_said(address: str, tmp_path: Path) -> None:
    environ = {"SIHLAI_CONTEXTS": str(tmp_path / "contexts.json")}
    write_contexts(contexts_file(environ), Contexts(by_name={"team": Context(address=address)}))
    for call in (
        lambda: resolve(environ={}, flags={"scheduler": address}),
        lambda: resolve(environ={"SIHLAI_METRICS_ADDRESS": address}),
        lambda: resolve(environ=environ, context="team"),
        lambda: connect(address),
    ):
        with pytest.raises(ConfigurationError, match="must be HOST:PORT with a port from 1 to 65535"):
            call()
    runner = CliRunner()
    for words in (["context", "add", "other", address], ["project", "list", "--scheduler", address]):
        done = runner.invoke(app, words, obj=environ)
        assert (done.exit_code, "must be HOST:PORT" in " ".join(done.output.split())) == (2, True), done.output


@pytest.mark.parametrize(
    "address",
    ["a:1", "[::1]:50051", "[fe80::1%eth0]:1", "unix:/run/a", "unix:///run/a", "dns:///farm:1", "ipv4:1.2.3.4:5"],
)
def test_what_grpc_takes_for_an_address_is_taken(address: str) -> None:
    assert resolve(environ={}, flags={"scheduler": address}).address("scheduler") == address


def test_of_a_service_that_nobody_named_the_scheduler_is_asked() -> None:
    endpoints = Endpoints(given={"scheduler": "host:1"})
    assert endpoints.address("metrics") is None
    endpoints.learn({"metrics": ":2", "conversion": "other:3"})
    assert (endpoints.address("metrics"), endpoints.address("conversion")) == ("host:2", "other:3")
    with pytest.raises(NoEndpointError, match="announced-conversion-address"):
        endpoints.learn({"metrics": ":2"})


def test_addresses_that_nobody_holds_any_more_are_not_believed(tmp_path: Path) -> None:
    """An `up` that was killed leaves them behind; whoever listens there now would get the keys of the environment."""
    folder = DataFolder(root=tmp_path)
    write_endpoints(folder, ALL)
    for _ in range(2):
        with pytest.raises(NoEndpointError):
            resolve(environ={}, data=tmp_path).address("conversion")
        with held(folder):
            pass


def test_a_service_that_was_started_anew_elsewhere_is_found_there(tmp_path: Path) -> None:
    """Who follows a log over a restart of everything must not ask the dead address for minutes."""
    folder = DataFolder(root=tmp_path)
    endpoints = resolve(environ={}, data=tmp_path)
    with held(folder):
        write_endpoints(folder, {"scheduler": "before:1", "metrics": "before:2"})
        assert endpoints.address("metrics") == "before:2"
    assert endpoints.address("metrics") == "before:2", "while nothing is up, what was known counts"
    with held(folder):
        write_endpoints(folder, {"scheduler": "after:1", "metrics": "after:2"})
        assert endpoints.address("metrics") == "after:2"


def test_a_service_that_nobody_named_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoEndpointError, match=r"sihlai up.*--scheduler.*SIHLAI_SCHEDULER_ADDRESS.*context add"):
        resolve(environ={}, data=tmp_path).address("scheduler")


def test_the_token_of_this_machine_goes_to_this_machine_alone(tmp_path: Path) -> None:
    folder = DataFolder(root=tmp_path)
    (tmp_path / "token").write_text("local-token\n")
    with held(folder):
        write_endpoints(folder, ALL)
        endpoints = resolve(environ={}, data=tmp_path)
        assert endpoints.token("file:1") == "local-token"
        assert endpoints.token("elsewhere:1") == ""
        assert resolve(environ={}, flags={"scheduler": "elsewhere:1"}, data=tmp_path).token("elsewhere:1") == ""
    assert endpoints.token("file:1") == "", "whoever listens there now is not asked for anything"


def test_an_up_that_is_between_two_lives_is_away_whatever_listens_at_its_addresses(tmp_path: Path) -> None:
    folder = DataFolder(root=tmp_path)
    (tmp_path / "token").write_text("local-token\n")
    mine, said = resolve(environ={}, data=tmp_path), resolve(environ={}, data=tmp_path, token="said")
    with held(folder):
        write_endpoints(folder, ALL)
        for endpoints in (mine, said):
            assert endpoints.address("metrics") == "file:2"
        folder.endpoints.unlink()
        for endpoints in (mine, said):
            with pytest.raises(Unavailable, match=f"nothing is up in {tmp_path}"):
                endpoints.token("file:2")
        write_endpoints(folder, ALL)
        assert (mine.token("file:2"), said.token("file:2")) == ("local-token", "said")


def test_the_token_of_a_context_goes_along_and_a_file_of_it_is_read_anew(tmp_path: Path) -> None:
    environ = contexts(tmp_path)
    assert resolve(environ=environ, context="team").token("team:1") == "secret"
    assert resolve(environ={**environ, "SIHLAI_TOKEN": "said"}, context="team").token("team:1") == "said"
    (tmp_path / "token").write_text("of a file")
    assert Context(address="a:1", token_file=tmp_path / "token").current_token() == "of a file"
    with pytest.raises(NoContextError, match="cannot be read"):
        Context(address="a:1", token_file=tmp_path / "none").current_token()


def counting_command(folder: Path, printed: str) -> str:
    """A command that prints this, then the number of times that it was run."""
    script = f"import pathlib; p = pathlib.Path({str(folder / 'runs')!r}); p.open('a').write('x'); "
    return shlex.join([sys.executable, "-c", script + f"print({printed!r} + str(len(p.read_text())))"])


def test_the_token_of_a_context_is_printed_by_its_command_again_when_it_ends(tmp_path: Path) -> None:
    environ = {"SIHLAI_CONTEXTS": str(tmp_path / "contexts.json")}
    body = base64.urlsafe_b64encode(json.dumps({"exp": 1_000}).encode()).decode().rstrip("=")
    team = Context(address="team:1", token_command=counting_command(tmp_path, f"head.{body}."))
    write_contexts(contexts_file(environ), Contexts(by_name={"team": team}))
    assert resolve(environ=environ, context="team").token("team:1") == f"head.{body}.1"
    now = 900.0
    current = CurrentToken(team, now=lambda: now)
    assert [current(), current()] == [f"head.{body}.2"] * 2
    now = 971.0
    assert current() == f"head.{body}.3"
    undated = CurrentToken(Context(address="a:1", token_command=counting_command(tmp_path, "opaque ")), now=lambda: now)
    assert [undated(), undated()] == ["opaque 4"] * 2
    now = 1_100.0
    assert undated() == "opaque 5"


@pytest.mark.parametrize("command", ["/no/such/command", "false", "true", "unclosed '"])
def test_a_command_that_prints_no_token_is_told(command: str) -> None:
    with pytest.raises(NoContextError, match="command"):
        Context(address="a:1", token_command=command).current_token()


def test_contexts_are_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    file = contexts_file(contexts(tmp_path))
    assert file is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_contexts(file).by_name["team"] == Context(address="team:1", token="secret")
    file.write_text(json.dumps({"contexts": []}))
    with pytest.raises(NoContextError, match="mend or remove it"):
        read_contexts(file)
    with pytest.raises(NoContextError, match="there are local, team"):
        resolve(environ=contexts(tmp_path), context="nobody")


def test_without_a_home_nothing_breaks(tmp_path: Path) -> None:
    assert contexts_file({}) is None
    assert read_contexts(None) == Contexts(by_name={})
    assert data_folder({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "sihlai"
    assert data_folder({"SIHLAI_DATA": str(tmp_path)}) == tmp_path
    with pytest.raises(NoEndpointError):
        Endpoints(up=None).address("scheduler")


def test_a_held_data_folder_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    folder = DataFolder(root=tmp_path)
    with held(folder), pytest.raises(FolderInUseError, match=r"in use by process \d+"), held(folder):
        pass
    with held(folder):
        pass


def test_a_data_folder_is_closed_to_others_and_somebodys_open_folder_is_left_alone(tmp_path: Path) -> None:
    before, strange = DataFolder(root=tmp_path / "before"), DataFolder(root=tmp_path / "strange")
    for folder in (before, strange):
        folder.root.mkdir()
        folder.root.chmod(0o755)
        (folder.root / "notes").write_text("mine")
    before.lock.touch()  # of an earlier version's `up`
    with held(before):
        assert before.root.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FolderInUseError, match="choose an own one"), held(strange):
        pass
    assert strange.root.stat().st_mode & 0o777 == 0o755
