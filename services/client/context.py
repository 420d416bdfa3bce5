"""Contexts: installations by name, with their address and token, in one file of the user that nobody else can read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.chassis.files import replace_file

LOCAL = "local"
"""The context that always is there: the `sihlai up` of this machine."""
VARIABLE = "SIHLAI_CONTEXT"
FILE_VARIABLE = "SIHLAI_CONTEXTS"
FILE_MODE = 0o600


class NoContextError(Exception):
    """There is no such context, or no place for contexts; the message is for a person."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """An installation. The token stands here, or in a file that is read anew with each use."""

    address: str
    token: str = ""
    token_file: Path | None = None
    certificates: Path | None = None

    def current_token(self) -> str:
        """The token as it is now. Raises NoContextError where its file cannot be read."""
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NoContextError(f"the context's token cannot be read: {error}") from error


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
    return {
        name: Path(value) if name in ("token_file", "certificates") else str(value) for name, value in fields.items()
    }
