"""Contexts: installations by name, with their address and token, in one file of the user that nobody else can read."""

from __future__ import annotations

import base64
import dataclasses
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.chassis.errors import ConfigurationError
from services.chassis.files import replace_file
from services.chassis.tls import ClientTls

LOCAL = "local"
"""The context that always is there: the `sihlai up` of this machine."""
VARIABLE = "SIHLAI_CONTEXT"
FILE_VARIABLE = "SIHLAI_CONTEXTS"
FILE_MODE = 0o600
COMMAND_SECONDS_MAX = 120.0
"""How long a command may take to print a token: it may ask its user to log in."""
RENEWAL_SECONDS = 30.0
"""So long before the end of a printed token its command is asked for another one."""
UNDATED_SECONDS = 60.0
"""How long a printed token that does not say when it ends is used."""


class NoContextError(Exception):
    """There is no such context, or no place for contexts; the message is for a person."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """An installation. The token stands here, or in a file that is read anew with each use, or a command prints it."""

    address: str
    token: str = ""
    token_file: Path | None = None
    token_command: str = ""
    ca_file: Path | None = None
    client_certificate_file: Path | None = None
    client_key_file: Path | None = None

    @property
    def tls(self) -> ClientTls | None:
        """How its services are called; None where nothing is encrypted."""
        return tls_of_caller(self.ca_file, self.client_certificate_file, self.client_key_file)

    def current_token(self) -> str:
        """The token as it is now. Raises NoContextError where its file cannot be read, or its command fails."""
        if self.token_command:
            return _printed(self.token_command)
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NoContextError(f"the context's token cannot be read: {error}") from error


def tls_of_caller(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> ClientTls | None:
    """How a caller calls who says this; None where nothing is encrypted. ConfigurationError for half of it."""
    if (certificate_file is None) != (key_file is None):
        raise ConfigurationError(["a client's certificate and its key go together: give both files, or none"])
    if ca_file is None and certificate_file is not None:
        raise ConfigurationError(["a client's certificate is shown over TLS alone: give the authority's file (CA) too"])
    return ClientTls(ca_file=ca_file, certificate_file=certificate_file, key_file=key_file) if ca_file else None


class CurrentToken:
    """A context's token for each call of a long time: a command is run again when what it printed is about to end."""

    def __init__(self, context: Context, *, now: Callable[[], float] = time.time) -> None:
        self._context = context
        self._now = now
        self._printed = ""
        self._until = 0.0

    def __call__(self) -> str:
        """As Context.current_token."""
        if not self._context.token_command:
            return self._context.current_token()
        if self._now() >= self._until:
            self._printed = self._context.current_token()
            ends_at = _end_of(self._printed)
            self._until = self._now() + UNDATED_SECONDS if ends_at is None else ends_at - RENEWAL_SECONDS
        return self._printed


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """All contexts, and which one is in use: LOCAL unless another was chosen."""

    by_name: Mapping[str, Context]
    used: str = LOCAL


def contexts_file(environ: Mapping[str, str]) -> Path | None:
    """SIHLAI_CONTEXTS, else in the user's folder for settings (XDG_CONFIG_HOME, ~/.config); None without a home."""
    if environ.get(FILE_VARIABLE):
        return Path(environ[FILE_VARIABLE]).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    return Path(base) / "sihlai" / "contexts.json" if base else None


def read_contexts(file: Path | None) -> Contexts:
    """The contexts in the file; none where there is no file. NoContextError for a file that is none of ours."""
    if file is None or not file.exists():
        return Contexts(by_name={})
    try:
        found = json.loads(file.read_text())
        by_name = {name: Context(**_with_paths(fields)) for name, fields in found["contexts"].items()}
        return Contexts(by_name=by_name, used=str(found["used"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NoContextError(f"{file} cannot be read as contexts ({error}): mend or remove it") from error


def write_contexts(file: Path | None, contexts: Contexts) -> None:
    """Replace the file, whole."""
    if file is None:
        raise NoContextError(f"there is no home folder for contexts: set {FILE_VARIABLE} to a file")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    by_name = {name: _plain(context) for name, context in sorted(contexts.by_name.items())}
    text = json.dumps({"used": contexts.used, "contexts": by_name}, indent=2) + "\n"
    replace_file(file, text.encode(), mode=FILE_MODE)


def chosen_context(name: str | None, environ: Mapping[str, str]) -> Context | None:
    """The context of this name, else SIHLAI_CONTEXT's, else the one in use; None for LOCAL."""
    wanted = name or environ.get(VARIABLE, "")
    if wanted == LOCAL:
        return None
    contexts = read_contexts(contexts_file(environ))
    wanted = wanted or contexts.used
    if wanted == LOCAL:
        return None
    if wanted not in contexts.by_name:
        known = ", ".join([LOCAL, *contexts.by_name])
        raise NoContextError(f"there is no context {wanted}: there are {known}; `sihlai context add` makes one")
    return contexts.by_name[wanted]


def _plain(context: Context) -> dict[str, str]:
    return {name: str(value) for name, value in dataclasses.asdict(context).items() if value}


def _with_paths(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Path(value) if name.endswith("_file") else str(value) for name, value in fields.items()}


def _printed(command: str) -> str:
    """What the command prints. What it says beside goes where ours goes, so that it can ask its user for something."""
    try:
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, timeout=COMMAND_SECONDS_MAX, check=True)
        text = done.stdout.decode().strip()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NoContextError(f"the context's token cannot be had from its command: {_without_output(error)}") from error
    if not text:
        raise NoContextError(f"the command of the context's token prints nothing: {command}")
    return text


def _without_output(error: Exception) -> str:
    """The error in words, which may not quote what the command printed."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{shlex.join(error.cmd)} ended with exit code {error.returncode}"
    if isinstance(error, UnicodeDecodeError):
        return "it prints no text"
    return str(error)


def _end_of(token: str) -> float | None:
    """When a token says that it ends, in seconds; None where it is no JWT. Nobody is believed for it."""
    try:
        body = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"])
    except (LookupError, TypeError, ValueError):
        return None
