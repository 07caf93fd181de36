"""A machine that runs out of disk or descriptors, workers that die, and too much to clone."""

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import gitserver
import pytest
from urllib3.exceptions import HTTPError

from faults.observer import DEADLINE, Answer, Observer, command_line, descendants, until
from faults.origins import copy_of, model, publish
from faults.proxy import Proxy

pytestmark = pytest.mark.servers


def fresh(answer: Answer) -> bool:
    return answer.status == 200 and not answer.is_stale


def limit(watched: Observer, kind: int, of: Callable[[int], int]) -> None:
    """Lowers or raises a limit of every process of the service, and of what they start."""
    for pid in descendants(watched.service.pid):
        with suppress(OSError, ProcessLookupError):
            _, hard = resource.prlimit(pid, kind)
            resource.prlimit(pid, kind, (of(pid), hard))


# ---------------------------------------------------------------------------- disks that are full


@dataclass(frozen=True)
class Disk:
    """Where the service keeps its data, and what makes no space, and space again."""

    data: Path
    fill: Callable[[Observer], None]
    free: Callable[[Observer], None]


@contextmanager
def small_disk(place: Path) -> Iterator[Disk]:
    """A file system of 8 MB."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], check=True)
    filler = place / "filler"

    def fill(_: Observer) -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    try:
        yield Disk(place / "data", fill, lambda _: filler.unlink())
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def quota(place: Path) -> Iterator[Disk]:
    """A limit to the size of files: what there is can be read, and grows no more."""
    unlimited = resource.RLIM_INFINITY
    yield Disk(
        place,
        lambda watched: limit(watched, resource.RLIMIT_FSIZE, lambda _: 300_000),
        lambda watched: limit(watched, resource.RLIMIT_FSIZE, lambda _: unlimited),
    )


def can_mount(place: Path) -> bool:
    try:
        with small_disk(place):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.fixture(params=["quota", "small disk"])
def disk(request, tmp_path) -> Iterator[Disk]:
    """A quota, and a small file system where one can be mounted."""
    is_small = request.param == "small disk" and can_mount(tmp_path / "probe")
    with (small_disk if is_small else quota)(tmp_path / "disk") as disk:
        yield disk


def test_a_full_disk_stops_no_answer_and_is_no_more_once_there_is_space(
    disk, serve, tmp_path
) -> None:
    origins = {name: model(tmp_path / f"{name}.git") for name in ("known", "new")}
    for origin in origins.values():
        origin.commit({"large": random.Random(1).randbytes(400_000)}, branch="aside")
    settings = {"data_dir": str(disk.data)}
    watched = serve(origins, repository={"refresh": 1}, settings=settings)
    known, first = origins["known"], origins["known"].head()
    until(lambda: fresh(watched.ask("known", stage="prod")))
    disk.fill(watched)
    known.commit({"large": random.Random(2).randbytes(400_000)}, branch="aside")
    newer = publish(known, "2")
    known.tag("m#prod#1", newer)
    old = until(lambda: (it := watched.ask("known", stage="prod")).is_stale and it)
    new = watched.ask("new")

    assert (old.status, old.revision) == (200, first)
    assert watched.ask("known", version="v1.0.0").status == 200
    assert new.status in (502, 503)
    mirrors = disk.data / "mirrors"
    assert until(lambda: not list(mirrors.glob("*/incoming.git")))

    disk.free(watched)
    for name in origins:
        watched.hook(name)
    assert until(lambda: fresh(it := watched.ask("known", stage="prod")) and it.revision == newer)
    assert until(lambda: fresh(watched.ask("new")))
    assert watched.get("/readyz").status == 200
    assert not list(mirrors.glob("**/tmp_*"))


# ---------------------------------------------------------------------------- descriptors


def test_without_descriptors_what_is_known_is_told_and_nothing_is_cloned_again(
    serve, tmp_path
) -> None:
    origins = {name: model(tmp_path / f"{name}.git") for name in ("known", "new")}
    watched = serve(origins, repository={"refresh": 1})
    known = origins["known"]
    for _ in range(8):  # by every worker
        until(lambda: fresh(watched.ask("known", stage="prod")))
    (mirror,) = Path(watched.service.config.parent, "data", "mirrors").glob("known.git")
    cloned = (mirror / "repository.git").stat().st_ino
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] for pid in workers(watched)}
    limit(watched, resource.RLIMIT_NOFILE, lambda pid: highest(pid) + 5 if pid in before else 1024)
    newer = publish(known, "2")
    known.tag("m#prod#1", newer)
    old = until(lambda: (it := watched.ask("known", stage="prod")).is_stale and it)
    new = watched.ask("new")
    limit(watched, resource.RLIMIT_NOFILE, lambda pid: before.get(pid, 1024))
    for name in origins:
        watched.hook(name)

    assert old.status == 200
    assert new.status in (502, 503)
    assert until(lambda: fresh(it := watched.ask("known", stage="prod")) and it.revision == newer)
    assert until(lambda: fresh(watched.ask("new")))
    assert (mirror / "repository.git").stat().st_ino == cloned
    assert b"Traceback" not in watched.service.log.read_bytes()
    assert set(workers(watched)) == set(before)


def test_a_worker_without_descriptors_keeps_its_connections_and_takes_others_later(
    serve, tmp_path
) -> None:
    watched = serve({"known": model(tmp_path / "known.git")})
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] for pid in workers(watched)}
    with closing(client_of(watched)) as kept, closing(client_of(watched)) as late:
        kept.request("GET", "/healthz")
        first = kept.getresponse().read()
        limit(watched, resource.RLIMIT_NOFILE, lambda pid: 3 if pid in before else 1024)
        late.request("GET", "/healthz")
        until(lambda: b"no connection is accepted" in watched.service.log.read_bytes())
        kept.request("GET", "/healthz")
        second = kept.getresponse().read()
        limit(watched, resource.RLIMIT_NOFILE, lambda pid: before.get(pid, 1024))

        assert first == second == late.getresponse().read()
    assert set(workers(watched)) == set(before)


def client_of(watched: Observer) -> HTTPConnection:
    return HTTPConnection(watched.service.url.removeprefix("http://"), timeout=DEADLINE)


def workers(watched: Observer) -> list[int]:
    """The processes that answer: gunicorn's, but for the one that started them."""
    everybody = descendants(watched.service.pid)
    found = [pid for pid in everybody if "registry.wsgi:app" in command_line(pid)]
    return sorted(found)[1:]


