"""The language of filters: what is in it, what is not, and what it finds."""

import math
import operator
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import InvalidRequest
from registry.tracking import Tracking
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import Metric
from registry.tracking.runs import Batch
from registry.web.mlflow.filters import (
    CLAUSES,
    COLUMNS,
    EXPERIMENTS,
    LONGEST,
    MODELS,
    RUNS,
    SEED,
    Language,
    parse,
    parse_orders,
)

Row = tuple[str, str, str, object]


def rows(text: str, language: Language = RUNS) -> list[Row]:
    return [(it.kind, it.key, it.operator, it.value) for it in parse(text, language)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n", []),
        ("metrics.rmse < 1", [("metric", "rmse", "<", 1)]),
        ("metric.rmse<1.5", [("metric", "rmse", "<", 1.5)]),
        ("metrics.a >= -1e-3", [("metric", "a", ">=", -0.001)]),
        ("metrics.a = .5", [("metric", "a", "=", 0.5)]),
        ("metrics.a != +2.", [("metric", "a", "!=", 2.0)]),
        ("metrics.a == 2", [("metric", "a", "=", 2)]),
        ("metrics.a > 99999999999999999999", [("metric", "a", ">", 1e20)]),
        ("metrics.`model class` > 1", [("metric", "model class", ">", 1)]),
        ("tags.\"user name\" = 'Tomas'", [("tag", "user name", "=", "Tomas")]),
        ("params.model_class LIKE 'Linear%'", [("param", "model_class", "like", "Linear%")]),
        ("params.m like 'Linear%'", [("param", "m", "like", "Linear%")]),
        ('param.m = "it\'s"', [("param", "m", "=", "it's")]),
        ("parameters.m = 'it''s'", [("param", "m", "=", "it's")]),
        ("params.m = ''", [("param", "m", "=", "")]),
        ("params.m = 'and'", [("param", "m", "=", "and")]),
        ("params.and = 'or'", [("param", "and", "=", "or")]),
        ("tags.mlflow.parentRunId='x'", [("tag", "mlflow.parentRunId", "=", "x")]),
        ("params.lr/head-1:a@b = '1'", [("param", "lr/head-1:a@b", "=", "1")]),
        ("params.1st = 'x'", [("param", "1st", "=", "x")]),
        ("tags.é = 'ü'", [("tag", "é", "=", "ü")]),
        (
            "metrics.a > 1 AND params.b = 'x' and tags.c != 'y'",
            [("metric", "a", ">", 1), ("param", "b", "=", "x"), ("tag", "c", "!=", "y")],
        ),
        ("a", None),
        ("metrics.a", None),
        ("metrics.a >", None),
        ("metrics.a > 1 AND", None),
        ("AND metrics.a > 1", None),
        ("metrics.a > 1 metrics.b > 1", None),
        ("metrics.a > 1 OR metrics.b > 1", None),
        ("NOT metrics.a > 1", None),
        ("(metrics.a > 1)", None),
        ("metrics.a > 1; DROP TABLE tracking_runs", None),
        ("metrics.a > 1 -- x", None),
        ("1 = 1", None),
        ("1 < metrics.a", None),
        ("'x' = params.a", None),
        ("metrics.a = metrics.b", None),
        ("metrics.a = '1'", None),
        ("metrics.a = nan", None),
        ("metrics.a = 1x", None),
        ("metrics.a = 0x10", None),
        ("metrics.a LIKE '1'", None),
        ("metrics.a => 1", None),
        ("metrics.a <> 1", None),
        ("params.a = 1", None),
        ("params.a = x", None),
        ("params.a = `x`", None),
        ("params.a < 'x'", None),
        ("params.a = 'x", None),
        ("params.`a = 'x'", None),
        ("params. = 'x'", None),
        ("params.a.`b` = 'x'", None),
        (".a = 'x'", None),
        ("nothing.a = 'x'", None),
        ("PARAMS.a = 'x'", None),
    ],
)
def test_what_both_generations_understand(text: str, expected: list[Row] | None) -> None:
    for language in (SEED, RUNS):
        if expected is None:
            with pytest.raises(InvalidRequest):
                parse(text, language)
        else:
            assert rows(text, language) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("status = 'FINISHED'", [("attribute", "status", "=", "FINISHED")]),
        ("attributes.status != 'x'", [("attribute", "status", "!=", "x")]),
        ("attr.start_time > 5", [("attribute", "started", ">", 5)]),
        ("run.end_time <= 5", [("attribute", "ended", "<=", 5)]),
        ("created > 5", [("attribute", "started", ">", 5)]),
        ("`Run name` ILIKE 'x'", [("attribute", "name", "ilike", "x")]),
        ("run_id IN ('a', 'b')", [("attribute", "id", "in", ("a", "b"))]),
        ("run_id not in ('a',)", [("attribute", "id", "not in", ("a",))]),
        ("params.a ILIKE 'x'", [("param", "a", "ilike", "x")]),
        ("tags.a IS NULL", [("tag", "a", "missing", None)]),
        ("params.a is not null", [("param", "a", "present", None)]),
        ("dataset.name = 'x'", [("dataset", "name", "=", "x")]),
        ("datasets.digest IN ('x')", [("dataset", "digest", "in", ("x",))]),
        ("datasets.context = 'x'", [("input tag", "mlflow.data.context", "=", "x")]),
    ],
)
def test_what_only_todays_generation_understands(text: str, expected: list[Row]) -> None:
    assert rows(text) == expected
    with pytest.raises(InvalidRequest):
        parse(text, SEED)


