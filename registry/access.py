"""Tokens: who asks, what they may do and which repositories exist for them.

A token is `reg_<secret>.<signature>`. The signature (itsdangerous, own salt, SHA-256) turns away
whatever the registry did not issue without touching the database; the database knows a token only
by the SHA-256 of its secret, so that neither a dump of it nor the signing key alone is of use.
"""

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from itsdangerous import BadSignature, Signer
from sqlalchemy.exc import IntegrityError

from registry.database import engine_of, translated
from registry.domain import Principal
from registry.errors import (
    DatabaseUnavailable,
    ExchangeRefused,
    Forbidden,
    TokenNotFound,
    Unauthenticated,
)

SCOPES = ("models:read", "metrics:read", "tracking:read", "tracking:write")
"""What a token can be allowed to do."""

PREFIX = "reg_"
# The one way a token is written: what decodes to the same would be remembered once more.
_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}\.[A-Za-z0-9_-]{{42}}[AEIMQUYcgkosw048]")
FRESH = 2.0
"""Seconds for which a checked token is not looked up again: a revocation holds within them."""
GRACE = 30.0
"""Seconds for which a checked token outlives the database."""

_metadata = sa.MetaData()
_tokens = sa.Table(
    "tokens",
    _metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("repositories", sa.JSON, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("revoked", sa.BigInteger),
)
# What was exchanged for a token. A row, and the token with it, goes when both have long ended.
_exchanges = sa.Table(
    "exchanges",
    _metadata,
    sa.Column("proof", sa.String(64), primary_key=True),
    sa.Column("token", sa.String(16), nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False, index=True),
)
KEPT = 7 * 86_400
"""Seconds that an exchanged token stays in the list after its end."""
_TIDY = 600.0
_PAUSE = 1.0


@dataclass(frozen=True)
class Token:
    """What the registry remembers of a token; the token itself it does not. Times are UTC."""

    principal: Principal
    created: datetime
    expires: datetime
    revoked: datetime | None

    @property
    def id(self) -> str:
        """The public name of the token, for lists, logs and `revoke`."""
        return self.principal.id

    def problem(self, now: float) -> str | None:
        """Why the token does not hold at `now` (Unix seconds), or None when it does."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires.timestamp() <= now else None


def require(principal: Principal, scope: str) -> None:
    """Raises Forbidden when the principal lacks `scope`."""
    if scope not in principal.scopes:
        raise Forbidden(scope)


class Access:
    """Issues, checks and revokes tokens. One per process; safe to share between threads.

    `secret_keys` are oldest first: the last one signs, and all of them are accepted.
    """

    def __init__(
        self,
        database: str,
        secret_keys: list[str],
        clock: Callable[[], float] = time.time,
        most: int = 10_000,
    ) -> None:
        """`most` checked tokens are remembered before those that ended long ago are forgotten."""
        self._engine = engine_of(database)
        self._signer = Signer(
            secret_keys, salt="registry.token", key_derivation="hmac", digest_method=hashlib.sha256
        )
        self._clock = clock
        self._checked: dict[str, tuple[Token, float]] = {}
        self._tidied = float("-inf")
        self._most = most
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._failing = False
        self._closed = threading.Event()

    def create_tables(self) -> None:
        """Makes the tables that are missing; harmless when all are there."""
        with translated():
            _metadata.create_all(self._engine)

    def create(
        self, name: str, scopes: list[str], repositories: list[str], expires: datetime
    ) -> tuple[Token, str]:
        """A new token, and its text, which is shown this once and kept nowhere."""
        row, text = self._new(name, scopes, repositories, expires)
        with translated(), self._engine.begin() as connection:
            connection.execute(sa.insert(_tokens).values(row))
        return _token(row), text

    def exchange(
        self,
        proof: str | None,
        ends: float,
        name: str,
        scopes: list[str],
        repositories: list[str],
        expires: datetime,
    ) -> tuple[Token, str]:
        """A new token, as of `create`, for a proof that is good for one: whoever comes second, in
        this process or any other, gets none. `ends` is until when the proof could be presented
        again (Unix seconds); one of None can be at any time.

        Raises ExchangeRefused and DatabaseUnavailable; the proof is still good after the latter.
        """
        row, text = self._new(name, scopes, repositories, expires)
        spent = {
            "proof": proof or secrets.token_hex(32),
            "token": row["id"],
            "until": int(max(ends, expires.timestamp())) + 1,
        }
        with translated(), self._engine.begin() as connection:
            try:
                connection.execute(sa.insert(_exchanges).values(spent))
            except IntegrityError:
                raise ExchangeRefused("replayed", "it was exchanged before", name) from None
            connection.execute(sa.insert(_tokens).values(row))
        self._tidy()
        return _token(row), text

    def _new(
        self, name: str, scopes: list[str], repositories: list[str], expires: datetime
    ) -> tuple[dict[str, object], str]:
        """The row of a new token, and its text."""
        secret = secrets.token_urlsafe(32)
        row: dict[str, object] = {
            "id": secrets.token_hex(6),
            "digest": _digest(secret),
            "name": name,
            "scopes": sorted(scopes),
            "repositories": repositories,
            "created": int(self._clock()),
            "expires": int(expires.timestamp()),
            "revoked": None,
        }
        return row, PREFIX + self._signer.sign(secret).decode()

    def _tidy(self) -> None:
        """Forgets exchanges that ended long ago, and their tokens, now and then."""
        now = self._clock()
        if now - self._tidied < _TIDY:
            return
        self._tidied = now
        over = _exchanges.c.until < now - KEPT
        # Another process may do the same now: then one of the two is enough.
        with suppress(DatabaseUnavailable), translated(), self._engine.begin() as connection:
            ended = sa.select(_exchanges.c.token).where(over)
            connection.execute(sa.delete(_tokens).where(_tokens.c.id.in_(ended)))
            connection.execute(sa.delete(_exchanges).where(over))

    def tokens(self) -> list[Token]:
        """Every token ever issued, oldest first; exchanged ones until KEPT after their end."""
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(_tokens).order_by(_tokens.c.created, _tokens.c.id))
            return [_token(dict(row._mapping)) for row in rows]

    def revoke(self, token_id: str) -> Token:
        """Ends a token: no worker accepts it 5 s later. Raises TokenNotFound."""
        query = (
            sa.update(_tokens)
            .where(_tokens.c.id == token_id)
            .values(revoked=sa.func.coalesce(_tokens.c.revoked, int(self._clock())))
            .returning(_tokens)
        )
        with translated(), self._engine.begin() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise TokenNotFound(token_id)
        return _token(dict(row._mapping))

    def principal(self, text: str) -> Principal:
        """Who presents this token. Raises Unauthenticated, or DatabaseUnavailable."""
        now = self._clock()
        token, checked = self._checked.get(text, (None, 0.0))
        if token is None or not 0 <= now - checked < FRESH:
            token = self._look_up(text, now, token if abs(now - checked) < GRACE else None)
        problem = token.problem(now)
        if problem:
            raise Unauthenticated(f"token {token.id} is {problem}")
        return token.principal

    @property
    def failing(self) -> bool:
        """Whether the database did not answer when it was last asked for a token."""
        return self._failing

    def _look_up(self, text: str, now: float, known: Token | None) -> Token:
        if known and self._failing:
            return known  # to ask what does not answer costs seconds: somebody else does
        try:
            if not _TOKEN.fullmatch(text):
                raise BadSignature("it is not spelled as tokens are")
            secret = self._signer.unsign(text.removeprefix(PREFIX)).decode()
        except BadSignature:
            raise Unauthenticated("not a token of this registry") from None
        query = sa.select(_tokens).where(_tokens.c.digest == _digest(secret))
        try:
            row = self._row(query)
        except DatabaseUnavailable:
            if known is None:
                raise
            return known
        if row is None:
            self._checked.pop(text, None)
            raise Unauthenticated("unknown token")
        token = _token(dict(row._mapping))
        self._remember(text, token, now)
        return token

    def _remember(self, text: str, token: Token, now: float) -> None:
        if text not in self._checked and len(self._checked) >= self._most:
            for other, (_, checked) in [*self._checked.items()]:
                if abs(now - checked) >= GRACE:  # it would be looked up anyway
                    self._checked.pop(other, None)
        self._checked[text] = token, now

    def _row(self, query: "sa.Select[Any]") -> "sa.Row[Any] | None":
        """The row of a token. Raises DatabaseUnavailable.

        Once the database failed, one thread at a time asks it: the others would wait in vain, and
        be missing to whoever can be answered without it.
        """
        failing = self._failing
        if failing and not self._turn.acquire(blocking=False):
            raise DatabaseUnavailable("it did not answer a moment ago")
        try:
            with translated(), self._engine.connect() as connection:
                row = connection.execute(query).one_or_none()
        except DatabaseUnavailable:
            self._fail()
            raise
        finally:
            if failing:
                self._turn.release()
        self._failing = False
        return row

    def _fail(self) -> None:
        with self._lock:
            if not self._failing:
                self._failing = True
                threading.Thread(target=self._await, name="database", daemon=True).start()

    def _await(self) -> None:
        """Asks the database again and again until it answers."""
        while self._failing and not self._closed.wait(_PAUSE):
            with suppress(DatabaseUnavailable):
                self.probe()
                self._failing = False

    def probe(self) -> float | None:
        """Asks the database for its time: Unix seconds, or None where it has no clock of its own.
        Raises DatabaseUnavailable.
        """
        own = self._engine.dialect.name != "sqlite"
        epoch = sa.extract("epoch", sa.func.clock_timestamp())
        with translated(), self._engine.connect() as connection:
            found = connection.execute(sa.select(epoch if own else sa.literal(0))).scalar_one()
        return float(found) if own else None

    def close(self) -> None:
        """Closes the connections to the database."""
        self._closed.set()
        self._engine.dispose()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: dict[str, object]) -> Token:
    def moment(seconds: object) -> datetime:
        assert isinstance(seconds, int)
        return datetime.fromtimestamp(seconds, timezone.utc)

    scopes, repositories = row["scopes"], row["repositories"]
    assert isinstance(scopes, list)
    assert isinstance(repositories, list)
    return Token(
        Principal(str(row["id"]), str(row["name"]), frozenset(scopes), tuple(repositories)),
        created=moment(row["created"]),
        expires=moment(row["expires"]),
        revoked=moment(row["revoked"]) if row["revoked"] is not None else None,
    )
