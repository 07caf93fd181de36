"""Which runs a search finds, in order: the numbers of one page.

An order by a metric is read from the index of the latest values: first the runs that have a number
there, then those with NaN, then those without the metric. A page ends when it is full, so that
mostly one of the three is asked. Runs of several experiments are looked for in each and merged,
which keeps every part within its index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from registry.errors import InvalidRequest
from registry.tracking import pages
from registry.tracking.pages import Sort
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import View
from registry.tracking.schema import (
    datasets,
    experiments,
    input_tags,
    inputs,
    latest,
    params,
    runs,
    tags,
)
from registry.tracking.search import Condition, holds, measures, number_or_text, of_run, text
from registry.tracking.store import Store

SEPARATE = 50
"""Experiments up to which each is looked into by itself."""

_ATTRIBUTES: dict[str, "sa.Column[Any]"] = {
    "id": runs.c.id,
    "name": runs.c.name,
    "user_id": runs.c.user_id,
    "status": runs.c.status,
    "started": runs.c.started,
    "ended": runs.c.ended,
}
_MISSING = sa.literal_column("1", sa.Integer)
_THERE = sa.literal_column("0", sa.Integer)


@dataclass(frozen=True)
class _Scope:
    """Runs of some experiments, deleted or not (None: both)."""

    experiments: tuple[int, ...]
    deleted: bool | None

    def of(self, column: "sa.ColumnElement[int]") -> Condition:
        if len(self.experiments) == 1:
            return column == self.experiments[0]
        return column.in_(self.experiments)


@dataclass(frozen=True)
class _Phase:
    """One part of an order: the runs it is about, and how those stand among themselves."""

    query: "sa.Select[Any]"
    sorts: tuple[Sort, ...]
    ranked: "sa.FromClause | None" = None


class RunSearch:
    """Finds pages of runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def page(
        self, connection: sa.Connection, experiment_ids: Sequence[int], view: View, search: Search
    ) -> tuple[list[int], str]:
        """The numbers of the runs of a page, and the token of the next. Raises InvalidRequest."""
        scopes = self._scopes(connection, experiment_ids, view)
        phases = list(_phases(search.orders))
        asked = pages.question(
            "runs", sorted(set(experiment_ids)), view, search.filters, search.orders
        )
        begin, place = self._begin(asked, search.page, phases)
        found: list[tuple[int, Any]] = []
        for number, phase in enumerate(phases):
            wanted = search.limit + 1 - len(found)
            if number < begin or wanted <= 0 or not scopes:
                continue
            query = self._query(phase, scopes, search.filters, place, wanted)
            found += [(number, row) for row in connection.execute(query)]
            place = []
        following = ""
        if len(found) > search.limit:
            number, last = found[search.limit - 1]
            following = pages.token(asked, [number, *last[1:]])
        return [row[0] for _, row in found[: search.limit]], following

    def _scopes(
        self, connection: sa.Connection, experiment_ids: Sequence[int], view: View
    ) -> list[_Scope]:
        ids = sorted({number for number in experiment_ids if 0 <= number < 2**63})
        query = sa.select(experiments.c.id, experiments.c.deleted)
        query = query.where(experiments.c.id.in_(ids))
        states = {row.id: row.deleted for row in connection.execute(query)} if ids else {}
        groups: dict[bool | None, list[int]] = {}
        for number in ids:
            if number not in states or (states[number] and view == "active"):
                continue
            # All runs of a deleted experiment are deleted.
            whole = view == "all" or states[number]
            groups.setdefault(None if whole else view == "deleted", []).append(number)
        few = sum(map(len, groups.values())) <= SEPARATE
        return [
            scope
            for deleted, members in groups.items()
            for scope in (
                [_Scope((number,), deleted) for number in members]
                if few
                else [_Scope(tuple(members), deleted)]
            )
        ]

    def _begin(
        self, asked: pages.Question, token: str, phases: Sequence[_Phase]
    ) -> tuple[int, list[Any]]:
        if not token:
            return 0, []
        for number, phase in enumerate(phases):
            kinds = [int, *(sort.column.type.python_type for sort in phase.sorts)]
            try:
                begin, *place = pages.place(asked, token, kinds)
            except InvalidRequest:
                continue
            if begin == number:
                return number, place
        raise InvalidRequest("page_token", "not one that an earlier page of this search gave")

    def _query(
        self,
        phase: _Phase,
        scopes: Sequence[_Scope],
        filters: Sequence[Comparison],
        place: Sequence[Any],
        limit: int,
    ) -> "sa.Select[Any]":
        query = phase.query.limit(limit).order_by(*(sort.ordered for sort in phase.sorts))
        for comparison in filters:
            query = query.where(self._condition(comparison))
        if place:
            query = query.where(pages.behind(phase.sorts, place))
        parts = [_within(query, scope, phase) for scope in scopes]
        if len(parts) == 1:
            return parts[0]
        # SQLite takes no limit in a part of a union, unless it is a query of its own.
        merged = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
        columns = list(merged.c)[1:]
        order = [
            column.asc() if sort.ascending else column.desc()
            for column, sort in zip(columns, phase.sorts, strict=True)
        ]
        return sa.select(merged).order_by(*order).limit(limit)

    def _condition(self, comparison: Comparison) -> Condition:
        embedded = self._store.embedded
        match comparison.kind:
            case "metric":
                # The experiment is the same: said again, it opens the index of values.
                owned = sa.and_(
                    latest.c.run == runs.c.number, latest.c.experiment == runs.c.experiment
                )
                return measures(latest, owned, comparison)
            case "param":
                return of_run(params, runs.c.number, comparison, embedded)
            case "tag":
                return of_run(tags, runs.c.number, comparison, embedded)
            case "attribute":
                return number_or_text(_attribute(comparison.key), comparison, embedded)
            case "dataset":
                column = datasets.c[comparison.key]
                used = sa.select(_THERE).join_from(
                    inputs, datasets, datasets.c.number == inputs.c.dataset
                )
                used = used.where(inputs.c.run == runs.c.number, text(column, comparison, embedded))
                return used.exists()
            case "input tag":
                owned = input_tags.c.run == runs.c.number
                return holds(input_tags, owned, comparison, embedded)


