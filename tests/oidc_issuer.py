"""A small issuer of OpenID Connect on loopback: real documents over HTTP, real keys, real signed tokens."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.object_server import free_ports

AUDIENCE = "sihlai"
DISCOVERY, KEYS = "/.well-known/openid-configuration", "/keys"
_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)  # takes a while: one for all
LIFE_SECONDS = 600


class Issuer:
    """`answers` are its documents by path: what a test puts there instead is what is served. `asked` counts."""

    def __init__(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                answer = issuer.answers.get(self.path)
                status, content = (404, b"") if answer is None else (200, answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked had enough
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.asked: list[str] = []
        self.answers: dict[str, bytes] = {}
        self._handler = Handler
        (self._port,) = free_ports(1)  # it goes away, and comes back there
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._serve()
        self.url = f"http://127.0.0.1:{self._port}"
        self.private_keys: dict[str, Any] = {}
        self.answers[DISCOVERY] = json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}{KEYS}"}).encode()
        self.rotate("first")

    def rotate(self, *key_ids: str, kind: str = "RSA") -> None:
        """Show and sign with new keys of these ids, and no others; tokens are signed with the last."""
        make = {
            "RSA": lambda: _RSA if not self.private_keys else rsa.generate_private_key(65_537, 2_048),
            "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
            "OKP": Ed25519PrivateKey.generate,
        }[kind]
        self.private_keys = {key_id: self.private_keys.get(key_id) or make() for key_id in key_ids}
        self.show()

    def show(self) -> None:
        """Publish the keys as they are."""
        self.answers[KEYS] = json.dumps({"keys": [jwk(key, kid) for kid, key in self.private_keys.items()]}).encode()

    def token(self, *, headers: Mapping[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
        """A token for ada, ten minutes long; claims that are None are left out."""
        key_id = list(self.private_keys)[-1]
        key = key or self.private_keys[key_id]
        said = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": int(time.time()) + LIFE_SECONDS,
            "jti": uuid.uuid4().hex,
            **claims,
        }
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm=algorithm_of(key), headers={"kid": key_id, **(headers or {})})

    def leave(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def come_back(self) -> None:
        """Answer again, at the same address."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Issuer:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def algorithm_of(key: Any) -> str:
    """What a key signs with here."""
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    return "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"


def jwk(key: Any, key_id: str) -> dict[str, Any]:
    """The public half, as an issuer shows it."""
    algorithm = jwt.get_algorithm_by_name(algorithm_of(key))
    shown: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**shown, "kid": key_id, "use": "sig", "alg": algorithm_of(key)}
