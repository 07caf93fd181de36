"""How fresh an answer is, how old it may become, and what a version tag goes on meaning."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from mmap import mmap
from pathlib import Path

import gitserver
import pytest
from click.testing import CliRunner
from gitrepo import GitRepository
from service import ENDPOINT, S3_KEYS, Registry, artifacts, digest, output, remote

from registry.cli import cli
from registry.domain import RelPath, Selector
from registry.errors import MirrorStale, NotFound
from registry.repository import Repository
from registry.repository.lanes import Lanes
from registry.services import Services

NAME = "team/models"
HOUR = 3600
WARNING = '110 - "Response is Stale"'
STORAGE = [{"url": "s3://bucket", "repositories": ["*"], **S3_KEYS}]


class Clock:
    """Unix time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def commit(origin: GitRepository, content: str) -> str:
    return origin.commit({"model.pkl.dvc": output("model.pkl", digest(content))})


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    made = GitRepository(tmp_path / "origins" / "models.git")
    made.commit({".dvc/config": remote("s3://bucket/dvc"), "dvc.yaml": artifacts(m="model.pkl")})
    commit(made, "1")
    made.tag("m@v1.0.0")
    made.tag("m#prod#1")
    return made


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """Starts a service over one origin, with the settings of its repository."""
    with ExitStack() as running:

        def started(url: object, **settings: object) -> Registry:
            item = {"url": str(url), **settings}
            return running.enter_context(Registry(tmp_path / "var", {NAME: item}, STORAGE))

        yield started


@pytest.fixture
def opened(origin: GitRepository, tmp_path: Path) -> Iterator:
    """Opens repositories over one mirror, as several workers do; `opened.clock` is theirs."""
    lanes = Lanes()
    with ExitStack() as stack:
        stack.callback(lanes.close)

        def open_(url: str | None = None, **options: object) -> Repository:
            made = Repository(
                NAME, url or str(origin.path), tmp_path / "mirror",
                lanes=lanes, clock=open_.clock, **options,
            )  # fmt: skip
            stack.callback(made.close)
            return made

        open_.clock = Clock()
        yield open_


def hide(origin: GitRepository) -> None:
    origin.path.rename(origin.path.with_suffix(".away"))


def means(snapshot, version: str = "v1.0.0", stage: str = "") -> str | None:
    try:
        return snapshot.index.resolve(Selector.parse("m", version, stage)).revision
    except NotFound:
        return None


# ---------------------------------------------------------------------------- a look right now


@pytest.mark.parametrize("how", ["max_age", "no-cache"])
@pytest.mark.parametrize("query", [{}, {"stage": "prod"}, {"version": "v1.0.0"}])
def test_a_client_may_ask_for_a_look_right_now(origin, start, how, query) -> None:
    registry = start(origin.path, refresh=HOUR, tag_policy="follow")
    registry.ask(**query)
    newer = commit(origin, "2")
    origin.tag("m@v1.0.0", newer)
    origin.tag("m#prod#1", newer)
    registry.clock.now += 1

    assert registry.ask(**query).headers["X-Registry-Revision"] != newer
    headers = {"Authorization": f"token {registry.everything}"}
    asked = {"repo": NAME, "name": "m", **query}
    if how == "max_age":
        asked["max_age"] = "0"
    else:
        headers["Cache-Control"] = "no-cache"
    answer = registry.client.get(ENDPOINT, query_string=asked, headers=headers)

    assert answer.headers["X-Registry-Revision"] == newer
    assert "Warning" not in answer.headers


def test_an_age_that_the_last_look_has_not_reached_asks_nobody(origin, start) -> None:
    registry = start(origin.path, refresh=HOUR)
    known = registry.ask().headers["X-Registry-Revision"]
    origin.tag("m@v2.0.0", commit(origin, "2"))
    registry.clock.now += 60

    assert registry.ask(max_age="60").headers["X-Registry-Revision"] == known
    assert registry.ask(max_age="59").headers["X-Registry-Version"] == "v2.0.0"


@pytest.mark.parametrize("value", ["-1", "1.5", "now", "1e3", " 1", "٣", "9" * 10, "0x1"])
def test_an_age_that_is_no_number_of_seconds_is_refused(origin, start, value) -> None:
    answer = start(origin.path).ask(max_age=value)

    assert answer.status_code == 400
    assert answer.json["detail"].startswith("max_age: ")


