"""The mirror of a repository: follows its origin, outlives its faults, and trusts nothing in it."""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gitserver
import pytest
from faults.observer import until
from faults.proxy import Proxy
from gitrepo import EXECUTABLE, LINK, GitRepository
from service import WebServer

from registry.domain import RelPath, Revision, Selector
from registry.errors import (
    InvalidMetadata,
    MirrorNotReady,
    NotFound,
    OriginUnavailable,
    PathNotFound,
    SettingsError,
)
from registry.repository import Repository
from registry.repository.commands import require_git
from registry.repository.lanes import Lanes

NOWHERE = Revision("0" * 40)
SECRET = "correct-horse-battery"


class Clock:
    """Unix time that passes when told to."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def origin(tmp_path):
    made = GitRepository(tmp_path / "origins" / "team" / "models.git")
    made.commit({"dvc.yaml": "artifacts: {}"})
    made.tag("m@v1.0.0")
    return made


@pytest.fixture
def mirror(tmp_path):
    return tmp_path / "mirrors" / "models"


@pytest.fixture
def opened(origin, mirror, clock):
    """Opens repositories, of the origin if nothing else is said, and closes them in the end."""
    lanes = Lanes()
    repositories = []

    def open_(url=None, **options):
        made = Repository(
            "team/models", url or str(origin.path), options.pop("mirror", mirror),
            lanes=lanes, clock=clock, **options,
        )  # fmt: skip
        repositories.append(made)
        return made

    yield open_
    for one in repositories:
        one.close()
    lanes.close()


@pytest.fixture
def repository(opened):
    return opened()


def revision(snapshot, version="v1.0.0", name="m"):
    return snapshot.index.resolve(Selector.parse(name, version, "")).revision


def has(snapshot, version):
    try:
        return bool(revision(snapshot, version))
    except NotFound:
        return False


@pytest.fixture
def after(repository, clock):
    """What the mirror tells after a second."""

    def look():
        clock.now += 1
        return repository.snapshot(0)

    return look


def processes_on(path):
    """The command lines of running processes that name the path."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(path) in line:
            found.append(line)
    return found


