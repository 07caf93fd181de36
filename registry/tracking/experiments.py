"""Experiments: created, found, renamed, tagged, deleted and restored."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from registry.errors import (
    ExperimentDeleted,
    ExperimentExists,
    ExperimentNotFound,
    InvalidRequest,
    TagNotFound,
)
from registry.tracking import pages
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import Experiment, Page, View
from registry.tracking.schema import experiment_tags as tags
from registry.tracking.schema import experiments
from registry.tracking.search import Asked, Condition, compared, holds, is_number
from registry.tracking.store import Prepared, Row, Store, Texts

_COLUMNS = {
    "id": experiments.c.id,
    "name": experiments.c.name,
    "created": experiments.c.created,
    "updated": experiments.c.updated,
}
# To clients an id is a text.
_COMPARED = {**_COLUMNS, "id": sa.cast(experiments.c.id, sa.Text)}
_BY_ID = sa.select(experiments).where(experiments.c.id == sa.bindparam("number"))
_NEWEST = (Order("attribute", "created", False),)


class Experiments:
    """All experiments of the database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tags = Texts(store, tags, "experiment")
        self._by_id = Prepared(store, _BY_ID)
        self._page = lru_cache(32)(lambda *shape: Prepared(store, _query(*shape)))

    def create(
        self, name: str, artifact_location: str | None = None, tags: Mapping[str, str] | None = None
    ) -> int:
        """Makes an experiment, and returns its id. Raises ExperimentExists."""
        now = self._store.now
        row = {"name": name, "artifact_location": artifact_location, "deleted": False}
        statement = sa.insert(experiments).values(**row, created=now, updated=now)
        with self._store.writing() as connection:
            self._refuse_taken(connection, name)
            try:
                # Another writer may have taken the name since, where writers do not take turns.
                number = connection.execute(statement.returning(experiments.c.id)).scalar_one()
            except IntegrityError:
                raise ExperimentExists(name, deleted=False) from None
            self._tags.write(connection, number, tags or {})
        return int(number)

    def get(self, number: int) -> Experiment:
        """The experiment, also a deleted one. Raises ExperimentNotFound."""
        return self._one(experiments.c.id == number, str(number))

    def get_by_name(self, name: str) -> Experiment:
        """The experiment of this name, also a deleted one. Raises ExperimentNotFound."""
        return self._one(experiments.c.name == name, name)

    def _one(self, condition: sa.ColumnElement[bool], spelled: str) -> Experiment:
        with self._store.reading() as connection:
            row = connection.execute(sa.select(experiments).where(condition)).one_or_none()
            if row is None:
                raise ExperimentNotFound(spelled)
            return _experiment(row, self._tags.of(connection, [row.id])[row.id])

    def search(self, view: View, search: Search) -> Page[Experiment]:
        """Experiments that fit, by default the newest first. Raises InvalidRequest."""
        orders = [*(search.orders or _NEWEST), Order("attribute", "id", False)]
        for order in orders:
            if order.kind != "attribute":
                raise InvalidRequest("order_by", f"experiments are not ordered by a {order.kind}")
        kinds = [str if order.key == "name" else int for order in orders]
        asked = pages.question("experiments", view, search.filters, orders)
        place = pages.place(asked, search.page, kinds) if search.page else ()
        values = {f"place_{number}": value for number, value in enumerate(place)}
        values["limit"] = search.limit + 1
        shape = view, tuple(orders), bool(place)
        with self._store.reading() as connection:
            if search.filters:
                conditions = map(self._condition, search.filters)
                rows = connection.execute(_query(*shape).where(*conditions), values).all()
            else:
                rows = self._page(*shape).named(connection, **values)
            found, more = rows[: search.limit], rows[search.limit :]
            labels = self._tags.of(connection, [row.id for row in found if row.tagged])
        following = ""
        if more:
            following = pages.token(asked, [getattr(found[-1], order.key) for order in orders])
        return Page([_experiment(row, labels.get(row.id, {})) for row in found], following)

    def _condition(self, comparison: Comparison) -> Condition:
        embedded = self._store.embedded
        if comparison.kind == "attribute":
            column = _COMPARED[comparison.key]
            asked = Asked.of(comparison, number=is_number(column), embedded=embedded)
            return compared(column, asked, embedded)
        owned = tags.c.experiment == experiments.c.id
        asked = Asked.of(comparison, number=False, embedded=embedded)
        return holds(tags, owned, asked, embedded)

    def rename(self, number: int, name: str | None) -> None:
        """Gives an active experiment another name; None keeps the one that it has.

        Raises ExperimentNotFound, ExperimentDeleted, or ExperimentExists.
        """
        with self._store.writing() as connection:
            found = self.active(connection, number)
            if name is None or name == found.name:
                return
            self._refuse_taken(connection, name)
            try:
                self._change(connection, number, name=name)
            except IntegrityError:
                raise ExperimentExists(name, deleted=False) from None

    def delete(self, number: int) -> None:
        """Hides an experiment and all that is in it. Raises ExperimentNotFound."""
        self._mark(number, deleted=True)

    def restore(self, number: int) -> None:
        """Brings back what `delete` hid. Raises ExperimentNotFound for one that is not deleted."""
        self._mark(number, deleted=False)

    def _mark(self, number: int, *, deleted: bool) -> None:
        with self._store.writing() as connection:
            done = connection.execute(
                sa.update(experiments)
                .where(experiments.c.id == number, experiments.c.deleted == (not deleted))
                .values(deleted=deleted, updated=self._store.now)
            )
            if not done.rowcount:
                state = "active" if deleted else "deleted"
                raise ExperimentNotFound(str(number), f"there is none that is {state}")

    def set_tag(self, number: int, key: str, value: str) -> None:
        """Writes a tag of an active experiment. Raises ExperimentNotFound or ExperimentDeleted."""
        with self._store.writing() as connection:
            self.active(connection, number)
            self._tags.write(connection, number, {key: value})
            self._change(connection, number)

    def delete_tag(self, number: int, key: str) -> None:
        """Removes a tag. Raises ExperimentNotFound, ExperimentDeleted, or TagNotFound."""
        with self._store.writing() as connection:
            self.active(connection, number)
            done = connection.execute(
                sa.delete(tags).where(tags.c.experiment == number, tags.c.key == key)
            )
            if not done.rowcount:
                raise TagNotFound(key, f"experiment {number}")
            self._change(connection, number)

    def active(self, connection: sa.Connection, number: int) -> Row:
        """The row of an experiment that takes something new. Raises ExperimentNotFound, or
        ExperimentDeleted.
        """
        for row in self._by_id.named(connection, number=number):
            if row.deleted:
                raise ExperimentDeleted(str(number))
            return row
        raise ExperimentNotFound(str(number))

    def _refuse_taken(self, connection: sa.Connection, name: str) -> None:
        query = sa.select(experiments.c.deleted).where(experiments.c.name == name)
        deleted = connection.execute(query).scalar_one_or_none()
        if deleted is not None:
            raise ExperimentExists(name, deleted)

    def _change(self, connection: sa.Connection, number: int, **values: object) -> None:
        changed = sa.update(experiments).where(experiments.c.id == number)
        connection.execute(changed.values(updated=self._store.now, **values))


def _query(view: View, orders: Sequence[Order], paged: bool) -> "sa.Select[Any]":
    """A page of experiments, `limit` of them, behind `place_N` if it is not the first."""
    sorts = [pages.Sort(_COLUMNS[order.key], order.ascending) for order in orders]
    tagged = sa.exists().where(tags.c.experiment == experiments.c.id).label("tagged")
    query = sa.select(experiments, tagged).limit(sa.bindparam("limit", type_=sa.Integer))
    if view != "all":
        query = query.where(
            experiments.c.deleted == (sa.true() if view == "deleted" else sa.false())
        )
    if paged:
        place = [
            sa.bindparam(f"place_{number}", type_=sort.column.type)
            for number, sort in enumerate(sorts)
        ]
        query = query.where(pages.behind(sorts, place))
    return query.order_by(*(sort.ordered for sort in sorts))


def _experiment(row: Row, labels: Mapping[str, str]) -> Experiment:
    return Experiment(
        row.id, row.name, row.artifact_location, bool(row.deleted), row.created, row.updated, labels
    )
