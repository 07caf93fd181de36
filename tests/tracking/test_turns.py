"""Threads that write to SQLite at once share a transaction; what each of them is told holds."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from registry.errors import DatabaseUnavailable, ParamExists, RunNotFound
from registry.tracking import Tracking
from registry.tracking.records import Metric
from registry.tracking.runs import Batch
from registry.tracking.turns import Turns

WRITERS = 12


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Tracking]:
    made = Tracking.of(f"sqlite:///{tmp_path}/runs.db")
    made.upgrade()
    yield made
    made.close()


@contextmanager
def busy(path: Path) -> Iterator[None]:
    """Another process writes, as far as SQLite can tell."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


def together(
    tracking: Tracking, path: Path, writes: list[Callable[[], None]]
) -> list[Future[None]]:
    """Lets all of them write at once: nobody begins before everybody waits."""
    turns = tracking.store._turns
    assert turns
    with ThreadPoolExecutor(len(writes)) as threads:
        with busy(path):
            done = [threads.submit(it) for it in writes]
            while turns._waiting < len(writes) - 1:  # one has the turn, and waits for the file
                wait(done, timeout=0.001)
        wait(done, timeout=30)
    return done


def commits(tracking: Tracking) -> list[str]:
    """A list to which every commit from now on is added."""
    seen: list[str] = []
    with tracking.store.writing() as connection:
        writer: Any = connection.connection.dbapi_connection
    writer.set_trace_callback(lambda text: seen.append(text) if text == "COMMIT" else None)
    return seen


def test_who_writes_at_the_same_time_shares_a_transaction(
    embedded: Tracking, tmp_path: Path
) -> None:
    run = embedded.runs.create(0).id
    seen = commits(embedded)

    def log(number: int) -> None:
        embedded.runs.log(run, Batch([Metric("m", number, number)], [(f"p{number}", "x")]))

    done = together(
        embedded, tmp_path / "runs.db", [lambda it=it: log(it) for it in range(WRITERS)]
    )

    assert [it.exception() for it in done] == [None] * WRITERS
    assert 1 <= len(seen) < WRITERS
    assert [it.value for it in embedded.runs.history(run, "m").found] == [*range(WRITERS)]
    assert len(embedded.runs.get(run).params) == WRITERS


def test_what_one_of_them_may_not_write_is_undone_alone(embedded: Tracking, tmp_path: Path) -> None:
    run = embedded.runs.create(0).id
    embedded.runs.log(run, Batch(params=[("p", "kept")]))

    def log(number: int) -> None:
        batch = Batch([Metric(f"m{number}", number, number)], [("q", "1")])
        if number % 3 == 1:  # the metric is written, and undone, for a name stands in the way
            with embedded.store.writing() as connection:
                connection.exec_driver_sql("UPDATE tracking_runs SET name = 'half'")
                embedded.experiments.active(connection, 0)
                raise ParamExists("p", "kept", "other")
        embedded.runs.log("no such run" if number % 3 == 2 else run, batch)

    done = together(
        embedded, tmp_path / "runs.db", [lambda it=it: log(it) for it in range(WRITERS)]
    )

    told = [type(it.exception()) for it in done]
    assert told == [type(None), ParamExists, RunNotFound] * (WRITERS // 3)
    found = embedded.runs.get(run)
    assert sorted(it.value for it in found.metrics) == [*range(0, WRITERS, 3)]
    assert found.params == {"p": "kept", "q": "1"}
    assert found.name == ""


def test_nobody_is_told_that_something_is_kept_which_a_full_disk_did_not_keep(
    embedded: Tracking, tmp_path: Path
) -> None:
    """SQLite undoes all of a transaction by itself when there is no room."""
    path = tmp_path / "runs.db"
    with closing(sqlite3.connect(path)) as other:
        pages = other.execute("PRAGMA page_count").fetchone()[0]

    def narrow(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages + 60}")

    sa.event.listen(embedded.store._engine, "connect", narrow)
    embedded.store.close()  # and it opens other connections
    run = embedded.runs.create(0).id

    def log(number: int) -> None:
        embedded.runs.log(run, Batch(params=[(f"p{number}", f"{number}" * 5000)]))

    kept = set[int]()
    failed = 0
    for start in range(0, 10 * WRITERS, WRITERS):
        numbers = range(start, start + WRITERS)
        done = together(embedded, path, [lambda it=it: log(it) for it in numbers])
        for number, it in zip(numbers, done, strict=True):
            error = it.exception()
            assert error is None or isinstance(error, DatabaseUnavailable), error
            failed += error is not None
            kept |= {number} if error is None else set()

    assert kept
    assert failed
    assert set(embedded.runs.get(run).params) == {f"p{number}" for number in kept}
    sa.event.remove(embedded.store._engine, "connect", narrow)
    embedded.store.close()
    embedded.runs.log(run, Batch(params=[("after", "x")]))
    assert "after" in embedded.runs.get(run).params


def test_who_waits_too_long_for_another_process_is_told(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    turns = Turns(engine, patience=0.05)
    with busy(path), pytest.raises(DatabaseUnavailable) as raised, turns.taken():
        pass

    assert raised.value.problem == "OperationalError"
    with turns.taken() as connection:
        connection.exec_driver_sql("CREATE TABLE made (it)")
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM made").fetchone() == (0,)
    turns.close()
    engine.dispose()