class TestFollowingTheOrigin:
    """What happens there is seen here."""

    def test_the_first_snapshot_is_a_clone(self, repository, origin, clock):
        snapshot = repository.snapshot(30)

        assert revision(snapshot) == origin.head()
        assert snapshot.checked == clock.now

    def test_a_snapshot_that_is_young_enough_is_kept(self, repository, origin, clock):
        first = repository.snapshot(30)
        origin.tag("m@v2.0.0")
        clock.now += 30

        assert repository.snapshot(30) is first

    def test_an_older_one_is_not(self, repository, origin, clock):
        repository.snapshot(30)
        origin.tag("m@v2.0.0")
        clock.now += 31
        snapshot = repository.snapshot(30)

        assert has(snapshot, "v2.0.0")
        assert snapshot.checked == clock.now

    def test_the_index_stays_when_nothing_changed(self, repository, after, clock):
        first = repository.snapshot(0)
        second = after()

        assert second.index is first.index
        assert second.checked == clock.now

    def test_without_waiting_the_last_snapshot_is_told(self, repository, origin, clock):
        first = repository.snapshot(30)
        origin.tag("m@v2.0.0")
        clock.now += 31

        assert repository.snapshot(30, wait=0.0) is first
        assert has(repository.snapshot(30), "v2.0.0")

    def test_a_clock_that_was_set_back_makes_nobody_trust_the_future(
        self, repository, origin, clock
    ):
        repository.snapshot(30)
        origin.tag("m@v2.0.0")
        clock.now -= 1000

        assert has(repository.snapshot(30), "v2.0.0")

    def test_a_deleted_tag_is_gone(self, repository, origin, after):
        repository.snapshot(0)
        origin.delete_tag("m@v1.0.0")

        assert not has(after(), "v1.0.0")

    def test_the_mirror_has_the_refs_of_the_origin_whatever_changed(
        self, repository, origin, mirror, after
    ):
        """Little that is new is fetched by name, and anything else in full."""
        repository.snapshot(0)
        tip = origin.head()
        for change in (
            lambda: origin.tag("m@v2.0.0"),
            lambda: (origin.tag("m@v2.1.0"), origin.commit({"a": "b"}), origin.commit({}, "side")),
            lambda: (origin.tag("m@v3.0.0"), origin.delete_tag("m@v2.0.0")),
            lambda: (origin.tag("m#prod#1"), origin.tag("m#prod#1", tip), origin.tag("caf\u00e9")),
            lambda: (origin.delete_tag("m@v3.0.0"), origin.tag("m@v3.0.0/x")),
            lambda: [origin.tag(f"m@v4.{number}.0") for number in range(101)],
        ):
            change()
            after()

            listed = ("for-each-ref", "refs/heads", "refs/tags")
            there = ["git", f"--git-dir={mirror / 'repository.git'}", *listed]
            done = subprocess.run(there, capture_output=True, text=True, check=True)
            assert done.stdout.strip() == origin.git(*listed)

    def test_a_stage_tag_that_was_moved_by_force_is_followed(self, repository, origin, after):
        origin.tag("m#prod#1")
        repository.snapshot(0)
        second = origin.commit({"dvc.yaml": "artifacts: {a: {}}"})
        origin.tag("m#prod#1", second)

        assert after().index.resolve(Selector.parse("m", "", "prod")).revision == second

    def test_a_deleted_default_branch_takes_nothing_along(self, repository, origin, after):
        commit = revision(repository.snapshot(0))
        origin.git("update-ref", "-d", "refs/heads/main")

        assert revision(after()) == commit
        assert list(repository.files(commit, lambda _: True)) == ["dvc.yaml"]

    def test_a_rewritten_branch_is_followed(self, repository, origin, after):
        repository.snapshot(0)
        other = origin.commit({"x": "y"}, orphan=True)
        origin.tag("m@v2.0.0", other)

        assert revision(after(), "v2.0.0") == other
        assert repository.contains(other)

    def test_a_tag_may_become_a_directory_of_tags_and_back(self, repository, origin, after):
        origin.tag("a")
        repository.snapshot(0)
        origin.delete_tag("a")
        origin.tag("a/m@v1.0.0")
        assert revision(after(), name="a/m") == origin.head()

        origin.delete_tag("a/m@v1.0.0")
        origin.tag("a")
        origin.tag("m@v2.0.0")
        assert has(after(), "v2.0.0")

    def test_commits_on_no_branch_are_there(self, repository, origin):
        aside = origin.commit({"x": "y"}, branch="aside")
        origin.tag("m@v2.0.0", aside)
        origin.git("update-ref", "-d", "refs/heads/aside")

        assert revision(repository.snapshot(0), "v2.0.0") == aside
        assert repository.contains(aside)

    def test_an_empty_origin_has_no_artifacts(self, opened, tmp_path):
        empty = GitRepository(tmp_path / "empty.git")

        assert opened(str(empty.path)).snapshot(0).index.artifacts() == ()

    def test_a_web_server_that_answers_nothing_is_not_taken_for_an_empty_origin(self, opened):
        nothing = {"/models.git/info/refs?service=git-upload-pack": b""}
        with WebServer(nothing) as server, pytest.raises(OriginUnavailable, match="is empty"):
            opened(f"{server.url}/models.git").snapshot(0, wait=20)

    def test_repositories_of_sha256_are_mirrored(self, opened, tmp_path):
        origin = GitRepository(tmp_path / "sha256.git", object_format="sha256")
        commit = origin.commit({"a": "b"})
        origin.tag("m@v1.0.0")
        repository = opened(str(origin.path))

        assert revision(repository.snapshot(0)) == commit
        assert list(repository.files(commit, lambda _: True)) == ["a"]

    def test_a_file_url_is_a_local_path(self, opened, origin):
        assert has(opened(f"file://{origin.path}").snapshot(0), "v1.0.0")


class TestTags:
    """Odd tags that exist in real repositories."""

    def test_nested_tags_are_peeled_to_the_commit(self, repository, origin):
        inner = origin.tag("inner")
        middle = origin.tag("middle", inner)
        origin.tag("m@v2.0.0", middle)

        assert revision(repository.snapshot(0), "v2.0.0") == origin.head()

    def test_a_tag_without_a_tagger_counts(self, repository, origin):
        origin.raw_tag("m@v2.0.0", origin.head())

        assert revision(repository.snapshot(0), "v2.0.0") == origin.head()

    def test_the_name_of_the_ref_counts(self, repository, origin):
        tagger = "tagger A <a@example.com> 1700000000 +0000"
        origin.raw_tag("m@v2.0.0", origin.head(), tagger, inside="m@v3.0.0")
        snapshot = repository.snapshot(0)

        assert has(snapshot, "v2.0.0")
        assert not has(snapshot, "v3.0.0")

    def test_tags_of_trees_and_lightweight_tags_do_not_count(self, repository, origin):
        origin.tag("m@v2.0.0", origin.git("rev-parse", "main^{tree}"))
        origin.tag("m@v3.0.0", origin.tag("inner", origin.git("rev-parse", "main^{tree}")))
        origin.tag("m@v4.0.0", lightweight=True)
        snapshot = repository.snapshot(0)

        assert [has(snapshot, f"v{n}.0.0") for n in (1, 2, 3, 4)] == [True, False, False, False]
        with pytest.raises(NotFound, match="lightweight"):
            revision(snapshot, "v4.0.0")

    def test_the_time_of_the_tagger_orders_tags(self, repository, origin):
        first, second = origin.head(), origin.commit({"x": "y"})
        origin.tag("m#prod#2", second, time=1000)
        origin.tag("m#prod#1", first, time=2000)
        found = repository.snapshot(0).index.resolve(Selector.parse("m", "", "prod"))

        assert found.revision == first