def test_an_origin_is_looked_at_once_a_second_however_often_clients_ask(origin, opened) -> None:
    with gitserver.serve_http(origin.path.parent) as server:
        repository = opened(f"{server.url}/models.git")
        repository.snapshot(0)
        asked = len(server.requests)
        opened.clock.now += 0.5
        for _ in range(20):
            repository.snapshot(0, wait=0.1)

        assert len(server.requests) == asked


def test_who_comes_within_the_second_waits_for_the_next_look(origin, opened) -> None:
    repository = opened()
    repository.snapshot(0)
    origin.tag("m@v2.0.0")
    opened.clock.now += 0.9

    assert means(repository.snapshot(0), "v2.0.0")


# ---------------------------------------------------------------------------- origins that are down


def test_an_answer_that_is_older_than_allowed_says_so(origin, start) -> None:
    registry = start(origin.path, refresh=30)
    fresh = registry.ask(stage="prod")
    hide(origin)
    registry.clock.now += 31
    old = registry.ask(stage="prod")

    assert "Warning" not in fresh.headers
    assert old.json.keys() == fresh.json.keys()
    assert old.headers["Warning"] == WARNING
    assert old.headers["X-Registry-Mirror-Age"] == "31"


def test_an_answer_whose_age_nobody_knows_since_the_clock_was_set_back_says_so(
    origin, start
) -> None:
    registry = start(origin.path, refresh=HOUR)
    registry.ask(stage="prod")
    hide(origin)
    registry.clock.now -= 500
    answer = registry.ask(stage="prod")

    assert answer.status_code == 200
    assert answer.headers["Warning"] == WARNING


@pytest.mark.parametrize("query", [{}, {"stage": "prod"}, {"version": "v1.0.0"}])
def test_the_last_state_is_served_for_so_long_and_no_longer(origin, start, query) -> None:
    registry = start(origin.path, refresh=30, max_stale=1000)
    registry.ask()
    hide(origin)
    registry.clock.now += 1000
    last = registry.ask(**query)
    registry.clock.now += 100
    late = registry.ask(**query)

    assert (last.status_code, last.headers["Warning"]) == (200, WARNING)
    assert late.status_code == 503
    assert int(late.headers["Retry-After"]) > 0
    assert str(origin.path) not in late.text


def test_a_version_nobody_asked_for_in_days_is_looked_for_and_not_refused(origin, start) -> None:
    registry = start(origin.path, max_stale=1000)
    registry.ask()
    registry.clock.now += 5000
    answer = registry.ask(version="v1.0.0")

    assert answer.status_code == 200
    assert answer.headers["X-Registry-Mirror-Age"] == "0"
    assert "Warning" not in answer.headers


def test_after_the_origin_is_back_answers_are_fresh_again(origin, start) -> None:
    registry = start(origin.path, max_stale=1000)
    registry.ask()
    hide(origin)
    registry.clock.now += 2000
    assert registry.ask().status_code == 503
    origin.path.with_suffix(".away").rename(origin.path)
    registry.clock.now += 60
    answer = registry.ask()

    assert answer.status_code == 200
    assert "Warning" not in answer.headers


def test_an_origin_that_hangs_counts_as_one_that_is_down(opened, origin) -> None:
    opened(max_stale=100).snapshot(0)
    with gitserver.serve_http(origin.path.parent) as server:
        repository = opened(f"{server.url}/models.git", max_stale=100)
        repository.snapshot(0)
        server.broken = True
        opened.clock.now += 101
        with pytest.raises(MirrorStale) as caught:
            repository.snapshot(30)

        assert (caught.value.repository, caught.value.age) == (NAME, 101)


# ---------------------------------------------------------------------------- siblings


@pytest.fixture(params=["shared memory", "the file alone"])
def notices(request) -> mmap | None:
    """What the workers of one server have in common, or processes that are strangers."""
    return mmap(-1, 8) if request.param == "shared memory" else None


def test_a_worker_tells_at_once_what_another_one_saw(origin, opened, notices) -> None:
    first, second = opened(notices=notices), opened(notices=notices)
    first.snapshot(HOUR)
    kept = second.snapshot(HOUR)
    assert second.snapshot(HOUR) is kept
    origin.tag("m@v2.0.0")
    opened.clock.now += 1
    first.snapshot(0)

    assert means(second.snapshot(HOUR), "v2.0.0")


