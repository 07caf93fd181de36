"""A million runs in a database: how soon the first page of a search is there, and the third.

Made by the database itself, as many clients would have logged them: of every run four metrics, four
params and three tags. Two metrics say of most runs the same, and so does a param: an order by these
has many that are equal.
"""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from registry.database import unhurried
from registry.tracking import Tracking
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.schema import metadata

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # whose server this is
from servers import postgresql

RUNS = 1_000_000
MEMORY = "shared_buffers=2GB"
"""What an operator gives a database of some GB; by default PostgreSQL keeps 128 MB in memory."""
PAGE = 100
ROUNDS = 15
"""Psycopg prepares a statement that came five times, and PostgreSQL its plan after five more."""

_RARE = Comparison("param", "seed", "=", "4711")
_SOME = Comparison("param", "lr", "=", "0.07")
_HALF = Comparison("tag", "team", "=", "speech")
_GOOD = Comparison("metric", "accuracy", ">", 0.999)
_MOST = Comparison("metric", "loss", ">", 0.2)
_BUSY = Comparison("attribute", "status", "=", "RUNNING")


def _by(kind: str, key: str, ascending: bool = False) -> Order:
    return Order(kind, key, ascending)  # type: ignore[arg-type]  # literals below


SEARCHES: dict[str, tuple[Sequence[Comparison], Sequence[Order]]] = {
    "no filter": ((), ()),
    "order by start, the first first": ((), [_by("attribute", "started", True)]),
    "order by end": ((), [_by("attribute", "ended")]),
    "order by name": ((), [_by("attribute", "name", True)]),
    "order by status": ((), [_by("attribute", "status", True)]),
    "order by user": ((), [_by("attribute", "user_id")]),
    "order by a metric": ((), [_by("metric", "accuracy")]),
    "order by a metric, the least first": ((), [_by("metric", "loss", True)]),
    "order by a metric of ten values": ((), [_by("metric", "epochs", True)]),
    "order by a metric that few have": ((), [_by("metric", "bleu")]),
    "order by a param": ((), [_by("param", "lr")]),
    "order by a param of four values": ((), [_by("param", "optimizer", True)]),
    "order by a tag": ((), [_by("tag", "team", True)]),
    "order by a param and a metric": ((), [_by("param", "lr", True), _by("metric", "accuracy")]),
    "filter by a rare param": ([_RARE], ()),
    "filter by a param": ([_SOME], ()),
    "filter by a tag that half have": ([_HALF], ()),
    "filter by a metric": ([_GOOD], ()),
    "filter by status": ([_BUSY], ()),
    "filter by a metric and a param": ([_MOST, _SOME], ()),
    "filter by a rare param, order by a metric": ([_RARE], [_by("metric", "accuracy")]),
    "filter by a param, order by a metric": ([_SOME], [_by("metric", "accuracy")]),
    "filter by a metric, order by another": ([_GOOD], [_by("metric", "loss", True)]),
    "filter by what most have, order by another": ([_MOST], [_by("metric", "accuracy")]),
    "three filters, order by a metric": ([_MOST, _HALF, _SOME], [_by("metric", "accuracy")]),
    "filter by status, order by a param": ([_BUSY], [_by("param", "lr", True)]),
    "filter by a pattern, order by a metric": (
        [Comparison("param", "optimizer", "like", "ad%")],
        [_by("metric", "loss", True)],
    ),
}