class TestReading:
    """Files of a revision, straight from the objects."""

    @pytest.fixture
    def commit(self, origin, repository):
        module = origin.head()
        commit = origin.commit(
            {
                "plain.txt": "text\n",
                "deep/er/run": (EXECUTABLE, b"\0\xff"),
                "deep/link": (LINK, "/etc/passwd"),
                '"back\\\\slash"': "x",
                '"new\\nline"': "x",
                "ünï côde": "x",
            }
        )
        tree = origin.git("ls-tree", "main") + f"\n160000 commit {module}\tmodule"
        oid = origin.git("mktree", given=tree)
        commit = Revision(origin.git("commit-tree", "-m", "Add a submodule", "-p", commit, oid))
        origin.git("update-ref", "refs/heads/main", commit)
        repository.snapshot(0)
        return commit

    def test_only_regular_files_with_safe_paths_are_listed(self, repository, commit):
        files = repository.files(commit, lambda _: True)

        assert sorted(files) == ["deep/er/run", "dvc.yaml", "plain.txt", "ünï côde"]

    def test_only_what_is_wanted_is_listed(self, repository, commit):
        assert list(repository.files(commit, lambda path: path.endswith(".yaml"))) == ["dvc.yaml"]

    def test_blobs_are_read_byte_by_byte(self, repository, commit):
        files = repository.files(commit, lambda _: True)

        assert repository.blob(files[RelPath("plain.txt")], 5) == b"text\n"
        assert repository.blob(files[RelPath("deep/er/run")], 5) == b"\0\xff"

    def test_blobs_that_are_too_large_are_refused_and_the_next_is_read(self, repository, commit):
        oid = repository.find(commit, RelPath("plain.txt"))
        with pytest.raises(InvalidMetadata, match="5 bytes, and 4 are allowed"):
            repository.blob(oid, 4)

        assert repository.blob(oid, 5) == b"text\n"

    def test_large_blobs_arrive_whole(self, repository, origin, after):
        data = bytes(range(256)) * 20_000
        commit = origin.commit({"large": data})
        after()

        assert repository.blob(repository.find(commit, RelPath("large")), len(data)) == data

    @pytest.mark.parametrize(
        ("path", "kind", "found"),
        [
            ("plain.txt", "file", True),
            ("deep/er/run", "file", True),
            ("deep", "directory", False),
            ("deep/link", "file", False),
            ("module", "directory", False),
            ("", "directory", False),
            ("nowhere", None, False),
            ("dee", None, False),
            ("*.txt", None, False),
            ("plain.txt/x", None, False),
        ],
    )
    def test_paths_are_told_apart(self, repository, commit, path, kind, found):
        assert repository.kind(commit, RelPath(path)) == kind
        assert (repository.find(commit, RelPath(path)) is not None) == found

    def test_revisions_are_commits(self, repository, commit, origin):
        assert repository.contains(commit)
        assert not repository.contains(NOWHERE)
        assert not repository.contains(Revision(origin.git("rev-parse", "main^{tree}")))
        assert not repository.contains(Revision(origin.git("rev-parse", "m@v1.0.0")))

    def test_a_revision_that_is_not_there_has_no_files(self, repository, commit):
        with pytest.raises(PathNotFound):
            repository.files(NOWHERE, lambda _: True)
        with pytest.raises(PathNotFound):
            repository.find(NOWHERE, RelPath("plain.txt"))

    @pytest.mark.parametrize("text", ["--help", "main", "HEAD", f"{NOWHERE}\ninfo main", ""])
    def test_only_full_ids_are_looked_up(self, repository, commit, text):
        with pytest.raises(ValueError, match="not a full commit id"):
            repository.contains(Revision(text))
        with pytest.raises(ValueError, match="not a full commit id"):
            repository.blob(text, 10)

    def test_threads_share_one_reader(self, repository, commit, mirror):
        files = repository.files(commit, lambda _: True)
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda oid: repository.blob(oid, 99), [*files.values()] * 50))

        assert read == [repository.blob(oid, 99) for oid in files.values()] * 50
        assert len([line for line in processes_on(mirror) if "cat-file" in line]) == 1

    def test_a_reader_that_died_is_replaced(self, repository, commit, mirror):
        oid = repository.find(commit, RelPath("plain.txt"))
        repository.blob(oid, 5)
        kill_reader(mirror)

        assert repository.blob(oid, 5) == b"text\n"

    def test_a_reader_that_stopped_answering_is_given_up(
        self, repository, commit, mirror, monkeypatch
    ):
        monkeypatch.setattr("registry.repository.objects.READ_LIMIT", 0.2)
        oid = repository.find(commit, RelPath("plain.txt"))
        repository.blob(oid, 5)
        kill_reader(mirror, signal.SIGSTOP)
        with pytest.raises(OriginUnavailable, match="no answer"):
            repository.blob(oid, 5)

        monkeypatch.undo()
        assert repository.blob(oid, 5) == b"text\n"

    def test_a_fork_reads_by_itself(self, repository, commit):
        oid = repository.find(commit, RelPath("plain.txt"))
        repository.blob(oid, 5)
        child = os.fork()
        if child == 0:
            os._exit(0 if repository.blob(oid, 5) == b"text\n" else 1)

        assert os.waitpid(child, 0)[1] == 0
        assert repository.blob(oid, 5) == b"text\n"


