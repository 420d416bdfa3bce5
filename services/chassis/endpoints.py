"""Where the services are, and the token that goes along: said by the caller, by a context, or by the `sihlai up` of
this machine. One address is enough: the scheduler tells where the others are.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.chassis.address import service_address
from services.chassis.context import LOCAL, CurrentToken, NoContextError, chosen_context
from services.chassis.errors import Reason, Unavailable
from services.chassis.tls import ClientTls

SERVICES = ("scheduler", "metrics", "conversion")
"""The services that clients talk to, as they are named in flags, variables and endpoints.json."""
TOKEN_VARIABLE = "SIHLAI_TOKEN"  # noqa: S105  # its name
LOCK_FILE, ENDPOINTS_FILE, TOKEN_FILE = "up.lock", "endpoints.json", "token"
CA_FILE = "ca_file"
"""Among the endpoints: the file with the authority of their certificates, where they speak TLS."""


class NoEndpointError(Exception):
    """Nobody said where a service is; the message is for a person."""


@dataclass(kw_only=True)
class Endpoints:
    """The addresses by service, and the token.

    `given` were said; others are looked up with each call, because they may change while a program runs: in the data
    folder `up` where no scheduler was said, else they are what the scheduler told (`learn`).
    """

    given: Mapping[str, str] = field(default_factory=dict)
    up: Path | None = None
    said_token: str | Callable[[], str] = ""
    """It, or what gives the one of the moment."""
    said_tls: ClientTls | None = None
    """Whom to believe, and what to show. Without it nothing is encrypted, unless the `up` of this machine says so."""
    known: dict[str, str] = field(default_factory=dict)

    def address(self, service: str) -> str | None:
        """The service's address; None where the scheduler is to be asked. NoEndpointError says what to do."""
        if address := self.given.get(service):
            return address
        if "scheduler" not in self.given and self.up is not None:
            found = read_endpoints(self.up)
            self.known |= {each: found[each] for each in SERVICES if each in found}
        if address := self.known.get(service):
            return address
        if service != "scheduler" and (self.given.get("scheduler") or self.known.get("scheduler")):
            return None
        looked = f" (nothing is up in {self.up})" if self.up is not None else ""
        raise NoEndpointError(
            f"the address of the {service} service is not known: start everything with `sihlai up`, or say where it is "
            f"with --{service} HOST:PORT, SIHLAI_{service.upper()}_ADDRESS or `sihlai context add`{looked}"
        )

    def learn(self, addresses: Mapping[str, str]) -> None:
        """Take what the scheduler tells. An address without a host is on the scheduler's."""
        host = (self.given.get("scheduler") or self.known.get("scheduler") or "").rpartition(":")[0]
        for service in SERVICES[1:]:
            address = addresses.get(service, "")
            if not address:
                raise NoEndpointError(
                    f"the scheduler does not know where {service} is: say --{service} HOST:PORT, or set "
                    f"--announced-{service}-address of the scheduler"
                )
            self.known[service] = f"{host}{address}" if address.startswith(":") else address

    def tls(self, address: str) -> ClientTls | None:
        """How the address is called; None where nothing is encrypted."""
        if self.said_tls is None and self.up is not None:
            found = read_endpoints(self.up)
            if address in found.values() and CA_FILE in found:
                return ClientTls(ca_file=Path(found[CA_FILE]))
        return self.said_tls

    def token(self, address: str) -> str:
        """What goes along with calls to the address. The token of this machine's `up` goes nowhere else.

        Raises Unavailable for the address of an `up` that stops, starts or has gone: until it is written down again
        anybody may listen there, and its services would refuse a call without the token.
        """
        is_up_at = self.up is not None and address in read_endpoints(self.up).values()
        if not is_up_at and "scheduler" not in self.given and address in self.known.values():
            raise Unavailable(Reason.SERVICE_UNAVAILABLE, f"nothing is up in {self.up} at the moment")
        if self.said_token or self.up is None or not is_up_at:
            return self.said_token if isinstance(self.said_token, str) else self.said_token()
        with contextlib.suppress(OSError):
            return (self.up / TOKEN_FILE).read_text().strip()
        return ""


def resolve(
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, str | None] | None = None,
    context: str | None = None,
    data: Path | None = None,
    token: str = "",
    tls: ClientTls | None = None,
) -> Endpoints:
    """Look everywhere, in order: what is said, the environment, the context in use, the `up` of this machine."""
    said = {
        service: service_address(address, f"the address of {service}")
        for service in SERVICES
        if (address := (flags or {}).get(service) or environ.get(f"SIHLAI_{service.upper()}_ADDRESS", ""))
    }
    token = token or environ.get(TOKEN_VARIABLE, "")
    chosen = None if data is not None or "scheduler" in said else chosen_context(context, environ)
    if chosen is None:
        if context not in (None, "", LOCAL):
            raise NoContextError(f"give either the context {context} or an address or data folder")
        return Endpoints(given=said, up=data or data_folder(environ), said_token=token, said_tls=tls)
    return Endpoints(
        given={"scheduler": service_address(chosen.address, "the address of the context")} | said,
        said_token=token or CurrentToken(chosen),
        said_tls=tls or chosen.tls,
    )


def data_folder(environ: Mapping[str, str]) -> Path | None:
    """SIHLAI_DATA, else `sihlai` in the user's folder for data (XDG_DATA_HOME, ~/.local/share); None without a home."""
    if environ.get("SIHLAI_DATA"):
        return Path(environ["SIHLAI_DATA"]).expanduser()
    if base := environ.get("XDG_DATA_HOME"):
        return Path(base) / "sihlai"
    home = home_folder(environ)
    return None if home is None else home / ".local" / "share" / "sihlai"


def home_folder(environ: Mapping[str, str]) -> Path | None:
    """The user's home; None for a user who has none, as in many containers."""
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def usual_roots(environ: Mapping[str, str]) -> list[Path]:
    """Where datasets of a person lie: the home, if there is one, and the current folder."""
    home = home_folder(environ)
    return [Path.cwd()] if home is None else [home, Path.cwd()]


def read_endpoints(up: Path) -> dict[str, str]:
    """The addresses by service; none where nothing is up.

    What an `up` that was killed left behind is not believed: by now anybody may listen there, and a command may send
    the keys of its environment along.
    """
    if not is_held(up):
        return {}
    try:
        found = json.loads((up / ENDPOINTS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(address) for name, address in found.items()} if isinstance(found, dict) else {}


def is_held(up: Path) -> bool:
    """Whether an `up` holds the folder now. The lock that this looks with ends with the file."""
    try:
        with (up / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
