"""Which receipts were given out: enough of each to make it again, on any host, after any restart.

    receipts    digest      as clients name it
                the rest    what was asked, and what it meant then; written once, never changed

The files of a receipt are not kept: the revision holds them.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

import sqlalchemy as sa
from cachetools import LRUCache
from sqlalchemy.exc import IntegrityError

from registry.database import engine_of, translated
from registry.domain import Revision, Selector
from registry.receipt import Terms

REMEMBERED = 50_000
"""Receipts of which a process knows without asking the database."""

_metadata = sa.MetaData()
_rows = sa.Table(
    "receipts",
    _metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("repository", sa.String(255), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("parameter", sa.String(16), nullable=False),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Column("revision", sa.String(64), nullable=False),
    sa.Column("version", sa.String(255)),
    sa.Column("tag", sa.String(255)),
    sa.Column("created", sa.BigInteger, nullable=False),
)


class Issued:
    """The receipts that were given out. One per process; safe to share between threads.

    `clock` gives Unix time.
    """

    def __init__(self, database: str, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine_of(database)
        self._clock = clock
        self._lock = Lock()
        self._known: LRUCache[str, Terms] = LRUCache(REMEMBERED)

    def create_tables(self) -> None:
        """Makes the table if it is missing; harmless when it is there."""
        with translated():
            _metadata.create_all(self._engine)

    def keep(self, digest: str, terms: Terms) -> None:
        """Writes down what a receipt is made from, unless it is known. Raises
        DatabaseUnavailable.
        """
        if digest in self:
            return
        ((parameter, value),) = terms.selector.asked.items()
        row = {
            "digest": digest,
            "repository": terms.repository,
            "name": str(terms.selector.artifact),
            "parameter": parameter,
            "value": value,
            "revision": terms.revision,
            "version": terms.version,
            "tag": terms.tag,
            "created": int(self._clock()),
        }
        known = sa.select(sa.literal(1)).where(_rows.c.digest == digest)
        with translated():
            with self._engine.connect() as connection:
                found = connection.execute(known).one_or_none()
            if found is None:
                # Another process may have been faster, and has written the same.
                with suppress(IntegrityError), self._engine.begin() as connection:
                    connection.execute(sa.insert(_rows).values(row))
        with self._lock:
            self._known[digest] = terms

    def __contains__(self, digest: str) -> bool:
        """Whether it is in memory that the receipt was written down."""
        with self._lock:
            return digest in self._known

    def find(self, digest: str) -> Terms | None:
        """What a receipt is made from; None for one that was never given out. Raises
        DatabaseUnavailable.
        """
        with self._lock:
            terms = self._known.get(digest)
        if terms is None:
            query = sa.select(_rows).where(_rows.c.digest == digest)
            with translated(), self._engine.connect() as connection:
                row = connection.execute(query).one_or_none()
            if row is None:
                return None
            terms = Terms(
                row.repository,
                Selector.parse(row.name, **{row.parameter: row.value}),
                Revision(row.revision),
                row.version,
                row.tag,
            )
            with self._lock:
                self._known[digest] = terms
        return terms

    def close(self) -> None:
        """Closes the connections to the database."""
        self._engine.dispose()
