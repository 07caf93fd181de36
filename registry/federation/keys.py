"""The public keys of an issuer: fetched from the issuer itself, and kept.

    <issuer>/.well-known/openid-configuration   {"issuer": <issuer>, "jwks_uri": ...}
    jwks_uri                                    {"keys": [{"kid": ..., "kty": "RSA", ...}]}

Only hosts that the operator named are contacted: `jwks_uri` must lie on the issuer's own origin,
unless the operator wrote it into the configuration. No redirect is followed, and nothing is sent
that came with a request. What a token says of its key (`jku`, `x5u`, `jwk`) is not listened to.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import urllib3

from registry.errors import IssuerUnavailable

logger = logging.getLogger(__name__)

Jwk = Mapping[str, object]
"""A public key as JSON has it (RFC 7517)."""

PATIENCE = 4.0
"""Seconds that a request waits for keys, whatever the issuer does."""
FRESH = 600.0
"""Seconds after which keys are fetched again."""
STALE = 3600.0
"""Seconds for which keys are used while their issuer does not answer."""
PAUSE = 15.0
"""Seconds between two looks at an issuer, whatever came of the first and however many unknown keys
are asked for."""
LARGEST = 256 * 1024
"""Bytes of the largest document that is read."""
LONGEST_URL = 2048
"""Characters of the longest URL that an issuer may name."""
WAITING = 8
"""Requests that wait for an issuer at the same time: a process has other work for its threads."""

_SLOW = "it does not answer in time"
_KINDS = ("RSA", "EC", "OKP")
_READS = urllib3.Timeout(connect=2.0, read=2.0)


class KeySource:
    """The keys of one issuer. Safe to share between threads; contacts nobody before it is asked.

    `keys_url` is where they are, if not where the issuer's discovery document says; `ca_file` whom
    to trust instead of the system's authorities. `clock` gives Unix time.
    """

    def __init__(
        self,
        issuer: str,
        keys_url: str | None = None,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._keys_url = keys_url
        self._pool = urllib3.PoolManager(
            retries=False, maxsize=1, ca_certs=str(ca_file) if ca_file else None
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, Jwk] = {}
        self._fetched = self._tried = float("-inf")
        self._went_well = False
        self._problem = _SLOW
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._fetching: threading.Thread | None = None

    def key(self, key_id: str) -> Jwk | None:
        """The key with this id, or None if the issuer has none. Raises IssuerUnavailable."""
        if not self._settled(key_id):
            look = self._look()
            if self._waiting.acquire(blocking=False):
                try:
                    look.join(PATIENCE)
                finally:
                    self._waiting.release()
        found = self._keys.get(key_id)
        # That a key is unknown can be said of what was seen just now, and of nothing else.
        if self._younger_than(STALE, self._fetched) and (found or self._is_current()):
            return found
        raise IssuerUnavailable(self._issuer, self._problem, int(PAUSE))

    def probe(self) -> int:
        """Looks at the issuer now, and says how many keys it has. Raises IssuerUnavailable."""
        self._tried = float("-inf")
        self._look().join(PATIENCE)
        if not self._is_current():
            raise IssuerUnavailable(self._issuer, self._problem, int(PAUSE))
        return len(self._keys)

    def close(self) -> None:
        """Closes the connections to the issuer."""
        self._pool.clear()

    def _settled(self, key_id: str) -> bool:
        """Whether a look at the issuer would say nothing new, or it is too early for one."""
        known = key_id in self._keys and self._younger_than(FRESH, self._fetched)
        return known or (self._younger_than(PAUSE, self._tried) and not self._in_flight())

    def _is_current(self) -> bool:
        """Whether the last look at the issuer is over, and went well."""
        return self._went_well and not self._in_flight()

    def _younger_than(self, seconds: float, moment: float) -> bool:
        # A clock that was set back makes nothing fresh for longer.
        return 0 <= self._clock() - moment < seconds

    def _in_flight(self) -> bool:
        return self._fetching is not None and self._fetching.is_alive()

    def _look(self) -> threading.Thread:
        """The one look that is under way, begun if there is none.

        A thread of its own, so that an issuer that answers a byte at a time holds nobody up.
        """
        with self._lock:
            if self._fetching is None or not (
                self._fetching.is_alive() or self._younger_than(PAUSE, self._tried)
            ):
                self._fetching = threading.Thread(target=self._fetch, name="keys", daemon=True)
                self._fetching.start()
            return self._fetching

    def _fetch(self) -> None:
        deadline = time.monotonic() + PATIENCE
        self._went_well = False
        try:
            url = self._keys_url or self._discovered(deadline)
            self._keys = parse(self._read(url, deadline))
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            # A library's own words may be long and many: its kind says as much.
            self._problem = str(error) if type(error) is ValueError else type(error).__name__
            logger.warning("the keys of %s cannot be fetched: %s", self._issuer, self._problem)
        else:
            self._fetched, self._went_well, self._problem = self._clock(), True, _SLOW
        finally:
            self._tried = self._clock()

    def _discovered(self, deadline: float) -> str:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        document = _object(self._read(url, deadline))
        if document.get("issuer") != self._issuer:
            raise ValueError("the discovery document is that of another issuer")
        keys_url = document.get("jwks_uri")
        if not isinstance(keys_url, str) or len(keys_url) > LONGEST_URL:
            raise ValueError("jwks_uri in the discovery document is no URL")
        if _origin(keys_url) != _origin(self._issuer):
            raise ValueError(
                "jwks_uri is not on the issuer's own origin: if it is right, set jwks_url to it"
            )
        return keys_url

    def _read(self, url: str, deadline: float) -> bytes:
        """The document at a URL. Raises ValueError and urllib3's errors."""
        response = self._pool.request(
            "GET",
            url,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=_READS,
            redirect=False,
            preload_content=False,
        )
        try:
            if response.status != 200:
                raise ValueError(f"{url} answers {response.status}")
            found = bytearray()
            while chunk := response.read1(65_536, decode_content=False):
                found += chunk
                if len(found) > LARGEST:
                    raise ValueError(f"{url} has more than {LARGEST} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"{url} does not answer in time")
            return bytes(found)
        finally:
            response.close()
            response.release_conn()


def parse(data: bytes) -> dict[str, Jwk]:
    """Key id -> public key, of those of a set that are for signatures. Raises ValueError."""
    listed = _object(data).get("keys")
    if not isinstance(listed, list):
        raise ValueError("the document at jwks_uri is no set of keys")
    found: dict[str, Jwk] = {}
    for key in listed:
        if (
            isinstance(key, dict)
            and isinstance(key.get("kid"), str)
            and key.get("kty") in _KINDS
            and key.get("use", "sig") == "sig"
            and "d" not in key
        ):
            found.setdefault(key["kid"], key)
    return found


def _object(data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the issuer answers what is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("the issuer answers what is no object of JSON")
    return found


def _origin(url: str) -> tuple[str | None, ...]:
    r"""Scheme, user, host and port, read as they will be when the URL is fetched: two parsers could
    see two hosts in `https://evil.example\@issuer.example/`. Raises urllib3's LocationParseError.
    """
    parts = urllib3.util.parse_url(url)
    default = {"https": 443, "http": 80}.get(parts.scheme or "")
    return parts.scheme, parts.auth, parts.host, str(parts.port or default)
