"""Puts finished runs into the database of MLflow's server; run by the Python that has MLflow.

    python fill_mlflow.py FILE RUNS

Through MLflow's own tables and not its API, which would take an hour.
"""

import random
import sys

import sqlalchemy as sa
from mlflow.store.tracking.dbmodels import models

file, count = sys.argv[1], int(sys.argv[2])
engine = sa.create_engine(f"sqlite:///{file}")
chance = random.Random(1)
with engine.begin() as connection:
    names = [f"{number:032x}" for number in range(count)]
    connection.execute(
        sa.insert(models.SqlRun.__table__),
        [
            {
                "run_uuid": name, "name": f"run {number}", "source_type": "LOCAL", "user_id": "ada",
                "status": "FINISHED", "start_time": 1_700_000_000_000 + number,
                "lifecycle_stage": "active", "experiment_id": 0,
                "artifact_uri": f"mlflow-artifacts:/0/{name}/artifacts",
            }
            for number, name in enumerate(names)
        ],
    )  # fmt: skip
    connection.execute(
        sa.insert(models.SqlLatestMetric.__table__),
        [
            {"run_uuid": name, "key": f"m{key}", "value": chance.random(), "timestamp": 1,
             "step": 1, "is_nan": False}
            for name in names for key in range(3)
        ],
    )  # fmt: skip
    for table in (models.SqlParam, models.SqlTag):
        connection.execute(
            sa.insert(table.__table__),
            [
                {"run_uuid": name, "key": f"k{key}", "value": str(chance.randrange(100))}
                for name in names for key in range(3)
            ],
        )  # fmt: skip
