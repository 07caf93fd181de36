"""`registry database`: bring the tables up to date."""

from pathlib import Path

import click

from registry.cli.opened import access_of, audit_of, config_option, issued_of, upgrade_tracking
from registry.settings import Settings


@click.group()
def database() -> None:
    """Look after the database."""


@database.command()
@config_option
def upgrade(config: Path) -> None:
    """Bring the tables to the form that this version needs, as `registry serve` does."""
    settings = Settings.load(config)
    access_of(settings)
    audit_of(settings)
    issued_of(settings)
    upgrade_tracking(settings)
    click.echo("The database is up to date.")
