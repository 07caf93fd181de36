"""Which runs a search finds, in order: the numbers of one page.

Where a search begins is decided here, by what it costs. To take all runs that fit a comparison and
sort them takes as long as there are many of them; to go through the runs in order until a page is
full takes the longer, the fewer fit. They are counted, up to where the one costs what the other
does; near there, it is quicker to have both at hand and see whether they meet.

No index has an order by several things, or one in which values rise while starts fall: it is put
together from the levels of its first part, the runs of one value.

In an order by something that not every run has, those that have a value come first, then those with
NaN, then the others, and each of the three is read from an index of its own. A page ends when it is
full, so that mostly one of them is asked.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from registry.errors import InvalidRequest
from registry.tracking import pages, plans
from registry.tracking.plans import By, Rank, Scope, Shape, Test
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import View
from registry.tracking.schema import PREFIX, experiments, runs
from registry.tracking.search import given, is_number, kind_of
from registry.tracking.store import Prepared, Row, Store

SEPARATE = 50
"""Experiments up to which each is looked into by itself."""
SHAPES = 256
"""Statements that are kept: what is asked often has few shapes, and a long one takes some KB."""

NEAR = 5
"""How much farther than a page should be away it is looked for. So many times fewer runs than are
worth to be sorted are quicker sorted at once.
"""
NEAR_EMBEDDED = 2
"""The same for SQLite, which does not end such a search early."""
_Values = dict[str, object]
_Groups = dict[bool, list[int]]
_ORDERED = ("metric", "param", "tag", "attribute")


@dataclass(frozen=True)
class _Asked:
    """A search as statements take it: its shape, and what is bound to that."""

    tests: tuple[Test, ...]
    orders: tuple[By, ...]
    groups: _Groups
    values: _Values
    limit: int
    newest: int
    known: int = 0
    """How many comparisons, the first ones, are known to fit no few runs."""

    @property
    def levels(self) -> bool:
        """Whether no index has the whole order, but only that of the first part.

        Where values rise, starts still fall among those that are equal.
        """
        return len(self.orders) > 1 or any(order.ascending for order in self.orders)

    @property
    def own(self) -> tuple[int, ...]:
        """The comparisons of what the first part of the order is by, if that is logged."""
        if not self.orders or self.orders[0].kind == "attribute":
            return ()
        by = self.orders[0].kind, self.values["order_0"]
        tests = enumerate(self.tests)
        return tuple(it for it, test in tests if (test.kind, self.values[f"key_{it}"]) == by)

    @property
    def ranks(self) -> tuple[Rank | None, ...]:
        """The parts that runs are looked for in, one after the other."""
        return plans.ranks(self.orders[0]) if self.orders else (None,)

    def place(self, rank: Rank | None, row: Row) -> list[Any]:
        """The place of a row in the whole order, by that among those of its rank."""
        place = list(row[1:])
        if rank:
            place.insert(0, "" if self.orders[0].kind in ("param", "tag") else 0)
        return [rank, *place] if len(self.ranks) > 1 else place

    def within(self, rank: Rank | None, place: Sequence[Any]) -> Sequence[Any]:
        """The other way round."""
        if len(self.ranks) == 1:
            return place
        return place[2:] if rank else place[1:]

    def at(self, level: Test, limit: int, values: _Values) -> "_Asked":
        """The question for the runs of one level of the first part, in the order of the others."""
        keys = {f"order_{it - 1}": self.values[f"order_{it}"] for it in range(1, len(self.orders))}
        return replace(
            self,
            tests=(*self.tests, level),
            orders=self.orders[1:],
            values=self.values | keys | values,
            limit=limit,
            known=len(self.tests),
        )


class RunSearch:
    """Finds pages of runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._embedded = store.embedded
        newest = sa.select(sa.func.max(runs.c.number)).scalar_subquery()
        states = sa.select(experiments.c.id, experiments.c.deleted, newest)
        self._states = Prepared(store, states.where(store.among(experiments.c.id, "numbers")))
        self._page = lru_cache(SHAPES)(self._prepared)
        self._count = lru_cache(SHAPES)(self._prepared_count)

    def page(
        self, connection: sa.Connection, experiment_ids: Sequence[int], view: View, search: Search
    ) -> tuple[list[int], str]:
        """The numbers of the runs of a page, and the token of the next. Raises InvalidRequest."""
        question = pages.question(
            "runs", sorted(set(experiment_ids)), view, search.filters, search.orders
        )
        tests, values = self._tests(search.filters)
        orders = tuple(map(_by, search.orders))
        place = pages.place(question, search.page, plans.kinds(orders)) if search.page else []
        groups, newest = self._groups(connection, experiment_ids, view)
        if not groups:
            return [], ""
        values |= {f"order_{number}": order.key for number, order in enumerate(search.orders)}
        asked = _Asked(tests, orders, groups, values, search.limit + 1, newest)
        found = self._found(connection, asked, place)
        following = ""
        if len(found) > search.limit:
            following = pages.token(question, found[search.limit - 1][1])
        return [number for number, _ in found[: search.limit]], following

    def _tests(self, filters: Sequence[Comparison]) -> tuple[tuple[Test, ...], _Values]:
        tests, values = [], _Values()
        for number, comparison in enumerate(filters):
            test, own = self._test(number, comparison)
            tests.append(test)
            values |= own
        return tuple(tests), values

    def _test(self, number: int, it: Comparison) -> tuple[Test, _Values]:
        column = plans.attribute(it.key) if it.kind == "attribute" else None
        numeric = it.kind == "metric" if column is None else is_number(column)
        value = given(it, number=numeric, embedded=self._embedded)
        if it.kind == "metric" and isinstance(value, int):
            value = float(value)
        kind = type(kind_of(it.operator, value, self._embedded))
        long = isinstance(value, str) and len(value) >= PREFIX
        named = it.key if it.kind in ("attribute", "dataset") else ""
        values: _Values = {f"key_{number}": it.key, f"value_{number}": value}
        if isinstance(value, str):
            values[f"beginning_{number}"] = value[:PREFIX]
        return Test(it.kind, named, it.operator, kind, long), values

    def _groups(
        self, connection: sa.Connection, experiment_ids: Sequence[int], view: View
    ) -> tuple[_Groups, int]:
        """The experiments to look for deleted runs in, and for others; and the newest run of all.

        All runs of a deleted experiment are deleted.
        """
        ids = sorted({number for number in experiment_ids if 0 <= number < 2**63})
        groups: _Groups = {}
        newest = 0
        for number, deleted, last in self._states(connection, numbers=self._store.listed(ids)):
            newest = last or 0
            if deleted and view == "active":
                continue
            if deleted or view != "deleted":
                groups.setdefault(False, []).append(number)
            if deleted or view != "active":
                groups.setdefault(True, []).append(number)
        return groups, newest

    def _found(
        self, connection: sa.Connection, asked: _Asked, place: Sequence[Any]
    ) -> list[tuple[int, list[Any]]]:
        """Numbers of runs, with their places in the order."""
        source, reach = self._source(connection, asked)
        scopes = tuple(Scope(deleted, several=True) for deleted in asked.groups)
        shape = Shape(asked.tests, asked.orders, scopes, source, own=asked.own)
        in_order = tuple(self._scopes(asked))
        if not plans.has_order(shape):
            if reach and _may_be_near(asked, in_order, place):
                asked.values["reach"] = reach
                near = shape._replace(scopes=in_order, near=True)
                found = self._ranked(connection, near, asked, place, 0, asked.limit)
                if len(found) == asked.limit:
                    return found
            whole = shape._replace(own=())
            rows = self._rows(connection, whole, asked, place, asked.limit)
            return [(row[0], list(row[1:])) for row in rows]
        found = []
        shape = shape._replace(scopes=in_order)
        for rank in asked.ranks:
            if place and len(asked.ranks) > 1 and (rank or 0) < place[0]:
                continue
            if not all(plans.fits(asked.tests[number], rank) for number in asked.own):
                continue
            wanted = asked.limit - len(found)
            found += self._ranked(connection, shape, asked, place, rank, wanted)
            if len(found) == asked.limit:
                break
            place = []
        return found

    def _scopes(self, asked: _Asked) -> Iterator[Scope]:
        """Those that are looked into in order, whose experiments become values."""
        separate = sum(map(len, asked.groups.values())) <= SEPARATE
        place = 0
        for deleted, members in asked.groups.items():
            for number in members if separate else ():
                asked.values[f"experiment_{place}"] = number
                place += 1
                yield Scope(deleted, several=False)
            if not separate:
                yield Scope(deleted, several=True)

    def _source(self, connection: sa.Connection, asked: _Asked) -> tuple[int | None, int]:
        """The comparison that the fewest runs fit, if these are worth to be taken and sorted; and
        how far it is worth to look for them in the order instead, if at all.
        """
        groups = asked.groups.values()
        everything = sorted({number for members in groups for number in members})
        asked.values["experiments"] = self._store.listed(everything)
        for number, members in enumerate(groups):
            asked.values[f"experiments_{number}"] = self._store.listed(members)
        expected = asked.limit * asked.newest
        best, bound = None, math.isqrt(expected) + 1
        near = NEAR_EMBEDDED if self._embedded else NEAR
        few = bound // near
        # A comparison of what is ordered by bounds the order itself.
        tests = [
            (number, test)
            for number, test in [*enumerate(asked.tests)][asked.known :]
            if plans.has_index(test) and number not in asked.own
        ]
        for number, test in sorted(tests, key=lambda it: it[1].operator != "="):
            if bound <= asked.limit:
                break
            query = self._count(test, number)
            ((fitting,),) = query(connection, **asked.values, limit=bound)
            if fitting < bound:
                best, bound = number, fitting
        return best, near * expected // bound if few < bound <= plans.HELD else 0

    def _ranked(
        self,
        connection: sa.Connection,
        shape: Shape,
        asked: _Asked,
        place: Sequence[Any],
        rank: Rank | None,
        wanted: int,
    ) -> list[tuple[int, list[Any]]]:
        begin = asked.within(rank, place)
        shape = shape._replace(rank=rank)
        if rank == 2 and len(asked.orders) > 1:
            rows = self._without(connection, asked, begin, wanted)
        elif asked.levels and not rank:
            rows = self._by_levels(connection, shape, asked, begin, wanted)
        else:
            rows = self._rows(connection, shape, asked, begin, wanted)
        return [(row[0], asked.place(rank, row)) for row in rows]

    def _by_levels(
        self,
        connection: sa.Connection,
        shape: Shape,
        asked: _Asked,
        place: Sequence[Any],
        wanted: int,
    ) -> list[Row]:
        """Runs in an order of which an index has the first part.

        Those of one level come in the wrong order, but all together; only the last ones, of which
        there may be more, are asked for once more, in the order of the rest.
        """
        found: list[Row] = []
        if place:
            found = self._level(connection, shape, asked, place[0], place[1:], wanted)
        if len(found) == wanted:
            return found
        loose = shape._replace(loose=True, begin="beyond" if place else "")
        own = {"level": place[0]} if place else {}
        more = wanted - len(found) + 1
        rows = self._rows(connection, loose, asked, (), more, **own)
        levels = [(level, list(group)) for level, group in groupby(rows, key=itemgetter(1))]
        # What is near may end anywhere.
        last = levels.pop()[0] if rows and (shape.near or len(rows) == more) else None
        directions = plans.directions(asked.orders)
        for _, group in levels:
            for column, ascending in reversed([*enumerate(directions, 2)]):
                group.sort(key=itemgetter(column), reverse=not ascending)
            found += [row[: len(directions) + 2] for row in group]
        if last is not None and len(found) < wanted:
            found += self._level(connection, shape, asked, last, (), wanted - len(found))
        return found

    def _level(
        self,
        connection: sa.Connection,
        shape: Shape,
        asked: _Asked,
        level: Any,
        place: Sequence[Any],
        wanted: int,
    ) -> list[Row]:
        """Runs of one level of the first part of an order: a search of its own, with one more
        comparison and one part less.
        """
        by = asked.orders[0]
        cut = isinstance(level, str) and len(level) >= PREFIX
        if len(asked.orders) == 1 or by.column == "started" or cut:
            begin = [level, *place] if place else ()
            shape = shape._replace(at_level=True)
            return self._rows(connection, shape, asked, begin, wanted, level=level)
        key = by.column or str(asked.values["order_0"])
        test, own = self._test(len(asked.tests), Comparison(by.kind, key, "=", level))
        rows = self._found(connection, asked.at(test, wanted, own), place)
        return [(number, level, *behind) for number, behind in rows]

    def _without(
        self, connection: sa.Connection, asked: _Asked, place: Sequence[Any], wanted: int
    ) -> list[Row]:
        """Runs that have nothing of the first part of an order, in the order of the rest."""
        test, number = plans.missing(asked.orders[0]), len(asked.tests)
        own = {f"key_{number}": asked.values["order_0"], f"value_{number}": None}
        rows = self._found(connection, asked.at(test, wanted, own), place)
        return [(number, *behind) for number, behind in rows]

    def _rows(
        self,
        connection: sa.Connection,
        shape: Shape,
        asked: _Asked,
        place: Sequence[Any],
        wanted: int,
        **own: object,
    ) -> list[Row]:
        values = {**asked.values, **own, "limit": wanted}
        if place:
            shape = shape._replace(begin="place")
            values |= {f"place_{number}": value for number, value in enumerate(place)}
        return self._page(shape)(connection, **values)

    def _prepared(self, shape: Shape) -> Prepared:
        return Prepared(self._store, plans.page(shape, self._embedded))

    def _prepared_count(self, test: Test, number: int) -> Prepared:
        return Prepared(self._store, plans.count(test, number, self._embedded))


def _may_be_near(asked: _Asked, scopes: Sequence[Scope], place: Sequence[Any]) -> bool:
    """Whether one index has the order, so that it can be read as far as one likes.

    Behind a place, one that rises cannot: whether all runs of that level were seen is not known.
    """
    if len(asked.orders) != 1 or asked.orders[0].kind == "attribute":
        return False
    if place and (place[0] or asked.levels):
        return False
    return [scope.several for scope in scopes] == [False]


def _by(order: Order) -> By:
    if order.kind not in _ORDERED:
        raise InvalidRequest("order_by", f"nothing can be ordered by a {order.kind}")
    return By(order.kind, order.key if order.kind == "attribute" else "", order.ascending)
