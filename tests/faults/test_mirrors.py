"""Mirrors on disk: processes that die, that compete, and files that are damaged."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import gitserver
import pytest
from gitrepo import GitRepository
from service import digest, output

from faults.looker import Looker, Lookers, lookers
from faults.observer import descendants, until
from faults.origins import model, publish
from faults.proxy import Proxy
from registry.domain import RelPath, Revision, Selector
from registry.errors import MirrorStale, OriginUnavailable
from registry.repository import Repository, Snapshot
from registry.repository.lanes import Lanes

pytestmark = pytest.mark.servers

EVER = 1e9


class Clock:
    """Unix time, in which a second look follows the first one at once."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def origin(tmp_path) -> GitRepository:
    return model(tmp_path / "origins" / "models.git")


@pytest.fixture
def opened(origin, tmp_path, clock) -> Iterator:
    """Opens repositories over the mirror at `tmp_path / "mirror"`, or elsewhere."""
    running = []
    with closing(Lanes()) as lanes:

        def open_(mirror: Path = tmp_path / "mirror", url: object = origin.path) -> Repository:
            made = Repository("r", str(url), mirror, lanes=lanes, clock=clock)
            running.append(made)
            return made

        yield open_
        for one in running:
            one.close()


@pytest.fixture
def crowd(tmp_path) -> Iterator[Lookers]:
    with lookers(tmp_path / "found") as crowd:
        yield crowd


def prod(snapshot: Snapshot) -> Revision:
    return snapshot.index.resolve(Selector.parse("m", stage="prod")).revision


def version(snapshot: Snapshot) -> Revision:
    return snapshot.index.resolve(Selector.parse("m", "v1.0.0")).revision


def move(origin: GitRepository, number: int) -> Revision:
    """A newer commit in prod; every other one has more objects than Git keeps apart."""
    many = {f"{number}/{name}": f"{number} {name}" for name in range(120 * (number % 2))}
    origin.commit({"some": str(number), **many})
    newer = publish(origin, str(number))
    origin.tag("m#prod#1", newer)
    return newer


def leftovers(mirror: Path) -> list[str]:
    """What nobody needs any more: locks, halves of packs, files and clones."""
    patterns = (
        "**/*.lock",
        "**/tmp_*",
        "**/*.tmp",
        "incoming*",
        "outgoing*",
        "fetching*",
        "discarded*",
    )
    return [str(path) for pattern in patterns for path in mirror.glob(pattern)]


# ---------------------------------------------------------------------------- processes that die


def forget(mirror: Path) -> None:
    shutil.rmtree(mirror)


def damage(mirror: Path) -> None:
    (mirror / "repository.git" / "packed-refs").write_text("garbage\n")


@pytest.mark.parametrize(
    ("before", "stride"), [(forget, 6), (lambda _: None, 4), (damage, 6)],
    ids=["clone", "fetch", "replace"],
)  # fmt: skip
def test_a_process_may_die_at_every_step_of_a_look(
    origin, opened, crowd, clock, tmp_path, before, stride
) -> None:
    """And what a version meant first, and its origin has no more, is not lost on the way."""
    mirror, first = tmp_path / "mirror", origin.head()
    sibling = opened()
    had = [prod(sibling.snapshot(0, wait=30)), origin.commit({"unrelated": "x"}, orphan=True)]
    for tag in ("m@v1.0.0", "m#prod#1"):
        origin.tag(tag, had[-1])
    origin.git("gc", "--quiet", "--prune=now")
    clock.now += 10
    checked, known = sibling.snapshot(0, wait=30).checked, prod(sibling.snapshot(EVER))
    step = 1
    while True:
        before(mirror)
        had.append(move(origin, step))
        clock.now += 10
        looker = crowd.start(str(origin.path), mirror, clock.now, step)
        until(lambda looker=looker: looker.is_over)
        told = sibling.snapshot(EVER)  # whatever is there now
        assert told.checked >= checked
        with suppress(OriginUnavailable):  # its objects may be gone with the mirror
            assert had.index(prod(told)) >= had.index(known)
            checked, known = told.checked, prod(told)
        clock.now += 10
        repository = opened()
        again = repository.snapshot(0, wait=30)

        assert prod(again) == had[-1]
        assert before is forget or version(again) == first
        assert before is forget or RelPath("dvc.yaml") in repository.files(first, lambda _: True)
        assert leftovers(mirror) == []
        if looker.revision:  # it did not get to that step any more
            break
        step += stride

    assert looker.revision == had[-1]
    assert looker.steps < step
    assert step > 20


def test_a_process_may_die_while_its_git_writes_and_its_git_with_it_or_not(
    origin, opened, crowd, clock, tmp_path
) -> None:
    """At moments at which a file was seen to be another one than before."""
    mirror = tmp_path / "mirror"
    sibling = opened()
    had = [prod(sibling.snapshot(0, wait=30))]
    died = 0
    for moment in range(1, 16):
        had.append(move(origin, moment))
        clock.now += 10
        looker = crowd.start(str(origin.path), mirror, clock.now)
        if await_changes(mirror, moment, looker):
            died += 1
            with_git = list(descendants(looker.pid)) if moment % 2 else []
            looker.kill()
            for pid in with_git:
                end(pid)
        told = prod(sibling.snapshot(EVER))
        until(lambda looker=looker: looker.is_over)
        clock.now += 10
        again = prod(opened().snapshot(0, wait=30))

        assert told in had[-2:]
        assert again == had[-1]
        assert leftovers(mirror) == []
    sound = subprocess.run(["git", f"--git-dir={mirror}/repository.git", "fsck"], check=False)

    assert died > 3
    assert sound.returncode == 0


