"""How the processes of one machine are reached, by each other and by others: by which name, with TLS or without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import ServerConfig
from services.chassis.endpoints import CA_FILE
from services.chassis.errors import ConfigurationError
from services.chassis.tls import ClientTls, ServerTls, client_tls, is_local, server_tls
from services.cli.machine.address import AddressError, split_address

EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 — told apart, not listened at


@dataclass(frozen=True, kw_only=True)
class Transport:
    """What is listened with. The certificate bears the names that `reached` gives."""

    host: str = ""
    """The name of this machine for others; without it each is reached where it listens."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    """The authority that signed the certificate, for our own processes and the commands of this machine."""
    plaintext_allowed: bool = False

    @property
    def has_tls(self) -> bool:
        """Whether the services are called with TLS."""
        return self.certificate_file is not None

    @property
    def client_tls(self) -> ClientTls | None:
        """How this machine calls its own services."""
        return client_tls(self.ca_file, None, None)

    def check(self, addresses: Iterable[str]) -> None:
        """Raise AddressError where these cannot be listened at so, in one sentence, and not service by service."""
        if self.has_tls != (self.ca_file is not None):
            raise AddressError(
                "--tls-certificate-file and --tls-ca-file go together: this machine checks its own certificate too"
            )
        try:
            for address in addresses:
                tls = server_tls(self._config(address))
                if tls is not None:
                    tls.credentials()
        except ConfigurationError as error:
            raise AddressError(str(error)) from error

    def reached(self, address: str) -> str:
        """The address that what listens there is called at."""
        host, port = split_address(address, "the address")
        if self.host and not is_local(address):
            return f"{self.host}:{port}"
        return f"localhost:{port}" if host in EVERYWHERE else address

    def announced(self, address: str) -> str:
        """What others are told; without a host it is the one that they have found the scheduler at."""
        host, port = split_address(address, "the address")
        return f":{port}" if host in EVERYWHERE and not self.host else self.reached(address)

    def server_flags(self) -> tuple[str | Path, ...]:
        """Of a service, which calls others too."""
        if self.certificate_file is None or self.key_file is None:
            return ("--plaintext-allowed", "--plaintext-peers-allowed") if self.plaintext_allowed else ()
        files = ("--tls-certificate-file", self.certificate_file, "--tls-key-file", self.key_file)
        return (*files, *self.client_flags())

    def client_flags(self) -> tuple[str | Path, ...]:
        """Of who calls services only."""
        return ("--tls-ca-file", self.ca_file) if self.ca_file is not None else ()

    def nats_tls(self, address: str) -> ServerTls | None:
        """What NATS shows. Where its own machine alone reaches it, it needs none: a password it has."""
        if self.certificate_file is None or self.key_file is None or is_local(address):
            return None
        return ServerTls(certificate_file=self.certificate_file, key_file=self.key_file)

    def nats_flags(self, address: str) -> tuple[str | Path, ...]:
        """Where a service finds NATS."""
        if self.nats_tls(address) is None or self.ca_file is None:
            return ("--nats-url", f"nats://{self.reached(address)}")
        return ("--nats-url", f"tls://{self.reached(address)}", "--nats-ca-file", self.ca_file)

    def endpoints(self) -> Mapping[str, str]:
        """What the commands of this machine have to know besides the addresses."""
        return {CA_FILE: str(self.ca_file)} if self.ca_file is not None else {}

    def _config(self, address: str) -> ServerConfig:
        return ServerConfig(
            listen_address=address,
            tls_certificate_file=self.certificate_file,
            tls_key_file=self.key_file,
            plaintext_allowed=self.plaintext_allowed,
        )
