"""Services with empty tables. They are made once, and copied for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Registry

from registry.tracking import Tracking


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> Path:
    """An SQLite database with the tables of tracking, and nothing in them but experiment 0."""
    file = tmp_path_factory.mktemp("tables") / "registry.db"
    tracking = Tracking.of(f"sqlite:///{file}")
    tracking.upgrade()
    with tracking.store.writing() as connection:
        # Long before all that the tests make.
        connection.exec_driver_sql("UPDATE tracking_experiments SET created = 1, updated = 1")
    tracking.close()
    return file


@pytest.fixture
def registry(tmp_path: Path, tables: Path) -> Iterator[Registry]:
    """A service over these tables."""
    shutil.copy(tables, tmp_path / "registry.db")
    with Registry(tmp_path, {}, []) as running:
        yield running
