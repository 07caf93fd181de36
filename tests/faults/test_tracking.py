"""What is tracked by many at once, and while workers die: nothing that was answered is lost, and
nothing is half there.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest
import urllib3
from servers import registry
from servers.registry import Service

from faults.observer import until
from faults.processes import workers

pytestmark = pytest.mark.servers

WRITERS = 16
ROUNDS = 100
KEYS = 200


@dataclass(frozen=True)
class Tracked:
    """A service, and one run of it."""

    service: Service
    token: str
    pool: urllib3.PoolManager

    def ask(self, method: str, path: str, **message: Any) -> Any:
        """The answer, of one that must be a success."""
        how: dict[str, Any] = {"fields": message} if method == "GET" else {"json": message}
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.service.url}/api/2.0/mlflow/{path}"
        answer = self.pool.request(method, url, headers=headers, **how)
        assert answer.status == 200, answer.data
        return answer.json()

    def run(self) -> str:
        """A new run."""
        found: str = self.ask("POST", "runs/create", experiment_id="0")["run"]["info"]["run_id"]
        return found

    def history(self, run: str, key: str) -> list[float]:
        """Every value of a metric."""
        found = self.ask("GET", "metrics/get-history", run_id=run, metric_key=key)
        return [it["value"] for it in found.get("metrics", [])]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def tracked(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Tracked]:
    """A service of four workers over each database."""
    settings = {}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgresql").create_database()
    directory = tmp_path_factory.mktemp(request.param)
    with (
        registry.start(directory, [], [], workers=4, **settings) as service,
        urllib3.PoolManager(maxsize=WRITERS, retries=False, timeout=30) as pool,
    ):
        scopes = ("--scope", "tracking:read", "--scope", "tracking:write")
        yield Tracked(service, service.token(*scopes), pool)


def test_sixteen_clients_log_to_one_run_and_nothing_is_lost(tracked: Tracked) -> None:
    run = tracked.run()

    def write(me: int) -> None:
        for step in range(ROUNDS):
            value = me * ROUNDS + step
            tracked.ask(
                "POST", "runs/log-metric",
                run_id=run, key="shared", value=value, timestamp=step, step=step,
            )  # fmt: skip

    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(write, me) for me in range(WRITERS)]:
            done.result()

    assert sorted(tracked.history(run, "shared")) == [*range(WRITERS * ROUNDS)]
    (latest,) = tracked.ask("GET", "runs/get", run_id=run)["run"]["data"]["metrics"]
    assert (latest["step"], latest["value"]) == (ROUNDS - 1, WRITERS * ROUNDS - 1)


def test_a_batch_is_whole_or_absent_when_its_worker_is_killed(tracked: Tracked) -> None:
    run = tracked.run()
    answered: list[str] = []
    over = Event()

    def write(me: int) -> None:
        number = 0
        while not over.is_set():
            name = f"{me} {number}"
            metrics = [
                {"key": f"m{key}", "value": number, "timestamp": me, "step": number}
                for key in range(KEYS)
            ]
            params = [{"key": name, "value": "x"}]
            with suppress(urllib3.exceptions.HTTPError):  # whoever was to answer was killed
                tracked.ask("POST", "runs/log-batch", run_id=run, metrics=metrics, params=params)
                answered.append(name)
            number += 1

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, me) for me in range(4)]
        until(lambda: len(answered) >= 20)
        victims = workers(tracked.service.pid)
        for worker in victims:
            os.kill(worker, signal.SIGKILL)
        until(lambda: len(workers(tracked.service.pid) - victims) == 4)
        over.set()
        for writer in writers:
            writer.result()

    params = tracked.ask("GET", "runs/get", run_id=run)["run"]["data"]["params"]
    whole = {it["key"] for it in params}
    assert whole >= set(answered)
    assert len(victims) == 4
    for key in range(KEYS):
        assert len(tracked.history(run, f"m{key}")) == len(whole)
