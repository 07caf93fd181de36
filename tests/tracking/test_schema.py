"""The tables: how they come about, and that what is asked often is answered from an index."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from service import Registry

from registry.tracking import Tracking
from registry.tracking.migrations import upgrade
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

    def upgraded() -> None:
        tracking = Tracking.of(database)
        try:
            tracking.upgrade()
        except Exception as error:
            problems.append(error)
        finally:
            tracking.close()

    threads = [Thread(target=upgraded) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    tracking = Tracking.of(database)
    assert tracking.experiments.get(0).name == "Default"
    tracking.close()


def test_an_upgrade_keeps_what_was_logged_before(database: str) -> None:
    """What runs are sorted by came to know the experiment and the start of its run later."""
    tracking = Tracking.of(database)
    with tracking.store.writing() as connection:
        upgrade(connection, "0002")
        for insert in (
            "INSERT INTO tracking_experiments (id, name, deleted, created, updated)"
            " VALUES (7, 'seven', false, 1, 1)",
            "INSERT INTO tracking_runs (number, id, experiment, name, user_id, status, started,"
            " deleted) VALUES (1, 'one', 7, 'a', 'ada', 'FINISHED', 5, false),"
            " (2, 'two', 7, 'b', 'ada', 'FINISHED', 9, false),"
            " (3, 'three', 0, 'c', 'ada', 'FINISHED', 9, false)",
            "INSERT INTO tracking_latest (run, key, experiment, timestamp, step, value, nan)"
            " VALUES (1, 'loss', 7, 1, 1, 0.5, false), (2, 'loss', 7, 1, 1, 0.5, false)",
            "INSERT INTO tracking_params (run, key, value) VALUES (1, 'lr', '1'), (2, 'lr', '1'),"
            " (3, 'lr', '1')",
            "INSERT INTO tracking_tags (run, key, value) VALUES (1, 't', 'x'), (2, 't', 'y')",
        ):
            connection.exec_driver_sql(insert)
    tracking.upgrade()

    for order in (Order("metric", "loss", True), Order("param", "lr", False)):
        found = tracking.runs.search([7], "active", Search(orders=[order])).found
        assert [it.id for it in found] == ["two", "one"]
    wanted = Search([Comparison("param", "lr", "=", "1")], limit=1)
    assert [it.id for it in tracking.runs.search([7], "active", wanted).found] == ["two"]
    found = tracking.runs.search([7], "active", Search([Comparison("tag", "t", "=", "x")])).found
    assert [(it.id, it.tags, it.params) for it in found] == [("one", {"t": "x"}, {"lr": "1"})]
    with tracking.store.reading() as connection:
        for name in ("latest", "params", "tags"):
            columns = sa.inspect(connection).get_columns(f"tracking_{name}")
            assert not any(column["nullable"] for column in columns)
    if tracking.store.embedded:
        with tracking.store.reading() as connection:
            query = "SELECT sql FROM sqlite_master WHERE name = 'tracking_params'"
            assert "WITHOUT ROWID" in connection.exec_driver_sql(query).scalar_one()
    tracking.close()


def test_a_service_that_nobody_asks_for_runs_does_not_load_tracking(tmp_path: Path) -> None:
    registry = Registry(tmp_path, {}, [])

    assert registry.services._tracking._built is None
    assert registry.services.tracking is registry.services.tracking
    registry.services.close()


# Plans


@contextmanager
def statements(tracking: Tracking) -> Iterator[list[tuple[str, object]]]:
    """What is asked of the database in the block, with its values, as the driver is told."""
    seen: list[tuple[str, object]] = []

    def watch(connection: Any, *_: object) -> None:
        if tracking.store.embedded:
            connection.set_trace_callback(lambda statement: seen.append((statement, ())))
        else:
            connection.cursor_factory = Watched

    def leave(connection: Any, *_: object) -> None:
        if tracking.store.embedded:
            connection.set_trace_callback(None)
        else:
            connection.cursor_factory = psycopg.Cursor

    class Watched(psycopg.Cursor[Any]):
        def execute(self, statement: Any, values: Any = None, **more: Any) -> Any:
            seen.append((statement, values))
            return super().execute(statement, values, **more)

    engine = tracking.store._engine
    events = {"checkout": watch, "checkin": leave}
    for name, listener in events.items():
        sa.event.listen(engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in events.items():
            sa.event.remove(engine, name, listener)


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
            " deleted) SELECT n, 'run-' || n, 0, 'run', 'user ' || (n / 100), 'FINISHED',"
            " 1000000 + n, false",
            "INSERT INTO tracking_latest"
            " (run, key, experiment, started, timestamp, step, value, nan) SELECT"
            " n, 'loss', 0, 1000000 + n, 0, 0, n * 7919 - n * 7919 / 1000 * 1000, false",
            "INSERT INTO tracking_params (run, key, experiment, started, value)"
            " SELECT n, 'seed', 0, 1000000 + n, 'seed ' || (n / 10)",
            "INSERT INTO tracking_tags (run, key, experiment, started, value)"
            " SELECT n, 'parent', 0, 1000000 + n, 'run-' || (n / 10)",
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
    "one param": Search([Comparison("param", "seed", "=", "seed 471")], limit=100),
    "above": Search([Comparison("metric", "loss", ">", 998.5)], limit=100),
    "of a user": Search([Comparison("attribute", "user_id", "=", "user 9")], limit=100),
    "started lately": Search([Comparison("attribute", "started", ">", 1004900)], limit=100),
    "few, by a metric": Search(
        [Comparison("tag", "parent", "=", "run-7"), Comparison("metric", "loss", ">", 1.0)],
        [Order("metric", "loss", True)],
        limit=100,
    ),
    "many, by a param": Search(
        [Comparison("metric", "loss", ">", 1.0)], [Order("param", "seed", True)], limit=100
    ),
}
ORDERS = [
    Order(kind, key, ascending)
    for kind, key in (
        ("metric", "loss"),
        ("param", "seed"),
        ("tag", "parent"),
        *(("attribute", key) for key in ("started", "ended", "name", "user_id", "status")),
    )
    for ascending in (True, False)
]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_search_reads_no_table_from_end_to_end(many: Tracking, search: Search) -> None:
    with statements(many) as seen:
        found = many.runs.search([0], "active", search)

    assert found.found
    for statement, values in seen:
        how = plan(many, statement, values)
        # Of experiments there are few.
        assert not re.search(r"(SCAN|Seq Scan on) tracking_(?!experiments)", how), how


@pytest.mark.parametrize(
    "order", [None, *ORDERS], ids=lambda it: f"{it.key} {it.ascending}" if it else "none"
)
def test_a_page_is_read_in_the_order_of_an_index(many: Tracking, order: Order | None) -> None:
    search = Search(orders=[order] if order else [], limit=100)
    for _ in range(2):
        with statements(many) as seen:
            page = many.runs.search([0], "active", search)
        # The first asks for the state of the experiment, and the last two for what was found.
        for statement, values in seen[1:-2]:
            how = plan(many, statement, values)

            assert not re.search(r"USE TEMP B-TREE", how), how
            assert not re.search(r"Sort  \(cost", how), how
        assert len(seen) > 3
        assert len(page.found) == 100
        search = Search(search.filters, search.orders, search.limit, page.next)


def test_a_search_begins_where_the_fewest_runs_are(many: Tracking) -> None:
    few = [Comparison("metric", "loss", ">", -1), Comparison("tag", "parent", "=", "run-7")]
    order = [Order("metric", "loss", False)]
    with statements(many) as seen:
        page = many.runs.search([0], "active", Search(few, order, limit=100))
    how = plan(many, *seen[-3])

    assert len(page.found) == 10
    assert "tracking_tags_by_value" in how, how
    assert "tracking_latest_by_value" not in how, how
    with statements(many) as seen:
        page = many.runs.search([0], "active", Search(few[:1], order, limit=100))
    how = plan(many, *seen[-3])

    assert len(page.found) == 100
    assert "tracking_latest_by_value" in how, how


def test_a_comparison_of_what_is_ordered_by_says_where_the_order_begins(many: Tracking) -> None:
    search = Search(
        [Comparison("metric", "loss", "<", 500)], [Order("metric", "loss", False)], limit=20
    )
    with statements(many) as seen:
        page = many.runs.search([0], "active", search)
    (asked,) = seen[1:-2]
    how = plan(many, *asked)

    assert [it.metrics[0].value for it in page.found] == [499 - n // 5 for n in range(20)]
    assert re.search(r"nan.*value ?<", how), how
    assert "tracking_latest_pkey" not in how, how


def test_runs_without_what_is_ordered_by_first_are_read_in_the_order_of_the_next(
    many: Tracking,
) -> None:
    search = Search(
        orders=[Order("metric", "nothing", True), Order("metric", "loss", False)], limit=20
    )
    with statements(many) as seen:
        page = many.runs.search([0], "active", search)

    assert [it.metrics[0].value for it in page.found] == [999 - n // 5 for n in range(20)]
    how = plan(many, *seen[-3])
    assert "tracking_latest_by_value" in how, how
    assert not re.search(r"USE TEMP B-TREE|Sort  \(cost", how), how


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize(("kind", "looks"), [("everywhere", 1), ("far away", 2)])
def test_what_many_fit_is_found_on_the_way_unless_it_is_far_away(
    many: Tracking, kind: str, looks: int, ascending: bool
) -> None:
    """Some hundred runs of a kind are found anywhere in the order, or only at its end."""
    far = "value >= 900" if ascending else "value < 100"
    where = "(run & 15) = 0" if kind == "everywhere" else f"(run & 1) = 0 AND {far}"
    with many.store.writing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO tracking_params (run, key, experiment, started, value)"
            f" SELECT run, 'kind', 0, started, '{kind}' FROM tracking_latest WHERE {where}"
        )
    fitting = Comparison("param", "kind", "=", kind)
    expected = many.runs.search([0], "active", Search([fitting], limit=1000)).found
    order = [Order("metric", "loss", ascending)]
    search = Search([fitting, Comparison("metric", "loss", "<", 1000)], order, limit=20)
    with statements(many) as seen:
        page = many.runs.search([0], "active", search)
    # The first asks for the state of the experiment, and the last two for what was found.
    pages = [it for it in seen[1:-2] if "count(" not in it[0]]
    held = [bool(re.search("hashed SubPlan|[A-Z] near", plan(many, *it))) for it in pages]
    found = page.found
    while page.next:
        search = Search(search.filters, order, 20, page.next)
        page = many.runs.search([0], "active", search)
        found = [*found, *page.found]

    sign = 1 if ascending else -1
    assert 200 < len(expected) < 320
    expected.sort(key=lambda it: (sign * it.metrics[0].value, -it.started))
    assert [it.id for it in found] == [it.id for it in expected]
    assert held == [*[True] * (len(held) - looks + 1), *[False] * (looks - 1)]


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


def test_a_history_is_thinned_out_evenly(tracking: Tracking) -> None:
    run = tracking.runs.create(0).id
    values = [Metric("m", float(step), 1000 - step, step) for step in range(100)]
    tracking.runs.log(run, Batch(metrics=[*values, Metric("other", 1.0, 1, 1)]))

    def steps(limit: int, *within: int) -> list[int]:
        given = (within[0], within[1]) if within else None
        return [it.step for _, it in tracking.runs.sampled([run], "m", limit, given)]

    assert steps(100) == steps(2500) == [*range(100)]
    assert steps(1) == [99]
    assert steps(2) == [0, 99]
    assert steps(4) == [0, 33, 66, 99]
    assert steps(3, 10, 20) == [10, 15, 20]
    assert steps(5, 200, 300) == []
    for limit in range(1, 101):
        found = steps(limit)
        gaps = {after - before for before, after in pairwise(found)}
        assert len(found) == limit
        assert limit == 1 or found[0] == 0
        assert found[-1] == 99
        assert max(gaps, default=0) - min(gaps, default=0) <= 1
