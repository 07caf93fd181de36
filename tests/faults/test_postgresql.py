"""PostgreSQL restarted, gone or hanging, below two hosts that share it."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from gitrepo import GitRepository
from servers import postgresql as postgresql_server
from servers import registry as server
from servers.postgresql import PostgreSQL

from faults.clock import Clock
from faults.conftest import STORE
from faults.observer import ENDPOINT, Client, Observer, descendants, until
from faults.origins import LINKS, model
from registry.access import GRACE

pytestmark = pytest.mark.servers
NAME = "team/models"
ASKED = f"{ENDPOINT}?repo={NAME}&name=m&stage=prod"
CANARY = "canary-in-the-key-of-both-hosts-0123456789"


@dataclass(frozen=True)
class Cluster:
    """A server of our own, to be broken. It runs when a test begins, and when it ends."""

    server: PostgreSQL
    _started: ExitStack

    def crash(self) -> None:
        self.server.crash()

    def recover(self) -> None:
        self._started.enter_context(self.server.run())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections, takes new ones, and says nothing."""
        processes = [*descendants(self.server.pid)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)


@pytest.fixture(scope="module")
def cluster(servers_directory: Path) -> Iterator[Cluster]:
    directory = servers_directory / "postgresql-to-be-broken"
    directory.mkdir()
    with postgresql_server.start(directory) as running, ExitStack() as started:
        yield Cluster(running, started)


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    return model(tmp_path / "models.git")


@contextmanager
def hosts(
    count: int, cluster: Cluster, origin: GitRepository, directory: Path, **service: object
) -> Iterator[list[Observer]]:
    """Services that share a database, a key and a token, and nothing else."""
    database = cluster.server.create_database()
    repository = {"name": NAME, "url": str(origin.path), "refresh": 86_400}
    settings = {"database_url": database, "secret_key": CANARY, "metrics": "public", **service}
    with ExitStack() as running:
        watched: list[Observer] = []
        for number in range(count):
            own = directory / f"host{number}"
            own.mkdir()
            host = running.enter_context(
                server.start(own, [repository], [STORE], workers=1, **settings)
            )
            observer = Observer(
                host,
                {NAME: origin},
                granted=[LINKS],
                secrets=[CANARY, str(STORE["secret_access_key"])],
                token=watched[0].token if watched else None,
            )
            watched.append(running.enter_context(observer))
        yield watched


class Load:
    """Clients that ask all the time; whatever is no success is a problem."""

    def __init__(self, watched: list[Observer], clients: int) -> None:
        self.answered = [0] * (clients * len(watched))
        self.problems: list[object] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(it, watched[it % len(watched)].client()))
            for it in range(len(self.answered))
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 5) -> None:
        """Waits until every client had so many more answers."""
        wanted = [answered + count for answered in self.answered]
        until(
            lambda: (
                self.problems
                or all(had >= want for had, want in zip(self.answered, wanted, strict=True))
            )
        )
        assert self.problems == []

    def _ask(self, it: int, client: Client) -> None:
        try:
            while not self._over.wait(0.01):
                answer = client.get(ASKED)  # `ask` would look at the origin each time
                if answer.status != 200:
                    self.problems.append((answer.status, answer.body))
                self.answered[it] += 1
        except BaseException as error:
            self.problems.append(error)


def is_failing(host: Observer) -> bool:
    """Whether it says that its database does not answer."""
    return b"\nregistry_database_failing 1.0\n" in host.get("/metrics").body


def checks(host: Observer) -> dict[str, str]:
    found: dict[str, str] = json.loads(host.get("/readyz").body)["checks"]
    return found


def test_a_restart_under_load_fails_no_request_and_revocations_hold_on_every_host(
    cluster, origin, tmp_path
) -> None:
    with hosts(2, cluster, origin, tmp_path) as watched, Load(watched, 2) as load:
        load.more()
        cluster.crash()
        until(lambda: load.problems or all(is_failing(host) for host in watched))
        assert [checks(host)["database"] for host in watched] == ["does not answer"] * 2
        load.more()

        cluster.recover()
        until(lambda: load.problems or not any(is_failing(host) for host in watched))
        load.more()
        until(lambda: all(checks(host)["database"] == "ok" for host in watched))

        made = watched[0].service.command("token", "create", "--name", "short-lived", "--json")
        token = json.loads(made)
        clients = [host.client(token["token"]) for host in watched]
        assert [client.ask(NAME).status for client in clients] == [200, 200]
        watched[0].service.command("token", "revoke", token["id"])
        until(lambda: all(client.ask(NAME).status == 401 for client in clients), deadline=GRACE / 2)
        load.more()
    # What was answered meanwhile is in the audit log: the observers have found it whole.


def test_a_database_that_hangs_holds_nobody_up(cluster, origin, tmp_path) -> None:
    """Its connections are there, and no answer comes: no limit that it keeps itself can help."""
    with hosts(1, cluster, origin, tmp_path) as (watched,), Load([watched], 2) as load:
        stranger = watched.client(watched.service.token())
        load.more()
        with cluster.frozen():
            until(lambda: load.problems or is_failing(watched))
            load.more()
            refused = stranger.ask(NAME)
            assert (refused.status, json.loads(refused.body)["code"]) == (
                503,
                "database_unavailable",
            )
            assert checks(watched)["database"] == "does not answer"
            load.more()

        assert until(lambda: stranger.ask(NAME).status == 200)
        until(lambda: checks(watched)["database"] == "ok" and not is_failing(watched))


def test_without_a_database_tokens_hold_for_half_a_minute_and_then_none_does(
    cluster, origin, tmp_path
) -> None:
    clock = Clock(tmp_path / "clock")
    with hosts(1, cluster, origin, tmp_path, environ=clock.environ) as (watched,):
        watched.clock = clock
        assert watched.ask(NAME).status == 200
        cluster.crash()
        try:
            clock.set(int(GRACE) - 5)
            assert watched.ask(NAME).status == 200

            clock.set(int(GRACE) + 5)
            refused = watched.ask(NAME)
            assert (refused.status, json.loads(refused.body)["code"]) == (
                503,
                "database_unavailable",
            )
            unready = watched.get("/readyz")
            assert (unready.status, checks(watched)["database"]) == (503, "does not answer")
            with pytest.raises(CalledProcessError) as failed:
                watched.service.command("check", "--json")
            watched.hold_secrets("registry check", failed.value.stdout.encode())
            rows = {row["kind"]: row["ok"] for row in json.loads(failed.value.stdout)}
            assert rows["database"] is False
            assert rows["repository"] is True
        finally:
            cluster.recover()
        assert watched.ask(NAME).status == 200
