"""The tables of tracking, and what brings a database to them.

    experiment -< run -< metric (every value), latest metric (one row a key), param, tag
                     \\-< input -> dataset,  run_model -> logged model -< param, tag, metric
    file (of a run or of a logged model): path -> MD5 and size of its object

A run is known to clients by `id` and to other tables by `number`, which is half as wide as text in
every index. Latest values have rows of their own, kept by the writer, so that a search never looks
at a history. `tracking_metrics` is its own primary key: the same value twice is one row, and a
history is read in the order of the index.

NaN is a flag beside 0.0: SQLite cannot store it, and databases do not agree where it sorts.

What runs are searched and sorted by repeats the run's experiment and start, which never change, so
that one index holds a whole order: experiment, key, value, and the start where values are equal.
Texts are sorted by bytes on every database, and by as many of them as an index can hold.
"""

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

PREFIX = 250
"""Characters of a text that its index holds: a whole one is too long for PostgreSQL's."""

_Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_Status = sa.String(16).with_variant(sa.String(16, collation="C"), "postgresql")
_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _key() -> sa.Column[str]:
    return sa.Column("key", sa.Text, primary_key=True)


def _owner(name: str, table: str, column: str = "number") -> sa.Column[int]:
    target = f"tracking_{table}.{column}"
    return sa.Column(name, sa.BigInteger, sa.ForeignKey(target), primary_key=True)


experiments = sa.Table(
    "tracking_experiments",
    metadata,
    sa.Column("id", _Number, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("artifact_location", sa.Text),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,  # the id of a removed row is not given again
)
experiment_tags = sa.Table(
    "tracking_experiment_tags",
    metadata,
    _owner("experiment", "experiments", "id"),
    _key(),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
runs = sa.Table(
    "tracking_runs",
    metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column(
        "experiment", sa.BigInteger, sa.ForeignKey("tracking_experiments.id"), nullable=False
    ),
    sa.Column("name", _Text, nullable=False),
    sa.Column("user_id", _Text, nullable=False),
    sa.Column("status", _Status, nullable=False),
    sa.Column("started", sa.BigInteger, nullable=False),
    sa.Column("ended", sa.BigInteger),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sqlite_autoincrement=True,
)


def beginning(value: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """What an index holds of a text."""
    return sa.func.substr(value, sa.literal_column("1"), sa.literal_column(str(PREFIX)))


def _run_index(name: str, *columns: "sa.ColumnElement[Any]") -> sa.Index:
    place = (runs.c.experiment, runs.c.deleted)
    return sa.Index(f"tracking_runs_by_{name}", *place, *columns, runs.c.started, runs.c.number)


_run_index("start")
_run_index("end", runs.c.ended)
_run_index("name", beginning(runs.c.name))
_run_index("user", beginning(runs.c.user_id))
_run_index("status", runs.c.status)
metrics = sa.Table(
    "tracking_metrics",
    metadata,
    _owner("run", "runs"),
    _key(),
    sa.Column("timestamp", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Double, primary_key=True),
    sa.Column("nan", sa.Boolean, primary_key=True),
    sqlite_with_rowid=False,
)
latest = sa.Table(
    "tracking_latest",
    metadata,
    _owner("run", "runs"),
    _key(),
    sa.Column("experiment", sa.BigInteger, nullable=False),
    sa.Column("started", sa.BigInteger, nullable=False),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("nan", sa.Boolean, nullable=False),
    sqlite_with_rowid=False,
)
sa.Index(
    "tracking_latest_by_value",
    latest.c.experiment,
    latest.c.key,
    latest.c.nan,
    latest.c.value,
    latest.c.started,
    latest.c.run,
)


def _texts(name: str) -> sa.Table:
    table = sa.Table(
        f"tracking_{name}",
        metadata,
        _owner("run", "runs"),
        _key(),
        sa.Column("experiment", sa.BigInteger, nullable=False),
        sa.Column("started", sa.BigInteger, nullable=False),
        sa.Column("value", _Text, nullable=False),
        sqlite_with_rowid=False,
    )
    place = (table.c.experiment, table.c.key, beginning(table.c.value))
    sa.Index(f"tracking_{name}_by_value", *place, table.c.started, table.c.run)
    return table


params = _texts("params")
tags = _texts("tags")

datasets = sa.Table(
    "tracking_datasets",
    metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column(
        "experiment", sa.BigInteger, sa.ForeignKey("tracking_experiments.id"), nullable=False
    ),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("source_type", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("schema", sa.Text),
    sa.Column("profile", sa.Text),
    sa.UniqueConstraint("experiment", "name", "digest", name="tracking_datasets_once"),
)
inputs = sa.Table(
    "tracking_inputs",
    metadata,
    _owner("run", "runs"),
    _owner("dataset", "datasets"),
    sa.Index("tracking_inputs_by_dataset", "dataset"),
)
input_tags = sa.Table(
    "tracking_input_tags",
    metadata,
    sa.Column("run", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("dataset", sa.BigInteger, primary_key=True, autoincrement=False),
    _key(),
    sa.Column("value", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["run", "dataset"], ["tracking_inputs.run", "tracking_inputs.dataset"]),
)
models = sa.Table(
    "tracking_models",
    metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column(
        "experiment", sa.BigInteger, sa.ForeignKey("tracking_experiments.id"), nullable=False
    ),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("source_run", sa.Text, nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Index("tracking_models_by_age", "experiment", "deleted", "created", "number"),
    sa.Index("tracking_models_by_run", "source_run"),
    sqlite_autoincrement=True,
)
run_models = sa.Table(
    "tracking_run_models",
    metadata,
    _owner("run", "runs"),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("role", sa.String(8), primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
)


def _of_model(name: str) -> sa.Table:
    return sa.Table(
        f"tracking_model_{name}",
        metadata,
        _owner("model", "models"),
        _key(),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )


model_params = _of_model("params")
model_tags = _of_model("tags")
model_metrics = sa.Table(
    "tracking_model_metrics",
    metadata,
    _owner("model", "models"),
    _key(),
    sa.Column("dataset_name", sa.Text, primary_key=True),
    sa.Column("dataset_digest", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("nan", sa.Boolean, nullable=False),
    sqlite_with_rowid=False,
)
files = sa.Table(
    "tracking_files",
    metadata,
    # The id of a run or of a logged model: no two have the same one.
    sa.Column("owner", sa.String(36), primary_key=True),
    # Sorted by bytes, so that what lies below a directory is one stretch of the index.
    sa.Column("path", _Text, primary_key=True),
    sa.Column("md5", sa.String(32), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
