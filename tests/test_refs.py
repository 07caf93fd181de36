"""An index that is made from the one before, and refs that are compared as text."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gitrepo import GitRepository
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import gto
from registry.domain import ArtifactName, RelPath, Revision
from registry.errors import OriginUnavailable
from registry.repository import Repository, refs
from registry.repository.lanes import Lanes

C1, C2 = "1" * 40, "2" * 40
M = ArtifactName(RelPath.ROOT, "m")

NAMES = (
    "m@v1.0.0", "m@v1.1.0", "m@v1.0.0!", "m#prod#1", "m#prod#2", "m#prod!#3", "m@deprecated",
    "m/x@v1.0.0", "d/e=m@v1.0.0", "n@v2.0.0-rc.1", "m@v1.0.0/x", "m", "m/x", "v1",
    "caf\u00e9@v1.0.0",
)  # fmt: skip
KINDS = ("first", "second", "nested", "tree", "nested tree", "light", "no tagger", "deleted")


class Clock:
    """Unix time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Pushed:
    """An origin whose tags come, move and go, and the mirrors of it."""

    def __init__(self, directory: Path, template: GitRepository) -> None:
        self.directory = directory
        self.origin = GitRepository.__new__(GitRepository)
        self.origin.path, self.origin.time = directory / "origin.git", template.time
        shutil.copytree(template.path, self.origin.path)
        self.clock = Clock()
        self._stack = ExitStack()
        self._lanes = self._stack.enter_context(closing(Lanes()))

    def __enter__(self) -> "Pushed":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def opened(self, mirror: str, *, frozen: bool) -> Repository:
        repository = Repository(
            "r", str(self.origin.path), self.directory / mirror,
            lanes=self._lanes, frozen=frozen, clock=self.clock,
        )  # fmt: skip
        self._stack.callback(repository.close)
        return repository

    def push(self, name: str, kind: str) -> None:
        """A tag of this name, in place of those that Git cannot have beside it."""
        for other in self.origin.git("tag", "--list").splitlines():
            if f"{other}/".startswith(f"{name}/") or f"{name}/".startswith(f"{other}/"):
                self.origin.delete_tag(other)
        target = {"second": "main~", "nested": "refs/inner/commit"}.get(kind, "main")
        if "tree" in kind:
            target = "refs/inner/tree" if "nested" in kind else "main^{tree}"
        if kind == "no tagger":
            self.origin.raw_tag(name, self.origin.head())
        elif kind != "deleted":
            self.origin.tag(name, self.origin.git("rev-parse", target), lightweight=kind == "light")

    def tags(self) -> list[gto.Tag]:
        """What Git itself says of the tags of the origin."""
        fields = "%(refname:strip=2)|%(objecttype)|%(taggerdate:unix)"
        found = []
        for line in self.origin.git("for-each-ref", f"--format={fields}", "refs/tags").splitlines():
            name, kind, when = line.split("|")
            peeled = self.origin.git("rev-parse", f"refs/tags/{name}^{{}}")
            is_commit = self.origin.git("cat-file", "-t", peeled) == "commit"
            revision = Revision(peeled) if kind == "tag" and is_commit else None
            found.append(gto.Tag(name, revision, int(when or 0), kind == "tag"))
        return found


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> GitRepository:
    made = GitRepository(tmp_path_factory.mktemp("template") / "origin.git")
    made.commit({"a": "1"})
    made.commit({"a": "2"})
    for name, target in (("commit", "main~"), ("tree", "main^{tree}")):
        inner = made.tag("inner", made.git("rev-parse", target))
        made.git("update-ref", f"refs/inner/{name}", inner)
        made.delete_tag("inner")
    return made


@pytest.fixture
def pushed(template, tmp_path) -> Iterator[Pushed]:
    with Pushed(tmp_path, template) as made:
        yield made


def told(index: gto.Index) -> dict[ArtifactName, tuple[object, ...]]:
    """Everything that can be asked of an index."""
    return {
        name: (history.deeds, history.void, history.versions, history.stages)
        for name, history in index.histories().items()
    }


pushes = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS)), max_size=4)


