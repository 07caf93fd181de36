"""The files of runs and of logged models: written, listed, forgotten, and as DVC sees them."""

import hashlib
import random
from collections.abc import Callable
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.domain import Digest, RelPath
from registry.dvc.manifest import parse
from registry.errors import (
    InvalidRequest,
    LoggedFileInTheWay,
    LoggedFileNotFound,
    LoggedModelNotFound,
    RegistryError,
    RunDeleted,
    RunNotFound,
)
from registry.tracking import Tracking
from registry.tracking.records import LoggedFile, Owner

ROOT = RelPath.ROOT
MD5 = "0cc175b9c0f1b6a831c399e269772661"


@pytest.fixture
def owner(tracking: Tracking) -> Owner:
    """A run without files."""
    return Owner("run", tracking.runs.create(0).id, 0)


def put(tracking: Tracking, owner: Owner, *paths: str, size: int = 1) -> None:
    for path in paths:
        tracking.files.put(owner, LoggedFile(RelPath.parse(path), MD5, size))


def names(tracking: Tracking, owner: Owner, directory: str = "", limit: int | None = None) -> list:
    """What a directory holds, page by page: its names, those of directories with a slash."""
    found, page = [], ""
    while True:
        part = tracking.files.list(owner, RelPath(directory), limit, page)
        assert limit is None or len(part.found) <= limit
        found += [it.path + ("/" if it.size is None else "") for it in part.found]
        page = part.next
        if not page:
            return found


def test_a_file_is_what_was_logged_last(tracking: Tracking, owner: Owner) -> None:
    put(tracking, owner, "a/b.txt", size=1)
    put(tracking, owner, "a/b.txt", size=2)

    assert tracking.files.get(owner, RelPath("a/b.txt")) == ("a/b.txt", MD5, 2)
    for path in ("a", "b.txt", "a/b", "a/b.txt/c"):
        with pytest.raises(LoggedFileNotFound):
            tracking.files.get(owner, RelPath(path))


def test_a_path_is_as_long_as_every_index_holds_and_no_longer(
    tracking: Tracking, owner: Owner
) -> None:
    letters = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyzéü", k=2001))
    longest = letters.encode()[:2000].decode(errors="replace").replace("\ufffd", "x")
    put(tracking, owner, "/".join(longest[at : at + 99] for at in range(0, len(longest), 100)))

    (found,) = names(tracking, owner)
    assert found == f"{longest[:99]}/"
    for look in (tracking.files.check, tracking.files.put):
        path = RelPath("x" * 2001)
        with pytest.raises(InvalidRequest):
            look(owner, path if look == tracking.files.check else LoggedFile(path, MD5, 1))


def test_nothing_is_a_file_and_a_directory(tracking: Tracking, owner: Owner) -> None:
    put(tracking, owner, "a/b", "a.b", "a0")
    for path in ("a", "a/b/c", "a/b/c/d"):
        file = LoggedFile(RelPath(path), MD5, 1)
        with pytest.raises(LoggedFileInTheWay):
            tracking.files.put(owner, file)
        with pytest.raises(LoggedFileInTheWay):
            tracking.files.check(owner, file.path)


def test_of_two_writers_of_one_name_as_a_file_and_as_a_directory_one_is_refused(
    tracking: Tracking, owner: Owner
) -> None:
    outcomes: list[type] = []

    def write(path: str) -> None:
        try:
            put(tracking, owner, path)
            outcomes.append(str)
        except LoggedFileInTheWay:
            outcomes.append(LoggedFileInTheWay)

    for number in range(20):
        outcomes.clear()
        threads = [Thread(target=write, args=(f"{number}{end}",)) for end in ("", "/x")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(it.__name__ for it in outcomes) == ["LoggedFileInTheWay", "str"]


def test_a_directory_shows_one_level(tracking: Tracking, owner: Owner) -> None:
    put(tracking, owner, "d/x/1", "d/x/2", "d/x-", "d/x.y", "d/z", "d0", "e/1", "é/ü", "f")

    assert names(tracking, owner) == ["d/", "d0", "e/", "f", "é/"]
    assert names(tracking, owner, "d") == ["d/x-", "d/x.y", "d/x/", "d/z"]
    assert names(tracking, owner, "d/x") == ["d/x/1", "d/x/2"]
    assert names(tracking, owner, "é") == ["é/ü"]
    for nothing in ("d/x/1", "none", "d/", "d%"):
        assert names(tracking, owner, nothing) == []


segments = st.text("ab0.-/é", min_size=1, max_size=6).filter(
    lambda it: not it.startswith("/") and "" not in it.split("/") and "." not in it.split("/")
    and ".." not in it.split("/")
)  # fmt: skip


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(paths=st.lists(segments, max_size=12), limit=st.integers(1, 4))
def test_pages_hold_together_what_a_slow_look_at_all_paths_finds(
    tracking: Tracking, paths: list[str], limit: int
) -> None:
    owner = Owner("run", tracking.runs.create(0).id, 0)
    kept = set()
    for path in paths:
        try:
            put(tracking, owner, path)
            kept.add(path)
        except LoggedFileInTheWay:
            assert any(f"{path}/".startswith(f"{it}/") or it.startswith(f"{path}/") for it in kept)

    for directory in {"", *(above for path in kept for above in RelPath(path).ancestors())}:
        start = f"{directory}/" if directory else ""
        below = [path[len(start) :] for path in kept if path.startswith(start)]
        expected = {
            start + name + slash for name, slash, _ in (path.partition("/") for path in below)
        }
        listed = names(tracking, owner, directory, limit)
        assert sorted(listed) == sorted(expected)
        assert listed == names(tracking, owner, directory)


def test_a_directory_of_many_files_is_passed_over_by_the_index(
    tracking: Tracking, owner: Owner
) -> None:
    many = [f"deep/{number:05}" for number in range(2500)]
    with tracking.store.writing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO tracking_files (owner, path, md5, size) VALUES "
            + ", ".join(f"('{owner.id}', '{path}', '{MD5}', 1)" for path in many)
        )
    put(tracking, owner, "behind")

    assert names(tracking, owner) == ["behind", "deep/"]
    assert names(tracking, owner, "deep", 999) == many


