"""Where the servers of one machine listen: given, as the last time, or anywhere that is free."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from services.chassis.address import PORT_MAX
from services.chassis.files import replace_file
from services.cli.error import CommandError

ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


class AddressError(CommandError):
    """No address to listen at; the message is for a person."""


def split_address(text: str, what: str) -> tuple[str, int]:
    """Host and port. Raises AddressError for what is no `HOST:PORT`."""
    found = ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > PORT_MAX:
        raise AddressError(
            f"{what} is {text!r}, but must be HOST:PORT with a port of at most {PORT_MAX}, such as 127.0.0.1:0 "
            "(0 takes a free one)"
        )
    return found["host"], int(found["port"])


def chosen_addresses(wanted: Mapping[str, str], kept: Path) -> dict[str, str]:
    """An address for each name, port 0 replaced: by the one of the last time where it is free, else by a free one.

    What is chosen is kept in a file, so that who looks for a service finds it where it was. Raises AddressError.
    """
    before = _read(kept)
    chosen: dict[str, str] = {}
    for name, text in wanted.items():
        host, port = split_address(text, f"--listen-{name}")
        last = before.get(name, "")
        if port:
            chosen[name] = text
        elif last.startswith(f"{host}:") and last not in chosen.values() and _is_free(last):
            chosen[name] = last
        else:
            chosen[name] = _free_besides(text, chosen.values())
    replace_file(kept, (json.dumps(chosen, indent=2) + "\n").encode(), synced=False)
    return chosen


def _free_besides(text: str, taken: Collection[str]) -> str:
    """A free address that is none of those: nobody listens there yet, so the system may name one of them again."""
    while (found := free_address(text)) in taken:
        pass
    return found


def free_address(listen_address: str) -> str:
    """The address, with a free port in place of 0."""
    host, port = split_address(listen_address, "the address")
    if port:
        return listen_address
    with _socket(host) as probe:
        try:
            probe.bind((host.strip("[]"), 0))
        except OSError as error:
            raise AddressError(f"nothing can listen at {listen_address}: {error.strerror or error}") from error
        return f"{host}:{probe.getsockname()[1]}"


def _is_free(address: str) -> bool:
    host, port = split_address(address, "the address")
    with _socket(host) as probe:
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True


def _socket(host: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
    # Without it the port could stay blocked for a minute on systems that keep closed sockets.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe


def _read(kept: Path) -> dict[str, str]:
    try:
        found = json.loads(kept.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): str(address) for name, address in found.items() if ADDRESS.fullmatch(str(address))}
