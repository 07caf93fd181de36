"""An issuer of ID tokens, as a CI system is one: discovery, keys, and tokens signed with them."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from servers.process import HOST

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
ACTIONS = "/actions/token?api-version=2.0"
"""Where a runner of GitHub gets the ID tokens of a job."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private_key(name: str, kind: str = "RS256") -> PrivateKey:
    """A key by its name: an RSA key takes a while to find."""
    if kind.startswith("ES"):
        return ec.generate_private_key({"ES384": ec.SECP384R1}.get(kind, ec.SECP256R1)())
    if kind == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if name == "short" else 2048)


def public_jwk(name: str, kind: str = "RS256") -> dict[str, object]:
    """The public half of a key, as an issuer publishes it."""
    public = private_key(name, kind).public_key()
    algorithm = {"R": RSAAlgorithm, "E": ECAlgorithm}.get(kind[0], RSAAlgorithm)
    algorithm = OKPAlgorithm if kind == "EdDSA" else algorithm
    return {**algorithm.to_jwk(public, as_dict=True), "kid": name, "alg": kind, "use": "sig"}


class Issuer:
    """Signs tokens at the time that `clock` gives, and publishes the keys to check them with.

    `answers` maps a path to what is sent instead of a document: bytes, or a function that is given
    the handler and does it all. `requests` are the paths that were asked for. `job` are the claims
    of the one job there is, which asks for its tokens with `runner_token`.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.keys = [public_jwk("first")]
        self.answers: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []
        self.job: dict[str, object] = {}
        self.runner_token = secrets.token_urlsafe(16)
        self.given: list[str] = []
        self._ended = Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.issuer_ended = self._ended  # for answers that take their time
        self.url = f"http://{HOST}:{self._server.server_port}"

    def claims(self, audience: str, **more: object) -> dict[str, object]:
        """Those that every token has, and more; None leaves one out."""
        now = int(self.clock())
        every = {
            "iss": self.url,
            "aud": audience,
            "sub": "job",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "jti": secrets.token_hex(8),
        }
        return {name: value for name, value in {**every, **more}.items() if value is not None}

    def sign(
        self,
        claims: Mapping[str, object],
        key: str = "first",
        algorithm: str = "RS256",
        **headers: object,
    ) -> str:
        """A token with these claims, signed with a key whether it is published or not."""
        return jwt.encode(
            dict(claims), private_key(key, algorithm), algorithm, {"kid": key, **headers}
        )

    def token(self, audience: str, **more: object) -> str:
        """A token that holds."""
        return self.sign(self.claims(audience, **more))

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        self.requests.append(path)
        instead = self.answers.get(path)
        if callable(instead):
            instead(handler)
        elif instead is not None:
            respond(handler, instead)
        elif path == DISCOVERY:
            respond(handler, json.dumps({"issuer": self.url, "jwks_uri": self.url + KEYS}).encode())
        elif path == KEYS:
            respond(handler, json.dumps({"keys": self.keys}).encode())
        elif path.startswith(ACTIONS) and handler.headers["Authorization"] in (
            f"bearer {self.runner_token}",
            f"Bearer {self.runner_token}",
        ):
            (audience,) = parse_qs(urlsplit(path).query)["audience"]
            self.given.append(self.token(audience, **self.job))
            respond(handler, json.dumps({"count": 1, "value": self.given[-1]}).encode())
        else:
            respond(handler, b"", 404)

    def __enter__(self) -> "Issuer":
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Lets go of whom it keeps waiting, and answers nobody from now on."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


def respond(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **more: str) -> None:
    """Sends a whole answer."""
    handler.send_response(status)
    for name, value in more.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def start(clock: Callable[[], float] = time.time) -> Iterator[Issuer]:
    """Runs an issuer until the end of the block."""
    with Issuer(clock) as issuer:
        yield issuer
