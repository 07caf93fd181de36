"""The collaborators of an operator's verb, opened for it and closed when it ends."""

import os
from pathlib import Path

import click

from registry.access import Access
from registry.audit import AuditLog
from registry.errors import SettingsError
from registry.issued import Issued
from registry.services import Services
from registry.settings import DEFAULT_FILE, Settings

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="REGISTRY_CONFIG",
    default=DEFAULT_FILE,
    show_default=True,
    help="The configuration file.",
)


def make_data_dir(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"must be a directory, or a place to make one: {error.strerror}"
        raise SettingsError("data_dir", problem) from None
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise SettingsError("data_dir", "must be a directory that this account may write to")


def services_of(config: Path) -> Services:
    settings = Settings.load(config)
    make_data_dir(settings)
    services = Services.of(settings)
    click.get_current_context().call_on_close(services.close)
    return services


def access_of(settings: Settings) -> Access:
    make_data_dir(settings)
    access = Access(settings.database, settings.secret_keys)
    click.get_current_context().call_on_close(access.close)
    access.create_tables()
    return access


def upgrade_tracking(settings: Settings) -> None:
    """Brings the tables of experiments and runs up to date."""
    from registry.tracking import Tracking  # noqa: PLC0415 no other verb waits for it

    make_data_dir(settings)
    tracking = Tracking.of(settings.database)
    click.get_current_context().call_on_close(tracking.close)
    tracking.upgrade()


def audit_of(settings: Settings) -> AuditLog:
    make_data_dir(settings)
    audit = AuditLog(settings.database, settings.secret_keys, settings.audit)
    click.get_current_context().call_on_close(audit.close)
    audit.create_tables()
    return audit


def issued_of(settings: Settings) -> Issued:
    make_data_dir(settings)
    issued = Issued(settings.database)
    click.get_current_context().call_on_close(issued.close)
    issued.create_tables()
    return issued
