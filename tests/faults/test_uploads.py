"""Files that are logged while workers die, clients go away, and memory is short: an object is whole
or not there, and so is its row.
"""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3
from servers import registry
from servers.registry import Service

from faults.observer import until
from faults.processes import Burden, needs_linux, workers
from faults.wire import Connection
from registry.worker import BODY

pytestmark = [pytest.mark.servers, needs_linux]

LARGE = 64 << 20
PIECE = os.urandom(1 << 20)
SLACK = 24 << 20
"""Bytes that a worker may take in and have left of an upload, whatever its size."""


@dataclass(frozen=True)
class Uploads:
    """A service of one worker, and a run of it."""

    service: Service
    headers: dict[str, str]
    pool: urllib3.PoolManager
    root: str
    objects: Path

    @property
    def place(self) -> str:
        """Where the files of the run are."""
        return f"/api/2.0/mlflow-artifacts/artifacts/{self.root}"

    def ask(self, method: str, path: str, **more: object) -> urllib3.BaseHTTPResponse:
        """An answer, whatever it says."""
        return self.pool.request(method, f"{self.service.url}{path}", headers=self.headers, **more)

    def listed(self) -> list[str]:
        """The names of the files of the run."""
        answer = self.ask("GET", "/api/2.0/mlflow-artifacts/artifacts", fields={"path": self.root})
        return [it["path"] for it in answer.json()["files"]]

    def arriving(self) -> int:
        """Bytes of what is on its way."""
        return sum(it.stat().st_size for it in (self.objects / ".uploads").glob("*"))

    def begin(self, held: Connection, path: str, size: int | None = None) -> None:
        """Sends the head of an upload, and half of what it says; without a size as a chunk."""
        lines = [
            f"PUT {self.place}/{path} HTTP/1.1",
            f"Host: {urlsplit(self.service.url).netloc}",
            f"Authorization: {self.headers['Authorization']}",
            f"Content-Length: {size}" if size else "Transfer-Encoding: chunked",
        ]
        chunk = b"" if size else f"{3 * len(PIECE):x}\r\n".encode()
        held.send("\r\n".join([*lines, "", ""]).encode() + chunk + PIECE + PIECE[: len(PIECE) // 2])


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> Iterator[Uploads]:
    """A service of its own."""
    directory = tmp_path_factory.mktemp("uploads")
    with (
        registry.start(directory, [], [], workers=1) as service,
        urllib3.PoolManager(retries=False, timeout=60) as pool,
    ):
        token = service.token("--scope", "tracking:read", "--scope", "tracking:write")
        headers = {"Authorization": f"Bearer {token}"}
        created = pool.request(
            "POST",
            f"{service.url}/api/2.0/mlflow/runs/create",
            json={"experiment_id": "0"},
            headers=headers,
        )
        run = created.json()["run"]["info"]["run_id"]
        objects = directory / "data/artifacts"
        yield Uploads(service, headers, pool, f"0/{run}/artifacts", objects)


def pieces() -> Iterator[bytes]:
    for number in range(LARGE // len(PIECE)):
        yield bytes([number]) + PIECE[1:]


def test_a_large_file_takes_no_memory_on_its_way_in_and_out(uploads: Uploads) -> None:
    uploads.ask("PUT", f"{uploads.place}/small", body=b"x")
    before = Burden.of(uploads.service.pid).memory
    uploads.headers["Content-Length"] = str(LARGE)
    sent = uploads.ask("PUT", f"{uploads.place}/large", body=pieces())
    del uploads.headers["Content-Length"]
    expected, found = hashlib.md5(), hashlib.md5()
    for piece in pieces():
        expected.update(piece)
    answer = uploads.ask("GET", f"{uploads.place}/large", preload_content=False)
    for chunk in answer.stream(1 << 20):
        found.update(chunk)
    answer.release_conn()

    assert (sent.status, answer.status) == (200, 200)
    assert answer.headers["ETag"] == f'"{expected.hexdigest()}"' == f'"{found.hexdigest()}"'
    assert Burden.of(uploads.service.pid).memory - before < SLACK
    uploads.headers["Range"] = f"bytes={1 << 20}-{(1 << 20) + 3}"
    part = uploads.ask("GET", f"{uploads.place}/large")
    del uploads.headers["Range"]
    assert (part.status, part.data) == (206, bytes([1]) + PIECE[1:4])


@pytest.mark.parametrize("size", [3 * len(PIECE), None])
def test_an_upload_whose_client_goes_away_leaves_nothing(
    uploads: Uploads, size: int | None
) -> None:
    before = uploads.listed()
    with Connection(uploads.service.url) as held:
        uploads.begin(held, "gone", size)
        until(lambda: uploads.arriving() > 0)
    until(lambda: not [*(uploads.objects / ".uploads").glob("*")])

    assert uploads.listed() == before


def test_an_upload_whose_worker_is_killed_is_no_object_and_no_file(uploads: Uploads) -> None:
    before, objects = uploads.listed(), sorted(uploads.objects.glob("files/*/*/*"))
    victims = workers(uploads.service.pid)
    with Connection(uploads.service.url) as held:
        uploads.begin(held, "killed", 3 * len(PIECE))
        until(lambda: uploads.arriving() > 0)
        for worker in victims:
            os.kill(worker, signal.SIGKILL)
        until(lambda: workers(uploads.service.pid) - victims)

    assert uploads.listed() == before
    assert sorted(uploads.objects.glob("files/*/*/*")) == objects
    again = uploads.ask("PUT", f"{uploads.place}/killed", body=PIECE)
    assert again.status == 200
    assert uploads.ask("GET", f"{uploads.place}/killed").data == PIECE


def test_an_upload_that_goes_on_takes_longer_than_a_body_may_stand_still(
    uploads: Uploads,
) -> None:
    with Connection(uploads.service.url) as held:
        uploads.begin(held, "slow", len(PIECE))
        begun = time.monotonic()
        until(lambda: time.monotonic() > begun + BODY + 2)
        held.send(PIECE[len(PIECE) // 2 :])

        assert held.answer()[0] == 200
    assert uploads.ask("GET", f"{uploads.place}/slow").data == PIECE