def test_nobody_goes_back_in_time_whichever_worker_answers(origin, opened, notices) -> None:
    workers = [opened(notices=notices) for _ in range(3)]
    seen = []
    for number in range(9):
        origin.tag(f"m@v2.{number}.0")
        opened.clock.now += 1
        workers[number % 3].snapshot(0)
        seen += [workers[turn].snapshot(HOUR).checked for turn in (0, 1, 2)]

    assert seen == sorted(seen)
    assert means(workers[0].snapshot(HOUR), "v2.8.0")


def test_nobody_is_told_of_an_older_state_while_a_newer_one_is_read(
    origin, opened, notices, tmp_path
) -> None:
    first, second = opened(notices=notices), opened(notices=notices)
    second.snapshot(HOUR)
    origin.tag("m@v2.0.0")
    opened.clock.now += 1
    first.snapshot(0)
    (tags,) = (tmp_path / "mirror").glob("tags-*")
    told = tags.read_bytes()
    tags.unlink()
    os.mkfifo(tags)

    with ThreadPoolExecutor(2) as requests:
        reading = requests.submit(second.snapshot, HOUR)
        with open(tags, "wb") as pipe:  # once it is read: half of what is new is known
            meanwhile = requests.submit(second.snapshot, HOUR)
            wait([meanwhile], 0.2)
            pipe.write(told)

    assert means(reading.result(), "v2.0.0")
    assert means(meanwhile.result(), "v2.0.0")


def test_a_lost_state_takes_nothing_from_who_knows_it(origin, opened, tmp_path) -> None:
    repository = opened()
    kept = repository.snapshot(HOUR)
    (tmp_path / "mirror" / "state").unlink()

    assert repository.snapshot(HOUR) == kept


# ---------------------------------------------------------------------------- frozen tags


def test_a_version_means_the_commit_that_was_first_seen(origin, opened, caplog) -> None:
    repository = opened()
    first = means(repository.snapshot(0))
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    origin.tag("m#prod#1", moved)
    opened.clock.now += 1
    snapshot = repository.snapshot(0)
    (change,) = repository.changes()

    assert means(snapshot) == first
    assert means(snapshot, "", "prod") == moved
    assert (change.tag, change.event) == ("m@v1.0.0", "moved")
    assert (change.kept, change.origin) == (first, moved)
    assert change.seen == opened.clock.now
    assert "m@v1.0.0 was moved" in caplog.text


def test_a_change_leaves_one_row_in_the_audit_log_whichever_worker_saw_it(origin, start) -> None:
    registry = start(origin.path, refresh=0)
    first = registry.ask(version="v1.0.0").headers["X-Registry-Revision"]
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    sibling = Services.of(registry.settings, registry.clock)
    registry.clock.now += 1
    for services in (registry.services, sibling):
        for mirrored in services.repositories:
            mirrored.repository.snapshot(0)
            services.audit.close()
    records = [json.loads(row.record) for row in registry.services.audit.rows()]
    changes = [one for one in records if one["decision"] == "moved"]
    sibling.close()

    assert [(one["repository"], one["selector"]) for one in changes] == [(NAME, "m@v1.0.0")]
    assert [(one["revision"], one["origin"]) for one in changes] == [(first, moved)]


def test_a_version_follows_where_the_operator_wants_that(origin, opened) -> None:
    repository = opened(frozen=False)
    repository.snapshot(0)
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    opened.clock.now += 1

    assert means(repository.snapshot(0)) == moved
    assert repository.changes() == ()


def test_another_policy_holds_from_the_next_look_on(origin, opened) -> None:
    frozen = opened()
    first = means(frozen.snapshot(0))
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    opened.clock.now += 1
    assert means(frozen.snapshot(0)) == first
    opened.clock.now += 1
    assert means(opened(frozen=False).snapshot(0)) == moved
    opened.clock.now += 1

    assert means(opened().snapshot(0)) == first


def test_a_lightweight_tag_in_place_of_a_version_changes_nothing(origin, opened) -> None:
    repository = opened()
    first = means(repository.snapshot(0))
    origin.tag("m@v1.0.0", commit(origin, "2"), lightweight=True)
    opened.clock.now += 1

    assert means(repository.snapshot(0)) == first
    assert [one.origin for one in repository.changes()] == [None]


def test_a_new_tag_on_the_same_commit_is_no_change(origin, opened) -> None:
    repository = opened()
    first = means(repository.snapshot(0))
    origin.tag("m@v1.0.0", first, time=1_900_000_000)
    opened.clock.now += 1

    assert means(repository.snapshot(0)) == first
    assert repository.changes() == ()