def test_a_page_of_another_directory_is_refused(tracking: Tracking, owner: Owner) -> None:
    put(tracking, owner, "a/1", "a/2", "b/1", "b/2")
    page = tracking.files.list(owner, RelPath("a"), 1).next

    with pytest.raises(InvalidRequest):
        tracking.files.list(owner, RelPath("b"), 1, page)


def test_what_is_deleted_is_gone_with_all_below_it(tracking: Tracking, owner: Owner) -> None:
    put(tracking, owner, "a/b/1", "a/b/2", "a/b-", "c")

    tracking.files.delete(owner, RelPath("a/b"))
    assert names(tracking, owner, "a") == ["a/b-"]
    with pytest.raises(LoggedFileNotFound):
        tracking.files.delete(owner, RelPath("a/b"))
    tracking.files.delete(owner, ROOT)
    assert names(tracking, owner) == []


def test_files_belong_to_who_is_there_and_may_be_written_to(tracking: Tracking) -> None:
    files = tracking.files
    elsewhere = tracking.experiments.create("elsewhere", "s3://bucket/x")
    run, model = tracking.runs.create(0).id, tracking.models.create(0, name="m").id
    file = LoggedFile(RelPath("a"), MD5, 1)

    def refused(owner: Owner, error: type[RegistryError], *calls: Callable) -> None:
        for call in calls:
            with pytest.raises(error):
                call(owner)

    every = [
        lambda it: files.check(it, file.path),
        lambda it: files.put(it, file),
        lambda it: files.get(it, file.path),
        lambda it: files.list(it, ROOT),
        lambda it: files.delete(it, file.path),
        files.manifest,
    ]
    files.put(Owner("run", run, 0), file)
    files.put(Owner("model", model, 0), file)
    refused(Owner("run", "0" * 32, 0), RunNotFound, *every)
    refused(Owner("run", run, elsewhere), RunNotFound, *every)
    refused(Owner("run", tracking.runs.create(elsewhere).id, elsewhere), RunNotFound, *every)
    refused(Owner("model", run, 0), LoggedModelNotFound, *every)
    refused(Owner("model", "m-0", 0), LoggedModelNotFound, *every)
    refused(Owner("run", model, 0), RunNotFound, *every)

    tracking.runs.delete(run)
    refused(Owner("run", run, 0), RunDeleted, *every[:2])
    assert files.get(Owner("run", run, 0), file.path) == file
    tracking.models.delete(model)
    refused(Owner("model", model, 0), LoggedModelNotFound, *every)


def test_a_directory_is_a_manifest_as_dvc_writes_it(tracking: Tracking, owner: Owner) -> None:
    paths = ["d/b/2", "d/b.txt", "d/a", "d/é ü", "other"]
    random.Random(1).shuffle(paths)
    put(tracking, owner, *paths)

    data = tracking.files.manifest(owner, RelPath("d"))
    digest = Digest(hashlib.md5(data).hexdigest() + ".dir")
    listed = parse(data, digest, "d", RelPath("d"), legacy=False)

    assert [entry.path for entry in listed] == ["d/a", "d/b.txt", "d/b/2", "d/é ü"]
    assert data.startswith(b'[{"md5": "0cc175b9c0f1b6a831c399e269772661", "relpath": "a"}, ')
    with pytest.raises(LoggedFileNotFound):
        tracking.files.manifest(owner, RelPath("none"))
