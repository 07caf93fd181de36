"""Logged models: created, finished, read, searched, tagged and deleted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from registry.errors import InvalidRequest, LoggedModelNotFound, ParamExists, TagNotFound
from registry.tracking import pages
from registry.tracking.experiments import Experiments
from registry.tracking.pages import Sort
from registry.tracking.query import Comparison, Order, Search
from registry.tracking.records import LoggedModel, Metric, ModelMetric, ModelStatus, Page
from registry.tracking.schema import experiments, models
from registry.tracking.schema import model_metrics as metrics
from registry.tracking.schema import model_params as params
from registry.tracking.schema import model_tags as tags
from registry.tracking.search import Asked, Condition, compared, holds, is_number, measures
from registry.tracking.store import Row, Store, Texts, chunks, texts_of

OnDataset = tuple[str, str | None]
"""The name of a dataset, and its digest or None for any."""

_COLUMNS = {
    column: models.c[column]
    for column in ("id", "name", "type", "status", "source_run", "created", "updated")
}


class LoggedModels:
    """All logged models of the database."""

    def __init__(self, store: Store, experiments: Experiments) -> None:
        self._store = store
        self._tags = Texts(store, tags, "model")
        self._experiments = experiments

    def create(
        self,
        experiment: int,
        *,
        name: str,
        type: str = "",  # noqa: A002 what it is called everywhere else
        source_run: str = "",
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> LoggedModel:
        """Makes a pending model. Raises ExperimentNotFound or ExperimentDeleted."""
        now = self._store.now
        model_id = f"m-{self._store.new_id()}"
        with self._store.writing() as connection:
            self._experiments.active(connection, experiment)
            row = {
                "id": model_id,
                "experiment": experiment,
                "name": name,
                "type": type,
                "source_run": source_run,
                "status": "pending",
                "created": now,
                "updated": now,
                "deleted": False,
            }
            insert = sa.insert(models).values(row).returning(models.c.number)
            number = int(connection.execute(insert).scalar_one())
            self._add_params(connection, number, params or {})
            self._tags.write(connection, number, tags or {})
        return self.get(model_id)

    def get(self, model_id: str) -> LoggedModel:
        """The model. Raises LoggedModelNotFound, also for one that was deleted."""
        with self._store.reading() as connection:
            row = connection.execute(_rows().where(models.c.id == model_id)).one_or_none()
            if row is None:
                raise LoggedModelNotFound(model_id)
            return self._filled(connection, [row])[0]

    def finish(self, model_id: str, status: ModelStatus) -> LoggedModel:
        """Says how the upload of a model ended. Raises LoggedModelNotFound."""
        with self._store.writing() as connection:
            self._change(connection, model_id, status=status)
        return self.get(model_id)

    def delete(self, model_id: str) -> None:
        """Hides a model. Raises LoggedModelNotFound."""
        with self._store.writing() as connection:
            self._change(connection, model_id, deleted=True)

    def log_params(self, model_id: str, given: Mapping[str, str]) -> None:
        """Adds params, each of which is written once. Raises LoggedModelNotFound, ParamExists."""
        with self._store.writing() as connection:
            self._add_params(connection, self._number(connection, model_id), given)

    def set_tags(self, model_id: str, given: Mapping[str, str]) -> None:
        """Writes tags. Raises LoggedModelNotFound."""
        with self._store.writing() as connection:
            self._tags.write(connection, self._number(connection, model_id), given)

    def delete_tag(self, model_id: str, key: str) -> None:
        """Removes a tag. Raises LoggedModelNotFound or TagNotFound."""
        with self._store.writing() as connection:
            number = self._number(connection, model_id)
            removed = sa.delete(tags).where(tags.c.model == number, tags.c.key == key)
            if not connection.execute(removed).rowcount:
                raise TagNotFound(key, f"logged model with id {model_id}")

    def search(
        self, experiment_ids: Sequence[int], search: Search, datasets: Sequence[OnDataset] = ()
    ) -> Page[LoggedModel]:
        """Models that fit, by default the newest first. Raises InvalidRequest.

        With `datasets` only metrics on one of these count, and a model has to have one.
        """
        sorts = [sort for order in search.orders for sort in _sorts(order)]
        if not any(order.key == "created" for order in search.orders):
            sorts.append(Sort(models.c.created, False))
        sorts.append(Sort(models.c.number, False))
        labels = [sort.column.label(f"sort_{number}") for number, sort in enumerate(sorts)]
        ids = [number for number in experiment_ids if 0 <= number < 2**63]
        query = _rows(*labels).where(
            models.c.experiment.in_(ids), experiments.c.deleted == sa.false()
        )
        on_these = sa.true() if not datasets else sa.or_(*map(_on, datasets))
        if datasets and not any(comparison.kind == "metric" for comparison in search.filters):
            known = sa.select(metrics.c.model).where(metrics.c.model == models.c.number, on_these)
            query = query.where(known.exists())
        for comparison in search.filters:
            query = query.where(self._condition(comparison, on_these))
        asked = pages.question("models", sorted(set(ids)), search.filters, search.orders, datasets)
        if search.page:
            kinds = [sort.column.type.python_type for sort in sorts]
            query = query.where(pages.behind(sorts, pages.place(asked, search.page, kinds)))
        query = query.order_by(*(sort.ordered for sort in sorts)).limit(search.limit + 1)
        with self._store.reading() as connection:
            rows = connection.execute(query).all()
            found = self._filled(connection, rows[: search.limit])
        following = ""
        if len(rows) > search.limit:
            following = pages.token(asked, rows[search.limit - 1][-len(sorts) :])
        return Page(found, following)

    def _condition(self, comparison: Comparison, on_these: Condition) -> Condition:
        embedded = self._store.embedded
        column = _attribute(comparison.key) if comparison.kind == "attribute" else None
        number = comparison.kind == "metric" if column is None else is_number(column)
        asked = Asked.of(comparison, number=number, embedded=embedded)
        if column is not None:
            return compared(column, asked, embedded)
        if comparison.kind == "metric":
            owned = sa.and_(metrics.c.model == models.c.number, on_these)
            return measures(metrics, owned, asked)
        table = {"param": params, "tag": tags}[comparison.kind]
        return holds(table, table.c.model == models.c.number, asked, embedded)

    def _change(self, connection: sa.Connection, model_id: str, **values: object) -> None:
        changed = sa.update(models).where(models.c.id == model_id, models.c.deleted == sa.false())
        done = connection.execute(changed.values(updated=self._store.now, **values))
        if not done.rowcount:
            raise LoggedModelNotFound(model_id)

    def _number(self, connection: sa.Connection, model_id: str) -> int:
        query = sa.select(models.c.number).where(
            models.c.id == model_id, models.c.deleted == sa.false()
        )
        number = connection.execute(query).scalar_one_or_none()
        if number is None:
            raise LoggedModelNotFound(model_id)
        return int(number)

    def _add_params(self, connection: sa.Connection, number: int, given: Mapping[str, str]) -> None:
        if not given:
            return
        rows = [{"model": number, "key": key, "value": given[key]} for key in sorted(given)]
        connection.execute(self._store.upsert(params).on_conflict_do_nothing(), rows)
        kept = texts_of(connection, params, "model", [number])[number]
        for key, value in given.items():
            if kept[key] != value:
                raise ParamExists(key, kept[key], value)

    def _filled(self, connection: sa.Connection, rows: Sequence[Row]) -> list[LoggedModel]:
        numbers = [row.number for row in rows]
        of_params = texts_of(connection, params, "model", numbers)
        of_tags = texts_of(connection, tags, "model", numbers)
        of_metrics: dict[int, list[ModelMetric]] = {number: [] for number in numbers}
        for some in chunks(numbers):
            query = sa.select(metrics).where(metrics.c.model.in_(some))
            query = query.order_by(
                metrics.c.model, metrics.c.key, metrics.c.dataset_name, metrics.c.dataset_digest
            )
            for row in connection.execute(query):
                value = math.nan if row.nan else row.value
                measured = Metric(row.key, value, row.timestamp, row.step)
                of_metrics[row.model].append(
                    ModelMetric(measured, row.run, row.dataset_name, row.dataset_digest)
                )
        return [
            LoggedModel(
                number=row.number,
                id=row.id,
                experiment=row.experiment,
                artifact_location=row.artifact_location,
                name=row.name,
                type=row.type,
                source_run=row.source_run,
                status=row.status,
                created=row.created,
                updated=row.updated,
                params=of_params[row.number],
                tags=of_tags[row.number],
                metrics=of_metrics[row.number],
            )
            for row in rows
        ]


def _rows(*more: "sa.ColumnElement[Any]") -> "sa.Select[Any]":
    query = sa.select(models, experiments.c.artifact_location, *more)
    query = query.join(experiments, experiments.c.id == models.c.experiment)
    return query.where(models.c.deleted == sa.false())


def _attribute(key: str) -> "sa.Column[Any]":
    if key not in _COLUMNS:
        raise InvalidRequest("filter", f"{key!r} cannot be searched or sorted by")
    return _COLUMNS[key]


def _on(dataset: OnDataset) -> Condition:
    name, digest = dataset
    if digest is None:
        return metrics.c.dataset_name == name
    return sa.and_(metrics.c.dataset_name == name, metrics.c.dataset_digest == digest)


def _sorts(order: Order) -> list[Sort]:
    if order.kind == "attribute":
        return [Sort(_attribute(order.key), order.ascending)]
    if order.kind != "metric":
        raise InvalidRequest("order_by", f"{order.key!r} is neither an attribute nor a metric")
    owned = [metrics.c.model == models.c.number, metrics.c.key == order.key]
    if order.dataset:
        owned.append(_on(order.dataset))
    last = (metrics.c.timestamp.desc(), metrics.c.step.desc(), metrics.c.run)

    def newest(column: "sa.ColumnElement[Any]") -> "sa.ScalarSelect[Any]":
        chosen = sa.select(column).where(*owned).order_by(*last).limit(1)
        return chosen.correlate(models).scalar_subquery()

    nan = sa.case((metrics.c.nan, 1), else_=0)
    rank = sa.func.coalesce(newest(nan), sa.literal_column("2"), type_=sa.Integer)
    value = sa.func.coalesce(newest(metrics.c.value), sa.literal_column("0.0"), type_=sa.Double)
    return [Sort(rank, True), Sort(value, order.ascending)]