def await_changes(mirror: Path, count: int, looker: Looker) -> bool:
    """Whether that many changes of the files of the mirror were seen before the looker ended."""
    last = files(mirror)
    while count and not looker.is_over:
        now = files(mirror)
        count -= now != last
        last = now
    return not count


def files(mirror: Path) -> set[tuple[str, int]]:
    """The files of the mirror, and their sizes."""
    found = set()
    for place, _, names in os.walk(mirror):
        for name in names:
            with suppress(FileNotFoundError):
                found.add((f"{place}/{name}", os.stat(f"{place}/{name}").st_size))
    return found


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------------------- that compete


@pytest.mark.parametrize("processes", [2, 16])
def test_of_processes_that_look_at_once_one_fetches(
    origin, crowd, clock, tmp_path, processes
) -> None:
    with gitserver.serve_http(origin.path.parent) as server, Proxy(server.port) as proxy:
        url = f"{proxy.url}/models.git"
        for is_new in (True, False):
            wanted = origin.head() if is_new else move(origin, 1)
            server.requests.clear()
            clock.now += 10
            proxy.hangs()
            many = [crowd.start(url, tmp_path / "mirror", clock.now) for _ in range(processes)]
            until(lambda: proxy.connections)
            proxy.passes()
            until(lambda many=many: all(one.is_over for one in many))

            assert [one.revision for one in many] == [wanted] * processes
            asked = [line for line in server.requests if line.startswith("GET")]
            assert len(asked) == 2  # for the list of refs, and for what is new


# ---------------------------------------------------------------------------- damaged files


def test_a_state_that_was_cut_off_anywhere_is_right_or_not_there(
    origin, opened, clock, tmp_path
) -> None:
    mirror, first = tmp_path / "mirror", origin.head()
    assert prod(opened().snapshot(0, wait=30)) == first
    whole = {path: path.read_bytes() for path in (mirror / "state", *mirror.glob("tags-*"))}
    away = origin.path.with_suffix(".away")
    for path, data in whole.items():
        for size in range(0, len(data), 3):
            path.write_bytes(data[:size])
            origin.path.rename(away)
            damaged = opened()
            told = None
            with suppress(OriginUnavailable, MirrorStale):
                told = prod(damaged.snapshot(EVER, wait=30))
            damaged.close()
            away.rename(origin.path)
            assert told in (None, first), (path.name, size)
            if size % 30 == 0:
                clock.now += 10
                assert prod(opened().snapshot(0, wait=30)) == first
                assert {one: one.read_bytes() for one in whole if one.name != "state"} == {
                    one: data for one, data in whole.items() if one.name != "state"
                }
            for one, content in whole.items():
                one.write_bytes(content)


def test_a_byte_that_changed_anywhere_is_never_a_wrong_answer_and_is_mended(
    origin, opened, clock, tmp_path
) -> None:
    for number in range(1, 5):
        metadata = {f"{name}/x/{name}.dvc": f"# {name} {number}\n" for name in "abc"}
        origin.commit({**metadata, "model.pkl.dvc": output("model.pkl", digest(str(number)))})
        origin.tag(f"m@v2.{number}.0")
    pristine = tmp_path / "mirror"
    repository = opened()
    versions = ["v1.0.0", *(f"v2.{number}.0" for number in range(1, 5))]
    repository.snapshot(0, wait=30)
    git_dir = pristine / "repository.git"
    for command in (("pack-refs", "--all"), ("repack", "-adfq")):
        subprocess.run(["git", f"--git-dir={git_dir}", *command], check=True)
    truth = {name: contents(repository, name) for name in versions}
    repository.close()
    packed = [*git_dir.glob("objects/pack/pack-*"), git_dir / "packed-refs", git_dir / "HEAD"]
    chance, noticed = random.Random(1), 0
    for turn in range(25):
        mirror = tmp_path / f"mirror-{turn}"
        shutil.copytree(pristine, mirror)
        file = mirror / packed[turn % len(packed)].relative_to(pristine)
        flip(file, chance)
        damaged = opened(mirror)
        for name in chance.sample(versions, 3):
            try:
                told = contents(damaged, name)
            except OriginUnavailable:
                noticed += 1
            else:
                assert told == truth[name], (file.name, name)
        origin.tag(f"tick-{turn}")
        clock.now += 100
        snapshot = damaged.snapshot(0, wait=30)

        assert snapshot.checked == clock.now, (file.name, damaged.status().problem)
        with suppress(OriginUnavailable):  # some damage is found only when it is read
            for name in versions:
                assert contents(damaged, name) == truth[name]
        clock.now += 100
        damaged.snapshot(0, wait=30)
        assert {name: contents(damaged, name) for name in versions} == truth
        damaged.close()
        shutil.rmtree(mirror)

    assert noticed > 5


def contents(repository: Repository, name: str) -> dict[RelPath, bytes]:
    """Every file of a version."""
    revision = repository.snapshot(EVER).index.resolve(Selector.parse("m", name)).revision
    listed = repository.files(revision, lambda _: True)
    return {path: repository.blob(oid, 1 << 20) for path, oid in listed.items()}


def flip(file: Path, chance: random.Random) -> None:
    """Changes one bit of a file."""
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.chmod(0o600)
    file.write_bytes(data)