@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(pushes, min_size=2, max_size=5), st.data())
def test_an_index_made_from_the_last_one_says_what_git_says(template, steps, data) -> None:
    """Whatever is pushed, moved, deleted, or replaced by a directory of tags; read or not before;
    looked at every time or once in a while.
    """
    with TemporaryDirectory() as directory, Pushed(Path(directory), template) as pushed:
        follows = pushed.opened("follows", frozen=False)
        frozen = pushed.opened("frozen", frozen=True)
        sibling = pushed.opened("frozen", frozen=True)
        for step in steps:
            for name, kind in step:
                pushed.push(name, kind)
            pushed.clock.now += 1
            index = follows.snapshot(0, wait=60).index
            kept = frozen.snapshot(0, wait=60).index
            if data.draw(st.booleans()):
                assert told(index) == told(gto.Index(pushed.tags()))
            if data.draw(st.booleans()):
                assert told(sibling.snapshot(1e9).index) == told(kept)
            anew = pushed.opened("frozen", frozen=True).snapshot(1e9).index
            assert told(anew) == told(kept)

        assert told(follows.snapshot(1e9).index) == told(gto.Index(pushed.tags()))
        assert told(sibling.snapshot(1e9).index) == told(frozen.snapshot(1e9).index)


class Tags:
    """Reads tags from memory, and remembers what was asked for."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, unread) -> list[gto.Tag]:
        self.read += [ref.name for ref in unread]
        return [gto.Tag(ref.name, Revision(ref.oid), 1, annotated=True) for ref in unread]


def test_only_the_tags_of_the_artifact_are_read_and_each_once() -> None:
    tags = Tags()
    index = gto.Index([gto.Ref("m@v1.0.0", C1), gto.Ref("n@v1.0.0", C1)], tags)

    assert [str(name) for name in index.artifacts()] == ["m", "n"]
    assert tags.read == []
    assert index.history(M).versions == index.history(M).versions == ("v1.0.0",)
    assert tags.read == ["m@v1.0.0"]
    assert len(index.histories()) == 2
    assert tags.read == ["m@v1.0.0", "n@v1.0.0"]


def test_the_next_index_shares_what_did_not_change_and_reads_what_did() -> None:
    tags = Tags()
    first = gto.Index([gto.Ref("m@v1.0.0", C1), gto.Ref("n@v1.0.0", C1)], tags)
    histories = first.histories()
    second = first.updated(["m@v0.1.0"], [gto.Ref("m@v2.0.0", C2)])
    third = second.updated(["m@v1.0.0", "m@v2.0.0"], [gto.Ref("m@v1.0.0", C2)])

    assert second.history(M).versions == ("v2.0.0", "v1.0.0")
    assert tags.read == ["m@v1.0.0", "n@v1.0.0", "m@v2.0.0"]
    n = ArtifactName(RelPath.ROOT, "n")
    assert third.history(n) is second.history(n) is histories[n]
    assert third.history(M).version("v1.0.0").revision == C2
    assert first.history(M).version("v1.0.0").revision == C1
    assert third.updated(["m@v1.0.0"], []).artifacts() == (n,)


def test_what_cannot_be_read_is_asked_for_again() -> None:
    class Down(Tags):
        is_down = True

        def __call__(self, unread) -> list[gto.Tag]:
            if self.is_down:
                raise OriginUnavailable("r", "it is down")
            return super().__call__(unread)

    tags = Down()
    index = gto.Index([gto.Ref("m@v1.0.0", C1)], tags)
    with pytest.raises(OriginUnavailable):
        index.history(M)
    tags.is_down = False

    assert index.history(M).versions == ("v1.0.0",)


lines = st.lists(st.sampled_from([b"", *(b"%d\tx" % n for n in range(12))]), unique=True)


@given(lines, lines)
def test_the_difference_of_two_texts_is_that_of_their_lines(old, new) -> None:
    old, new = [line for line in old if line], [line for line in new if line]
    gone, come = refs.difference(refs.text(old), refs.text(new))

    assert gone == [line for line in old if line not in new]
    assert come == [line for line in new if line not in old]


def test_loose_refs_do_not_pile_up(pushed, monkeypatch) -> None:
    monkeypatch.setattr("registry.repository.mirror._FEW_REFS", 3)
    repository = pushed.opened("mirror", frozen=True)
    for number in range(8):
        pushed.push(f"m@v1.{number}.0", "first")
        pushed.clock.now += 1
        repository.snapshot(0)
        loose = [it for it in (pushed.directory / "mirror").rglob("refs/**/*") if it.is_file()]
        assert len(loose) <= 3

    assert len(repository.snapshot(0).index.history(M).versions) == 8


def test_a_fetch_of_what_is_new_finds_what_no_branch_holds(pushed) -> None:
    """Git is shown the branches alone, as what is there already."""
    repository = pushed.opened("mirror", frozen=True)
    repository.snapshot(0)
    aside = pushed.origin.commit({"b": "1"}, branch="aside")
    pushed.origin.tag("m@v1.0.0", aside)
    pushed.origin.git("update-ref", "-d", "refs/heads/aside")
    other = pushed.origin.commit({"c": "1"}, branch="other", orphan=True)
    pushed.origin.tag("m@v2.0.0", other)
    pushed.clock.now += 1
    history = repository.snapshot(0).index.history(M)

    for version, commit in (("v1.0.0", aside), ("v2.0.0", other)):
        assert history.version(version).revision == commit
        assert repository.files(commit, lambda _: True)
    git = f"--git-dir={pushed.directory / 'mirror/repository.git'}"
    pushed.origin.git(git, "fsck", "--strict")


def test_a_tag_that_the_mirror_lost_is_noticed_and_cloned_again(pushed) -> None:
    pushed.push("m@v1.0.0", "first")
    repository = pushed.opened("mirror", frozen=True)
    index = repository.snapshot(0).index
    for directory in ("pack", "??"):
        for file in (pushed.directory / "mirror/repository.git/objects").glob(f"{directory}/*"):
            file.unlink()
    with pytest.raises(OriginUnavailable):
        index.history(M)
    pushed.clock.now += 1

    assert repository.snapshot(60).index.history(M).versions == ("v1.0.0",)


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_a_clone_of_many_refs_is_one_of_few(tmp_path, monkeypatch, object_format) -> None:
    """Git is asked to clone where there are many, and to fetch where there are few."""
    origin = GitRepository(tmp_path / "origin.git", object_format)
    origin.commit({"a": "1"})
    origin.commit({"b": "1"}, branch="side/x")
    for name in ("m@v1.0.0", "m#prod#1", "plain"):
        origin.tag(name)
    origin.git("update-ref", "refs/pull/1/head", "main")
    listed = ("for-each-ref", "--format=%(objectname) %(refname)")
    mirrors = {}
    for few in (0, 100):
        monkeypatch.setattr("registry.repository.mirror._FEW_REFS", few)
        with closing(Lanes()) as lanes:
            mirror = tmp_path / f"mirror{few}"
            repository = Repository("r", str(origin.path), mirror, lanes=lanes, clock=Clock())
            assert repository.snapshot(0, wait=30).index.history(M).stages == ("prod",)
            repository.close()
        git = GitRepository.__new__(GitRepository)
        git.path, git.time = mirror / "repository.git", 0
        mirrors[few] = (git.git(*listed), git.git("config", "--list", "--local"))

    assert mirrors[0] == mirrors[100]
    assert mirrors[0][0] == origin.git(*listed, "refs/heads", "refs/tags")


def test_a_broken_ref_among_many_keeps_no_other_from_being_seen(pushed, monkeypatch) -> None:
    monkeypatch.setattr("registry.repository.mirror._FEW_REFS", 0)
    origin = pushed.origin
    pushed.push("m@v1.0.0", "first")
    blob = origin.git("hash-object", "-w", "--stdin", given="x")
    given = b"100644 .git\0" + bytes.fromhex(blob)
    tree = origin.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", given=given)
    origin.tag("m@v6.6.6", origin.git("commit-tree", tree, given="hostile"))

    history = pushed.opened("mirror", frozen=True).snapshot(0, wait=30).index.history(M)

    assert history.versions == ("v1.0.0",)
