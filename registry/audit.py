"""The audit log: who was given links to what. Rows are only ever added, and hold no link.

    audit        day, number     one row for each decision, and for each version tag that its origin
                                 changed, numbered from 1 within a UTC day
                 record          the decision or the change, as JSON
                 previous, hash  SHA-256 of the row before this one, and of this one with that
    audit_head   one row         the day, number and hash of the last row, and a seal over them

A row that was changed no longer has its hash; one that was removed or inserted breaks the chain.
The chain runs on from one day to the next, so that no day can be cut off at its end; the end of the
chain itself is held by the seal, which only a holder of `secret_key` can make. Whole days can be
retired from the beginning.

To add to the chain is to lock the one row of `audit_head` first: processes and hosts take turns,
and no two rows follow the same one. A thread writes what gathered meanwhile with one commit.
"""

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime  # before 3.11 not the one of the builtins
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

import sqlalchemy as sa
from itsdangerous import Signer
from sqlalchemy.exc import IntegrityError

from registry.database import engine_of, insert, translated
from registry.errors import DatabaseUnavailable
from registry.logs import timestamp

logger = logging.getLogger(__name__)

Mode = Literal["required", "best_effort", "off"]

WAIT = 4.0
"""Seconds a request waits for its row, where a row is required."""
ROOM = 10_000
"""Rows that are kept in memory while the database does not answer."""
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_BATCH = 1000
_LINGER = 0.5
_PAUSE = 1.0