def kill_reader(mirror, with_=signal.SIGKILL):
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"cat-file" in line and str(mirror).encode() in line:
            os.kill(int(process.name), with_)


class TestFaults:
    """Origins that are down, and mirrors that are broken."""

    def test_an_origin_that_refuses_is_unavailable(self, opened):
        with gitserver.refusing() as url:
            with pytest.raises(OriginUnavailable, match="cannot be fetched"):
                opened(f"{url}/team/models.git").snapshot(30)
            with pytest.raises(OriginUnavailable):
                opened(f"{url}/team/models.git").probe(10)

    def test_a_path_without_a_repository_is_unavailable_and_not_named(self, opened, tmp_path):
        with pytest.raises(OriginUnavailable) as caught:
            opened(f"{tmp_path}/nothing.git").snapshot(30)

        assert str(tmp_path) not in caught.value.detail

    def test_an_origin_that_hangs_is_not_waited_for_and_leaves_no_process(self, opened, mirror):
        with gitserver.hung() as url:
            repository = opened(f"{url}/team/models.git")
            with pytest.raises(MirrorNotReady):
                repository.snapshot(30, wait=0.2)
            with pytest.raises(OriginUnavailable, match="no answer within"):
                repository.probe(0.2)
            repository.close()

        assert processes_on(mirror) == []

    def test_what_talks_to_a_silent_origin_ends_although_who_started_it_was_killed(self, tmp_path):
        program = (
            "import pathlib, sys\n"
            "from registry.repository.commands import Commands\n"
            "from registry.repository.origin import Origin\n"
            "commands = Commands(pathlib.Path(sys.argv[2]), Origin.parse(sys.argv[1]))\n"
            "commands.ask_origin('ls-remote', limit=3)\n"
        )
        with gitserver.hung() as url:
            nowhere = str(tmp_path / "nowhere.git")
            asking = subprocess.Popen([sys.executable, "-c", program, f"{url}/m.git", nowhere])
            until(lambda: any(line.startswith("git ") for line in processes_on(url)))
            asking.kill()
            asking.wait()

            # Git itself gives up after 20 s, for this is a web server.
            until(lambda: not processes_on(url), deadline=15)

    def test_an_origin_that_hangs_later_does_not_delay_who_comes_next(self, opened, origin, clock):
        with gitserver.serve_http(origin.path.parent) as server, Proxy(server.port) as proxy:
            repository = opened(f"{proxy.url}/models.git")
            first = repository.snapshot(30)
            proxy.hangs()
            clock.now += 31

            assert repository.snapshot(30, wait=0.1) == first
            assert repository.snapshot(30, wait=0.1) == first

    def test_an_origin_that_goes_down_leaves_what_was_seen_last(
        self, repository, origin, clock, caplog
    ):
        first = repository.snapshot(30)
        origin.path.rename(origin.path.with_suffix(".away"))
        clock.now += 31

        assert repository.snapshot(30) == first
        assert "team/models cannot be fetched" in caplog.text

    def test_nothing_is_fetched_to_a_disk_that_is_nearly_full_until_there_is_room(
        self, repository, opened, origin, tmp_path, clock, caplog, monkeypatch
    ):
        first = repository.snapshot(30)
        full = shutil.disk_usage(tmp_path)._replace(total=8 << 20, free=700_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        origin.commit({"new": "file"})
        origin.tag("m@v2.0.0")
        clock.now += 31

        assert repository.snapshot(30) == first
        assert "its disk is 92% full, and nothing is fetched above 90%" in caplog.text
        with pytest.raises(OriginUnavailable, match="92% full"):
            opened(mirror=tmp_path / "mirrors" / "new").snapshot(30)

        monkeypatch.undo()
        clock.now += 60
        assert has(repository.snapshot(30), "v2.0.0")

    def test_a_small_share_of_a_large_disk_is_room_enough(self, repository, tmp_path, monkeypatch):
        large = shutil.disk_usage(tmp_path)._replace(total=1 << 40, free=20 << 30)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: large)

        assert has(repository.snapshot(30), "v1.0.0")

    def test_an_origin_that_is_down_is_left_in_peace_and_tried_again_later(
        self, opened, origin, clock
    ):
        with gitserver.serve_http(origin.path.parent.parent) as server:
            repository = opened(f"{server.url}/team/models.git")
            server.broken = True
            for _ in range(3):
                with pytest.raises(OriginUnavailable) as caught:
                    repository.snapshot(30)
            assert len(server.requests) == 1
            assert caught.value.retry_after == 5

            server.broken = False
            clock.now += 5
            assert has(repository.snapshot(30), "v1.0.0")

    def test_pauses_grow_while_it_stays_down(self, opened, clock):
        pauses = []
        with gitserver.refusing() as url:
            repository = opened(f"{url}/models.git")
            for _ in range(6):
                with pytest.raises(OriginUnavailable) as caught:
                    repository.snapshot(30)
                pauses.append(caught.value.retry_after)
                clock.now += pauses[-1]

        assert pauses == [5, 10, 20, 40, 60, 60]

    def test_a_new_process_tells_what_the_last_one_saw_when_the_origin_is_down(
        self, repository, opened, origin, clock
    ):
        first = repository.snapshot(30)
        origin.path.rename(origin.path.with_suffix(".away"))
        clock.now += 1000
        snapshot = opened().snapshot(30)

        assert snapshot.checked == first.checked
        assert has(snapshot, "v1.0.0")

    def test_what_a_killed_fetch_leaves_behind_is_swept(self, repository, origin, mirror, after):
        repository.snapshot(0)
        git = mirror / "repository.git"
        leftovers = [
            git / name
            for name in (
                "packed-refs.lock", "HEAD.lock", "refs/tags/m@v2.0.0.lock", "refs/heads/main.lock",
                "objects/pack/tmp_pack_x1", "objects/pack/tmp_idx_x1", "objects/aa/tmp_obj_x",
            )
        ]  # fmt: skip
        for file in leftovers:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"")
        origin.tag("m@v2.0.0", origin.commit({"x": "y"}))

        assert has(after(), "v2.0.0")
        assert not any(file.exists() for file in leftovers)

    def test_a_clone_that_was_killed_starts_over(self, opened, mirror):
        (mirror / "incoming.git" / "objects").mkdir(parents=True)

        assert has(opened().snapshot(0), "v1.0.0")
        assert not (mirror / "incoming.git").exists()

    @pytest.mark.parametrize("damage", ["state", "tags", "HEAD", "refs", "objects", "everything"])
    def test_a_damaged_mirror_is_cloned_again(
        self, repository, opened, origin, mirror, clock, damage
    ):
        repository.snapshot(0)
        repository.close()
        git = mirror / "repository.git"
        match damage:
            case "state":
                (mirror / "state").write_text('{"url": "')
            case "tags":
                next(mirror.glob("tags-*")).write_text("")
            case "HEAD":
                (git / "HEAD").unlink()
            case "refs":
                (git / "packed-refs").write_text("garbage\n")
            case "objects":
                shutil.rmtree(git / "objects")
            case "everything":
                shutil.rmtree(mirror)
        origin.tag("m@v2.0.0", origin.commit({"x": "y"}))
        clock.now += 1
        again = opened()
        snapshot = again.snapshot(0)

        assert has(snapshot, "v1.0.0")
        assert has(snapshot, "v2.0.0")
        assert list(again.files(revision(snapshot), lambda _: True)) == ["dvc.yaml"]

    def test_a_lost_object_is_noticed_when_it_is_read(self, repository, origin, mirror, clock):
        commit = revision(repository.snapshot(30))
        oid = repository.find(commit, RelPath("dvc.yaml"))
        for pack in (mirror / "repository.git/objects/pack").iterdir():
            pack.unlink()
        kill_reader(mirror)
        with pytest.raises(OriginUnavailable, match="cannot be read"):
            repository.blob(oid, 99)
        repository.snapshot(30)

        assert repository.blob(oid, 99) == b"artifacts: {}"

    def test_a_mirror_of_another_url_is_not_taken_for_this_one(
        self, repository, opened, tmp_path, clock
    ):
        commit = revision(repository.snapshot(30))
        other = GitRepository(tmp_path / "other.git")
        other.commit({"x": "y"})
        other.tag("n@v1.0.0")
        second = opened(str(other.path))
        snapshot = second.snapshot(30)

        assert [str(name) for name in snapshot.index.artifacts()] == ["n"]
        assert not second.contains(commit)

    def test_many_fetches_do_not_leave_many_packs(
        self, repository, origin, mirror, after, monkeypatch
    ):
        monkeypatch.setattr("registry.repository.mirror._MANY_PACKS", 2)
        repository.snapshot(0)
        for number in range(5):
            origin.tag(f"m@v2.{number}.0", origin.commit({"x": str(number)}))
            snapshot = after()
        packs = list((mirror / "repository.git").glob("objects/pack/*.pack"))

        assert len(packs) <= 2
        assert repository.contains(revision(snapshot, "v2.0.0"))

    def test_a_closed_repository_says_so(self, repository):
        repository.close()
        repository.close()

        with pytest.raises(OriginUnavailable, match="being stopped"):
            repository.snapshot(0)


