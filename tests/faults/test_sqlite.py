"""SQLite locked, or out of room: reads go on, and rows are written when that is possible."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from gitrepo import GitRepository

from faults.observer import Observer, descendants, until
from faults.origins import model

pytestmark = pytest.mark.servers
NAME = "team/models"

_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
for statement in sys.argv[2:]:
    connection.execute(statement)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(watched: Observer, *statements: str) -> Iterator[None]:
    """Another process holds the database, by these statements, until the end of the block."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(database(watched)), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            holder.kill()


@contextmanager
def no_room(watched: Observer) -> Iterator[None]:
    """No file of the service can become larger than it is: what a full disk looks like to it."""
    largest = database(watched).with_suffix(".db-wal").stat().st_size
    processes = [*descendants(watched.service.pid)]
    before = {process: resource.prlimit(process, resource.RLIMIT_FSIZE) for process in processes}
    for process, (_, hard) in before.items():
        resource.prlimit(process, resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        for process, limits in before.items():
            with suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, limits)


def database(watched: Observer) -> Path:
    return watched.service.config.parent / "data/registry.db"


def records(watched: Observer) -> int:
    """How many rows the audit log has."""
    with closing(sqlite3.connect(f"file:{database(watched)}?mode=ro", uri=True)) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM audit")
    return int(count)


def waiting(watched: Observer) -> int:
    """How many rows are not written yet."""
    for line in watched.get("/metrics").body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name == "registry_audit_rows_waiting":
            return int(float(value))
    raise AssertionError("/metrics does not say how many rows wait")


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    return model(tmp_path / "models.git")


def refusal(watched: Observer) -> str | None:
    """The code of the refusal, if there is one."""
    answer = watched.ask(NAME)
    return None if answer.status == 200 else str(json.loads(answer.body)["code"])


def test_rows_that_nobody_waits_for_are_written_once_the_database_can_be(serve, origin) -> None:
    watched = serve({NAME: origin}, workers=1, settings={"audit": "best_effort"})
    assert refusal(watched) is None
    until(lambda: records(watched) == 1)

    with locked(watched, "BEGIN EXCLUSIVE"):
        for _ in range(20):
            assert refusal(watched) is None
        until(lambda: waiting(watched) == 20)
        # A new token is a row, and one that is known is only read.
        with pytest.raises(subprocess.CalledProcessError) as failed:
            watched.service.command("token", "create", "--name", "late")
        assert failed.value.returncode == 5
        (line,) = failed.value.stderr.splitlines()
        assert "database does not answer" in line
        assert json.loads(watched.get("/readyz").body)["status"] == "ready"

    until(lambda: waiting(watched) == 0)
    assert records(watched) == 21
    with no_room(watched):
        for _ in range(20):
            assert refusal(watched) is None
        until(lambda: waiting(watched) == 20)

    until(lambda: waiting(watched) == 0)
    assert records(watched) == 41


def test_where_a_row_is_required_there_is_no_link_until_it_can_be_written(serve, origin) -> None:
    watched = serve({NAME: origin}, workers=1, settings={"audit": "required"})
    assert refusal(watched) is None
    assert records(watched) == 1

    for fault in (locked(watched, "BEGIN EXCLUSIVE"), no_room(watched)):
        with fault:
            assert refusal(watched) == "database_unavailable"
            before = records(watched)
        until(lambda: refusal(watched) is None)
        assert records(watched) > before


@pytest.mark.parametrize("stderr", ["/dev/full", "&-"], ids=["full", "closed"])
def test_a_log_that_cannot_be_written_is_no_reason_not_to_answer(serve, origin, stderr) -> None:
    shell = f'exec "$@" 2>{stderr}'
    watched = serve({NAME: origin}, workers=1, prefix=["sh", "-c", shell, "sh"])

    # Nothing else took the place of a stream that was closed.
    for process in descendants(watched.service.pid):
        assert os.readlink(f"/proc/{process}/fd/2") in ("/dev/full", "/dev/null")
    for _ in range(20):
        assert refusal(watched) is None
    assert watched.ask(NAME, "none").status == 404
    assert watched.get("/readyz").status == 200
    until(lambda: records(watched) == 21)
