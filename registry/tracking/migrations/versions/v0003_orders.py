"""Indexes that hold a whole order of runs, by whatever they are sorted by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SORTED = ("latest", "params", "tags")
_COPIED = {"latest": ("started",), "params": ("experiment", "started")}
_COPIED["tags"] = _COPIED["params"]
_RUNS = sa.table("tracking_runs", sa.column("number"), *map(sa.column, _COPIED["params"]))


def upgrade() -> None:
    """Repeats what never changes of a run beside what it logged, and makes the indexes."""
    for name in _SORTED:
        table = f"tracking_{name}"
        op.drop_index(f"{table}_by_value", table)
        for column in _COPIED[name]:
            op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=True))
        logged = sa.table(table, sa.column("run"), *map(sa.column, _COPIED[name]))
        op.execute(
            sa.update(logged).values(
                {
                    column: sa.select(_RUNS.c[column])
                    .where(_RUNS.c.number == logged.c.run)
                    .scalar_subquery()
                    for column in _COPIED[name]
                }
            )
        )
        # SQLite makes the table anew.
        with op.batch_alter_table(table, table_kwargs={"sqlite_with_rowid": False}) as batch:
            for column in _COPIED[name]:
                batch.alter_column(column, existing_type=sa.BigInteger(), nullable=False)
    if op.get_bind().dialect.name == "postgresql":
        for table in ("tracking_params", "tracking_tags"):
            op.execute(f'ALTER TABLE {table} ALTER value TYPE text COLLATE "C"')
        for column, kind in (("name", "text"), ("user_id", "text"), ("status", "varchar(16)")):
            op.execute(f'ALTER TABLE tracking_runs ALTER {column} TYPE {kind} COLLATE "C"')
    op.create_index(
        "tracking_latest_by_value",
        "tracking_latest",
        ["experiment", "key", "nan", "value", "started", "run"],
    )
    for name in ("params", "tags"):
        op.create_index(
            f"tracking_{name}_by_value",
            f"tracking_{name}",
            ["experiment", "key", sa.text("substr(value, 1, 250)"), "started", "run"],
        )
    for name, indexed in (
        ("end", "ended"),
        ("name", sa.text("substr(name, 1, 250)")),
        ("user", sa.text("substr(user_id, 1, 250)")),
        ("status", "status"),
    ):
        op.create_index(
            f"tracking_runs_by_{name}",
            "tracking_runs",
            ["experiment", "deleted", indexed, "started", "number"],
        )