@pytest.mark.parametrize(
    "text",
    [
        "artifact_uri = 'x'",
        "attributes.nothing = 'x'",
        "status IN ('a')",
        "status > 'a'",
        "start_time = 'x'",
        "start_time LIKE 'x'",
        "metrics.a IS NULL",
        "status IS NULL",
        "datasets.name IS NULL",
        "datasets.nothing = 'x'",
        "run_id IN ()",
        "run_id IN ('a'",
        "run_id IN ('a' 'b')",
        "run_id IN (1)",
        "run_id IN 'a'",
        "tags.id IN ('a')",
        "tags.a IS 'x'",
        "tags.a NOT LIKE 'x'",
        "x" * (LONGEST + 1),
        " AND ".join(["metrics.a = 1"] * (CLAUSES + 1)),
    ],
)
def test_what_not_even_that_understands(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text, RUNS)

    assert len(caught.value.detail) < 300


def test_experiments_and_models_have_languages_of_their_own() -> None:
    assert rows("name LIKE 'x%' AND tag.a = 'b'", EXPERIMENTS) == [
        ("attribute", "name", "like", "x%"),
        ("tag", "a", "=", "b"),
    ]
    assert rows("experiment_id IN ('1')", EXPERIMENTS) == [("attribute", "id", "in", ("1",))]
    assert rows("creation_timestamp > 5 AND name IN ('a')", MODELS) == [
        ("attribute", "created", ">", 5),
        ("attribute", "name", "in", ("a",)),
    ]
    assert rows("tags.a IN ('x', 'y') AND params.b NOT IN ('z')", MODELS) == [
        ("tag", "a", "in", ("x", "y")),
        ("param", "b", "not in", ("z",)),
    ]
    for text in ("metrics.a = 1", "params.a = 'x'", "status = 'x'", "tags.a IN ('x')"):
        with pytest.raises(InvalidRequest):
            parse(text, EXPERIMENTS)


def test_orders_name_a_column_and_a_direction() -> None:
    texts = ["metrics.`a b` DESC", "start_time", "params.x asc", "tags.desc desc"]

    assert parse_orders(texts, RUNS) == (
        Order("metric", "a b", False),
        Order("attribute", "started", True),
        Order("param", "x", True),
        Order("tag", "desc", False),
    )
    with pytest.raises(InvalidRequest):
        parse_orders(["metrics.a"] * (COLUMNS + 1), RUNS)
    for text in ("", "metrics.a UP", "metrics.a DESC, x", "datasets.name", "nothing"):
        with pytest.raises(InvalidRequest):
            parse_orders([text], RUNS)