_metadata = sa.MetaData()
_rows = sa.Table(
    "audit",
    _metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
_head = sa.Table(
    "audit_head",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("seal", sa.String(64), nullable=False),
)
_START = ""
"""What the first row of all follows, and the day before any."""


@dataclass(frozen=True)
class Event:
    """One decision. `token` is the id of a token; `reason` the kind of error that refused.

    `version` is None where a stage is assigned to a commit without one; with `revision` and
    `files` (how many links were given) it is only known of what was granted.
    """

    request: str
    address: str
    token: str
    repository: str
    selector: str
    decision: Literal["granted", "refused"]
    reason: str | None = None
    revision: str | None = None
    version: str | None = None
    files: int = 0


@dataclass(frozen=True)
class Exchange:
    """Whether an ID token was exchanged: `subject` is its issuer and whom it speaks of, as far as
    its signature holds. `token` is the id of the new token, and `repository` what that is good for.
    """

    request: str
    address: str
    subject: str
    decision: Literal["granted", "refused"]
    reason: str | None = None
    token: str = ""
    repository: str = ""
    selector: str = "token/exchange"


@dataclass(frozen=True)
class Change:
    """What an origin did to a version tag, the `selector`, after it was first seen as `revision`.
    `origin` is the commit that the tag has there now, None for none. Nobody asked for it: there is
    no request, token and address.
    """

    repository: str
    selector: str
    decision: Literal["moved", "deleted", "restored"]
    revision: str
    origin: str | None


@dataclass(frozen=True)
class Deletion:
    """That somebody deleted what was tracked: the `selector` says what, such as `run 7f3a...`."""

    request: str
    address: str
    token: str
    selector: str
    decision: Literal["deleted"] = "deleted"


@dataclass(frozen=True)
class Delivery:
    """Whether an object was handed out through the gateway, the `selector`: where it is kept.

    A link says of nobody to whom it was given; `link` tells one from another, by what nobody can
    make it from: the beginning of the SHA-256 of its token.
    """

    request: str
    address: str
    link: str
    selector: str
    md5: str | None
    decision: Literal["granted", "refused"]
    reason: str | None = None


Happening = Event | Exchange | Deletion | Delivery | Change


@dataclass(frozen=True)
class Row:
    """A row as it stands in the database. `record` is the JSON of what happened, and its
    time, `at`.
    """

    day: str
    number: int
    record: str
    previous: str
    hash: str

    @classmethod
    def after(cls, previous: str, day: str, number: int, record: str) -> "Row":
        """The row that follows the one whose hash is `previous`."""
        return cls(day, number, record, previous, _hash(previous, day, number, record))

    @property
    def name(self) -> str:
        """How people speak of the row."""
        return f"{self.day} row {self.number}"

    @property
    def holds(self) -> bool:
        """Whether the row is what it was when it was written."""
        return self.hash == _hash(self.previous, self.day, self.number, self.record)


@dataclass(slots=True)
class _Waiting:
    """What happened at `moment`, and who waits for its row: nobody where none is required."""

    moment: float
    happened: Happening
    written: "Future[None] | None"

    @property
    def record(self) -> str:
        """The JSON of the row. Made by the writer: a batch of them takes a third of the time."""
        return _ENCODE({"at": timestamp(self.moment), **vars(self.happened)})


class AuditLog:
    """Writes and verifies the audit log. One per process; safe to share between threads.

    `secret_keys` are oldest first: the last one seals, and all of them are accepted. `clock`
    gives Unix time. `count` is told how many rows were "written" or "lost".
    Opens no connection and starts no thread before the first event.
    """

    def __init__(
        self,
        database: str,
        secret_keys: list[str],
        mode: Mode,
        clock: Callable[[], float] = time.time,
        count: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        self._engine = engine_of(database)
        self._signer = Signer(
            secret_keys, salt="registry.audit", key_derivation="hmac", digest_method=hashlib.sha256
        )
        self._mode = mode
        self._clock = clock
        self._count = count
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._closed = threading.Event()
        self._writing = 0

    @property
    def is_required(self) -> bool:
        """Whether `write` waits until the row is committed."""
        return self._mode == "required"

    def create_tables(self) -> None:
        """Makes the tables that are missing; harmless when all are there."""
        with translated():
            _metadata.create_all(self._engine)
            seal = self._seal(_START, 0, _START)
            first = {"id": 1, "day": _START, "number": 0, "hash": _START, "seal": seal}
            with suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(sa.insert(_head).values(first))

    def write(self, event: Event | Exchange | Deletion | Delivery) -> None:
        """Adds a row.

        Where rows are required it is committed on return, within WAIT seconds; DatabaseUnavailable
        is raised if it is not. Otherwise the row follows within a second, or once the database is
        back, and at most the last ROOM rows wait for it in memory.
        """
        written: Future[None] | None = Future() if self._mode == "required" else None
        is_queued = self._put(event, written)
        if written:
            if not is_queued:
                raise DatabaseUnavailable("too many audit rows wait to be written")
            try:
                written.result(WAIT)
            except NotInTime:
                # One that is not yet being written never will be: nobody gets an answer for it.
                written.cancel()
                raise DatabaseUnavailable("the audit row was not written in time") from None

    def note(self, change: Change) -> None:
        """Adds a row that nobody waits for, as `write` does where rows are not required."""
        self._put(change, None)

    def waiting(self) -> int:
        """About how many rows are not written yet."""
        return self._queue.qsize() + self._writing

    def close(self) -> None:
        """Writes what is waiting, if the database answers, and closes the connections to it."""
        self._closed.set()
        with self._lock:
            writer = self._writer
        if writer:
            self._queue.put(None)  # wakes the writer
            writer.join()
        self._engine.dispose()

    def rows(self, day: str | None = None) -> Iterator[Row]:
        """All rows, or those of a day (`2027-01-15`), oldest first. Raises DatabaseUnavailable."""
        query = sa.select(_rows).order_by(_rows.c.day, _rows.c.number)
        if day is not None:
            query = query.where(_rows.c.day == day)
        with translated(), self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield Row(**row._mapping)

    def verify(self, day: str | None = None) -> Iterator[str]:
        """What is wrong with the log, or with one day of it: a line for each place.

        Of neighbours that do not fit together the later one is named. Raises DatabaseUnavailable.
        """
        before = self._last_before(day) if day else None
        for row in self.rows(day):
            if not row.holds:
                yield f"{row.name} was changed"
            expected = before.number + 1 if before and before.day == row.day else 1
            if row.number != expected:
                yield f"{row.name} follows where row {expected} should: rows were removed"
            elif before and row.previous != before.hash:
                yield f"{row.name} does not follow from {before.name}: one was changed or replaced"
            before = row
        yield from self._wrong_end(before, day)

    # The end of the chain

    def _last_before(self, day: str) -> Row | None:
        query = sa.select(_rows).where(_rows.c.day < day)
        query = query.order_by(_rows.c.day.desc(), _rows.c.number.desc()).limit(1)
        with translated(), self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return Row(**row._mapping) if row else None

    def _wrong_end(self, last: Row | None, day: str | None) -> Iterator[str]:
        """Whether the log, or the day, ends where it was ended."""
        with translated(), self._engine.connect() as connection:
            head = connection.execute(sa.select(_head)).one_or_none()
            later = sa.select(_rows).where(_rows.c.day > (day or "9"))
            later = later.order_by(_rows.c.day, _rows.c.number).limit(1)
            follower = connection.execute(later).one_or_none()
        if head is None:
            yield "the head of the log was removed"
            return
        sealed = f"{head.day}/{head.number}/{head.hash}".encode()
        if not self._signer.verify_signature(sealed, head.seal):
            yield "the seal of the last row does not hold, or its key is no longer in secret_key"
        if follower:
            if last and follower.previous != last.hash:
                yield f"{last.name} is not the last one of its day: rows were removed or inserted"
        # Rows may have been added since they were read: the end is behind the last one then.
        elif last and (head.day, head.number) < (last.day, last.number):
            yield f"{last.name} was inserted: the log ends with {head.day} row {head.number}"
        elif last and (head.day, head.number) == (last.day, last.number):
            if head.hash != last.hash:
                yield f"{last.name} was replaced: the log ends with another one"
        elif head.number and not self._exists(head.day, head.number):
            yield f"{head.day} row {head.number}, the last one, was removed"

    def _exists(self, day: str, number: int) -> bool:
        query = sa.select(_rows.c.hash).where(_rows.c.day == day, _rows.c.number == number)
        with translated(), self._engine.connect() as connection:
            return connection.execute(query).one_or_none() is not None

    def _seal(self, day: str, number: int, last: str) -> str:
        return self._signer.get_signature(f"{day}/{number}/{last}".encode()).decode()

    # The writer

    def _put(self, happened: Happening, written: "Future[None] | None") -> bool:
        """Whether the row is on its way."""
        if self._mode == "off":
            return False
        self._start()
        if self._queue.qsize() >= ROOM:
            self._count("lost", 1)
            return False
        self._queue.put(_Waiting(self._clock(), happened, written))
        return True

    def _start(self) -> None:
        # Lazily: a thread started before the server forks its workers would exist in none of them.
        if not (self._writer and self._writer.is_alive()):
            with self._lock:
                if self._closed.is_set() or (self._writer and self._writer.is_alive()):
                    return
                self._writer = threading.Thread(target=self._run, name="audit", daemon=True)
                self._writer.start()

    def _run(self) -> None:
        batch: list[_Waiting] = []
        while batch := self._gathered(batch):
            self._writing = len(batch)
            batch = self._written(batch)
            self._writing = len(batch)

    def _gathered(self, batch: list[_Waiting]) -> list[_Waiting]:
        """What waits, after `batch`, which was tried before: at least one; nothing once the log is
        closed and all is written.
        """
        first: _Waiting | None = None
        while True:
            if len(batch) < _BATCH:
                with suppress(queue.Empty):
                    while first is None or _begins(first, batch):
                        first = self._queue.get_nowait()
            if batch or (self._closed.is_set() and self._queue.empty()):
                return batch
            first = self._queue.get()
            if self._mode == "best_effort" and self._queue.qsize() < _BATCH:
                self._closed.wait(_LINGER)  # nobody waits, and one commit for many costs less

    def _written(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Writes a batch; returns what is to be tried again: what nobody waits for is, until the
        service ends.
        """
        try:
            self._append([item.record for item in batch])
        except DatabaseUnavailable as error:
            return self._unwritten(batch, error)
        self._count("written", len(batch))
        for item in batch:
            if item.written:
                item.written.set_result(None)
        return []

    def _unwritten(self, batch: list[_Waiting], error: DatabaseUnavailable) -> list[_Waiting]:
        again = [item for item in batch if not item.written]
        for item in batch:
            if item.written:
                item.written.set_exception(DatabaseUnavailable(error.problem))
        lost = len(batch) - len(again)
        if again:
            logger.warning("the audit log cannot be written: %s", error.problem)
            if self._closed.wait(_PAUSE):
                lost, again = len(batch), []
        if lost:
            self._count("lost", lost)
            logger.error("%d audit rows are lost: %s", lost, error.problem)
        return again

    def _append(self, records: list[str]) -> None:
        """Adds rows to the end of the chain, all or none. Raises DatabaseUnavailable."""
        today = datetime.fromtimestamp(self._clock(), timezone.utc).date().isoformat()
        with translated(), self._engine.begin() as connection:
            # A write that changes nothing, but takes the lock: on SQLite of the whole database.
            locked = connection.execute(sa.update(_head).values(id=1))
            head = connection.execute(sa.select(_head)).one_or_none()
            if not locked.rowcount or head is None:
                raise DatabaseUnavailable("the audit log has no head: run `registry serve` once")
            # The order of the rows is that of their commits, also when a clock is set back.
            day = max(today, head.day)
            number, last = head.number if head.day == day else 0, head.hash
            rows = []
            for number, record in enumerate(records, number + 1):  # noqa: B020 read once, before
                row = Row.after(last, day, number, record)
                last = row.hash
                rows.append(tuple(vars(row).values()))
            insert(connection, _rows, rows)
            end = {"day": day, "number": number, "hash": last}
            connection.execute(sa.update(_head).values(seal=self._seal(day, number, last), **end))


def _begins(item: _Waiting, batch: list[_Waiting]) -> bool:
    """Takes an item into the batch, unless nobody waits for it any more; whether more fit."""
    if item.written is None or item.written.set_running_or_notify_cancel():
        batch.append(item)
    return len(batch) < _BATCH


def _hash(previous: str, day: str, number: int, record: str) -> str:
    return hashlib.sha256(f"{previous}\n{day}\n{number}\n{record}".encode()).hexdigest()
