"""The database: an engine that never waits for long, and the one translation of its errors."""

import json
import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from registry.errors import DatabaseUnavailable, SettingsError

PATIENCE = 2
"""Seconds to wait for a lock, a connection, or a free place in the pool."""
ANSWER = 3
"""Seconds to wait for the answer to a statement."""

_POSTGRESQL = {
    "connect_timeout": PATIENCE,
    "tcp_user_timeout": 2000 * PATIENCE,
    # Whatever is asked here has an index; to start more processes for it takes longer than it does.
    "options": f"-c lock_timeout={PATIENCE}s -c statement_timeout={ANSWER}s"
    " -c max_parallel_workers_per_gather=0",
}


def engine_of(url: str, patience: int = PATIENCE, planner: str = "") -> sa.Engine:
    """An engine for an SQLAlchemy URL. Opens no connection.

    `patience` is how many seconds a writer of SQLite waits for its turn, and `planner` more options
    for the server of PostgreSQL. What the query of a
    PostgreSQL URL says about time limits goes before those of this module.
    Raises SettingsError for what is no such URL, or one of a database without a driver here.
    """
    try:
        parsed = sa.make_url(url)
        limits: dict[str, object] = {}
        if parsed.get_driver_name() == "psycopg":
            known = {**_POSTGRESQL, "options": f"{_POSTGRESQL['options']} {planner}".rstrip()}
            limits = {name: item for name, item in known.items() if name not in parsed.query}
        # A file does not hang up: only a server's connection is asked whether it still lives.
        served = parsed.get_backend_name() != "sqlite"
        engine = sa.create_engine(
            parsed, pool_pre_ping=served, pool_timeout=PATIENCE, connect_args=limits
        )
    except (ArgumentError, ImportError, TypeError, ValueError):
        # Without the cause: it quotes the URL, and with it the password.
        raise SettingsError(
            "database_url",
            "must be sqlite:///<file> or postgresql+psycopg://<user>:<password>@<host>/<database>,"
            " or the URL of another database whose driver is installed",
        ) from None
    if "options" in limits:
        _limit_psycopg(engine)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _wait_for_writers(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
            cursor = connection.cursor()
            # The time limit comes first: to look at the journal mode can take a lock already.
            cursor.execute(f"PRAGMA busy_timeout={1000 * patience}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.close()

    return engine


_Value = TypeVar("_Value")


def _limit_psycopg(engine: sa.Engine) -> None:
    """Gives up a statement that is not answered in time, and the connection with it.

    The limits of `_POSTGRESQL` are kept by the server: one that hangs keeps none of them.
    """
    import psycopg  # noqa: PLC0415 an optional part of the installation

    class Limited(psycopg.Connection[Any]):
        limit: float = PATIENCE

        def wait(self, gen: Generator[Any, Any, _Value], *args: Any, **more: Any) -> _Value:
            """What psycopg does with every statement."""
            late = psycopg.OperationalError("the server does not answer in time")
            try:
                return super().wait(_limited(gen, self.limit, late), *args, **more)
            except psycopg.OperationalError as error:
                if error is late:
                    self.close()
                raise

    @sa.event.listens_for(engine, "do_connect")
    def _connect(_: object, __: object, arguments: Any, options: Any) -> Any:
        return Limited.connect(*arguments, **options)

    # Whether a connection from the pool still lives is asked before it is handed out, and is
    # answered at once or never.
    @sa.event.listens_for(engine, "checkout")
    def _allow(connection: Any, *_: object) -> None:
        connection.limit = ANSWER + 0.5  # after the server's own limit

    @sa.event.listens_for(engine, "checkin")
    def _hurry(connection: Any, *_: object) -> None:
        if connection is not None:
            connection.limit = PATIENCE


def unhurried(connection: sa.Connection) -> None:
    """Lifts the time limits of PostgreSQL for a transaction: to a minute for a lock, and ten for
    each statement.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(sa.text("SET LOCAL statement_timeout = '10min'"))
    if connection.engine.driver == "psycopg":
        connection.connection.dbapi_connection.limit = 610.0  # type: ignore[union-attr]  # ours


def _limited(
    gen: Generator[Any, Any, _Value], limit: float, late: Exception
) -> Generator[Any, Any, _Value]:
    """The same steps, taken several times a second while nothing comes; raises `late` after
    `limit` seconds of them.
    """
    deadline = time.monotonic() + limit
    try:
        step = next(gen)
        while True:
            ready = yield step
            if time.monotonic() > deadline:
                raise late
            step = gen.send(ready)
    except StopIteration as stop:
        value: _Value = stop.value
        return value


@contextmanager
def translated(engine: sa.Engine | None = None) -> Iterator[None]:
    """Raises DatabaseUnavailable for whatever the database or its driver raises. With the engine
    also for what its driver raises when it is spoken to directly.
    """
    driver: Any = sqlite3 if engine is None else engine.dialect.loaded_dbapi
    try:
        yield
    except (SQLAlchemyError, driver.Error) as error:
        # The text of a database error can hold the statement's values and the URL: keep the kind.
        raise DatabaseUnavailable(type(error).__name__) from None


_UNFOLDED = {"sqlite": "json_each", "postgresql": "json_array_elements"}


def insert(
    connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[str | int | None, ...]]
) -> None:
    """Inserts rows, each of which has a value for every column of the table, in their order.

    All of them in one statement, as a JSON array that the database unfolds: a driver that is given
    many rows takes them one by one, and Python's for SQLite lets go of the interpreter for each,
    which makes every other thread of a busy process stumble.
    """
    unfold = _UNFOLDED.get(connection.dialect.name)
    if unfold:
        connection.execute(_unfolding(table, unfold), {"rows": json.dumps(rows)})
    else:
        names = table.columns.keys()
        connection.execute(sa.insert(table), [dict(zip(names, row, strict=True)) for row in rows])


@lru_cache(16)
def _unfolding(table: sa.Table, unfold: str) -> sa.Insert:
    given: sa.ColumnElement[object] = sa.bindparam("rows", type_=sa.Text)
    if unfold != "json_each":
        given = sa.cast(given, sa.JSON)
    row = sa.type_coerce(getattr(sa.func, unfold)(given).table_valued("value").c.value, sa.JSON)
    values = [
        row[place].as_integer() if isinstance(column.type, sa.Integer) else row[place].as_string()
        for place, column in enumerate(table.columns)
    ]
    return sa.insert(table).from_select(list(table.columns), sa.select(*values))
