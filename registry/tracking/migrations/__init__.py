"""Steps from one form of the tables to the next, run by Alembic: see ADR 7.

A step never changes once it was released. `registry.tracking.schema` is where they lead; a test
holds the two together. Loaded only to upgrade: a worker does not know Alembic.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from registry.database import unhurried

_LOCK = 7_231_551_905_432_110_821
"""What PostgreSQL knows the lock of an upgrade by: a number that nothing else uses."""


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Runs the steps up to a revision that are missing, in the transaction of `connection`.

    One process at a time. On SQLite the transaction must be one that writes from its beginning.
    """
    if connection.dialect.name == "postgresql":
        unhurried(connection)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = Config()
    # Alembic expands % in an option.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
