"""Federation: the ID token that a CI system gave one of its jobs -> what the registry lets it do.

    Federation   the issuers that the operator named, and nobody else
      Issuer     who signs ID tokens: its URL, the audience, the algorithms, its rules
        Rule     claims that a job must have -> repositories, scopes, lifetime
        KeySource  the issuer's public keys (keys.py)
    Admission    what one ID token is good for: one exchange, for one token of ours

PyJWT reads the token and checks its signature; it is loaded with the first token there is to check.
The claims are checked here, against the clock of this service. Nothing that a token says is
believed before its signature holds, but for the issuer that it names: one of those configured.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.domain import matches
from registry.errors import ExchangeRefused, InvalidRequest
from registry.federation.keys import Jwk, KeySource

LONGEST = 16_384
"""Characters of the longest ID token that is looked at."""
LONGEST_LIFE = 86_400
"""Seconds that an ID token may live: so long it is remembered that it was exchanged."""

REASONS = (
    *("malformed", "unknown_issuer", "algorithm", "unknown_key", "signature"),
    *("claims", "expired", "not_yet_valid", "lifetime", "audience", "no_rule", "replayed"),
)
"""Why an ID token is exchanged for nothing: the words of `ExchangeRefused.reason`."""

_NEVER = 1e12
"""A Unix time beyond all that is meant by one. What is no number is not below it either."""
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Claims = Mapping[str, object]


@dataclass(frozen=True)
class Rule:
    """Which jobs may do what: each of `claims` must match one of its patterns.

    A claim within a claim is named with a slash, such as `kubernetes.io/namespace`. `lifetime` is
    that of the token of ours, in seconds.
    """

    claims: Mapping[str, tuple[str, ...]]
    repositories: tuple[str, ...]
    scopes: tuple[str, ...]
    lifetime: int

    def fits(self, claims: Claims) -> bool:
        """Whether the rule lets a job with these claims in."""
        return all(
            any(matches(patterns, text) for text in _texts(_claim(claims, name)))
            for name, patterns in self.claims.items()
        )


@dataclass(frozen=True)
class Issuer:
    """Whose ID tokens are taken. `leeway` is in seconds, and counts for every time in a token.

    `single_use` is False where jobs cannot get a token for every exchange.
    """

    url: str
    audience: str
    algorithms: tuple[str, ...]
    leeway: int
    single_use: bool
    rules: tuple[Rule, ...]
    keys: KeySource


@dataclass(frozen=True)
class Admission:
    """What an ID token that holds is good for.

    `proof` is the digest by which the token is remembered until `ends` (Unix seconds); None where
    it may be exchanged again.
    """

    issuer: str
    subject: str
    repositories: tuple[str, ...]
    scopes: tuple[str, ...]
    lifetime: int
    proof: str | None
    ends: float

    @property
    def name(self) -> str:
        """The issuer and the subject, for lists of tokens and the audit log."""
        return _name(self.issuer, self.subject)


class Federation:
    """Checks ID tokens. One per process; safe to share between threads. `clock` gives Unix time."""

    def __init__(self, issuers: Iterable[Issuer], clock: Callable[[], float]) -> None:
        self._issuers = {issuer.url: issuer for issuer in issuers}
        self._clock = clock

    def admit(self, text: str, scopes: Collection[str] = ()) -> Admission:
        """What the ID token `text` is good for: `scopes`, or all that its rule gives.

        May wait for the issuer's keys, `keys.PATIENCE` seconds at most. Raises ExchangeRefused,
        IssuerUnavailable, and InvalidRequest for a scope that the rule does not give.
        """
        if not self._issuers:
            raise ExchangeRefused("unknown_issuer", "no issuer is configured here")
        header, claims = _unverified(text)
        issuer = self._issuers.get(str(claims.get("iss")))
        if issuer is None:
            raise ExchangeRefused("unknown_issuer", "its issuer is not configured here")
        _verify(text, header, issuer)
        ends = _moments(claims, issuer.leeway, self._clock())
        subject = _subject(claims)
        if issuer.audience not in _texts(claims.get("aud")):
            problem = f"its audience is not {issuer.audience}"
            raise ExchangeRefused("audience", problem, _name(issuer.url, subject))
        rule = next((rule for rule in issuer.rules if rule.fits(claims)), None)
        if rule is None:
            problem = f"no rule lets {subject!r} in"
            raise ExchangeRefused("no_rule", problem, _name(issuer.url, subject))
        for scope in scopes:
            if scope not in rule.scopes:
                raise InvalidRequest("scope", f"{scope} is not given to this job")
        return Admission(
            issuer.url,
            subject,
            rule.repositories,
            tuple(dict.fromkeys(scopes)) or rule.scopes,
            rule.lifetime,
            _proof(text, issuer, claims) if issuer.single_use else None,
            ends,
        )

    def __iter__(self) -> Iterator[Issuer]:
        return iter(self._issuers.values())

    def close(self) -> None:
        """Closes the connections to the issuers."""
        for issuer in self._issuers.values():
            issuer.keys.close()


def _unverified(text: str) -> tuple[Mapping[str, Any], Claims]:
    """The header and the claims, of which nothing is proven yet. Raises ExchangeRefused."""
    if len(text) > LONGEST or not _COMPACT.fullmatch(text):
        raise ExchangeRefused("malformed", "it is not a signed JWT")
    from jwt import InvalidTokenError, PyJWS  # noqa: PLC0415 with cryptography, 20 MB

    try:
        read = PyJWS().decode_complete(text, options={"verify_signature": False})
        claims = json.loads(read["payload"])
    except (InvalidTokenError, ValueError, RecursionError):
        raise ExchangeRefused("malformed", "it is not a signed JWT") from None
    if not isinstance(claims, dict):
        raise ExchangeRefused("malformed", "its claims are not an object")
    return read["header"], claims


def _verify(text: str, header: Mapping[str, Any], issuer: Issuer) -> None:
    """Raises ExchangeRefused, unless the issuer signed the token with a key of its own."""
    from jwt import (  # noqa: PLC0415 as above
        InvalidKeyError,
        InvalidTokenError,
        PyJWK,
        PyJWKError,
        PyJWS,
    )

    algorithm, key_id = header.get("alg"), header.get("kid")
    # Compared with what the operator allowed, before the network is asked for anything.
    if algorithm not in issuer.algorithms:
        allowed = ", ".join(issuer.algorithms)
        raise ExchangeRefused("algorithm", f"it is not signed with {allowed}")
    found: Jwk | None = issuer.keys.key(key_id) if isinstance(key_id, str) else None
    if found is None or found.get("alg", algorithm) != algorithm:
        raise ExchangeRefused(
            "unknown_key", "it is signed with a key that its issuer does not have"
        )
    try:
        key = PyJWK(dict(found), algorithm)
        PyJWS().decode_complete(
            text, key, [algorithm], options={"enforce_minimum_key_length": True}
        )
    except (InvalidKeyError, PyJWKError):
        raise ExchangeRefused(
            "unknown_key", f"its issuer's key is not fit for {algorithm}"
        ) from None
    except InvalidTokenError:
        raise ExchangeRefused("signature", "its signature does not hold") from None


def _moments(claims: Claims, leeway: int, now: float) -> float:
    """Until when the token can be presented. Raises ExchangeRefused, also for a missing time."""
    issued, expires = _moment(claims, "iat"), _moment(claims, "exp")
    begins = _moment(claims, "nbf") if "nbf" in claims else issued
    if expires + leeway <= now:
        raise ExchangeRefused("expired", "it has expired")
    if max(begins, issued) - leeway > now:
        raise ExchangeRefused("not_yet_valid", "it is not valid yet")
    if expires - now > LONGEST_LIFE:
        raise ExchangeRefused("lifetime", "it lives longer than a day")
    return expires + leeway


def _moment(claims: Claims, name: str) -> float:
    found = claims.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < _NEVER:
        raise ExchangeRefused("claims", f"its claim {name} is missing, or not a time")
    return float(found)


def _subject(claims: Claims) -> str:
    found = claims.get("sub")
    if not isinstance(found, str) or not found:
        raise ExchangeRefused("claims", "its claim sub is missing, or not a text")
    return found


def _proof(text: str, issuer: Issuer, claims: Claims) -> str:
    """By what the token is known again: its `jti`, or else all of it that is signed.

    Without the signature, which for elliptic curves has more than one spelling.
    """
    identity = claims.get("jti")
    if isinstance(identity, str) and identity:
        known = json.dumps([issuer.url, identity])
    else:
        known = text.rpartition(".")[0]
    return hashlib.sha256(known.encode()).hexdigest()


def _claim(claims: Claims, name: str) -> object:
    """A claim by its name, or by its path where none has that name."""
    if name in claims:
        return claims[name]
    outer, slash, inner = name.partition("/")
    below = claims.get(outer) if slash else None
    return _claim(below, inner) if isinstance(below, dict) else None


def _texts(value: object) -> list[str]:
    """What of a claim a pattern is compared with: a text, each of a list, `true` or a number."""
    if isinstance(value, list):
        return [text for item in value if not isinstance(item, list) for text in _texts(item)]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [str(value)] if isinstance(value, str | int) else []


def _name(issuer: str, subject: str) -> str:
    text = f"{issuer} {subject}"[:255]
    return "".join(character if character.isprintable() else "?" for character in text)
