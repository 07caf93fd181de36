"""Manifests: made once for each revision, kept within bounds, and only for who may see them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from gitrepo import GitRepository
from service import NOW, Store, artifacts, digest, output, remote

from registry.contents import LARGEST_FILE, Contents
from registry.domain import ArtifactName, Principal, RelPath, Revision, StorageUrl
from registry.errors import (
    InvalidMetadata,
    LocationNotGranted,
    NotInStorage,
    ObjectMissing,
    PathNotFound,
    RepositoryNotFound,
)
from registry.repository import Repository
from registry.repository.lanes import Lanes
from registry.storage import Grants, Location, Reader
from registry.storage.gateway import GatewayLinks
from registry.storage.local import LocalSigner

EVERYBODY = Principal("t", "test", frozenset(), ("*",))
M = ArtifactName(RelPath.ROOT, "m")


class Workshop:
    """Contents over repositories of the test, by name, and over one store granted to all."""

    def __init__(self, directory: Path, lanes: Lanes) -> None:
        self.directory = directory
        self.store = Store(directory / "store")
        self.repositories: dict[str, Repository] = {}
        self.opened: list[str] = []
        self._lanes = lanes
        self.reader = Reader()
        signer = LocalSigner(self.store.directory, GatewayLinks(["k" * 32], "https://registry"))
        location = Location(StorageUrl.parse(self.store.url), ("*",), signer)
        self.grants = Grants((location,))
        self.contents = self.fresh()

    def fresh(self) -> Contents:
        """New ones, which remember nothing, over the same cache on disk."""
        cache = self.directory / "manifests"
        return Contents(self._open, self.grants, self.reader, cache, lambda: NOW)

    def _open(self, principal: Principal, spelling: str, revision: Revision) -> Repository:
        self.opened.append(spelling)
        if spelling not in self.repositories or not principal.may_see(spelling):
            raise RepositoryNotFound(spelling)
        return self.repositories[spelling]

    def mirror(self, name: str, files: dict[str, str]) -> Revision:
        """A mirrored repository of one commit, whose remote is the store."""
        origin = GitRepository(self.directory / f"{name}.git")
        revision = origin.commit({".dvc/config": remote(self.store.url), **files})
        repository = Repository(
            name, str(origin.path), self.directory / "mirrors" / name,
            lanes=self._lanes, clock=lambda: NOW,
        )  # fmt: skip
        repository.snapshot(0.0)
        self.repositories[name] = repository
        return revision

    def manifest(self, name: str, revision: Revision, who: Principal = EVERYBODY):
        return self.contents.manifest(who, self.repositories[name], revision, M)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    with closing(Lanes()) as lanes:
        workshop = Workshop(tmp_path, lanes)
        yield workshop
        for repository in workshop.repositories.values():
            repository.close()
        with workshop.reader:
            pass


def tracked(path: str = "model.pkl", **more: str) -> dict[str, str]:
    return {"dvc.yaml": artifacts(m=path), f"{path}.dvc": output(path, digest("1")), **more}


def paths(manifest) -> list[str]:
    return [entry.path for group in manifest.groups for entry in group.entries]


def test_a_manifest_is_made_once_and_then_no_longer_needs_the_mirror(workshop) -> None:
    revision = workshop.mirror("models", tracked())
    first = workshop.manifest("models", revision)
    workshop.repositories["models"].close()
    (workshop.directory / "mirrors/models").rename(workshop.directory / "gone")

    assert workshop.manifest("models", revision) is first


def test_an_import_is_remembered_only_for_who_may_see_its_source(workshop) -> None:
    there = workshop.mirror("source", {"x.bin.dvc": output("x.bin", digest("x"))})
    text = (
        f"frozen: true\ndeps:\n- path: x.bin\n  repo: {{url: source, rev_lock: {there}}}\n"
        f"outs:\n- {{md5: {digest('x')}, hash: md5, path: m.bin}}\n"
    )
    here = workshop.mirror("models", {"dvc.yaml": artifacts(m="m.bin"), "m.bin.dvc": text})
    stranger = Principal("s", "stranger", frozenset(), ("models",))

    allowed = workshop.manifest("models", here)
    with pytest.raises(NotInStorage, match="does not cover"):
        workshop.manifest("models", here, stranger)

    assert workshop.manifest("models", here) is allowed
    assert workshop.opened == ["source", "source"]
    assert [group.repository for group in allowed.groups] == ["source"]


def test_an_import_is_remembered_only_for_who_may_see_every_repository_on_the_way(
    workshop,
) -> None:
    def imports(source: str, revision: str) -> dict[str, str]:
        text = (
            f"frozen: true\ndeps:\n- path: m.bin\n  repo: {{url: {source}, rev_lock: {revision}}}\n"
            f"outs:\n- {{md5: {digest('x')}, hash: md5, path: m.bin}}\n"
        )
        return {"dvc.yaml": artifacts(m="m.bin"), "m.bin.dvc": text}

    last = workshop.mirror("last", {"m.bin.dvc": output("m.bin", digest("x"))})
    middle = workshop.mirror("middle", imports("last", last))
    first = workshop.mirror("first", imports("middle", middle))
    stranger = Principal("s", "stranger", frozenset(), ("first", "last"))

    allowed = workshop.manifest("first", first)
    with pytest.raises(NotInStorage, match="does not cover"):
        workshop.manifest("first", first, stranger)

    assert allowed.repositories == {"middle", "last"}


def test_a_directory_is_kept_on_disk_whole_and_for_each_place_apart(workshop) -> None:
    md5 = workshop.store.put(f'[{{"md5": "{digest("a")}", "relpath": "a.txt"}}]', ".dir")
    revision = workshop.mirror("models", tracked("data") | {"data.dvc": output("data", md5)})
    workshop.manifest("models", revision)
    kept = [file for file in (workshop.directory / "manifests").rglob("*") if file.is_file()]
    other = workshop.mirror(
        "other",
        {
            "dvc.yaml": artifacts(m="data"),
            "data.dvc": output("data", md5),
            ".dvc/config": remote(f"{workshop.store.url}/elsewhere"),
        },
    )

    assert len(kept) == 1
    with pytest.raises(ObjectMissing, match=md5):
        workshop.manifest("other", other)


def test_a_directory_on_disk_is_not_read_for_who_lost_the_grant(workshop) -> None:
    md5 = workshop.store.put(f'[{{"md5": "{digest("a")}", "relpath": "a.txt"}}]', ".dir")
    revision = workshop.mirror("models", tracked("data") | {"data.dvc": output("data", md5)})
    workshop.manifest("models", revision)
    workshop.grants = Grants(())
    workshop.contents = workshop.fresh()

    with pytest.raises(LocationNotGranted):
        workshop.manifest("models", revision)


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_answer(workshop, caplog) -> None:
    (workshop.directory / "manifests").write_text("not a directory")
    md5 = workshop.store.put(f'[{{"md5": "{digest("a")}", "relpath": "a.txt"}}]', ".dir")
    revision = workshop.mirror("models", tracked("data") | {"data.dvc": output("data", md5)})

    assert paths(workshop.manifest("models", revision)) == ["data/a.txt"]
    assert "the cache of manifests cannot be written" in caplog.text


def test_a_path_inside_a_directory_is_answered_without_the_rest(workshop) -> None:
    listed = [f'{{"md5": "{digest(name)}", "relpath": "{name}"}}' for name in ("a/b", "a/c", "ab")]
    md5 = workshop.store.put(f"[{', '.join(listed)}]", ".dir")
    files = {"dvc.yaml": artifacts(m="data/a"), "data.dvc": output("data", md5)}
    revision = workshop.mirror("models", files)

    assert paths(workshop.manifest("models", revision)) == ["data/a/b", "data/a/c"]


def test_a_path_below_a_file_is_not_found(workshop) -> None:
    files = tracked() | {"dvc.yaml": artifacts(m="model.pkl/part")}
    revision = workshop.mirror("models", files)

    with pytest.raises(PathNotFound, match="is a file"):
        workshop.manifest("models", revision)


def test_metadata_that_is_too_large_is_not_read(workshop) -> None:
    revision = workshop.mirror("models", tracked() | {"dvc.yaml": "#" * (LARGEST_FILE + 1)})

    with pytest.raises(InvalidMetadata):
        workshop.manifest("models", revision)


def test_what_is_remembered_is_bounded_by_its_weight(workshop) -> None:
    """Every cache weighs what it holds, so that large manifests push out others, and one that is
    larger than the cache is not kept at all.
    """
    contents = workshop.contents
    for cache in (contents._documents, contents._files, contents._manifests):
        assert cache.maxsize < float("inf")
    revision = workshop.mirror("models", tracked())
    manifest = workshop.manifest("models", revision)

    assert contents._manifests.currsize >= 500 * len(manifest) > 0
    assert contents._documents.currsize >= len(artifacts(m="model.pkl"))
    too_large = (contents._documents.maxsize + 1, None)
    assert contents._put(contents._documents, "x", too_large) is too_large
    assert contents._get(contents._documents, "x") is None


def test_an_artifact_at_a_web_address_is_named_as_people_read_it(workshop) -> None:
    files = {"dvc.yaml": artifacts(m="https://host.example/a/my%20model.pt")}
    revision = workshop.mirror("models", files)

    (group,) = workshop.manifest("models", revision).groups

    assert group.storage == StorageUrl.parse("https://host.example/a")
    assert [(entry.path, entry.key) for entry in group.entries] == [("my model.pt",) * 2]