def _attribute(key: str) -> "sa.Column[Any]":
    if key not in _ATTRIBUTES:
        raise InvalidRequest("filter", f"{key!r} cannot be searched or sorted by")
    return _ATTRIBUTES[key]


def _within(query: "sa.Select[Any]", scope: _Scope, phase: _Phase) -> "sa.Select[Any]":
    query = query.where(scope.of(runs.c.experiment))
    if phase.ranked is not None:
        query = query.where(scope.of(phase.ranked.c.experiment))
    if scope.deleted is not None:
        query = query.where(runs.c.deleted == (sa.true() if scope.deleted else sa.false()))
    return query


def _phases(orders: Sequence[Order]) -> Iterator[_Phase]:
    if not orders or orders[0].kind != "metric":
        yield _phase(orders)
        return
    first, *rest = orders
    ranked = latest.alias("ranked")
    of_run = sa.and_(ranked.c.run == runs.c.number, ranked.c.key == first.key)
    for nan in (sa.false(), sa.true()):
        lead = [] if nan is sa.true() else [Sort(ranked.c.value, first.ascending)]
        phase = _phase(rest, lead)
        query = phase.query.join(ranked, of_run).where(ranked.c.nan == nan)
        yield _Phase(query, phase.sorts, ranked)
    without = _phase(rest)
    known = sa.select(_THERE).where(latest.c.run == runs.c.number, latest.c.key == first.key)
    yield _Phase(without.query.where(~known.exists()), without.sorts)


def _phase(orders: Sequence[Order], lead: Sequence[Sort] = ()) -> _Phase:
    """Runs in an order that no index has, unless it is that of their start."""
    source: sa.FromClause = runs
    sorts = list(lead)
    for number, order in enumerate(orders):
        if order.kind == "attribute":
            attribute = _attribute(order.key)
            column: sa.ColumnElement[Any] = attribute
            if attribute.nullable:
                sorts.append(Sort(sa.case((column.is_(None), _MISSING), else_=_THERE), True))
                column = sa.func.coalesce(column, _THERE, type_=sa.BigInteger)
            sorts.append(Sort(column, order.ascending))
            continue
        table = {"metric": latest, "param": params, "tag": tags}[order.kind].alias(f"by_{number}")
        owned = sa.and_(table.c.run == runs.c.number, table.c.key == order.key)
        source = source.outerjoin(table, owned)
        absent = (table.c.run.is_(None), sa.literal_column("2", sa.Integer))
        if order.kind == "metric":
            sorts.append(Sort(sa.case(absent, (table.c.nan, _MISSING), else_=_THERE), True))
            value = sa.func.coalesce(table.c.value, sa.literal_column("0.0"), type_=sa.Double)
        else:
            sorts.append(Sort(sa.case(absent, else_=_THERE), True))
            value = sa.func.coalesce(table.c.value, sa.literal_column("''"), type_=sa.Text)
        sorts.append(Sort(value, order.ascending))
    if not any(order.kind == "attribute" and order.key == "started" for order in orders):
        sorts.append(Sort(runs.c.started, False))
    sorts.append(Sort(runs.c.number, False))
    labelled = [sort.column.label(f"sort_{number}") for number, sort in enumerate(sorts)]
    # The number stands first, and is the last column of the order as well.
    return _Phase(
        sa.select(runs.c.number.label("found"), *labelled).select_from(source), tuple(sorts)
    )
