"""The statements by which runs are found, made once for each shape of a question.

A shape is a question without its keys and values, which are parameters:

    key_N, value_N        of the N-th comparison; beginning_N of the value, where an index has that
    order_N               the key of the N-th part of the order
    experiment_N          of the N-th scope, or all of them: experiments_N
    place_N               of the row that a page begins behind
    level                 the first value of an order, for runs that all have it
    limit
    reach                 how many runs are looked at, where that is bounded

There are two ways to go about a question. With `source`, all runs that fit one comparison are
taken from its index and sorted: there are few of them. Without it, runs are read in the order of
an index, and whatever else was asked is looked up for each, until there are enough. An index of
texts has runs of the same text in their usual order: where that is wanted, it is both.

Where the two cost the same there is a third. The runs that fit `source` are held in memory, and
those `near` the beginning of the order, as far as `reach`, looked for there: that is ten times as
fast as to look one up in an index. It finds a page, or none when all that fit are far away.
"""

from collections.abc import Mapping, Sequence
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

HELD = 32_768
"""Runs up to which those that fit a comparison are held in memory."""
Rank = Literal[0, 1, 2]
"""What stands before what in an order: values, then NaN, then what has none."""

_LIMIT: "sa.BindParameter[int]" = sa.bindparam("limit", type_=sa.Integer)
_HELD = sa.literal_column(str(2 * HELD), sa.Integer)
"""More than were counted; and written out, so that PostgreSQL knows that they fit in memory."""
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
    only for runs at that level. With `loose`, those of one level come as the index has them, read
    in the direction of the first part; what it is read by stands behind the place. `own` are the
    comparisons of what the first part is an order by.
    """

    tests: tuple[Test, ...]
    orders: tuple[By, ...]
    scopes: tuple[Scope, ...]
    source: int | None = None
    rank: Rank | None = None
    begin: Literal["", "place", "beyond"] = ""
    at_level: bool = False
    loose: bool = False
    near: bool = False
    own: tuple[int, ...] = ()


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


def fits(test: Test, rank: Rank | None) -> bool:
    """Whether a comparison of what is ordered by can fit runs of a rank."""
    if not rank or test.operator == "missing":
        return True
    return rank == 1 and test.operator in ("!=", "present")


def missing(by: By) -> Test:
    """The comparison that fits what has no value to be ordered by."""
    return Test(by.kind, by.column, "missing", sa.types.NullType, long=False)


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


def directions(orders: Sequence[By]) -> list[bool]:
    """Whether values rise, of all by which runs of one level of the first part are sorted."""
    found: list[bool] = []
    for order in orders[1:]:
        found += [True, order.ascending] if len(ranks(order)) > 1 else [order.ascending]
    return [*found, *([] if _has_start(orders) else [False]), False]


def has_order(shape: Shape) -> bool:
    """Whether the runs come from an index in order, and need not be sorted."""
    if shape.source is None or shape.near:
        return True
    test = shape.tests[shape.source]
    return not shape.orders and test.kind in _TEXTS and test.operator == "="


def page(shape: Shape, embedded: bool) -> "sa.Select[Any]":
    """The numbers of runs, each with its place in the order: of the first part of it only the
    value if the shape has a rank, and nothing if that is not 0.
    """
    lead = _lead(shape)
    owner: sa.ColumnElement[int] = runs.c.number if lead is None else lead.c.run
    if shape.source is None or shape.near:
        query, sorts = _ordered(shape, lead)
    elif has_order(shape):
        query, sorts = _same(shape, lead)
    else:
        query, sorts, owner = _sorted(shape, embedded)
    query = _behind(query, sorts, shape)
    if lead is not None and not shape.rank:
        query = query.where(*(_fits(shape.tests[it], it, lead, embedded) for it in shape.own))
    found = {f"sort_{number}": sort for number, sort in enumerate(sorts)}
    read = found
    if shape.loose:
        up = sorts[0].ascending
        started = runs.c.started if lead is None else lead.c.started
        tail = [owner] if shape.orders[0].column == "started" else [started, owner]
        read = {"sort_0": sorts[0]} | {f"read_{n}": Sort(it, up) for n, it in enumerate(tail)}
    query = query.add_columns(*(it.column.label(name) for name, it in (found | read).items()))
    # SQLite would take pains to sort by what is the same in all rows.
    query = query.order_by(*(it.ordered for it in list(read.values())[int(shape.at_level) :]))
    if shape.near:
        return _near(query, read, shape, embedded)
    query = query.where(*_conditions(shape, owner, embedded)).limit(_LIMIT)
    if not has_order(shape):
        return query.where(_in_scopes(shape.scopes, embedded))
    home = (runs if lead is None else lead).c.experiment
    parts = [
        query.where(_at_home(home, scope, number, embedded), _state(scope))
        for number, scope in enumerate(shape.scopes)
    ]
    if len(parts) == 1:
        return parts[0]
    # SQLite takes no limit in a part of a union, unless it is a query of its own.
    merged = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    return _again(sa.select(merged), merged, read)


def _behind(query: "sa.Select[Any]", sorts: Sequence[Sort], shape: Shape) -> "sa.Select[Any]":
    """From where the page begins."""
    first = sorts[0]
    if shape.at_level:
        query = query.where(first.column == _level(first))
    if shape.begin == "beyond":
        beyond = first.column > _level(first) if first.ascending else first.column < _level(first)
        return query.where(beyond)
    if not shape.begin:
        return query
    values = [
        sa.bindparam(f"place_{number}", type_=sort.column.type) for number, sort in enumerate(sorts)
    ]
    own = int(shape.at_level)
    return query.where(pages.behind(sorts[own:], values[own:]))


def _near(
    query: "sa.Select[Any]", read: Mapping[str, Sort], shape: Shape, embedded: bool
) -> "sa.Select[Any]":
    """Of the runs that come first in the order those that fit."""
    lead, number = _lead(shape), shape.source
    assert lead is not None
    assert number is not None
    (scope,) = shape.scopes
    reach: sa.ColumnElement[int] = sa.bindparam("reach", type_=sa.BigInteger)
    query = query.where(_at_home(lead.c.experiment, scope, 0, embedded))
    near = query.limit(reach).subquery("near")
    held = _fitting(shape.tests[number], number, embedded).limit(_HELD)
    # With a comparison around it, it is asked about every row, and never first of all.
    fits = near.c.found.in_(held).is_(sa.true())
    found = sa.select(near).join(runs, runs.c.number == near.c.found).where(_state(scope), fits)
    return _again(found.where(*_conditions(shape, near.c.found, embedded)), near, read)


def _again(
    query: "sa.Select[Any]", source: "sa.FromClause", read: Mapping[str, Sort]
) -> "sa.Select[Any]":
    """In the order that rows were read in."""
    sorts = [Sort(source.c[name], sort.ascending) for name, sort in read.items()]
    return query.order_by(*(sort.ordered for sort in sorts)).limit(_LIMIT)


def _conditions(shape: Shape, owner: "sa.ColumnElement[int]", embedded: bool) -> "list[Condition]":
    """All comparisons but those that the runs come from."""
    known = () if shape.rank else shape.own
    return [
        _condition(test, number, owner, embedded)
        for number, test in enumerate(shape.tests)
        if number != shape.source and number not in known
    ]


def _fits(test: Test, number: int, lead: "sa.FromClause", embedded: bool) -> Condition:
    """Whether what a run is ordered by fits, at rank 0."""
    if test.operator == "missing":
        return sa.false()
    if test.operator == "present":
        return sa.true()
    if test.operator == "=" and "nan" not in lead.c:
        first: Condition = beginning(lead.c.value) == sa.bindparam(
            f"beginning_{number}", type_=sa.Text
        )
        return sa.and_(first, lead.c.value == _asked(test, number).value) if test.long else first
    return compared(lead.c.value, _asked(test, number), embedded)


def count(test: Test, number: int, embedded: bool) -> "sa.Select[Any]":
    """How many runs of the experiments fit a comparison that has an index, up to `limit`."""
    some = _fitting(test, number, embedded).limit(_LIMIT).subquery()
    return sa.select(sa.func.count()).select_from(some)


def has_index(test: Test) -> bool:
    """Whether the runs that fit a comparison can be taken from an index."""
    if test.kind == "metric":
        return test.operator not in ("!=", "missing")
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


def _condition(
    test: Test, number: int, owner: "sa.ColumnElement[int]", embedded: bool
) -> Condition:
    """Whether a run fits: looked up by its number."""
    asked = _asked(test, number)
    match test.kind:
        case "metric":
            return measures(latest, latest.c.run == owner, asked)
        case "param" | "tag":
            table = _TEXTS[test.kind]
            return holds(table, table.c.run == owner, asked, embedded)
        case "attribute" if test.operator == "missing":
            return attribute(test.column).is_(None)
        case "attribute":
            return compared(attribute(test.column), asked, embedded)
        case "dataset":
            used = sa.select(_THERE).join_from(
                inputs, datasets, datasets.c.number == inputs.c.dataset
            )
            fits = compared(datasets.c[test.column], asked, embedded)
            return used.where(inputs.c.run == owner, fits).offset(_THERE).exists()
        case "input tag":
            return holds(input_tags, input_tags.c.run == owner, asked, embedded)


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


def _at_home(home: "sa.ColumnElement[int]", scope: Scope, number: int, embedded: bool) -> Condition:
    if scope.several:
        return among(home, _experiments(f"experiments_{number}", embedded), embedded)
    mine: Condition = home == sa.bindparam(f"experiment_{number}", type_=sa.BigInteger)
    return mine


def _state(scope: Scope) -> Condition:
    marked: Condition = runs.c.deleted == (sa.true() if scope.deleted else sa.false())
    return marked


def _in_scopes(scopes: Sequence[Scope], embedded: bool) -> Condition:
    """In one of two scopes at most: that of deleted runs, and the other."""
    # Not to be looked for by an index: where to begin is decided.
    home: sa.ColumnElement[int] = UnaryExpression(
        runs.c.experiment, operator=custom_op("+"), type_=sa.BigInteger()
    )
    return sa.or_(
        *(
            sa.and_(
                _state(scope),
                among(home, _experiments(f"experiments_{number}", embedded), embedded),
            )
            for number, scope in enumerate(scopes)
        )
    )


def _lead(shape: Shape) -> "sa.FromClause | None":
    """The table whose index has the order, unless that is the one of runs."""
    if shape.source is not None and not shape.near:
        return _LEADS.get(shape.tests[shape.source].kind)
    return None if not shape.orders or shape.rank == 2 else _LEADS.get(shape.orders[0].kind)


def _ordered(shape: Shape, lead: "sa.FromClause | None") -> "tuple[sa.Select[Any], list[Sort]]":
    """Runs of one rank in the first part of the order, as an index has them."""
    key = sa.bindparam("order_0", type_=sa.Text)
    if lead is not None:
        whole = lead if shape.near else lead.join(runs, runs.c.number == lead.c.run)
        source, rest = _joined(shape.orders[1:], 1, whole)
        query = sa.select(lead.c.run.label("found")).select_from(source).where(lead.c.key == key)
        tail = _tail(shape.orders, lead.c.started, lead.c.run)
        if "nan" not in lead.c:
            return query, [Sort(beginning(lead.c.value), shape.orders[0].ascending), *rest, *tail]
        query = query.where(lead.c.nan == (sa.true() if shape.rank == 1 else sa.false()))
        value = [] if shape.rank else [Sort(lead.c.value, shape.orders[0].ascending)]
        return query, [*value, *rest, *tail]
    source, rest = _joined(shape.orders[1:], 1, runs)
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


def _same(shape: Shape, lead: "sa.FromClause | None") -> "tuple[sa.Select[Any], list[Sort]]":
    """The runs that have one text, in their usual order: as its index has them."""
    number = shape.source
    assert lead is not None
    assert number is not None
    query = sa.select(lead.c.run.label("found")).join(runs, runs.c.number == lead.c.run)
    query = query.where(lead.c.key == _asked(shape.tests[number], number).key)
    query = _whole(query, lead.c.value, shape.tests[number], number)
    return query, _tail((), lead.c.started, lead.c.run)


def _sorted(
    shape: Shape, embedded: bool
) -> "tuple[sa.Select[Any], list[Sort], sa.ColumnElement[int]]":
    """The runs that fit one comparison, in an order that no index has; and what numbers them."""
    assert shape.source is not None
    some = _fitting(shape.tests[shape.source], shape.source, embedded)
    few = some.cte("few").prefix_with("MATERIALIZED")
    (taken,) = few.c
    source, sorts = _joined(shape.orders, 0, few.join(runs, runs.c.number == taken))
    query = sa.select(runs.c.number.label("found")).select_from(source)
    return query, [*sorts, *_tail(shape.orders, runs.c.started, runs.c.number)], taken


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