class TestSharing:
    """Several processes on one mirror."""

    def test_a_sibling_takes_what_was_seen_without_asking_the_origin(self, opened, origin, clock):
        with gitserver.serve_http(origin.path.parent.parent) as server:
            url = f"{server.url}/team/models.git"
            first, second = opened(url), opened(url)
            first.snapshot(30)
            asked = len(server.requests)

            assert has(second.snapshot(30), "v1.0.0")
            assert len(server.requests) == asked

    def test_a_sibling_sees_a_newer_state_at_once(self, opened, origin, clock):
        first, second = opened(), opened()
        kept = second.snapshot(30)
        origin.tag("m@v2.0.0")
        clock.now += 31
        first.snapshot(30)

        assert has(second.snapshot(30), "v2.0.0")
        clock.now += 31
        first.snapshot(30)
        assert second.snapshot(30).index is not kept.index

    def test_threads_start_one_refresh(self, opened, origin):
        with gitserver.serve_http(origin.path.parent.parent) as server:
            repository = opened(f"{server.url}/team/models.git")
            with ThreadPoolExecutor(8) as pool:
                snapshots = list(pool.map(lambda _: repository.snapshot(30), range(8)))

            assert all(snapshot is snapshots[0] for snapshot in snapshots)
            assert looks(server) == 2

    def test_processes_that_start_at_once_clone_once(self, origin, mirror):
        script = textwrap.dedent("""
            import sys
            from pathlib import Path
            from registry.repository import Repository
            from registry.repository.lanes import Lanes
            lanes = Lanes()
            repository = Repository("r", sys.argv[1], Path(sys.argv[2]), lanes=lanes)
            print(len(repository.snapshot(60, wait=30).index.artifacts()))
            repository.close()
        """)
        with gitserver.serve_http(origin.path.parent.parent) as server:
            command = [sys.executable, "-c", script, f"{server.url}/team/models.git", str(mirror)]
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)
            ]
            told = [process.communicate(timeout=60)[0].strip() for process in running]

            assert told == ["1", "1", "1"]
            assert looks(server) == 2

    def test_a_fetch_keeps_the_lock_even_if_its_process_is_killed(
        self, origin, mirror, tmp_path, monkeypatch
    ):
        """Or else the next one would sweep away the files of a git that still runs."""
        shim = tmp_path / "bin" / "git"
        shim.parent.mkdir()
        shim.write_text(
            f'#!/bin/sh\ncase "$*" in *" fetch "*) echo $$ > {tmp_path}/pid; mv {tmp_path}/pid '
            f'{tmp_path}/fetching; exec sleep 60;; esac\nexec {shutil.which("git")} "$@"\n'
        )
        shim.chmod(0o755)
        monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
        script = textwrap.dedent("""
            import os, signal, sys
            from pathlib import Path
            from registry.errors import MirrorNotReady
            from registry.repository import Repository
            from registry.repository.lanes import Lanes
            lanes = Lanes()
            repository = Repository("r", sys.argv[1], Path(sys.argv[2]), lanes=lanes)
            while not Path(sys.argv[3]).exists():
                try:
                    repository.snapshot(0, wait=0.01)
                except MirrorNotReady:
                    pass
            os.kill(os.getpid(), signal.SIGKILL)
        """)
        fetching = tmp_path / "fetching"
        command = [sys.executable, "-c", script, str(origin.path), str(mirror), str(fetching)]
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL

        with open(mirror / "lock", "ab") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.kill(int(fetching.read_text()), signal.SIGKILL)
            fcntl.flock(lock, fcntl.LOCK_EX)


