"""Experiments, runs and what they log, over SQL: SQLite embedded, or PostgreSQL.

    records.py      the nouns: what is logged, and what is read
    query.py        what is searched for, as values
    experiments.py runs.py models.py files.py      the verbs
    found.py search.py pages.py           a search -> SQL -> one page and the token of the next
    schema.py migrations/                 the tables, and how a database comes to have them
    store.py        connections, and whose turn it is to write

It knows neither Git nor HTTP, and the language of no client. A worker that is never asked for any
of this does not load it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from registry.tracking.experiments import Experiments
from registry.tracking.files import Files
from registry.tracking.models import LoggedModels
from registry.tracking.runs import Runs
from registry.tracking.store import Store


@dataclass(frozen=True)
class Tracking:
    """All of tracking, over one database."""

    store: Store
    experiments: Experiments
    runs: Runs
    models: LoggedModels
    files: Files

    @classmethod
    def of(cls, database: str, clock: Callable[[], float] = time.time) -> "Tracking":
        """Over the database of an SQLAlchemy URL. Opens no connection. Raises SettingsError."""
        store = Store(database, clock)
        experiments = Experiments(store)
        return cls(
            store,
            experiments,
            Runs(store, experiments),
            LoggedModels(store, experiments),
            Files(store),
        )

    def upgrade(self) -> None:
        """Brings the tables to the form that this version knows; harmless when they have it."""
        self.store.upgrade()

    def close(self) -> None:
        """Closes the connections to the database."""
        self.store.close()
