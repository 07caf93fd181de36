"""What every part of tracking shares: connections, whose turn it is to write, time and ids."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from registry.database import engine_of, translated, writing
from registry.tracking.search import among

Row = Any
"""A row of an answer: SQLAlchemy 2.1 spells its type in another way than 2.0."""

PATIENCE = 10
"""Seconds a writer waits for its turn on SQLite: writers come in queues, and each is quick."""

PLANNER = (
    "-c enable_hashjoin=off -c enable_mergejoin=off -c enable_seqscan=off -c jit=off"
    " -c random_page_cost=1.1"
)
"""Every question has an index, and is asked to begin where it should: PostgreSQL is kept from
reading whole tables because it takes a page for larger than it is."""


class Store:
    """Connections to the tables. One per process; safe to share between threads.

    `clock` gives Unix time; `new_id` 32 hexadecimal digits that nothing else has.
    Opens no connection before it is asked for one.
    """

    def __init__(
        self,
        database: str,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._engine = engine_of(database, PATIENCE, PLANNER)
        self.new_id = new_id
        self._clock = clock
        embedded = self._engine.dialect.name == "sqlite"
        # The threads of a process take turns here, where waiting costs nothing, and not at the
        # lock of the file, which is asked again and again.
        self._turn = threading.Lock() if embedded else nullcontext()
        # Nothing that reads needs a transaction of several statements.
        options = {} if embedded else {"isolation_level": "AUTOCOMMIT"}
        self._readers = self._engine.execution_options(**options)
        if embedded:
            sa.event.listen(self._engine, "connect", _trust_the_log)

    @property
    def now(self) -> int:
        """Unix milliseconds."""
        return int(self._clock() * 1000)

    @property
    def embedded(self) -> bool:
        """Whether the database is SQLite, which spells a few things in its own way."""
        return self._engine.dialect.name == "sqlite"

    @property
    def dialect(self) -> sa.Dialect:
        """How the database spells SQL."""
        return self._engine.dialect

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read with. Raises DatabaseUnavailable."""
        with translated(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: all of the block is kept, or nothing. Raises DatabaseUnavailable."""
        with self._turn, writing(self._engine) as connection:
            yield connection

    def upsert(self, table: sa.Table) -> "sqlite.Insert":
        """An INSERT that can say what to do about rows that are there."""
        # The two have the same methods; SQLAlchemy has no common name for them.
        return sqlite.insert(table) if self.embedded else postgresql.insert(table)  # type: ignore[return-value]

    def among(self, column: "sa.ColumnElement[int]", name: str) -> "sa.ColumnElement[bool]":
        """Whether a number is one of those that are `listed` in a parameter."""
        kind = sa.Text() if self.embedded else sa.ARRAY(sa.BigInteger)
        return among(column, sa.bindparam(name, type_=kind), self.embedded)

    def listed(self, numbers: Sequence[int]) -> object:
        """Numbers as one parameter."""
        return json.dumps(numbers) if self.embedded else list(numbers)

    def upgrade(self) -> None:
        """Brings the tables to the form that this version knows; harmless when they have it."""
        from registry.tracking.migrations import upgrade  # noqa: PLC0415 a worker needs no Alembic

        with self.writing() as connection:
            upgrade(connection)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def _trust_the_log(connection: Any, _: object) -> None:
    """With WAL, `NORMAL` loses nothing when a process dies; when power fails, perhaps the last."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


class Prepared:
    """A statement as the driver takes it, with named parameters.

    It is compiled once: SQLAlchemy would otherwise put it together again, and go through every
    value of every row, which takes longer than most databases do. What is given must be of types
    that the driver knows itself, and what is read is as the driver gives it.
    """

    def __init__(
        self, store: Store, statement: "sa.ClauseElement", columns: Sequence[str] | None = None
    ) -> None:
        """`columns` are those that an INSERT is given."""
        compiled: Any = statement.compile(dialect=store.dialect, column_keys=columns)
        self._text = str(compiled)
        self._order = compiled.positiontup
        # What the statement has of its own, such as SQLite's offset beside a limit.
        self._own = {
            name: parameter.value
            for name, parameter in compiled.binds.items()
            if not (parameter.required or columns)
        }

    def __call__(self, connection: sa.Connection, **values: object) -> Any:
        """Runs it with these values."""
        return connection.exec_driver_sql(self._text, self._given({**self._own, **values}))

    def write(self, connection: sa.Connection, rows: Sequence[Mapping[str, object]]) -> int:
        """Writes the rows, of which there must be one, and returns how many were new or changed."""
        given: Any = [self._given(row) for row in rows]
        return connection.exec_driver_sql(self._text, given).rowcount

    def _given(self, values: Mapping[str, object]) -> Any:
        return tuple([values[name] for name in self._order]) if self._order else values


class Texts:
    """The rows of one table of tags: owner, key, value, and what else is `of_owner`."""

    def __init__(
        self, store: Store, table: sa.Table, owner: str, of_owner: Sequence[str] = ()
    ) -> None:
        self._owner = owner
        insert = store.upsert(table)
        insert = insert.on_conflict_do_update(
            index_elements=[owner, "key"], set_={"value": insert.excluded.value}
        )
        self._statement = Prepared(store, insert, (owner, "key", *of_owner, "value"))
        column = table.c[owner]
        query = sa.select(column, table.c.key, table.c.value).where(store.among(column, "numbers"))
        self._read = Prepared(store, query.order_by(column, table.c.key))
        self._listed = store.listed

    def write(
        self, connection: sa.Connection, number: int, values: Mapping[str, str], **of_owner: int
    ) -> None:
        """Writes some, of which the last value counts.

        In the order of keys, so that no two writers block each other for ever.
        """
        if not values:
            return
        rows = [
            {self._owner: number, "key": key, "value": value, **of_owner}
            for key, value in sorted(values.items())
        ]
        self._statement.write(connection, rows)

    def of(self, connection: sa.Connection, numbers: Sequence[int]) -> dict[int, dict[str, str]]:
        """Those of each owner: key -> value, in the order of keys."""
        found: dict[int, dict[str, str]] = {number: {} for number in numbers}
        if numbers:
            for number, key, value in self._read(connection, numbers=self._listed(numbers)):
                found[number][key] = value
        return found


def texts_of(
    connection: sa.Connection, table: sa.Table, owner: str, numbers: Sequence[int]
) -> dict[int, dict[str, str]]:
    """Of each number: key -> value, in the order of keys."""
    found: dict[int, dict[str, str]] = {number: {} for number in numbers}
    column = table.c[owner]
    for some in chunks(numbers):
        query = sa.select(column, table.c.key, table.c.value).where(column.in_(some))
        for number, key, value in connection.execute(query.order_by(column, table.c.key)).all():
            found[number][key] = value
    return found


def chunks(numbers: Sequence[int], size: int = 1000) -> Iterator[Sequence[int]]:
    """Parts of a list that fit into one statement."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
