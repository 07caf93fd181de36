"""The statements by which runs are found, made once for each shape of a question.

A shape is a question without its keys and values, which are parameters:

    key_N, value_N        of the N-th comparison; beginning_N of the value, where an index has that
    order_N               the key of the N-th part of the order
    experiment_N          of the N-th scope, or all of them: experiments_N
    place_N               of the row that a page begins behind
    level                 the first value of an order, for runs that all have it
    limit

There are two ways to go about a question. With `source`, all runs that fit one comparison are
taken from its index and sorted: there are few of them. Without it, runs are read in the order of
an index, and whatever else was asked is looked up for each, until there are enough. An index of
texts has runs of the same text in their usual order: where that is wanted, it is both.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op

from registry.errors import InvalidRequest
from registry.tracking import pages
from registry.tracking.pages import Sort
from registry.tracking.query import Kind, Operator
from registry.tracking.schema import (
    beginning,
    datasets,
    input_tags,
    inputs,
    latest,
    params,
    runs,
    tags,
)
from registry.tracking.search import Asked, Condition, among, compared, holds, is_number, measures

Rank = Literal[0, 1, 2]
"""What stands before what in an order: values, then NaN, then what has none."""

_MISSING = sa.literal_column("2", sa.Integer)
_NAN = sa.literal_column("1", sa.Integer)
_THERE = sa.literal_column("0", sa.Integer)
_TEXTS = {"param": params, "tag": tags}
_LONG = frozenset({runs.c.name, runs.c.user_id})
_LOGGED = {"metric": latest, **_TEXTS}
_LEADS = {kind: table.alias("ranked") for kind, table in _LOGGED.items()}


class Test(NamedTuple):
    """A comparison. `column` is that of an attribute or a dataset.

    `type` is that of its value, and `long` that an index holds only the beginning of it.
    """

    kind: Kind
    column: str
    operator: Operator
    type: "type[sa.types.TypeEngine[Any]]"
    long: bool


class By(NamedTuple):
    """A part of an order."""

    kind: Kind
    column: str
    ascending: bool


class Scope(NamedTuple):
    """Runs of one experiment or of several, deleted ones or not."""

    deleted: bool
    several: bool


class Shape(NamedTuple):
    """What a statement is made from. See the module.

    `rank` is that of the first part of the order, None for all of them. `begin` says where a page
    begins: anywhere, behind a place, or `beyond` the `level` of the first part. `at_level` asks
    only for runs at that level, and `upwards` for all of the order to be read in its direction.
    """

    tests: tuple[Test, ...]
    orders: tuple[By, ...]
    scopes: tuple[Scope, ...]
    source: int | None = None
    rank: Rank | None = None
    begin: Literal["", "place", "beyond"] = ""
    at_level: bool = False
    upwards: bool = False


def attribute(key: str) -> "sa.Column[Any]":
    """The column of an attribute. Raises InvalidRequest."""
    if key not in ("id", "name", "user_id", "status", "started", "ended"):
        raise InvalidRequest("filter", f"{key!r} cannot be searched or sorted by")
    return runs.c[key]


def ranks(order: By) -> tuple[Rank, ...]:
    """Those that runs can have in this part of an order."""
    if order.kind == "metric":
        return (0, 1, 2)
    return (0, 2) if order.kind != "attribute" or order.column == "ended" else (0,)


def kinds(orders: Sequence[By]) -> list[type]:
    """The types of the values of a place in the order."""
    found: list[type] = []
    for order in orders:
        if order.kind == "attribute":
            value = attribute(order.column).type.python_type
        else:
            value = float if order.kind == "metric" else str
        found += [int, value] if len(ranks(order)) > 1 else [value]
    return [*found, *([] if _has_start(orders) else [int]), int]


def has_order(shape: Shape) -> bool:
    """Whether the runs come from an index in order, and need not be sorted."""
    if shape.source is None:
        return True
    test = shape.tests[shape.source]
    return not shape.orders and test.kind in _TEXTS and test.operator == "="


def page(shape: Shape, embedded: bool) -> "sa.Select[Any]":
    """The numbers of runs, each with its place in the order: of the first part of it only the
    value if the shape has a rank, and nothing if that is not 0.
    """
    if shape.source is None:
        query, sorts = _ordered(shape)
    else:
        query, sorts = _same(shape) if has_order(shape) else _sorted(shape, embedded)
    for number, test in enumerate(shape.tests):
        if number != shape.source:
            query = query.where(_condition(test, number, embedded))
    if shape.at_level:
        query = query.where(sorts[0].column == _level(sorts[0]))
    if shape.begin == "beyond":
        first = sorts[0].column
        query = query.where(
            first > _level(sorts[0]) if sorts[0].ascending else first < _level(sorts[0])
        )
    if shape.begin == "place":
        values = [
            sa.bindparam(f"place_{number}", type_=sort.column.type)
            for number, sort in enumerate(sorts)
        ]
        behind = (sorts[1:], values[1:]) if shape.at_level else (sorts, values)
        query = query.where(pages.behind(*behind))
    if shape.upwards:
        sorts = [Sort(sort.column, True) for sort in sorts]
    labels = [sort.column.label(f"sort_{number}") for number, sort in enumerate(sorts)]
    limit: sa.ColumnElement[int] = sa.bindparam("limit", type_=sa.Integer)
    # SQLite would take pains to sort by what is the same in all rows.
    order = [sort.ordered for sort in sorts[int(shape.at_level) :]]
    query = query.add_columns(*labels).order_by(*order).limit(limit)
    if not has_order(shape):
        return query.where(_in_scopes(shape.scopes, embedded))
    parts = [
        query.where(_within(shape, scope, number, embedded))
        for number, scope in enumerate(shape.scopes)
    ]
    if len(parts) == 1:
        return parts[0]
    # SQLite takes no limit in a part of a union, unless it is a query of its own.
    merged = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    order = [
        Sort(column, sort.ascending).ordered
        for column, sort in zip(list(merged.c)[1:], sorts, strict=True)
    ]
    return sa.select(merged).order_by(*order).limit(limit)


def count(test: Test, number: int, embedded: bool) -> "sa.Select[Any]":
    """How many runs of the experiments fit a comparison that has an index, up to `limit`."""
    limit: sa.ColumnElement[int] = sa.bindparam("limit", type_=sa.Integer)
    some = _fitting(test, number, embedded).limit(limit).subquery()
    return sa.select(sa.func.count()).select_from(some)


def has_index(test: Test) -> bool:
    """Whether the runs that fit a comparison can be taken from an index."""
    if test.kind == "metric":
        return test.operator != "!="
    if test.kind == "attribute":
        column = attribute(test.column)
        return test.operator == "=" or (
            test.operator in ("<", "<=", ">", ">=") if is_number(column) else test.operator == "in"
        )
    return test.kind in ("param", "tag", "dataset") and test.operator == "="


def _asked(test: Test, number: int) -> Asked:
    key = sa.bindparam(f"key_{number}", type_=sa.Text)
    kind = sa.ARRAY(sa.Text) if test.type is sa.ARRAY else test.type
    return Asked(test.operator, key, sa.bindparam(f"value_{number}", type_=kind))


def _condition(test: Test, number: int, embedded: bool) -> Condition:
    """Whether a run fits: looked up by its number."""
    asked = _asked(test, number)
    match test.kind:
        case "metric":
            return measures(latest, latest.c.run == runs.c.number, asked)
        case "param" | "tag":
            table = _TEXTS[test.kind]
            return holds(table, table.c.run == runs.c.number, asked, embedded)
        case "attribute":
            return compared(attribute(test.column), asked, embedded)
        case "dataset":
            used = sa.select(_THERE).join_from(
                inputs, datasets, datasets.c.number == inputs.c.dataset
            )
            fits = compared(datasets.c[test.column], asked, embedded)
            return used.where(inputs.c.run == runs.c.number, fits).offset(_THERE).exists()
        case "input tag":
            return holds(input_tags, input_tags.c.run == runs.c.number, asked, embedded)


def _fitting(test: Test, number: int, embedded: bool) -> "sa.Select[Any]":
    """The numbers of all runs of the experiments that fit, from an index."""
    asked = _asked(test, number)
    if test.kind == "attribute":
        column = attribute(test.column)
        found = sa.select(runs.c.number)
        if column is runs.c.id:
            return found.where(compared(column, asked, embedded))
        found = found.where(_mine(runs, embedded), _either())
        if column in _LONG and test.operator == "=":
            return _whole(found, column, test, number)
        return found.where(compared(column, asked, embedded))
    if test.kind == "dataset":
        found = sa.select(inputs.c.run).join_from(
            datasets, inputs, datasets.c.number == inputs.c.dataset
        )
        named = compared(datasets.c[test.column], asked, embedded)
        return found.where(_mine(datasets, embedded), named).distinct()
    table = _LOGGED[test.kind]
    found = sa.select(table.c.run).where(_mine(table, embedded), table.c.key == asked.key)
    if table is latest:
        return found.where(latest.c.nan == sa.false(), compared(latest.c.value, asked, embedded))
    return _whole(found, table.c.value, test, number)


def _whole(
    found: "sa.Select[Any]", column: "sa.ColumnElement[str]", test: Test, number: int
) -> "sa.Select[Any]":
    """Those of which a text is the one that was asked for."""
    first = sa.bindparam(f"beginning_{number}", type_=sa.Text)
    found = found.where(beginning(column) == first)
    # A shorter one is the whole value. To say so twice would make the planner of PostgreSQL expect
    # the square of what there is.
    return found.where(column == _asked(test, number).value) if test.long else found


def _either() -> Condition:
    """Deleted or not: said so that an index can be entered behind it."""
    return runs.c.deleted.in_([sa.false(), sa.true()])


def _mine(table: sa.Table, embedded: bool) -> Condition:
    """Of any of the experiments."""
    return among(table.c.experiment, _experiments("experiments", embedded), embedded)


def _experiments(name: str, embedded: bool) -> "sa.BindParameter[Any]":
    return sa.bindparam(name, type_=sa.Text() if embedded else sa.ARRAY(sa.BigInteger))


def _within(shape: Shape, scope: Scope, number: int, embedded: bool) -> Condition:
    lead = _lead(shape)
    home = (runs if lead is None else lead).c.experiment
    mine: Condition = home == sa.bindparam(f"experiment_{number}", type_=sa.BigInteger)
    if scope.several:
        mine = among(home, _experiments(f"experiments_{number}", embedded), embedded)
    return sa.and_(mine, runs.c.deleted == (sa.true() if scope.deleted else sa.false()))


def _in_scopes(scopes: Sequence[Scope], embedded: bool) -> Condition:
    """In one of two scopes at most: that of deleted runs, and the other."""
    # Not to be looked for by an index: where to begin is decided.
    home: sa.ColumnElement[int] = UnaryExpression(
        runs.c.experiment, operator=custom_op("+"), type_=sa.BigInteger()
    )
    return sa.or_(
        *(
            sa.and_(
                runs.c.deleted == (sa.true() if scope.deleted else sa.false()),
                among(home, _experiments(f"experiments_{number}", embedded), embedded),
            )
            for number, scope in enumerate(scopes)
        )
    )


def _lead(shape: Shape) -> "sa.FromClause | None":
    """The table whose index has the order, unless that is the one of runs."""
    if shape.source is not None:
        return _LEADS[shape.tests[shape.source].kind]
    return None if not shape.orders or shape.rank == 2 else _LEADS.get(shape.orders[0].kind)


def _ordered(shape: Shape) -> "tuple[sa.Select[Any], list[Sort]]":
    """Runs of one rank in the first part of the order, as an index has them."""
    source, rest = _joined(shape.orders[1:], 1, runs)
    lead = _lead(shape)
    key = sa.bindparam("order_0", type_=sa.Text)
    if lead is not None:
        owned = sa.and_(lead.c.run == runs.c.number, lead.c.key == key)
        query = sa.select(lead.c.run.label("found")).select_from(source.join(lead, owned))
        tail = _tail(shape.orders, lead.c.started, lead.c.run)
        if "nan" not in lead.c:
            return query, [Sort(beginning(lead.c.value), shape.orders[0].ascending), *rest, *tail]
        query = query.where(lead.c.nan == (sa.true() if shape.rank == 1 else sa.false()))
        value = [] if shape.rank else [Sort(lead.c.value, shape.orders[0].ascending)]
        return query, [*value, *rest, *tail]
    query = sa.select(runs.c.number.label("found")).select_from(source)
    tail = _tail(shape.orders, runs.c.started, runs.c.number)
    if not shape.orders:
        return query, tail
    by = shape.orders[0]
    if by.kind != "attribute":
        table = _LOGGED[by.kind]
        known = sa.select(_THERE).where(table.c.run == runs.c.number, table.c.key == key)
        return query.where(~known.offset(_THERE).exists()), [*rest, *tail]
    column = attribute(by.column)
    if shape.rank == 2:
        return query.where(column.is_(None)), [*rest, *tail]
    if column.nullable:
        query = query.where(column.is_not(None))
    return query, [Sort(_sortable(column), by.ascending), *rest, *tail]


def _same(shape: Shape) -> "tuple[sa.Select[Any], list[Sort]]":
    """The runs that have one text, in their usual order: as its index has them."""
    lead, number = _lead(shape), shape.source
    assert lead is not None
    assert number is not None
    query = sa.select(lead.c.run.label("found")).join(runs, runs.c.number == lead.c.run)
    query = query.where(lead.c.key == _asked(shape.tests[number], number).key)
    query = _whole(query, lead.c.value, shape.tests[number], number)
    return query, _tail((), lead.c.started, lead.c.run)


def _sorted(shape: Shape, embedded: bool) -> "tuple[sa.Select[Any], list[Sort]]":
    """The runs that fit one comparison, in an order that no index has."""
    assert shape.source is not None
    some = _fitting(shape.tests[shape.source], shape.source, embedded)
    few = some.cte("few").prefix_with("MATERIALIZED")
    (taken,) = few.c
    source, sorts = _joined(shape.orders, 0, few.join(runs, runs.c.number == taken))
    query = sa.select(runs.c.number.label("found")).select_from(source)
    return query, [*sorts, *_tail(shape.orders, runs.c.started, runs.c.number)]


def _tail(
    orders: Sequence[By], started: "sa.ColumnElement[int]", number: "sa.ColumnElement[int]"
) -> list[Sort]:
    """Where everything else is the same: what started last comes first."""
    last = Sort(number, False)
    return [last] if _has_start(orders) else [Sort(started, False), last]


def _has_start(orders: Sequence[By]) -> bool:
    return any(by.kind == "attribute" and by.column == "started" for by in orders)


def _joined(
    orders: Sequence[By], first: int, source: "sa.FromClause"
) -> "tuple[sa.FromClause, list[Sort]]":
    """The parts of an order, each looked up for every run."""
    sorts = []
    for number, by in enumerate(orders, first):
        if by.kind == "attribute":
            column: sa.ColumnElement[Any] = _sortable(attribute(by.column))
            if by.column == "ended":
                sorts.append(Sort(sa.case((column.is_(None), _MISSING), else_=_THERE), True))
                column = sa.func.coalesce(column, _THERE, type_=sa.BigInteger)
            sorts.append(Sort(column, by.ascending))
            continue
        table = _LOGGED[by.kind].alias(f"by_{number}")
        key = sa.bindparam(f"order_{number}", type_=sa.Text)
        source = source.outerjoin(table, sa.and_(table.c.run == runs.c.number, table.c.key == key))
        absent = (table.c.run.is_(None), _MISSING)
        if by.kind == "metric":
            sorts.append(Sort(sa.case(absent, (table.c.nan, _NAN), else_=_THERE), True))
            value = sa.func.coalesce(table.c.value, sa.literal_column("0.0"), type_=sa.Double)
        else:
            sorts.append(Sort(sa.case(absent, else_=_THERE), True))
            value = sa.func.coalesce(
                beginning(table.c.value), sa.literal_column("''"), type_=sa.Text
            )
        sorts.append(Sort(value, by.ascending))
    return source, sorts


def _sortable(column: "sa.Column[Any]") -> "sa.ColumnElement[Any]":
    return beginning(column) if column in _LONG else column


def _level(sort: Sort) -> "sa.BindParameter[Any]":
    return sa.bindparam("level", type_=sort.column.type)
