"""PostgreSQL, as an ordinary user: it refuses to run as root."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest
import sqlalchemy as sa

from servers.process import HOST, executable, free_ports, running

_UNSAFE_BUT_QUICK = ("fsync=off", "full_page_writes=off")  # what is committed outlives a process


@dataclass(frozen=True)
class PostgreSQL:
    """A cluster of databases in `data`. `run` starts its server, which `start` below did once
    already.
    """

    port: int
    data: Path
    run: Callable[[], AbstractContextManager[object]] = field(repr=False)
    crash: Callable[[], object] = field(repr=False)
    """Ends the server at once, as if the machine went down; `run` starts it again."""
    _number: Iterator[int] = field(default_factory=count, repr=False)

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@{HOST}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process that all others of the running server descend from."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def create_database(self) -> str:
        """Makes an empty database, and returns its URL."""
        name = f"test_{next(self._number)}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)


@contextmanager
def start(directory: Path, *more: str) -> Iterator[PostgreSQL]:
    """Runs PostgreSQL, with `more` settings, until the end of the block; its log in `directory`."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb, postgres = _program("initdb"), _program("postgres")
    (port,) = free_ports(1)
    # Not below pytest's directories, which another user must not enter.
    home = Path(mkdtemp(prefix="postgresql-"))
    prefix = _as_nobody(home)
    data = home / "data"
    options = ("-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
    try:
        subprocess.run(
            [*prefix, initdb, "-D", str(data), *options], check=True, capture_output=True, cwd=home
        )
        settings = (f"listen_addresses={HOST}", f"port={port}", f"unix_socket_directories={home}")
        command = [*prefix, postgres, "-D", str(data)]
        for setting in (*settings, *_UNSAFE_BUT_QUICK, *more):
            command += ["-c", setting]
        end = [*prefix, _program("pg_ctl"), "stop", "-D", str(data), "-m", "immediate"]
        server = PostgreSQL(
            port,
            data,
            run=lambda: running(command, ready, log=directory / "postgresql.log"),
            crash=lambda: subprocess.run(end, check=True, capture_output=True, cwd=home),
        )

        def ready() -> None:
            engine = sa.create_engine(server.url("postgres"))
            try:
                engine.connect().close()
            finally:
                engine.dispose()

        with server.run():
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _program(name: str) -> str:
    """Where Debian keeps several versions, the newest; elsewhere what the PATH says."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else executable(name)


def _as_nobody(home: Path) -> list[str]:
    if os.geteuid() != 0:
        return []
    shutil.chown(home, "nobody")
    return [executable("setpriv"), "--reuid=nobody", "--clear-groups", "env", f"HOME={home}"]
