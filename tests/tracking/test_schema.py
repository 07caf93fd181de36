"""The tables: how they come about, and that what is asked often is answered from an index."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from service import Registry

from registry.tracking import Tracking
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import Metric
from registry.tracking.runs import Batch
from registry.tracking.schema import metadata

RUNS = 5000


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::sqlalchemy.exc.SAWarning")  # see below
def test_the_migrations_lead_to_the_tables_that_the_code_knows(tracking: Tracking) -> None:
    with tracking.store.writing() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
                "compare_server_default": True,
            },
        )

        assert compare_metadata(context, metadata) == []


def test_the_index_of_params_holds_what_the_code_believes(tracking: Tracking) -> None:
    """Which the comparison above cannot see on SQLite."""
    with tracking.store.reading() as connection:
        for table in ("params", "tags"):
            name = f"tracking_{table}_by_value"
            if tracking.store.embedded:
                query = sa.text("SELECT sql FROM sqlite_master WHERE name = :name")
            else:
                query = sa.text("SELECT indexdef FROM pg_indexes WHERE indexname = :name")
            definition = connection.execute(query, {"name": name}).scalar_one()

            assert re.search(r"substr\(value, 1, 250\)", definition, re.IGNORECASE)


def test_an_upgrade_can_be_repeated_and_made_by_many_at_once(database: str) -> None:
    problems = []

    def upgrade() -> None:
        tracking = Tracking.of(database)
        try:
            tracking.upgrade()
        except Exception as error:
            problems.append(error)
        finally:
            tracking.close()

    threads = [Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    tracking = Tracking.of(database)
    assert tracking.experiments.get(0).name == "Default"
    tracking.close()


def test_a_service_that_nobody_asks_for_runs_does_not_load_tracking(tmp_path: Path) -> None:
    registry = Registry(tmp_path, {}, [])

    assert registry.services._tracking._built is None
    assert registry.services.tracking is registry.services.tracking
    registry.services.close()


# Plans


@contextmanager
def statements(tracking: Tracking) -> Iterator[list[tuple[str, object]]]:
    """What is asked of the database in the block, with its values."""
    seen: list[tuple[str, object]] = []

    def see(_, __, statement: str, values: object, ___, ____) -> None:
        seen.append((statement, values))

    sa.event.listen(tracking.store._engine, "before_cursor_execute", see)
    try:
        yield seen
    finally:
        sa.event.remove(tracking.store._engine, "before_cursor_execute", see)


def plan(tracking: Tracking, statement: str, values: object) -> str:
    """How the database goes about it. PostgreSQL reads a small table from end to end although it
    need not: here it may not, as far as there is another way.
    """
    verb = "EXPLAIN QUERY PLAN " if tracking.store.embedded else "EXPLAIN "
    with tracking.store.writing() as connection:
        if not tracking.store.embedded:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = connection.exec_driver_sql(verb + statement, values).all()
    return "\n".join(str(row[-1]) for row in rows)


@pytest.fixture
def many(tracking: Tracking) -> Tracking:
    """Experiment 0 with RUNS runs, of which each has a metric, a param and a tag."""
    numbers = f"generate_series(1, {RUNS}) AS it(n)"
    if tracking.store.embedded:
        numbers = (
            f"(WITH RECURSIVE it(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM it WHERE n < {RUNS})"
            " SELECT n FROM it)"
        )
    with tracking.store.writing() as connection:
        for insert in (
            "INSERT INTO tracking_runs (number, id, experiment, name, user_id, status, started,"
            " deleted) SELECT n, 'run-' || n, 0, 'run', '', 'FINISHED', 1000000 + n, false",
            "INSERT INTO tracking_latest (run, key, experiment, timestamp, step, value, nan)"
            " SELECT n, 'loss', 0, 0, 0, n * 7919 - n * 7919 / 1000 * 1000, false",
            "INSERT INTO tracking_params (run, key, value) SELECT n, 'seed', 'seed ' || n",
            "INSERT INTO tracking_tags (run, key, value) SELECT n, 'parent', 'run-' || (n / 10)",
            "INSERT INTO tracking_metrics (run, key, timestamp, step, value, nan)"
            " SELECT 1, 'long', n, n, n, false",
        ):
            connection.exec_driver_sql(f"{insert} FROM {numbers}")
        connection.exec_driver_sql("ANALYZE")
    return tracking


SEARCHES = {
    "all": Search(limit=100),
    "by a metric": Search(orders=[Order("metric", "loss", True)], limit=100),
    "by a metric downwards": Search(orders=[Order("metric", "loss", False)], limit=100),
    "children": Search([Comparison("tag", "parent", "=", "run-7")], limit=100),
    "one param": Search([Comparison("param", "seed", "=", "seed 4711")], limit=100),
    "above": Search([Comparison("metric", "loss", ">", 998.5)], limit=100),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_search_reads_no_table_from_end_to_end(many: Tracking, search: Search) -> None:
    with statements(many) as seen:
        found = many.runs.search([0], "active", search)

    assert found.found
    for statement, values in seen:
        how = plan(many, statement, values)
        # Of experiments there are few.
        assert not re.search(r"(SCAN|Seq Scan on) tracking_(?!experiments)", how), how


@pytest.mark.parametrize("name", ["all", "by a metric", "by a metric downwards"])
def test_a_page_is_read_in_the_order_of_an_index(many: Tracking, name: str) -> None:
    search = SEARCHES[name]
    for _ in range(2):
        with statements(many) as seen:
            page = many.runs.search([0], "active", search)
        # The search itself is the second: the first asks for the state of the experiment.
        how = plan(many, *seen[1])

        # What follows the value in the order is sorted within one value.
        assert not re.search(r"USE TEMP B-TREE FOR ORDER BY", how), how
        assert not re.search(r"(?<!Incremental )Sort  \(cost", how), how
        assert len(page.found) == 100
        search = Search(search.filters, search.orders, search.limit, page.next)


def test_pages_cost_the_same_wherever_they_are(many: Tracking) -> None:
    page = many.runs.search([0], "active", Search(limit=RUNS - 10))
    with statements(many) as seen:
        many.runs.search([0], "active", Search(limit=RUNS - 10, page=page.next))

    how = plan(many, *seen[1])

    assert re.search(r"started ?<", how), how


def test_a_history_is_read_in_the_order_of_its_key(many: Tracking) -> None:
    with statements(many) as seen:
        page = many.runs.history("run-1", "long", 10)
        many.runs.history("run-1", "long", 10, page.next)

    for statement, values in seen[1::2]:
        how = plan(many, statement, values)
        assert "SORT" not in how.upper().replace("USE TEMP B-TREE", "SORT"), how


def test_the_latest_value_is_kept_whatever_order_values_come_in(tracking: Tracking) -> None:
    run = tracking.runs.create(0).id
    values = [
        Metric("m", 1.0, 10, 0),
        Metric("m", 5.0, 9, 0),
        Metric("m", 3.0, 10, 0),  # of one moment the largest
        Metric("m", math.nan, 10, 0),  # and any number before NaN
        Metric("m", 2.0, 5, 1),  # a later step, whatever the time
        Metric("m", 9.0, 4, 1),
    ]
    for value in values:
        tracking.runs.log(run, Batch(metrics=[value]))
    together = tracking.runs.create(0).id
    tracking.runs.log(together, Batch(metrics=values))

    for one in (run, together):
        assert tracking.runs.get(one).metrics == [Metric("m", 2.0, 5, 1)]
    assert max(values, key=lambda it: it.order) == Metric("m", 2.0, 5, 1)
