"""Tracking over each database that it is promised for."""

from collections.abc import Iterator

import pytest

from registry.tracking import Tracking


class Clock:
    """Unix time, a second later at each look: nothing happens twice at one moment."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def tracking(database: str) -> Iterator[Tracking]:
    """Tracking over an empty database with all its tables."""
    made = Tracking.of(database, Clock())
    made.upgrade()
    yield made
    made.close()
