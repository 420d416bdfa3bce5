"""Configuration: a frozen dataclass, read once from flags and environment in a process's `__main__`.

A setting is a field: its name is the flag (`lease_seconds` → `--lease-seconds`) and the environment variable
(`<PREFIX>LEASE_SECONDS`). Flags win over the environment, the environment over the default. Nothing else in the code
may read the environment, and nothing here reads it either: argv and environ are arguments.
"""

# ruff: noqa: A002 — `help` is what it is called in every other parser of flags.

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from services.chassis.errors import ConfigurationError

Config = TypeVar("Config")

TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


def setting(
    default: Any = dataclasses.MISSING, help: str = "", *, units: str = "", minimum: float | None = None
) -> Any:
    """A field of a configuration dataclass. Without a default it must be given. A number below `minimum` is refused."""
    metadata = {"help": help, "units": units, "minimum": minimum}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class LogFormat(enum.StrEnum):
    """How log lines look: `auto` is `console` at a terminal and `json` elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(enum.StrEnum):
    """The lowest level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings that all servers share. A service's own configuration inherits from it."""

    listen_address: str = setting("127.0.0.1:0", "address to listen on; port 0 takes a free one", units="host:port")
    address_file: Path | None = setting(None, "file that gets the bound address once the server is ready")
    log_format: LogFormat = setting(LogFormat.AUTO, "how log lines look")
    log_level: LogLevel = setting(LogLevel.INFO, "lowest level that is written")
    drain_seconds: float = setting(5.0, "how long running calls may go on after a stop", units="s", minimum=0)
    message_bytes_max: int = setting(16 * 2**20, "largest message in either direction", units="bytes", minimum=1)
    request_bytes_max: int = setting(
        2**20, "largest request that no runner sends and that is no stream", units="bytes", minimum=1
    )
    metadata_bytes_max: int = setting(
        2**16, "largest metadata of a call, its token included", units="bytes", minimum=2**13
    )
    concurrent_streams_max: int = setting(2_000, "calls at once on one connection", units="calls", minimum=1)
    concurrent_calls_max: int = setting(20_000, "calls at once on each service", units="calls", minimum=1)
    user_calls_max: int = setting(
        1_000, "the same, of those that are not runners, streams not counted", units="calls", minimum=1
    )
    principal_calls_max: int = setting(
        100, "the same of one user on each service, so that one leaves room for others", units="calls", minimum=1
    )
    principal_streams_max: int = setting(500, "streams at once of one user on each service", units="streams", minimum=1)
    principal_processor_share: float = setting(
        0.25,
        "what calls of one user may take of a core while others call too; those beyond wait",
        units="cores",
        minimum=0.001,
    )
    principal_refusals_per_second: float = setting(
        50.0, "how many calls of one user, or one host, are refused; those beyond wait", units="calls/s", minimum=0.001
    )
    keepalive_seconds: float = setting(20.0, "how often a silent connection is pinged", units="s", minimum=1)
    keepalive_timeout_seconds: float = setting(10.0, "missing answer that ends a connection", units="s", minimum=1)
    reflection_open: bool = setting(False, "reflection asks for no token")
    tls_certificate_file: Path | None = setting(None, "certificate that the port shows (PEM, with its chain)")
    tls_key_file: Path | None = setting(None, "its private key")
    tls_client_ca_file: Path | None = setting(None, "authority whose certificates callers must show (mTLS)")
    tls_ca_file: Path | None = setting(
        None, "authority of the other services' certificates; with it they are called with TLS, and shown our own"
    )
    plaintext_allowed: bool = setting(False, "listen without TLS also where other machines reach the port")
    plaintext_peers_allowed: bool = setting(
        False, "call a database or an event bus of another machine also without TLS"
    )
    token_file: Path | None = setting(None, "file with the token that this service calls others with")
    revocations_file: Path | None = setting(
        None, "keeps which tokens were revoked, for a start with the scheduler away"
    )
    oidc_file: Path | None = setting(None, "an OpenID Connect issuer whose tokens are taken beside our own (YAML)")
    oidc_ca_file: Path | None = setting(None, "authority of its certificate; those of the system where left out")
    oidc_keys_file: Path | None = setting(None, "keeps the issuer's public keys, for a start with it away")
    oidc_fetch_seconds: float = setting(5.0, "longest wait for a document of the issuer", units="s", minimum=0.1)
    oidc_fetch_bytes_max: int = setting(2**20, "largest document of the issuer", units="bytes", minimum=1)
    oidc_refresh_seconds: float = setting(300.0, "how often the issuer's keys are fetched anew", units="s", minimum=1)
    oidc_unknown_key_seconds: float = setting(
        30.0, "least pause between two fetches because a token names an unknown key", units="s", minimum=0
    )