def looks(server):
    """How often the origin was asked for its refs: twice for a clone, once in vain."""
    return sum("info/refs" in one for one in server.requests)


class TestUrls:
    """Only URLs of known forms are used, and only as rebuilt from their parts."""

    @pytest.mark.parametrize(
        "url",
        [
            "--upload-pack=touch /tmp/x", "-oProxyCommand=x", "ext::sh -c whoami", "fd::17",
            "EXT::sh -c x", "ssh://-oProxyCommand=x/y", "ssh://-oProxyCommand=x@host/y",
            "ssh://user@-oProxyCommand=x/y", "-oProxyCommand=x:y", "git@-host:x", "host:-oX",
            "git@host:../x", "git://host/x", "ftp://host/x", "HTTPS//host/x", "file://host/etc",
            "file:///a/../etc", "relative/path", "./x", "../x", ".", "", "~", "~/x", "\\\\host\\x",
            "//host/share", "/srv/../etc", "https://", "https:///x", "https://host", "https://host/",
            "https://user:pw@host/x", "https://user@host/x", "ssh://u:pw@host/x",
            "https://host/x?y=z", "https://host/x#y", "https://host/../x", "https://host/%2e%2e/x",
            "https://ho st/x", "https://host\n/x", "https://host/x\n", " https://host/x",
            "https://host/$HOME", "https://host/${HOME}", "https://host/x;y", "https://host/`x`",
            "https://host:99999/x", "https://host:x/x", "https://[::1/x", "https://ho$t/x",
            "ssh://us er@host/x", "ssh://u$er@host/x", "http::https://host/x", "/srv/x\0y",
        ],
    )  # fmt: skip
    def test_everything_else_is_refused(self, opened, url):
        with pytest.raises(ValueError, match=r".+"):
            opened(url or " ")

    @pytest.mark.parametrize(
        "url",
        [
            "https://github.com/team/models.git", "https://git.example:8443/a/b", "/srv/git/x.git",
            "http://127.0.0.1:8000/x", "https://[::1]:8443/x", "ssh://git@host/~team/x.git",
            "ssh://git@host:2222/srv/x.git", "git@github.com:team/models.git", "host:x.git",
            "https://dev.azure.com/team/My%20Project/_git/x", "file:///srv/x", "file://localhost/x",
        ],
    )  # fmt: skip
    def test_the_usual_forms_are_taken(self, opened, url):
        opened(url)

    def test_credentials_go_with_the_protocol_they_are_for(self, opened, tmp_path):
        with pytest.raises(ValueError, match="password goes with https"):
            opened("git@host:x", password=SECRET)
        with pytest.raises(ValueError, match="go with ssh"):
            opened("https://host/x", ssh_key=tmp_path / "key")
        with pytest.raises(ValueError, match="user name"):
            opened("https://host/x", username="a:b", password=SECRET)
        with pytest.raises(ValueError, match="path for ssh"):
            opened("git@host:x", ssh_key=tmp_path / 'k"ey')
        with pytest.raises(ValueError, match="path for ssh"):
            opened("git@host:x", ssh_known_hosts=tmp_path / "${HOME}")

    def test_variables_in_a_path_stand_for_themselves(self, opened, tmp_path, monkeypatch):
        monkeypatch.setenv("CANARY", "elsewhere")
        origin = GitRepository(tmp_path / "$CANARY ${CANARY} ~" / "x.git")
        origin.commit({"a": "b"})
        origin.tag("m@v1.0.0")

        assert has(opened(str(origin.path)).snapshot(0), "v1.0.0")


