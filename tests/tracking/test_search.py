"""Which runs are found where: in several experiments, deleted or not, page by page."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from registry.tracking import Tracking
from registry.tracking.found import SEPARATE
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import Metric, Run, View
from registry.tracking.runs import Batch

PAGE = 19


def _metric(run: Run) -> tuple[bool, float]:
    values = [it.value for it in run.metrics if it.key == "m"]
    return (not values, values[0] if values else 0.0)


ORDERS: dict[str, tuple[list[Order], Callable[[Run], object]]] = {
    "start": ([], lambda it: 0),
    "start upwards": ([Order("attribute", "started", True)], lambda it: it.started),
    "end": ([Order("attribute", "ended", True)], lambda it: (it.ended is None, it.ended or 0)),
    "status": ([Order("attribute", "status", True)], lambda it: it.status),
    "metric": ([Order("metric", "m", True)], _metric),
    "param": ([Order("param", "p", True)], lambda it: ("p" not in it.params, it.params.get("p"))),
    "param, metric": (
        [Order("param", "p", True), Order("metric", "m", True)],
        lambda it: ("p" not in it.params, it.params.get("p"), *_metric(it)),
    ),
    "status, user, param": (
        [
            Order("attribute", "status", True),
            Order("attribute", "user_id", True),
            Order("param", "p", True),
        ],
        lambda it: (it.status, it.user_id, "p" not in it.params, it.params.get("p")),
    ),
}
FILTERS = {
    "none": ([], lambda it: True),
    "few": ([Comparison("param", "p", "=", "1")], lambda it: it.params.get("p") == "1"),
    "many": (
        [Comparison("metric", "m", ">", 0)],
        lambda it: any(value.value > 0 for value in it.metrics),
    ),
    "ids": ([Comparison("attribute", "id", "in", ("x", "y"))], lambda it: False),
    "user": ([Comparison("attribute", "user_id", "=", "bob")], lambda it: it.user_id == "bob"),
    "lately": ([Comparison("attribute", "started", ">", 7)], lambda it: it.started > 7),
}


@dataclass(frozen=True)
class Some:
    """Runs of some experiments, of which every third run and every fourth experiment is deleted."""

    tracking: Tracking
    experiments: Sequence[int]
    runs: Sequence[Run]


@pytest.fixture(params=[4, SEPARATE + 10], ids=["few experiments", "many experiments"])
def some(request: pytest.FixtureRequest, tracking: Tracking) -> Some:
    """Few experiments are looked into one by one, many all at once."""
    chance = random.Random(request.param)
    experiments = [tracking.experiments.create(f"e{number}") for number in range(request.param)]
    made = []
    for number in range(120):
        run = tracking.runs.create(
            experiments[number % request.param],
            user_id=chance.choice(["ada", "bob"]),
            started=chance.randrange(10),
        )
        if chance.random() < 0.7:
            metric = Metric("m", float(chance.randrange(-3, 3)), 1)
            tracking.runs.log(run.id, Batch(metrics=[metric]))
        if chance.random() < 0.7:
            tracking.runs.log(run.id, Batch(params=[("p", str(chance.randrange(4)))]))
        if chance.random() < 0.5:
            tracking.runs.update(run.id, status="FINISHED", ended=chance.randrange(5))
        if chance.random() < 0.3:
            tracking.runs.delete(run.id)
        made.append(run.id)
    for number in experiments[::4]:
        tracking.experiments.delete(number)
    return Some(tracking, experiments, [tracking.runs.get(it) for it in made])


@pytest.mark.parametrize("view", ["active", "deleted", "all"])
def test_pages_hold_what_is_there_in_order(some: Some, view: View) -> None:
    for wanted, fits in FILTERS.values():
        for name, (orders, key) in ORDERS.items():
            expected = [
                it
                for it in some.runs
                if fits(it) and (view == "all" or it.deleted == (view == "deleted"))
            ]
            if name == "start upwards":
                expected.sort(key=lambda it: -it.number)
            else:
                expected.sort(key=lambda it: (-it.started, -it.number))
            expected.sort(key=lambda it, key=key: _comparable(key(it)))
            found: list[int] = []
            page = ""
            while True:
                search = Search(wanted, orders, PAGE, page)
                got = some.tracking.runs.search(some.experiments, view, search)
                found += [it.number for it in got.found]
                page = got.next
                if not page:
                    break

            assert found == [it.number for it in expected], (name, wanted)


def _comparable(key: object) -> object:
    return tuple("" if it is None else it for it in key) if isinstance(key, tuple) else key
