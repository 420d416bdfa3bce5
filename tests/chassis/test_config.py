"""Configuration: flags over environment over default, and every problem named at once."""

import enum
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.chassis.config import LogLevel, ServerConfig, load, setting
from services.chassis.errors import ConfigurationError


class Colour(enum.StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(ServerConfig):
    database_url: str = setting(help="where the jobs are kept")
    lease_seconds: float = setting(25.0, "how long a lease lasts", units="s", minimum=1)
    retries_max: int = setting(3, "attempts in all", minimum=0)
    once: bool = setting(False, "serve one job and end")
    colour: Colour = setting(Colour.RED, "of the bikeshed")
    key_file: Path | None = setting(None, "private key")
    allowed_roots: tuple[Path, ...] = setting((), "folders that may be read")
    allowed_hosts: tuple[str, ...] = setting(("localhost",), "hosts that may be reached")


def example(*argv: str, **environ: str) -> ExampleConfig:
    return load(
        ExampleConfig,
        argv=["--database-url", "sqlite:///x", *argv],
        environ={f"EXAMPLE_{name}": value for name, value in environ.items()} | {"HOME": "/root"},
        prog="example",
        prefix="EXAMPLE_",
    )


def problems(*argv: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        example(*argv, **environ)
    return caught.value.problems


def test_flag_wins_over_environment_and_environment_over_default():
    assert example().lease_seconds == 25.0
    assert example(LEASE_SECONDS="30").lease_seconds == 30.0
    assert example("--lease-seconds", "40", LEASE_SECONDS="30").lease_seconds == 40.0


def test_every_kind_of_value_is_read_from_flags():
    config = example(
        *("--lease-seconds=1.5", "--retries-max", "-0", "--once", "--colour", "Dark-Blue", "--key-file", "a b.pem"),
        *("--allowed-roots", "/a", "--allowed-roots=/b", "--log-level", "debug", "--allowed-hosts", "s3:9000"),
    )
    assert (config.lease_seconds, config.retries_max, config.once) == (1.5, 0, True)
    assert (config.colour, config.key_file, config.log_level) == (Colour.DARK_BLUE, Path("a b.pem"), LogLevel.DEBUG)
    assert (config.allowed_roots, config.allowed_hosts) == ((Path("/a"), Path("/b")), ("s3:9000",))


def test_every_kind_of_value_is_read_from_the_environment():
    config = example(ONCE="yes", COLOUR="red", KEY_FILE="", ALLOWED_ROOTS="/a, /b,", RETRIES_MAX="7")
    assert (config.once, config.colour, config.key_file, config.retries_max) == (True, Colour.RED, None, 7)
    assert config.allowed_roots == (Path("/a"), Path("/b"))


def test_a_flag_replaces_the_whole_list_of_the_environment():
    assert example("--allowed-roots", "/c", ALLOWED_ROOTS="/a,/b").allowed_roots == (Path("/c"),)


def test_a_boolean_can_be_switched_off_by_flag():
    assert example("--no-once", ONCE="1").once is False
    assert example("--once=false", ONCE="1").once is False


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        (["--leese-seconds", "3"], {}, ["--leese-seconds", "--lease-seconds"]),
        ([], {"LEASE_SECOND": "3"}, ["EXAMPLE_LEASE_SECOND ", "EXAMPLE_LEASE_SECONDS"]),
        (["--lease-seconds", "soon"], {}, ["--lease-seconds", "'soon'", "a number (s)"]),
        (["--lease-seconds", "nan"], {}, ["--lease-seconds", "'nan'"]),
        (["--lease-seconds", "0.5"], {}, ["--lease-seconds", "0.5", "at least 1"]),
        (["--retries-max", "1.5"], {}, ["--retries-max", "a whole number"]),
        (["--retries-max"], {}, ["--retries-max needs a value"]),
        (["--colour", "green"], {}, ["--colour", "'green'", "red, dark-blue"]),
        ([], {"ONCE": "maybe"}, ["EXAMPLE_ONCE", "'maybe'", "true or false"]),
        (["loose"], {}, ["'loose'"]),
        (["--no-lease-seconds"], {}, ["--no-lease-seconds"]),
    ],
)
def test_wrong_setting_is_named_with_what_was_wanted(argv, environ, named):
    (problem,) = problems(*argv, **environ)
    for part in named:
        assert part in problem


def test_all_problems_are_told_at_once():
    found = problems("--leese-seconds", "3", "--retries-max=x", FOO="1", COLOUR="green")
    assert len(found) == 4


def test_missing_setting_is_named_with_flag_and_variable():
    with pytest.raises(ConfigurationError, match=r"--database-url is missing.*EXAMPLE_DATABASE_URL"):
        load(ExampleConfig, argv=[], environ={}, prog="example", prefix="EXAMPLE_")


def test_help_lists_every_setting_with_default_and_variable(capsys):
    with pytest.raises(SystemExit) as ended:
        example("--help", FOO="1")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for part in ("--lease-seconds", "25.0", "EXAMPLE_LEASE_SECONDS", "how long a lease lasts (s)", "red, dark-blue"):
        assert part in text
    assert "--once / --no-once" in text