@given(st.text(alphabet="metrics.paratgl'\"`<>=!()ANDORISULKE 01%_;-\n\\é"))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for language in (SEED, RUNS, EXPERIMENTS, MODELS):
        with suppress(InvalidRequest):
            parse(text, language)


# What is found, against a slow model

KEYS = ("a", "b c", "d'e")
TEXTS = (
    "",
    "a",
    "A",
    "ab",
    "aXb",
    "a%b",
    "a_b",
    "a*b",
    "a?b",
    "[a]",
    "a'b",
    'a"b',
    "a\\b",
    "é",
    "É",
)
TEXTS += ("a\nb", "x" * 300, "x" * 250 + "y")
NUMBERS = (0.0, -1.5, 1.0, 2.0, 1e300, math.inf, -math.inf, math.nan)


@dataclass
class Expected:
    """A run as the test remembers it, by hand."""

    name: str
    started: int
    metrics: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def value(self, kind: str, key: str) -> object:
        if kind == "metric":
            found = self.metrics.get(key)
            return max(found, key=_moment)[2] if found else None
        if kind == "attribute":
            return self.name if key == "run_name" else self.started
        return {"param": self.params, "tag": self.tags}[kind].get(key)


def _moment(it: tuple[int, int, float]) -> tuple[int, int, bool, float]:
    step, moment, value = it
    return step, moment, not math.isnan(value), 0.0 if math.isnan(value) else value


def _ascii_lower(text: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def _beginning(value: object) -> object:
    """What texts are sorted by."""
    return value[:250] if isinstance(value, str) else value


def _like(value: str, pattern: str) -> bool:
    parts = {"%": ".*", "_": "."}
    regex = "".join(parts.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(regex, value, re.DOTALL) is not None


OPERATORS: dict[str, Callable[..., bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "LIKE": _like,
    "ILIKE": lambda value, pattern: _like(_ascii_lower(value), _ascii_lower(pattern)),
}


@dataclass(frozen=True)
class World:
    """Runs in a database, and what the test knows of them, in the order of their creation."""

    tracking: Tracking
    expected: dict[str, Expected]

    def search(self, text: str, orders: list[str], limit: int) -> list[str]:
        """The names of what is found, page by page."""
        found: list[str] = []
        page = ""
        while True:
            wanted = Search(parse(text, RUNS), parse_orders(orders, RUNS), limit, page)
            got = self.tracking.runs.search([0], "active", wanted)
            found += [it.name for it in got.found]
            page = got.next
            if not page:
                return found


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)]
)
def world(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[World]:
    """Sixty runs that have much in common."""
    database = f"sqlite:///{tmp_path_factory.mktemp('world') / 'registry.db'}"
    if request.param == "postgresql":
        database = request.getfixturevalue("postgresql").create_database()
    tracking = Tracking.of(database)
    tracking.upgrade()
    chance = random.Random(7)
    expected = {}
    for number in range(60):
        known = Expected(f"run {number}", chance.randrange(5))
        for key in KEYS:
            if chance.random() < 0.7:
                known.metrics[key] = [
                    (chance.randrange(2), chance.randrange(2), chance.choice(NUMBERS))
                    for _ in range(chance.randrange(1, 4))
                ]
            if chance.random() < 0.7:
                known.params[key] = chance.choice(TEXTS)
            if chance.random() < 0.7:
                known.tags[key] = chance.choice(TEXTS)
        run = tracking.runs.create(0, name=known.name, started=known.started, tags=known.tags)
        metrics = [
            Metric(key, value, moment, step)
            for key, values in known.metrics.items()
            for step, moment, value in values
        ]
        tracking.runs.log(run.id, Batch(metrics, [*known.params.items()]))
        expected[known.name] = known
    yield World(tracking, expected)
    tracking.close()


def quoted(text: str) -> str:
    mark = "'" if len(text) % 2 else '"'
    return mark + text.replace(mark, mark * 2) + mark


keys = st.sampled_from([*KEYS, "unknown"])
texts = st.sampled_from(TEXTS) | st.text("aAbX%_*?[]é", max_size=4)
numbers = st.sampled_from([it for it in NUMBERS if math.isfinite(it)]) | st.integers(-3, 3)
comparisons = st.one_of(
    st.tuples(st.just("metric"), keys, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), numbers),
    st.tuples(
        st.sampled_from(["param", "tag"]),
        keys,
        st.sampled_from(["=", "!=", "LIKE", "ILIKE", "IS NULL", "IS NOT NULL"]),
        texts,
    ),
    st.tuples(st.just("attribute"), st.just("start_time"), st.sampled_from(["<", ">="]), numbers),
)
ordered = st.lists(
    st.tuples(
        st.sampled_from(["metric", "param", "tag", "attribute"]),
        st.sampled_from(KEYS),
        st.booleans(),
    ),
    max_size=3,
)