_FILL = (
    "INSERT INTO tracking_runs"
    " (number, id, experiment, name, user_id, status, started, ended, deleted)"
    " SELECT n, 'run' || n, 0, 'run ' || (n * 7919 % 100003), 'user ' || (n % 40),"
    " CASE WHEN n % 5000 = 0 THEN 'RUNNING' WHEN n % 9 = 0 THEN 'FAILED' ELSE 'FINISHED' END,"
    " 1700000000000 + n * 1000, CASE WHEN n % 5000 > 0 THEN 1700000000000 + n * 1000"
    " + n * 104729 % 3600000 END, n % 50 = 1 FROM it",
    "INSERT INTO tracking_latest (run, key, experiment, started, timestamp, step, value, nan)"
    " SELECT n, key, 0, 1700000000000 + n * 1000, 1, 1, CASE key WHEN 'loss' THEN"
    " n * 15485863 % 1000003 / 1000003.0 WHEN 'accuracy' THEN n * 32452843 % 999983 / 999983.0"
    " WHEN 'epochs' THEN n % 10 ELSE n % 777 END, key = 'loss' AND n % 100 = 7"
    " FROM it CROSS JOIN (SELECT 'loss' AS key UNION ALL SELECT 'accuracy' UNION ALL"
    " SELECT 'epochs' UNION ALL SELECT 'bleu') AS m WHERE key <> 'bleu' OR n % 2000 = 0",
    "INSERT INTO tracking_params (run, key, experiment, started, value)"
    " SELECT n, key, 0, 1700000000000 + n * 1000, CASE key WHEN 'lr' THEN"
    " CASE WHEN n * 49979687 % 100 < 10 THEN '0.0' ELSE '0.' END || (n * 49979687 % 100)"
    " WHEN 'optimizer' THEN CASE n % 4 WHEN 0 THEN 'adam' WHEN 1 THEN 'adamw' WHEN 2 THEN 'lion'"
    " ELSE 'sgd' END WHEN 'seed' THEN '' || (n * 86028121 % 50000)"
    " ELSE 's3://data/' || (n % 300) END FROM it CROSS JOIN (SELECT 'lr' AS key UNION ALL"
    " SELECT 'optimizer' UNION ALL SELECT 'seed' UNION ALL SELECT 'data') AS p",
    "INSERT INTO tracking_tags (run, key, experiment, started, value)"
    " SELECT n, key, 0, 1700000000000 + n * 1000, CASE key WHEN 'team' THEN"
    " CASE WHEN n % 2 = 0 THEN 'vision' ELSE 'speech' END WHEN 'mlflow.user' THEN"
    " 'user ' || (n % 40) ELSE 'run ' || (n * 7919 % 100003) END FROM it CROSS JOIN"
    " (SELECT 'team' AS key UNION ALL SELECT 'mlflow.user' UNION ALL SELECT 'mlflow.runName') AS t",
)
_NUMBERS = (
    "WITH RECURSIVE it(n) AS"
    " (SELECT CAST(1 AS bigint) UNION ALL SELECT n + 1 FROM it WHERE n < :count)"
)


@dataclass(frozen=True)
class Timed:
    """How long a page took: the median and the longest of its rounds, in seconds."""

    database: str
    what: str
    median: float
    longest: float
    third: float


def fill(tracking: Tracking, count: int = RUNS) -> None:
    """Makes the runs. Their indexes are made when all are there."""
    engine = tracking.store._engine
    indexes = [index for table in metadata.sorted_tables for index in table.indexes]
    with engine.begin() as connection:
        unhurried(connection)
        for index in indexes:
            index.drop(connection)
        for insert in _FILL:
            connection.execute(sa.text(f"{_NUMBERS} {insert}"), {"count": count})
        for index in indexes:
            index.create(connection)
    if tracking.store.embedded:
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.dbapi_connection.limit = 3600.0  # type: ignore[union-attr]
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()


def measure(database: str, tracking: Tracking) -> Iterator[Timed]:
    """Every search, each again and again: its first page, and its third."""
    for what, (filters, orders) in SEARCHES.items():
        times, following = [], ""
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            page = tracking.runs.search([0], "active", Search(filters, orders, PAGE))
            times.append(time.perf_counter() - begun)
        assert page.found, what
        thirds = []
        if page.next:
            following = tracking.runs.search(
                [0], "active", Search(filters, orders, PAGE, page.next)
            ).next
        for _ in range(3 if following else 0):
            begun = time.perf_counter()
            tracking.runs.search([0], "active", Search(filters, orders, PAGE, following))
            thirds.append(time.perf_counter() - begun)
        yield Timed(database, what, statistics.median(times), max(times), max(thirds, default=0.0))


def searched(directory: Path) -> Iterator[Timed]:
    """All of it, in a server of its own, and then in a file."""
    with postgresql.start(directory, MEMORY) as server:
        yield from _searched("PostgreSQL", server.create_database())
    yield from _searched("SQLite", f"sqlite:///{directory / 'million.db'}")


def _searched(database: str, url: str) -> Iterator[Timed]:
    tracking = Tracking.of(url)
    try:
        tracking.upgrade()
        fill(tracking)
        yield from measure(database, tracking)
    finally:
        tracking.close()
