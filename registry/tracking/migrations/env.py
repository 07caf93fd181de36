"""How Alembic reaches the database: it is given a connection, in a transaction of the caller's."""

from alembic import context

from registry.tracking.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="tracking_migrations",
)
context.run_migrations()