def test_a_deleted_version_is_gone_and_comes_back_as_what_it_was(origin, opened) -> None:
    repository = opened()
    first = means(repository.snapshot(0))
    origin.delete_tag("m@v1.0.0")
    opened.clock.now += 1
    assert means(repository.snapshot(0)) is None
    assert [one.event for one in repository.changes()] == ["deleted"]
    origin.tag("m@v1.0.0", commit(origin, "2"))
    opened.clock.now += 1
    assert means(repository.snapshot(0)) == first
    assert [one.event for one in repository.changes()] == ["moved"]
    origin.tag("m@v1.0.0", first)
    opened.clock.now += 1

    assert means(repository.snapshot(0)) == first
    assert [one.event for one in repository.changes()] == ["restored"]


def test_every_change_is_kept_once_and_in_order(origin, opened, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    repository = opened()
    repository.snapshot(0)
    moves = [commit(origin, str(number)) for number in range(2)]
    for moved in moves:
        origin.tag("m@v1.0.0", moved)
        for other in ("x", "y"):
            origin.tag(f"{other}{moved[:6]}@v1.0.0")
            opened.clock.now += 1
            repository.snapshot(0)
    records = (tmp_path / "mirror" / "changed").read_text().splitlines()

    assert [json.loads(line)["origin"] for line in records] == moves
    assert len(caplog.records) == 2


def test_a_frozen_commit_outlives_its_origin_and_a_new_clone(origin, opened, tmp_path) -> None:
    repository = opened()
    first = means(repository.snapshot(0))
    other = origin.commit({"x": "y"}, orphan=True)
    origin.tag("m@v1.0.0", other)
    origin.tag("m#prod#1", other)
    origin.git("reflog", "expire", "--expire=now", "--all")
    origin.git("gc", "--quiet", "--prune=now")
    opened.clock.now += 1
    repository.snapshot(0)
    git = tmp_path / "mirror" / "repository.git"
    assert (git / "refs/registry/keep" / first).exists()

    (git / "refs/registry/keep" / f"{first}.lock").write_text("")  # as if killed
    (git / "packed-refs").write_text("garbage\n")
    origin.tag("m@v2.0.0", other)
    opened.clock.now += 1
    again = opened()
    snapshot = again.snapshot(0, wait=20)

    assert means(snapshot) == first
    assert means(snapshot, "v2.0.0") == other
    assert RelPath("model.pkl.dvc") in again.files(first, lambda _: True)
    assert not (tmp_path / "mirror" / "outgoing.git").exists()


def test_a_deleted_mirror_forgets(origin, opened, tmp_path) -> None:
    repository = opened()
    repository.snapshot(0)
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    opened.clock.now += 1
    repository.snapshot(0)
    repository.close()
    shutil.rmtree(tmp_path / "mirror")
    again = opened()

    assert means(again.snapshot(0)) == moved
    assert again.changes() == ()


def test_another_origin_inherits_nothing(origin, opened, tmp_path) -> None:
    repository = opened()
    repository.snapshot(0)
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    opened.clock.now += 1
    repository.snapshot(0)
    shutil.copytree(origin.path, tmp_path / "other.git")
    other = opened(str(tmp_path / "other.git"))

    assert means(other.snapshot(0)) == moved
    assert other.changes() == ()


def test_the_command_lists_what_changed(origin, start, tmp_path) -> None:
    registry = start(origin.path, refresh=0)
    first = registry.ask(version="v1.0.0").headers["X-Registry-Revision"]
    moved = commit(origin, "2")
    origin.tag("m@v1.0.0", moved)
    registry.clock.now += 1
    registry.ask(max_age="0")
    config = tmp_path / "registry.yaml"
    config.write_text(
        f"data_dir: {registry.settings.data_dir}\nsecret_key: {'s' * 32}\n"
        f"repositories: [{{url: {origin.path}, name: {NAME}}}]\n"
    )
    command = ["tags", "--changed", "--config", str(config)]
    table = CliRunner().invoke(cli, command, catch_exceptions=False)
    listed = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)

    assert table.stdout.splitlines()[1].split()[:4] == [NAME, "m@v1.0.0", "moved", first[:10]]
    assert listed == [
        {
            "repository": NAME, "tag": "m@v1.0.0", "event": "moved", "kept": first,
            "origin": moved, "time": listed[0]["time"], "seen": registry.clock(),
        }
    ]  # fmt: skip