def written(comparison: tuple[str, str, str, object]) -> str:
    kind, key, sign, value = comparison
    name = key if kind == "attribute" else f"{kind}s.`{key}`" if "`" not in key else ""
    if sign.startswith("IS"):
        return f"{name} {sign}"
    return f"{name} {sign} {quoted(value) if isinstance(value, str) else repr(value)}"


def fits(run: Expected, comparison: tuple[str, str, str, object]) -> bool:
    kind, key, sign, wanted = comparison
    value = run.value(kind, key)
    if sign.startswith("IS"):
        return (value is None) == (sign == "IS NULL")
    return value is not None and OPERATORS[sign](value, wanted)


def sorted_as(runs: list[Expected], orders: list[tuple[str, str, bool]]) -> list[Expected]:
    """From the last key to the first, each time keeping what stood together."""
    found = sorted(runs, key=lambda it: (-it.started, -int(it.name.split()[1])))
    for kind, key, ascending in reversed(orders):
        name = "run_name" if kind == "attribute" else key

        def rank(it: Expected, kind: str = kind, name: str = name) -> int:
            value = it.value(kind, name)
            if value is None:
                return 2
            return 1 if isinstance(value, float) and math.isnan(value) else 0

        with_value = [it for it in found if rank(it) == 0]
        # A reversed sort, too, keeps what is equal in its order.
        with_value.sort(key=lambda it: _beginning(it.value(kind, name)), reverse=not ascending)
        found = with_value + [it for wanted in (1, 2) for it in found if rank(it) == wanted]
    return found


@settings(max_examples=150)
@given(st.lists(comparisons, max_size=3), ordered, st.sampled_from([1000, 7, 19]))
def test_what_is_found_is_what_a_slow_model_finds(world: World, wanted, orders, limit) -> None:
    text = " AND ".join(map(written, wanted))
    spelled = [
        f"{'run_name' if kind == 'attribute' else f'{kind}s.`{key}`'} {'ASC' if up else 'DESC'}"
        for kind, key, up in orders
    ]
    fitting = [it for it in world.expected.values() if all(fits(it, one) for one in wanted)]

    assert world.search(text, spelled, limit) == [it.name for it in sorted_as(fitting, orders)], (
        text,
        spelled,
    )


def test_a_page_token_answers_no_other_question(world: World) -> None:
    search = world.tracking.runs.search
    first = search([0], "active", Search(limit=5))
    other = Search((Comparison("metric", "a", ">", 0),), limit=5, page=first.next)

    for again in (
        lambda: search([0], "active", other),
        lambda: search([0], "all", Search(limit=5, page=first.next)),
        lambda: search([0, 1], "active", Search(limit=5, page=first.next)),
        lambda: search([0], "active", Search(orders=[Order("metric", "a", True)], page=first.next)),
        lambda: search([0], "active", Search(page=first.next[:-4] + "AAA=")),
        lambda: search([0], "active", Search(page="é")),
    ):
        with pytest.raises(InvalidRequest):
            again()