def load(cls: type[Config], *, argv: Sequence[str], environ: Mapping[str, str], prog: str, prefix: str) -> Config:
    """Build `cls` from flags and environment, or raise ConfigurationError with every problem at once.

    `argv` is without the program's name. `prefix` belongs to this process alone: any variable that starts with it and
    names no setting is a problem, as a typo would otherwise be a default in silence. `--help` prints and exits with 0.
    """
    settings = settings_of(cls, prefix)
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(help_text(settings, prog))
        raise SystemExit(0)
    problems: list[str] = []
    given = {**_from_environment(settings, environ, prefix, problems), **_from_flags(settings, argv, problems)}
    missing = [s for s in settings if s.required and s.name not in given]
    problems += [f"{s.flag} is missing: give it, or set {s.variable} ({s.help})" for s in missing]
    if problems:
        raise ConfigurationError(problems)
    return cls(**given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a configuration, with the names under which it can be given."""

    name: str
    flag: str
    variable: str
    kind: Any
    optional: bool
    repeated: bool
    required: bool
    default: Any
    help: str
    units: str
    minimum: float | None


def settings_of(cls: type[Any], prefix: str) -> tuple[Setting, ...]:
    """The settings of a configuration dataclass, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    return tuple(_setting_from_field(field, hints[field.name], prefix) for field in dataclasses.fields(cls))


def help_text(settings: Sequence[Setting], prog: str) -> str:
    """The table of settings that `--help` prints."""
    rows = [
        (_flag_usage(s), "required" if s.required else _shown(s.default), s.variable, _help_with_kind(s))
        for s in settings
    ]
    rows.insert(0, ("flag", "default", "environment", "meaning"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    return f"usage: {prog} [--flag value …]\n\n" + "\n".join(f"  {line}" for line in lines) + "\n"


def _setting_from_field(field: dataclasses.Field[Any], hint: Any, prefix: str) -> Setting:
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    repeated = typing.get_origin(hint) is tuple
    if repeated:
        hint = typing.get_args(hint)[0]
    known = hint in (str, int, float, bool, Path) or (isinstance(hint, type) and issubclass(hint, enum.Enum))
    assert known, f"{field.name}: a setting cannot be a {hint}"
    assert field.default_factory is dataclasses.MISSING, f"{field.name}: a setting's default is a plain value"
    return Setting(
        name=field.name,
        flag="--" + field.name.replace("_", "-"),
        variable=prefix + field.name.upper(),
        kind=hint,
        optional=optional,
        repeated=repeated,
        required=field.default is dataclasses.MISSING,
        default=field.default,
        help=field.metadata.get("help", ""),
        units=field.metadata.get("units", ""),
        minimum=field.metadata.get("minimum"),
    )


def _from_environment(
    settings: Sequence[Setting], environ: Mapping[str, str], prefix: str, problems: list[str]
) -> dict[str, Any]:
    by_variable = {s.variable: s for s in settings}
    values: dict[str, Any] = {}
    for variable in sorted(name for name in environ if name.startswith(prefix)):
        if variable not in by_variable:
            problems.append(f"{variable} is no setting{_nearest(variable, by_variable)}")
            continue
        s = by_variable[variable]
        text = environ[variable]
        if s.repeated:
            parts = [part.strip() for part in text.split(",") if part.strip()]
            values[s.name] = tuple(_parsed(s, variable, parts, problems))
        elif s.optional and text == "":
            values[s.name] = None
        else:
            for value in _parsed(s, variable, [text], problems):
                values[s.name] = value
    return values


def _from_flags(settings: Sequence[Setting], argv: Sequence[str], problems: list[str]) -> dict[str, Any]:
    by_flag = {s.flag: s for s in settings}
    negated = {"--no-" + s.flag[2:]: s for s in settings if s.kind is bool}
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        follows = bool(words) and not words[0].startswith("--")
        if flag in negated and not equals:
            values[negated[flag].name] = False
        elif flag not in by_flag:
            problems.append(_unknown_word(flag, by_flag))
            if flag.startswith("--") and not equals and follows:
                words.pop(0)  # its value: one problem, not two
        elif by_flag[flag].kind is bool and not equals:
            values[by_flag[flag].name] = True
        elif not equals and not follows:
            problems.append(f"{flag} needs a value ({_wanted(by_flag[flag])})")
        else:
            s = by_flag[flag]
            for value in _parsed(s, flag, [text if equals else words.pop(0)], problems):
                values[s.name] = (*values.get(s.name, ()), value) if s.repeated else value
    return values


def _parsed(s: Setting, source: str, texts: Sequence[str], problems: list[str]) -> list[Any]:
    """The values of `texts`; a wrong one becomes a problem that names `source`."""
    values = []
    for text in texts:
        try:
            value = _value(s.kind, text)
        except ValueError:
            problems.append(f"{source} is {text!r}, but must be {_wanted(s)}")
            continue
        if s.minimum is not None and value < s.minimum:
            problems.append(f"{source} is {text}, but must be at least {s.minimum:g}")
            continue
        values.append(value)
    return values


def _value(kind: Any, text: str) -> Any:
    if kind is bool:
        return _boolean(text)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(text.lower())
    if kind is Path and text == "":
        raise ValueError(text)
    return kind(text)


def _boolean(text: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise ValueError(text)


def _wanted(s: Setting) -> str:
    if s.kind is bool:
        return "true or false"
    if isinstance(s.kind, type) and issubclass(s.kind, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in s.kind)
    noun = {str: "text", int: "a whole number", float: "a number", Path: "a path"}[s.kind]
    return f"{noun} ({s.units})" if s.units else noun


def _unknown_word(word: str, by_flag: Mapping[str, Setting]) -> str:
    if word.startswith("-"):
        return f"{word} is no flag{_nearest(word, by_flag)}"
    return f"{word!r} is not expected: values follow a flag"


def _nearest(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else "; --help lists them all"


def _flag_usage(s: Setting) -> str:
    if s.kind is bool:
        return f"{s.flag} / --no-{s.flag[2:]}"
    return f"{s.flag} …" if s.repeated else s.flag


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)


def _help_with_kind(s: Setting) -> str:
    is_enum = isinstance(s.kind, type) and issubclass(s.kind, enum.Enum)
    return f"{s.help} ({_wanted(s)})" if is_enum else f"{s.help} ({s.units})" if s.units else s.help
