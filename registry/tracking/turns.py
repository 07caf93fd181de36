"""Whose turn it is to write to SQLite, which has one writer at a time.

Processes take turns at the file. The threads of one wait for each other in memory, where it costs
nothing; and who finds somebody waiting does not commit, but hands the transaction on:

    first     BEGIN, SAVEPOINT, writes, RELEASE    waits                                told
    second    waits                                SAVEPOINT, writes, RELEASE, waits    told
    last      waits                                SAVEPOINT, writes, RELEASE, COMMIT

To begin and to commit takes longer than to write a metric, and the pages that metrics of a run lie
on are written once for all who log to it. What one writes is kept or undone by itself, and nobody
is told that it is kept before all of it is.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa

from registry.database import translated
from registry.errors import DatabaseUnavailable

LONGEST = 0.005
"""Seconds for which a transaction is handed on: other processes wait for its end."""
GLANCE, LONGEST_GLANCE = 0.0002, 0.002
"""Seconds between two looks whether other processes are done: about as long as a transaction takes,
and more and more for who waits longer."""


class _Shared:
    """A transaction, and what became of it."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.until = time.monotonic() + LONGEST
        self.over = threading.Event()
        self.problem: str | None = None

    def execute(self, *statements: str) -> None:
        """Runs statements about the transaction. What one of them raises is a problem of it."""
        cursor = self.connection.connection.cursor()
        try:
            for statement in statements:
                cursor.execute(statement)
        except (sqlite3.Error, MemoryError) as error:
            # Also where SQLite gave up all of it by itself, as it does when the disk is full.
            self.problem = type(error).__name__
        finally:
            cursor.close()


class Turns:
    """Gives the threads of a process their turns. `patience` is how many seconds other processes
    are waited for.

    All of them write through one connection, which knows the pages that it wrote last.
    """

    def __init__(self, engine: sa.Engine, patience: float) -> None:
        self._engine = engine
        self._patience = patience
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._connection: sa.Connection | None = None
        self._shared: _Shared | None = None

    @contextmanager
    def taken(self) -> Iterator[sa.Connection]:
        """A turn: all of the block is kept when it is over, or nothing. Raises DatabaseUnavailable.

        What the block reads first is still true when it writes.
        """
        shared = self._joined()
        shared.execute("SAVEPOINT turn")
        if shared.problem is not None:
            self._pass_on(shared)
            raise DatabaseUnavailable(shared.problem)
        error: BaseException | None = None
        try:
            with translated():
                yield shared.connection
        except BaseException as raised:  # and raises it when all is over
            error = raised
        undo = ("ROLLBACK TO turn",) if error else ()
        shared.execute(*undo, "RELEASE turn")
        self._pass_on(shared)
        if shared.problem is not None:
            raise DatabaseUnavailable(shared.problem)
        if error:
            raise error

    def _joined(self) -> _Shared:
        """The transaction, in which it is this thread's turn. Raises DatabaseUnavailable."""
        with self._counting:
            self._waiting += 1
        self._turn.acquire()
        with self._counting:
            self._waiting -= 1
        if self._shared is None:
            try:
                with translated():
                    self._shared = _Shared(self._begun())
            except BaseException:
                self._turn.release()
                raise
        return self._shared

    def _pass_on(self, shared: _Shared) -> None:
        """Gives the turn to whoever waits, and returns when the transaction is over."""
        if self._waiting and not shared.problem and time.monotonic() < shared.until:
            self._turn.release()
            shared.over.wait()
            return
        self._shared = None
        try:
            if not shared.problem:
                shared.execute("COMMIT")
            if shared.problem:
                self._hang_up()
            else:
                shared.connection.rollback()  # for SQLAlchemy: there is nothing to undo
        finally:
            shared.over.set()
            self._turn.release()

    def _begun(self) -> sa.Connection:
        """The connection, with a transaction that may write.

        SQLite itself looks again after 1, 2, 5, 10 and up to 100 ms, in which other processes write
        several hundred times: one that waits would hardly ever find its turn.
        """
        if self._connection is None:
            self._connection = self._engine.connect()
            self._connection.detach()  # it waits in its own way, and never goes back to the others
            self._connection.exec_driver_sql("PRAGMA busy_timeout=0")
            self._connection.rollback()
        cursor = self._connection.connection.cursor()
        over = time.monotonic() + self._patience
        pause = GLANCE
        while True:
            try:
                cursor.execute("BEGIN IMMEDIATE")
                cursor.close()
                self._connection.begin()  # for SQLAlchemy, which would begin and end one of its own
                return self._connection
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > over:
                    self._hang_up()
                    raise
            time.sleep(pause)
            pause = min(1.25 * pause, LONGEST_GLANCE)

    def _hang_up(self) -> None:
        """Closes the connection, which undoes what was not kept."""
        if self._connection is not None:
            with suppress(DatabaseUnavailable), translated():
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Closes the connection, when the last turn is over."""
        with self._turn:
            self._hang_up()
