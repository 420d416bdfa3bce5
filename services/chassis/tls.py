"""TLS of our ports and of our calls: files in, credentials of gRPC and contexts of ssl out.

A server shows its certificate, and where `client_ca_file` is given takes calls only from who shows one of that
authority (mTLS). Certificate and key are read again when their files change, so that they are renewed without a
restart. Without TLS a server listens where its own machine alone can reach it, unless the configuration says in so many
words that it may listen elsewhere; databases and event buses are called in the same way.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.chassis.config import ServerConfig
from services.chassis.errors import ConfigurationError
from services.chassis.files import require_private

LOCAL_NAMES = ("localhost", "ip6-localhost")


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """What a server shows, and of whom it wants to be shown something."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. ConfigurationError where a file cannot be used."""
        fetch = _Renewed(self)
        return grpc.dynamic_ssl_server_credentials(
            fetch.first,
            fetch,  # type: ignore[arg-type]  # None, which keeps the old ones, is documented and missing in the stub
            require_client_authentication=self.client_ca_file is not None,
        )


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Whom a client believes, and what it shows where that is asked for."""

    ca_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. ConfigurationError where a file cannot be used."""
        certificate, key = None, None
        if self.certificate_file is not None and self.key_file is not None:
            require_private(self.key_file)
            certificate, key = _read(self.certificate_file), _read(self.key_file)
        return grpc.ssl_channel_credentials(_read(self.ca_file), key, certificate)

    def context(self) -> ssl.SSLContext:
        """For a connection that is not gRPC's. ConfigurationError where a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None and self.key_file is not None:
                require_private(self.key_file)
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                [f"TLS cannot be used with {self.ca_file} and what goes with it: {error}"]
            ) from error
        return context


def server_tls(config: ServerConfig) -> ServerTls | None:
    """What the port of a server that is configured so shows; None without TLS.

    ConfigurationError where other machines would reach a port without TLS, and nothing says that they may.
    """
    certificate, key = config.tls_certificate_file, config.tls_key_file
    if (certificate is None) != (key is None):
        raise ConfigurationError(["--tls-certificate-file and --tls-key-file go together: give both, or none"])
    if certificate is not None and key is not None:
        return ServerTls(certificate_file=certificate, key_file=key, client_ca_file=config.tls_client_ca_file)
    if config.tls_client_ca_file is not None:
        raise ConfigurationError(["--tls-client-ca-file needs --tls-certificate-file and --tls-key-file"])
    if not is_local(config.listen_address) and not config.plaintext_allowed:
        problem = (
            f"{config.listen_address} is reached by other machines, and tokens would travel in the clear: give "
            "--tls-certificate-file and --tls-key-file, or say --plaintext-allowed"
        )
        raise ConfigurationError([problem])
    return None


def client_tls(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> ClientTls | None:
    """How other services are called; None without TLS."""
    if ca_file is None:
        return None
    return ClientTls(ca_file=ca_file, certificate_file=certificate_file, key_file=key_file)


def require_encrypted(config: ServerConfig, setting: str, hosts: Iterable[str], *, encrypted: bool, way: str) -> None:
    """ConfigurationError where what a setting names lies on another machine, would be called without TLS, and nothing
    says that it may. `way`: how it is called with TLS.
    """
    away = [host for host in hosts if host and not host.startswith(("/", "@")) and not is_local(f"{host}:0")]
    if away and not encrypted and not config.plaintext_peers_allowed:
        problem = (
            f"{setting} names {', '.join(away)}, and passwords and data would travel there in the clear: {way}, or "
            "say --plaintext-peers-allowed"
        )
        raise ConfigurationError([problem])


class _Renewed:
    """The server's files as they are now; None where they are as they were."""

    def __init__(self, tls: ServerTls) -> None:
        require_private(tls.key_file)
        self._tls = tls
        self._read_at = self._state()
        self.first = self._configuration()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """For each new connection."""
        try:
            state = self._state()
            if state == self._read_at:
                return None
            renewed = self._configuration()
        except (OSError, ConfigurationError):  # one of them is being replaced just now: the old ones hold
            return None
        self._read_at = state
        return renewed

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        tls = self._tls
        roots = _read(tls.client_ca_file) if tls.client_ca_file is not None else None
        pairs = [(_read(tls.key_file), _read(tls.certificate_file))]
        return grpc.ssl_server_certificate_configuration(pairs, roots)

    def _state(self) -> list[tuple[int, int]]:
        files = [self._tls.certificate_file, self._tls.key_file, self._tls.client_ca_file]
        found = [file.stat() for file in files if file is not None and file.exists()]
        return [(each.st_mtime_ns, each.st_ino) for each in found]


def is_local(address: str) -> bool:
    """Whether an address can be reached from its own machine alone."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError([f"{file} cannot be read: {error.strerror}"]) from error
