"""What every part of tracking shares: connections, whose turn it is to write, time and ids."""

import json
import time
import uuid
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from registry.database import engine_of, translated
from registry.tracking.search import among
from registry.tracking.turns import Turns

Row = Any
"""A row of an answer, whose columns are its attributes."""

PATIENCE = 10
"""Seconds a writer waits for its turn on SQLite: writers come in queues, and each is quick."""

_SIZES = (64, 16, 4, 1)
"""How many rows one statement can have."""

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
        self._turns = Turns(self._engine, PATIENCE) if embedded else None
        # Nothing that reads needs a transaction of several statements.
        options = {} if embedded else {"isolation_level": "AUTOCOMMIT"}
        self._readers = self._engine.execution_options(**options)
        if embedded:
            sa.event.listen(self._engine, "connect", _prepare)

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
        with translated(self._engine), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: all of the block is kept, or nothing. Raises DatabaseUnavailable."""
        with self._turns.taken() if self._turns else self._transaction() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with translated(self._engine), self._engine.begin() as connection:
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
        if self._turns:
            self._turns.close()
        self._engine.dispose()


def _prepare(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # With WAL, this loses nothing when a process dies; when power fails, perhaps the last.
    cursor.execute("PRAGMA synchronous=NORMAL")
    # What a statement of many rows would need to be undone by itself: not worth a file each time.
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.close()


class Prepared:
    """A statement that is compiled once, and given to the driver itself.

    SQLAlchemy would put it together again, and go through every value of every row, which takes
    longer than most databases do. What is given must be of types that the driver knows, and what is
    read is as the driver gives it.
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
        self._named: Callable[[Any], Row] | None = None

    def __call__(self, connection: sa.Connection, **values: object) -> list[tuple[Any, ...]]:
        """The rows that it has for these values."""
        return self._rows(connection, values)[0]

    def named(self, connection: sa.Connection, **values: object) -> list[Row]:
        """The same, each with its columns as attributes."""
        rows, names = self._rows(connection, values)
        if self._named is None:
            # A class with fields that are not known before: mypy knows no more of it than of a row.
            made: Any = namedtuple("Row", names)  # type: ignore[misc]
            self._named = made._make
        return list(map(self._named, rows))

    def _rows(
        self, connection: sa.Connection, values: Mapping[str, object]
    ) -> tuple[list[tuple[Any, ...]], list[str]]:
        given: Any = {**self._own, **values}
        if self._order:
            given = [given[name] for name in self._order]
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._text, given)
            return list(cursor.fetchall()), [column[0] for column in cursor.description]
        finally:
            cursor.close()


class PreparedInsert:
    """The same for an INSERT of rows, of which each has a value for each of `columns`.

    SQLite gets many rows in one statement: one that is given them one by one lets go of the
    interpreter for each, which makes all other threads of the process stumble.
    """

    def __init__(self, store: Store, statement: "sa.Insert", columns: Sequence[str]) -> None:
        self._statement = statement
        self._columns = columns
        self._dialect = store.dialect
        self._sizes = _SIZES if store.embedded else ()
        self._of_size = lru_cache(len(_SIZES))(self._compiled)

    def write(self, connection: sa.Connection, rows: Sequence[Mapping[str, object]]) -> int:
        """Writes the rows, of which there must be one, and returns how many were new or changed."""
        cursor: Any = connection.connection.cursor()
        try:
            if not self._sizes:
                cursor.executemany(self._of_size(1)[0], rows)
                return int(cursor.rowcount)
            written, place = 0, 0
            for size in self._sizes:
                text, names = self._of_size(size)
                while place + size <= len(rows):
                    some = rows[place : place + size]
                    cursor.execute(text, [row[name] for row in some for name in names])
                    written, place = written + cursor.rowcount, place + size
            return written
        finally:
            cursor.close()

    def _compiled(self, size: int) -> tuple[str, Sequence[str]]:
        """The statement for so many rows, and in which order it takes the values of each."""
        if size == 1:
            one: Any = self._statement.compile(dialect=self._dialect, column_keys=self._columns)
            return str(one), one.positiontup
        row = dict.fromkeys(self._columns)
        several: Any = self._statement.values([row] * size).compile(dialect=self._dialect)
        order = several.positiontup[: len(self._columns)]
        return str(several), [name.removesuffix("_m0") for name in order]


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
        self._statement = PreparedInsert(store, insert, (owner, "key", *of_owner, "value"))
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
