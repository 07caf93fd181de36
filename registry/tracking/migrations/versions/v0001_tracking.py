"""Experiments, runs, what is logged to them, and logged models."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _number() -> sa.types.TypeEngine[int]:
    # Only what SQLite calls INTEGER can be numbered by it.
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes every table, and the experiment of runs that name none."""
    op.create_table(
        "tracking_experiments",
        sa.Column("id", _number(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("artifact_location", sa.Text(), nullable=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tracking_datasets",
        sa.Column("number", _number(), autoincrement=True, nullable=False),
        sa.Column("experiment", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("source_type", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("schema", sa.Text(), nullable=True),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["experiment"], ["tracking_experiments.id"]),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("experiment", "name", "digest", name="tracking_datasets_once"),
    )
    op.create_table(
        "tracking_experiment_tags",
        sa.Column("experiment", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["tracking_experiments.id"]),
        sa.PrimaryKeyConstraint("experiment", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_models",
        sa.Column("number", _number(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("experiment", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("source_run", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["tracking_experiments.id"]),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "tracking_models_by_age", "tracking_models", ["experiment", "deleted", "created", "number"]
    )
    op.create_index("tracking_models_by_run", "tracking_models", ["source_run"])
    op.create_table(
        "tracking_runs",
        sa.Column("number", _number(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("experiment", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.Column("ended", sa.BigInteger(), nullable=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["tracking_experiments.id"]),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "tracking_runs_by_start", "tracking_runs", ["experiment", "deleted", "started", "number"]
    )
    op.create_table(
        "tracking_inputs",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("dataset", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["tracking_datasets.number"]),
        sa.ForeignKeyConstraint(["run"], ["tracking_runs.number"]),
        sa.PrimaryKeyConstraint("run", "dataset"),
    )
    op.create_index("tracking_inputs_by_dataset", "tracking_inputs", ["dataset"])
    op.create_table(
        "tracking_latest",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("experiment", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("nan", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["tracking_runs.number"]),
        sa.PrimaryKeyConstraint("run", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "tracking_latest_by_value", "tracking_latest", ["experiment", "key", "nan", "value"]
    )
    op.create_table(
        "tracking_metrics",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("nan", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["tracking_runs.number"]),
        sa.PrimaryKeyConstraint("run", "key", "timestamp", "step", "value", "nan"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_model_metrics",
        sa.Column("model", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("dataset_name", sa.Text(), nullable=False),
        sa.Column("dataset_digest", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("nan", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["tracking_models.number"]),
        sa.PrimaryKeyConstraint("model", "key", "dataset_name", "dataset_digest"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_model_params",
        sa.Column("model", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["tracking_models.number"]),
        sa.PrimaryKeyConstraint("model", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_model_tags",
        sa.Column("model", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["tracking_models.number"]),
        sa.PrimaryKeyConstraint("model", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_params",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["tracking_runs.number"]),
        sa.PrimaryKeyConstraint("run", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_run_models",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["tracking_runs.number"]),
        sa.PrimaryKeyConstraint("run", "model", "role"),
    )
    op.create_table(
        "tracking_tags",
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["tracking_runs.number"]),
        sa.PrimaryKeyConstraint("run", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracking_input_tags",
        sa.Column("run", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("dataset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run", "dataset"], ["tracking_inputs.run", "tracking_inputs.dataset"]
        ),
        sa.PrimaryKeyConstraint("run", "dataset", "key"),
    )
    for name in ("params", "tags"):
        op.create_index(
            f"tracking_{name}_by_value",
            f"tracking_{name}",
            ["key", sa.text("substr(value, 1, 250)")],
        )
    now = int(time.time() * 1000)
    first = {"id": 0, "name": "Default", "deleted": False, "created": now, "updated": now}
    table = sa.table("tracking_experiments", *(sa.column(name) for name in first))
    op.execute(sa.insert(table).values(first))