def highest(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


# ---------------------------------------------------------------------------- workers that die


def both(watched: Observer) -> list[int] | None:
    """The two workers: not one of them alone, nor a child that is about to become a git."""
    found = workers(watched)
    return found if len(found) == 2 else None


def test_workers_that_are_killed_while_they_look_are_replaced_and_nothing_is_lost(
    serve, tmp_path
) -> None:
    origin = model(tmp_path / "origins" / "models.git")
    with gitserver.serve_http(origin.path.parent) as server, Proxy(server.port) as proxy:
        url = {"url": f"{proxy.url}/models.git"}
        watched = serve({"models": (origin, url)}, repository={"refresh": 1})
        until(lambda: fresh(watched.ask("models")))
        for number in range(2, 5):
            proxy.hangs()
            newer = publish(origin, str(number))
            origin.tag("m#prod#1", newer)
            taken = proxy.connections
            before = until(lambda: both(watched))
            until(lambda: watched.ask("models", stage="prod").is_stale)
            assert proxy.connections > taken
            for pid in before[number % 2 :]:  # one of them, or both
                os.kill(pid, signal.SIGKILL)
            proxy.passes()
            until(
                lambda newer=newer: (
                    fresh(it := answered(watched, "models", stage="prod")) and it.revision == newer
                )
            )
            until(lambda: both(watched))


def answered(watched: Observer, name: str, **query: str) -> Answer:
    """An answer; a connection that a dead worker had taken has none."""
    return until(lambda: suppressed(watched, name, **query))


def suppressed(watched: Observer, name: str, **query: str) -> Answer | None:
    with suppress(ConnectionError, HTTPError):
        return watched.ask(name, **query)
    return None


# ---------------------------------------------------------------------------- too much to clone


def test_five_hundred_new_repositories_hold_up_nobody_who_is_known(serve, tmp_path) -> None:
    hot = model(tmp_path / "origins" / "hot.git")
    cold = copy_of(hot, tmp_path / "origins" / "cold.git")
    names = [f"cold/{number}" for number in range(500)]
    for number in range(500):
        (tmp_path / "origins" / f"{number}.git").symlink_to(cold.path)
    with gitserver.serve_http(cold.path.parent) as server:
        origins: dict[str, object] = {
            name: (cold, {"url": f"{server.url}/{number}.git"}) for number, name in enumerate(names)
        }
        watched = serve({**origins, "hot": hot}, repository={"refresh": 1})
        until(lambda: fresh(watched.ask("hot")))
        over, fetching, statuses = Event(), [0], set()

        def ask(some: list[str]) -> None:
            client = watched.client(timeout=30)
            for name in some:
                if not over.is_set():
                    statuses.add(client.ask(name).status)

        crowd = [Thread(target=ask, args=(names[turn::20],)) for turn in range(20)]
        for thread in crowd:
            thread.start()
        try:
            for number in range(2, 7):
                newer = publish(hot, str(number))
                hot.tag(f"m#prod#{number}", newer)
                watched.note("hot")
                answer = watched.ask("hot", stage="prod")
                while answer.revision != newer:
                    assert fresh(answer)
                    fetching.append(sum(is_clone(pid) for pid in descendants(watched.service.pid)))
                    answer = watched.ask("hot", stage="prod")
        finally:
            over.set()
            for thread in crowd:
                thread.join()

        assert statuses <= {200, 503}
        # While the processes are looked through, one clone may end and the next one begin: what
        # is too much is so the next time, too.
        assert 0 < max(map(min, pairwise(fetching))) <= 4 * len(workers(watched))
        for name in names[::200]:
            assert until(lambda name=name: fresh(watched.ask(name)))


def is_clone(pid: int) -> bool:
    words = command_line(pid)
    return words[:1] == ["git"] and "fetch" in words and "incoming.git" in words[1]
