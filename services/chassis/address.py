"""Addresses: those of services checked before they are called, those with a password shown without."""

from __future__ import annotations

import re

from services.chassis.errors import ConfigurationError

SCHEME = re.compile(r"(unix|unix-abstract|vsock|dns|ipv4|ipv6|xds):.+")
"""Of gRPC's own, which it reads itself."""
HOST_AND_PORT = re.compile(r"([^\s:/@\[\]]+|\[[^\s\[\]]+\]):(?P<port>[0-9]{1,5})")
PORT_MAX = 65_535


def service_address(text: str, what: str) -> str:
    """The address of a service as gRPC takes it. Raises ConfigurationError for what can be none."""
    if SCHEME.fullmatch(text) is None:
        found = HOST_AND_PORT.fullmatch(text)
        if found is None or not 0 < int(found["port"]) <= PORT_MAX:
            raise ConfigurationError(
                [f"{what} is {text!r}, but must be HOST:PORT with a port from 1 to {PORT_MAX}, such as gpu-farm:50051"]
            )
    return text


def without_password(url: str) -> str:
    """The address without what stands before its host and without a query; for addresses that were found to be some.

    All up to the last `@` goes: a password may hold one, or a slash, that nobody quoted. Never show one that could not
    be read: what looks like its host may be a password.
    """
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}" if separator else ""
