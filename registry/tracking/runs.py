"""Runs: created, logged to, read, searched, deleted and restored."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from registry.errors import (
    LoggedModelNotFound,
    ParamExists,
    RunDeleted,
    RunNotFound,
    TagNotFound,
)
from registry.tracking import pages
from registry.tracking.experiments import Experiments
from registry.tracking.found import RunSearch
from registry.tracking.query import Search
from registry.tracking.records import (
    Dataset,
    Input,
    Metric,
    ModelMetric,
    Page,
    Run,
    RunModel,
    Status,
    View,
)
from registry.tracking.schema import (
    datasets,
    experiments,
    input_tags,
    inputs,
    latest,
    metrics,
    model_metrics,
    models,
    params,
    run_models,
    runs,
    tags,
)
from registry.tracking.store import Prepared, PreparedInsert, Row, Store, Texts, chunks


@dataclass(frozen=True)
class Batch:
    """What is logged to a run at once: all of it is kept, or nothing.

    `name` gives the run another one. `model_metrics` are of logged models, by their ids.
    """

    metrics: Sequence[Metric] = ()
    params: Sequence[tuple[str, str]] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    model_metrics: Sequence[tuple[str, ModelMetric]] = ()


class Runs:
    """All runs of the database."""

    def __init__(self, store: Store, experiments: Experiments) -> None:
        self._store = store
        self._tags = Texts(store, tags, "run", ("experiment", "started"))
        self._experiments = experiments
        self._search = RunSearch(store)
        self._statements = _Statements(store)

    # One run

    def create(
        self,
        experiment: int,
        *,
        name: str = "",
        user_id: str = "",
        started: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        """Begins a run. Raises ExperimentNotFound or ExperimentDeleted."""
        row: dict[str, Any] = {
            "id": self._store.new_id(),
            "experiment": experiment,
            "name": name,
            "user_id": user_id,
            "status": "RUNNING",
            "started": self._store.now if started is None else started,
            "ended": None,
            "deleted": False,
        }
        labels = dict(tags or {})
        with self._store.writing() as connection:
            holder = self._experiments.active(connection, experiment)
            ((number,),) = self._statements.insert_run(connection, **row)
            own = {"experiment": experiment, "started": row["started"]}
            self._tags.write(connection, number, labels, **own)
        return Run(
            number=number,
            artifact_location=holder.artifact_location,
            tags=dict(sorted(labels.items())),
            **row,
        )

    def get(self, run_id: str) -> Run:
        """The run and all that it logged, also a deleted one. Raises RunNotFound."""
        with self._store.reading() as connection:
            rows = self._statements.find.named(connection, id=run_id)
            if not rows:
                raise RunNotFound(run_id)
            return self._filled(connection, rows)[0]

    def update(
        self,
        run_id: str,
        *,
        status: Status | None = None,
        ended: int | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        """Changes what is given of an active run. Raises RunNotFound or RunDeleted."""
        given = {"status": status, "ended": ended, "name": name}
        values = {key: value for key, value in given.items() if value is not None}
        with self._store.writing() as connection:
            run = self._active(connection, run_id)
            if values:
                changed = sa.update(runs).where(runs.c.number == run.number)
                connection.execute(changed.values(values))
            self._write_tags(connection, run, tags or {})
            (row,) = self._statements.find.named(connection, id=run_id)
        return _run(row)

    def delete(self, run_id: str) -> None:
        """Hides a run. Raises RunNotFound."""
        self._mark(run_id, deleted=True)

    def restore(self, run_id: str) -> None:
        """Brings back a run, as far as its experiment is not deleted. Raises RunNotFound."""
        self._mark(run_id, deleted=False)

    def _mark(self, run_id: str, *, deleted: bool) -> None:
        with self._store.writing() as connection:
            marked = sa.update(runs).where(runs.c.id == run_id).values(deleted=deleted)
            if not connection.execute(marked).rowcount:
                raise RunNotFound(run_id)

    # Logging

    def log(self, run_id: str, batch: Batch) -> None:
        """Adds metrics and params, and writes tags.

        The same metric at the same step and time with the same value is one; a param keeps its
        first value. Raises RunNotFound, RunDeleted, ParamExists, or LoggedModelNotFound.
        """
        with self._store.writing() as connection:
            run = self._active(connection, run_id)
            self._log_params(connection, run, batch.params)
            self._log_metrics(connection, run, batch.metrics)
            self._write_tags(connection, run, batch.tags)
            if batch.name is not None:
                renamed = sa.update(runs).where(runs.c.number == run.number)
                connection.execute(renamed.values(name=batch.name))
            self._log_model_metrics(connection, batch.model_metrics)

    def rewrite_tag(self, run_id: str, key: str, change: Callable[[str | None], str]) -> None:
        """Writes what `change` makes of a tag, without another writer in between.

        Raises RunNotFound or RunDeleted.
        """
        with self._store.writing() as connection:
            run = self._active(connection, run_id)
            held = sa.select(runs.c.number).where(runs.c.number == run.number)
            connection.execute(held.with_for_update())
            query = sa.select(tags.c.value).where(tags.c.run == run.number, tags.c.key == key)
            known = connection.execute(query).scalar_one_or_none()
            self._write_tags(connection, run, {key: change(known)})

    def delete_tag(self, run_id: str, key: str) -> None:
        """Removes a tag. Raises RunNotFound, RunDeleted, or TagNotFound."""
        with self._store.writing() as connection:
            number = self._active(connection, run_id).number
            removed = sa.delete(tags).where(tags.c.run == number, tags.c.key == key)
            if not connection.execute(removed).rowcount:
                raise TagNotFound(key, f"run with id {run_id}")

    def log_inputs(
        self, run_id: str, used: Sequence[Input] = (), used_models: Sequence[str] = ()
    ) -> None:
        """Notes which datasets and logged models a run uses. Raises RunNotFound or RunDeleted."""
        with self._store.writing() as connection:
            run = self._active(connection, run_id)
            for item in sorted(used, key=lambda it: (it.dataset.name, it.dataset.digest)):
                self._log_input(connection, run, item)
            self._log_models(connection, run.number, [RunModel(it, "input") for it in used_models])

    def log_outputs(self, run_id: str, made: Sequence[RunModel]) -> None:
        """Notes which logged models a run made. Raises RunNotFound or RunDeleted."""
        with self._store.writing() as connection:
            self._log_models(connection, self._active(connection, run_id).number, made)

    def _active(self, connection: sa.Connection, run_id: str) -> Row:
        for row in self._statements.writable.named(connection, id=run_id):
            if row.deleted:
                raise RunDeleted(run_id)
            return row
        raise RunNotFound(run_id)

    def _write_tags(self, connection: sa.Connection, run: Row, given: Mapping[str, str]) -> None:
        self._tags.write(
            connection, run.number, given, experiment=run.experiment, started=run.started
        )

    def _log_params(
        self, connection: sa.Connection, run: Row, given: Sequence[tuple[str, str]]
    ) -> None:
        if not given:
            return
        once: dict[str, str] = {}
        for key, value in given:
            if once.setdefault(key, value) != value:
                raise ParamExists(key, once[key], value)
        own = {"run": run.number, "experiment": run.experiment, "started": run.started}
        rows = [{"key": key, "value": once[key], **own} for key in sorted(once)]
        if self._statements.insert_params.write(connection, rows) == len(rows):
            return
        query = sa.select(params.c.key, params.c.value).where(
            params.c.run == run.number, params.c.key.in_(list(once))
        )
        for key, kept in connection.execute(query):
            if once[key] != kept:
                raise ParamExists(key, kept, once[key])

    def _log_metrics(self, connection: sa.Connection, run: Row, given: Sequence[Metric]) -> None:
        if not given:
            return
        own = {"run": run.number, "experiment": run.experiment, "started": run.started}
        # In the order of keys, so that no two writers block each other for ever.
        ordered = sorted(given, key=lambda it: (it.key, it.timestamp, it.step))
        rows = [{**own, **_stored(metric)} for metric in ordered]
        self._statements.insert_metrics.write(connection, rows)
        newest: dict[str, tuple[Metric, dict[str, object]]] = {}
        for metric, row in zip(ordered, rows, strict=True):
            known = newest.get(metric.key)
            if known is None or metric.order > known[0].order:
                newest[metric.key] = metric, row
        self._statements.renew.write(connection, [row for _, row in newest.values()])

    def _log_model_metrics(
        self, connection: sa.Connection, given: Sequence[tuple[str, ModelMetric]]
    ) -> None:
        if not given:
            return
        wanted = sorted({model for model, _ in given})
        query = sa.select(models.c.id, models.c.number).where(
            models.c.id.in_(wanted), models.c.deleted == sa.false()
        )
        numbers = {row.id: row.number for row in connection.execute(query)}
        newest: dict[tuple[int, str, str, str], ModelMetric] = {}
        for model, value in given:
            if model not in numbers:
                raise LoggedModelNotFound(model)
            place = (numbers[model], value.metric.key, value.dataset_name, value.dataset_digest)
            known = newest.get(place)
            if known is None or value.metric.order > known.metric.order:
                newest[place] = value
        rows = [
            {
                "model": place[0],
                "dataset_name": place[2],
                "dataset_digest": place[3],
                "run": newest[place].run,
                **_stored(newest[place].metric),
            }
            for place in sorted(newest)
        ]
        connection.execute(self._statements.renew_model_metric, rows)

    def _log_input(self, connection: sa.Connection, run: Row, item: Input) -> None:
        data = item.dataset
        place = {"experiment": run.experiment, "name": data.name, "digest": data.digest}
        insert = self._store.upsert(datasets).on_conflict_do_nothing()
        connection.execute(insert.values(**{**vars(data), **place}))
        query = sa.select(datasets.c.number).filter_by(**place)
        number = int(connection.execute(query).scalar_one())
        row = {"run": run.number, "dataset": number}
        used = self._store.upsert(inputs).on_conflict_do_nothing().values(row)
        new = connection.execute(used.returning(inputs.c.run)).first()
        # What a run used it for is said the first time, as in MLflow.
        if new and item.tags:
            rows = [{**row, "key": key, "value": item.tags[key]} for key in sorted(item.tags)]
            connection.execute(sa.insert(input_tags), rows)

    def _log_models(
        self, connection: sa.Connection, number: int, links: Sequence[RunModel]
    ) -> None:
        if not links:
            return
        insert = self._store.upsert(run_models)
        insert = insert.on_conflict_do_update(
            index_elements=["run", "model", "role"], set_={"step": insert.excluded.step}
        )
        rows = [{"run": number, **vars(link)} for link in sorted(links, key=lambda it: it.model)]
        connection.execute(insert, rows)

    # Reading

    def history(
        self, run_id: str, key: str, limit: int | None = None, page: str = ""
    ) -> Page[Metric]:
        """Every value of a metric, oldest first. Raises RunNotFound or InvalidRequest."""
        order = (metrics.c.timestamp, metrics.c.step, metrics.c.value, metrics.c.nan)
        sorts = [pages.Sort(column, True) for column in order]
        with self._store.reading() as connection:
            number = self._number(connection, run_id)
            query = sa.select(*order).where(metrics.c.run == number, metrics.c.key == key)
            asked = pages.question("history", number, key)
            if page:
                *place, nan = pages.place(asked, page, [int, int, float, int])
                query = query.where(pages.behind(sorts, [*place, bool(nan)]))
            query = query.order_by(*(sort.ordered for sort in sorts))
            if limit is not None:
                query = query.limit(limit + 1)
            rows = connection.execute(query).all()
        found = [
            Metric(key, math.nan if it.nan else it.value, it.timestamp, it.step) for it in rows
        ]
        if limit is None or len(found) <= limit:
            return Page(found, "")
        last = rows[limit - 1]
        place = [last.timestamp, last.step, last.value, int(last.nan)]
        return Page(found[:limit], pages.token(asked, place))

    def histories(
        self, run_ids: Sequence[str], key: str, limit: int
    ) -> Sequence[tuple[str, Metric]]:
        """The first `limit` values of a metric of these runs, one run after the other, each with
        its id. Raises RunNotFound.
        """
        found: list[tuple[str, Metric]] = []
        for run_id in run_ids:
            some = self.history(run_id, key, max(limit - len(found), 1)).found
            found += [(run_id, metric) for metric in some]
        return found[:limit]

    def sampled(
        self, run_ids: Sequence[str], key: str, limit: int, steps: tuple[int, int] | None = None
    ) -> Sequence[tuple[str, Metric]]:
        """At most `limit` values of a metric of each run, by step, with its id: evenly taken from
        all of them, or those within the first and the last of `steps`. The last value is always one
        of them, and the first one if there is room. Raises RunNotFound.
        """
        found = []
        with self._store.reading() as connection:
            for run_id in run_ids:
                number = self._number(connection, run_id)
                query = _sample(number, key, limit, steps)
                for it in connection.execute(query):
                    value = math.nan if it.nan else it.value
                    found.append((run_id, Metric(key, value, it.timestamp, it.step)))
        return found

    def search(self, experiment_ids: Sequence[int], view: View, search: Search) -> Page[Run]:
        """Runs of the experiments that fit, by default the last started first.

        Experiments that do not exist have none. Raises InvalidRequest.
        """
        with self._store.reading() as connection:
            numbers, following = self._search.page(connection, experiment_ids, view, search)
            return Page(self._numbered(connection, numbers), following)

    def _numbered(self, connection: sa.Connection, numbers: Sequence[int]) -> list[Run]:
        found: dict[int, Run] = {}
        for some in chunks(numbers):
            rows = self._statements.rows.named(connection, numbers=self._store.listed(some))
            for run in self._filled(connection, rows):
                found[run.number] = run
        return [found[number] for number in numbers]

    def _number(self, connection: sa.Connection, run_id: str) -> int:
        query = sa.select(runs.c.number).where(runs.c.id == run_id)
        number = connection.execute(query).scalar_one_or_none()
        if number is None:
            raise RunNotFound(run_id)
        return int(number)

    def _filled(self, connection: sa.Connection, rows: Sequence[Row]) -> list[Run]:
        """Runs with what they logged: one statement, and two more if any used a dataset."""
        logged = {row.number: _Logged() for row in rows}
        if not rows:
            return []
        fed = False
        numbers = list(logged)
        everything = self._statements.logged(connection, numbers=self._store.listed(numbers))
        for kind, number, key, value, measured, nan, timestamp, step in everything:
            own = logged[number]
            match kind:
                case "metric":
                    amount = math.nan if nan else measured
                    own.metrics.append(Metric(key, amount, timestamp, step))
                case "param":
                    own.params[key] = value
                case "tag":
                    own.tags[key] = value
                case "input":
                    fed = True
                case _:
                    own.models.append(RunModel(key, kind, step))
        if fed:
            for number, item in self._inputs(connection, numbers):
                logged[number].inputs.append(item)
        return [_run(row, logged[row.number]) for row in rows]

    def _inputs(
        self, connection: sa.Connection, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Input]]:
        labels: dict[tuple[int, int], dict[str, str]] = {}
        query = sa.select(input_tags).where(input_tags.c.run.in_(numbers))
        for run, dataset, key, value in connection.execute(query.order_by(input_tags.c.key)):
            labels.setdefault((run, dataset), {})[key] = value
        query = (
            sa.select(inputs.c.run, datasets)
            .join(datasets, datasets.c.number == inputs.c.dataset)
            .where(inputs.c.run.in_(numbers))
            .order_by(inputs.c.run, datasets.c.number)
        )
        for row in connection.execute(query):
            data = Dataset(
                row.name, row.digest, row.source_type, row.source, row.schema, row.profile
            )
            yield row.run, Input(data, labels.get((row.run, row.number), {}))


@dataclass
class _Logged:
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    models: list[RunModel] = field(default_factory=list)


class _Statements:
    """What is asked again and again, made once."""

    def __init__(self, store: Store) -> None:
        hidden = sa.or_(runs.c.deleted, experiments.c.deleted).label("deleted")
        home = experiments.c.id == runs.c.experiment
        names = [column.name for column in runs.c if column is not runs.c.number]
        insert = sa.insert(runs).returning(runs.c.number)
        self.insert_run = Prepared(store, insert, names)
        self.writable = Prepared(
            store,
            sa.select(runs.c.number, runs.c.experiment, runs.c.started, hidden)
            .join(experiments, home)
            .where(runs.c.id == sa.bindparam("id")),
        )
        columns = [column for column in runs.c if column is not runs.c.deleted]
        rows = sa.select(*columns, hidden, experiments.c.artifact_location).join(experiments, home)
        self.rows = Prepared(store, rows.where(store.among(runs.c.number, "numbers")))
        self.find = Prepared(store, rows.where(runs.c.id == sa.bindparam("id")))
        own = ("run", "experiment", "started")
        value = ("key", "value", "nan", "timestamp", "step")
        self.insert_params = PreparedInsert(
            store, store.upsert(params).on_conflict_do_nothing(), (*own, "key", "value")
        )
        self.insert_metrics = PreparedInsert(
            store, store.upsert(metrics).on_conflict_do_nothing(), ("run", *value)
        )
        self.renew = PreparedInsert(store, _newer(store, latest, ["run", "key"]), (*own, *value))
        self.renew_model_metric = _newer(
            store, model_metrics, ["model", "key", "dataset_name", "dataset_digest"]
        )
        self.logged = Prepared(store, _logged(store))


def _newer(store: Store, table: sa.Table, place: list[str]) -> "sa.Insert":
    """Puts a value in its place, unless the one there is later: the order is Metric.order."""
    insert = store.upsert(table)
    given, kept = insert.excluded, table.c
    changed = {name: given[name] for name in ("timestamp", "step", "value", "nan")}
    if "run" not in place:
        changed["run"] = given.run
    later = sa.tuple_(given.step, given.timestamp, kept.nan, given.value) > sa.tuple_(
        kept.step, kept.timestamp, given.nan, kept.value
    )
    return insert.on_conflict_do_update(index_elements=place, set_=changed, where=later)


def _logged(store: Store) -> "sa.CompoundSelect[Any]":
    """All that the runs `numbers` logged: (kind, run, key, text, number, nan, timestamp, step)."""

    def part(kind: Any, table: sa.Table, key: Any, *rest: Any) -> "sa.Select[Any]":
        chosen = store.among(table.c.run, "numbers")
        return sa.select(kind, table.c.run, key, *rest).where(chosen)

    text: sa.ColumnElement[str] = sa.literal_column("''")
    number: sa.ColumnElement[float] = sa.literal_column("0.0")
    none: sa.ColumnElement[int] = sa.literal_column("0")

    def texts(kind: str, table: sa.Table) -> "sa.Select[Any]":
        return part(_word(kind), table, table.c.key, table.c.value, number, sa.false(), none, none)

    measured = (latest.c.value, latest.c.nan, latest.c.timestamp, latest.c.step)
    links = run_models.c
    parts = (
        part(_word("metric"), latest, latest.c.key.label("key"), text, *measured),
        texts("param", params),
        texts("tag", tags),
        part(_word("input"), inputs, text, text, number, sa.false(), none, none),
        part(links.role, run_models, links.model, text, number, sa.false(), none, links.step),
    )
    return sa.union_all(*parts).order_by(sa.literal_column("2"), sa.literal_column("3"))


def _sample(number: int, key: str, limit: int, steps: tuple[int, int] | None) -> "sa.Select[Any]":
    order = (metrics.c.step, metrics.c.timestamp, metrics.c.nan, metrics.c.value)
    place = (sa.func.row_number().over(order_by=order) - 1).label("place")
    last = (sa.func.count().over() - 1).label("last")
    every = sa.select(*order, place, last).where(metrics.c.run == number, metrics.c.key == key)
    if steps:
        every = every.where(metrics.c.step.between(*steps))
    all_of_them = every.subquery()
    it = all_of_them.c
    # The first of every stretch, when all are parted into one less than wanted; and the last.
    parts = limit - 1
    evenly = it.place * parts % sa.func.nullif(it.last, 0) < parts
    taken = sa.or_(it.last < limit, it.place == it.last, evenly)
    return sa.select(all_of_them).where(taken).order_by(it.place)


def _word(kind: str) -> "sa.ColumnElement[str]":
    return sa.literal_column(f"'{kind}'").label("kind")


def _stored(metric: Metric) -> dict[str, object]:
    nan = math.isnan(metric.value)
    return {
        "key": metric.key,
        "value": 0.0 if nan else metric.value,
        "nan": nan,
        "timestamp": metric.timestamp,
        "step": metric.step,
    }


def _run(row: Row, logged: _Logged | None = None) -> Run:
    own = logged or _Logged()
    facts = {**row._asdict(), "deleted": bool(row.deleted)}  # a number to SQLite
    return Run(**facts, **vars(own))