SHIM = """#!/bin/sh
{ printf '%s\\0' "$@"; echo; } >> "$SHIM_LOG.argv"
env >> "$SHIM_LOG.env"
exec "$SHIM_GIT" "$@"
"""


class TestSecrets:
    """Credentials reach the one process that needs them, by its environment."""

    @pytest.fixture
    def server(self, origin):
        with gitserver.serve_http(origin.path.parent.parent, "ada", SECRET) as server:
            yield server

    @pytest.fixture
    def shim(self, tmp_path, monkeypatch):
        """A `git` that writes down what it is given."""
        shim = tmp_path / "bin" / "git"
        shim.parent.mkdir()
        shim.write_text(SHIM)
        shim.chmod(0o755)
        monkeypatch.setenv("SHIM_GIT", shutil.which("git"))
        monkeypatch.setenv("SHIM_LOG", str(tmp_path / "shim"))
        monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
        return tmp_path / "shim"

    def test_the_right_password_opens(self, opened, server):
        repository = opened(f"{server.url}/team/models.git", username="ada", password=SECRET)

        assert has(repository.snapshot(0), "v1.0.0")
        repository.probe(10)

    @pytest.mark.parametrize("password", [None, "wrong"])
    def test_another_one_does_not_and_is_not_told(self, opened, server, password, caplog):
        repository = opened(f"{server.url}/team/models.git", username="ada", password=password)
        with pytest.raises(OriginUnavailable) as caught:
            repository.snapshot(0)

        assert "credentials" in caught.value.detail
        assert "wrong" not in caught.value.detail + caplog.text

    def test_no_password_is_in_arguments_files_logs_or_representations(
        self, opened, server, shim, mirror, caplog
    ):
        caplog.set_level(logging.DEBUG)
        repository = opened(f"{server.url}/team/models.git", username="ada", password=SECRET)
        repository.files(revision(repository.snapshot(0)), lambda _: True)
        basic = "Authorization: Basic"
        arguments = shim.with_suffix(".argv").read_text()
        on_disk = b"".join(file.read_bytes() for file in mirror.rglob("*") if file.is_file())

        assert basic in shim.with_suffix(".env").read_text()
        for text in (arguments, on_disk.decode(errors="replace"), caplog.text,
                     repr(vars(repository)), repr(vars(repository._mirror))):  # fmt: skip
            assert basic not in text
            assert SECRET not in text

    def test_arguments_are_fixed_and_end_before_the_url(self, opened, origin, shim, mirror):
        opened().snapshot(0)
        lines = shim.with_suffix(".argv").read_text().splitlines()
        talking = [line.split("\0") for line in lines if "ls-remote" in line or "fetch" in line]

        assert [line[2] for line in talking] == ["ls-remote", "fetch"]
        for line in talking:
            assert line[line.index("--") + 1] == str(origin.path)
            assert line.index("--") > 2

    def test_redirects_are_not_followed(self, opened, server, origin):
        with gitserver.serve_http(origin.path.parent.parent) as elsewhere:
            server.redirect = elsewhere.url
            repository = opened(f"{server.url}/team/models.git", username="ada", password=SECRET)
            with pytest.raises(OriginUnavailable):
                repository.snapshot(0)

            assert elsewhere.requests == []

    def test_the_environment_of_the_service_does_not_steer_git(
        self, opened, origin, tmp_path, monkeypatch, mirror
    ):
        ran = tmp_path / "ran"
        script = tmp_path / "evil"
        script.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
        script.chmod(0o755)
        hooks = tmp_path / "template" / "hooks"
        hooks.mkdir(parents=True)
        shutil.copy(script, hooks / "reference-transaction")
        home = tmp_path / "home"
        home.mkdir()
        (home / ".gitconfig").write_text(f"[core]\n\tfsmonitor = {script}\n\thooksPath = {hooks}\n")
        hostile = {
            "HOME": str(home),
            "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
            "GIT_CONFIG_SYSTEM": str(home / ".gitconfig"),
            "GIT_CONFIG_PARAMETERS": f"'core.hooksPath={hooks}'",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "core.hooksPath",
            "GIT_CONFIG_VALUE_0": str(hooks),
            "GIT_TEMPLATE_DIR": str(hooks.parent),
            "GIT_DIR": str(tmp_path / "elsewhere"),
            "GIT_WORK_TREE": str(tmp_path),
            "GIT_COMMON_DIR": str(tmp_path / "elsewhere"),
            "GIT_OBJECT_DIRECTORY": str(tmp_path / "elsewhere"),
            "GIT_INDEX_FILE": str(tmp_path / "elsewhere"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(tmp_path / "elsewhere"),
            "GIT_NAMESPACE": "elsewhere",
            "GIT_TRACE": str(ran),
            "GIT_TRACE2_EVENT": str(ran),
            "GIT_TRACE_PACKET": str(ran),
            "GIT_TRACE_CURL": str(ran),
            "GIT_SSH": str(script),
            "GIT_SSH_COMMAND": str(script),
            "GIT_ASKPASS": str(script),
            "GIT_ALLOW_PROTOCOL": "",
            "GIT_REPLACE_REF_BASE": "refs/tags/",
            "GIT_SHALLOW_FILE": str(tmp_path / "elsewhere"),
            "GIT_DEFAULT_HASH": "sha256",
            "GIT_QUARANTINE_PATH": str(tmp_path / "elsewhere"),
            "GIT_EXEC_PATH": str(tmp_path / "elsewhere"),
        }
        for name, value in hostile.items():
            monkeypatch.setenv(name, value)
        repository = opened()
        commit = revision(repository.snapshot(0))

        assert list(repository.files(commit, lambda _: True)) == ["dvc.yaml"]
        assert not ran.exists()
        assert not (tmp_path / "elsewhere").exists()
        assert [
            file for file in mirror.rglob("*") if file.is_symlink() or "hooks" in str(file)
        ] == []


@pytest.mark.skipif(not gitserver.SSHD, reason="this machine has no sshd")
class TestSsh:
    """The other way to private repositories."""

    @pytest.fixture
    def server(self, tmp_path):
        with gitserver.serve_ssh(tmp_path / "ssh") as server:
            yield server

    def test_the_right_key_opens(self, opened, origin, server):
        repository = opened(
            f"{server.url}{origin.path}", ssh_key=server.key, ssh_known_hosts=server.known_hosts
        )

        assert has(repository.snapshot(0, wait=20), "v1.0.0")

    def test_paths_of_keys_may_hold_what_ssh_would_expand(self, opened, origin, server, tmp_path):
        odd = tmp_path / "%h ~ $HOME 'x'"
        shutil.copytree(server.key.parent, odd)
        repository = opened(
            f"{server.url}{origin.path}",
            ssh_key=odd / server.key.name,
            ssh_known_hosts=odd / server.known_hosts.name,
        )

        assert has(repository.snapshot(0, wait=20), "v1.0.0")

    def test_a_host_that_is_not_known_is_not_trusted(self, opened, origin, server, tmp_path):
        nobody = tmp_path / "nobody"
        nobody.write_text("")
        repository = opened(
            f"{server.url}{origin.path}", ssh_key=server.key, ssh_known_hosts=nobody
        )
        with pytest.raises(OriginUnavailable, match="known hosts"):
            repository.snapshot(0, wait=20)

    def test_another_key_does_not_open(self, opened, origin, server, tmp_path):
        key = tmp_path / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        repository = opened(
            f"{server.url}{origin.path}", ssh_key=key, ssh_known_hosts=server.known_hosts
        )
        with pytest.raises(OriginUnavailable, match="refuses the SSH key"):
            repository.snapshot(0, wait=20)


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("echo git version 2.35.9", "2.36 or newer is needed"),
        ("echo not a version", "2.36 or newer is needed"),
        ("exit 127", "not found on the PATH"),
    ],
)
def test_a_git_that_is_too_old_or_absent_is_said_before_anything_starts(
    says: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "git"
    shim.write_text(f"#!/bin/sh\n{says}\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(SettingsError, match=problem):
        require_git()


def test_the_git_of_this_machine_is_new_enough() -> None:
    require_git()
