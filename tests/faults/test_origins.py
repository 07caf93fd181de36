"""Git origins that are down, slow, hanging, or never seen before."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import gitserver
import pytest
from gitrepo import GitRepository

from faults.observer import Answer, Observer, command_line, descendants, until
from faults.origins import copy_of, model, publish
from faults.proxy import Proxy

pytestmark = pytest.mark.servers

PASSWORD = "canary-in-the-password-of-the-origin"


@dataclass
class Hosted:
    """An origin behind smart HTTP, a password and a proxy."""

    origin: GitRepository
    server: gitserver.HttpGit
    proxy: Proxy

    @property
    def settings(self) -> dict[str, object]:
        url = f"{self.proxy.url}/{self.origin.path.name}"
        return {"url": url, "username": "git", "password": PASSWORD}

    def mend(self) -> None:
        self.server.denies = self.server.broken = False
        self.proxy.passes()


FAULTS: dict[str, Callable[[Hosted], object]] = {
    "refused": lambda hosted: hosted.proxy.refuses(),
    "hanging": lambda hosted: hosted.proxy.hangs(),
    "trickling": lambda hosted: hosted.proxy.trickles(1),
    "cut": lambda hosted: hosted.proxy.cuts(100),
    "denied": lambda hosted: setattr(hosted.server, "denies", True),
    "broken": lambda hosted: setattr(hosted.server, "broken", True),
}


class Hosts:
    """Makes hosted origins until it is closed."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.running = ExitStack()
        self.first = model(directory / "first.git")

    def host(self, name: str) -> Hosted:
        origin = copy_of(self.first, self.directory / name / "models.git")
        server = self.running.enter_context(
            gitserver.serve_http(origin.path.parent, "git", PASSWORD)
        )
        return Hosted(origin, server, self.running.enter_context(Proxy(server.port)))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("origins"))
    with made.running:
        yield made


@pytest.fixture(scope="module")
def hosted(hosts) -> dict[str, Hosted]:
    """Two origins for each fault, one of which is mirrored before it happens, and one more."""
    names = [f"{kind}/{fault}" for fault in FAULTS for kind in ("known", "new")]
    return {name: hosts.host(name) for name in [*names, "known/short"]}


@pytest.fixture(scope="module")
def watched(serve_all, hosted) -> Observer:
    short = {"known/short": {"max_stale": 2}}
    origins = {
        name: (one.origin, {**one.settings, **short.get(name, {})}) for name, one in hosted.items()
    }
    return serve_all(origins, repository={"refresh": 1})


def fresh(answer: Answer) -> bool:
    return answer.status == 200 and not answer.is_stale


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_state_is_served_and_says_how_old_it_is(watched, hosted, fault) -> None:
    name = f"known/{fault}"
    one, first = hosted[name], hosted[name].origin.head()
    before = until(lambda: fresh(it := watched.ask(name, stage="prod")) and it)
    FAULTS[fault](one)
    newer = publish(one.origin, "2")
    one.origin.tag("m#prod#2", newer)
    old = until(lambda: (it := watched.ask(name, stage="prod")).is_stale and it)
    version = watched.ask(name, version="v1.0.0")
    problem = until(lambda: repository(watched, name)["problem"])
    readiness = watched.get("/readyz")
    one.mend()

    assert (old.status, old.revision, old.links.keys()) == (200, first, before.links.keys())
    assert old.age >= 1
    assert (version.status, version.revision) == (200, first)
    assert PASSWORD not in problem
    assert readiness.status == 200
    assert until(lambda: fresh(it := watched.ask(name, stage="prod")) and it.revision == newer)
    assert until(lambda: repository(watched, name)["problem"] is None)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_never_seen_is_not_waited_for_and_comes_when_it_can(
    watched, hosted, fault
) -> None:
    name = f"new/{fault}"
    one = hosted[name]
    FAULTS[fault](one)
    answer = watched.ask(name)
    one.mend()
    told = watched.hook(name)  # or else a pause follows a failure

    assert answer.status == (503 if fault in ("hanging", "trickling") else 502)
    assert told.status == 202
    assert until(lambda: watched.ask(name).status == 200)
    assert watched.ask(name, stage="prod").revision == one.origin.head()


def test_what_is_older_than_allowed_is_not_served(watched, hosted) -> None:
    name, one = "known/short", hosted["known/short"]
    until(lambda: fresh(watched.ask(name)))
    one.proxy.refuses()
    late = until(lambda: (it := watched.ask(name)).status != 200 and it)
    one.mend()
    watched.hook(name)

    assert late.status == 503
    assert f"'{name}' was last seen" in late.detail
    assert until(lambda: fresh(watched.ask(name)))


def repository(watched: Observer, name: str) -> dict[str, object]:
    """What /readyz knows of it; the worker that answers may be another one every time."""
    known: dict[str, object] = json.loads(watched.get("/readyz").body)["repositories"][name]
    return known


def test_origins_that_hang_do_not_hold_up_those_that_are_well(serve, hosts) -> None:
    """More of them than there are threads in the lanes of either worker for what hangs."""
    hanging = {f"hangs/{number}": hosts.host(f"hangs/{number}") for number in range(10)}
    new = {f"cold/{number}": hosts.host(f"cold/{number}") for number in range(10)}
    well = hosts.host("well")
    everybody = {**hanging, **new, "well": well}
    origins = {name: (one.origin, one.settings) for name, one in everybody.items()}
    watched = serve(origins, repository={"refresh": 1})
    for name in (*hanging, "well"):
        until(lambda name=name: watched.ask(name).status == 200)
    for one in (*hanging.values(), *new.values()):
        one.proxy.hangs()
    with crowd(watched, [*hanging, *new]):
        until(lambda: watched.ask("hangs/0", stage="prod").is_stale)
        for number in range(2, 8):
            newer = publish(well.origin, str(number))
            well.origin.tag(f"m#prod#{number}", newer)
            watched.note("well")
            answer = watched.ask("well", stage="prod")
            while answer.revision != newer:
                assert fresh(answer)
                answer = watched.ask("well", stage="prod")
        for one in everybody.values():
            one.mend()

    for name in everybody:
        assert until(lambda name=name: fresh(watched.ask(name, stage="prod")))
    assert until(lambda: not list(looking(watched)))


@contextmanager
def crowd(watched: Observer, names: Sequence[str]) -> Iterator[None]:
    """As many clients as there are names, each of which asks for one of them all the time."""
    over = Event()

    def insist(name: str) -> None:
        client = watched.client(timeout=30)
        while not over.is_set():
            client.ask(name, stage="prod")

    with ThreadPoolExecutor(len(names)) as threads:
        asking = [threads.submit(insist, name) for name in names]
        try:
            yield
        finally:
            over.set()
            for one in asking:
                one.result()


def looking(watched: Observer) -> Iterator[str]:
    """Every process of the service that looks at an origin, or is dead and was not reaped."""
    for pid in descendants(watched.service.pid):
        words = command_line(pid)
        if not words or (Path(words[0]).name.startswith("git") and "cat-file" not in words):
            yield " ".join(words)
