"""`registry.artifacts_show`: the path and the revision of an artifact, without a service."""

import subprocess
from pathlib import Path

import pytest
from gitrepo import GitRepository
from gitserver import serve_http
from service import artifacts

import registry
from registry.errors import (
    ArtifactNotFound,
    InvalidRequest,
    MirrorStale,
    OriginUnavailable,
    PathNotFound,
    RegistryError,
    RepositoryNotFound,
    StageNotFound,
    UnsafePath,
    VersionNotFound,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of whoever runs the tests: neither their cache nor their configuration."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("REGISTRY_CACHE_DIR", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path))
    return cache


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    """Two versions of `m`, the path of which changed, one of them in `prod`; and `sub:n`."""
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({"dvc.yaml": artifacts(m="old.pkl"), "sub/dvc.yaml": artifacts(n="../n.pkl")})
    for tag in ("m@v1.0.0", "m#prod#1", "sub=n@v0.1.0"):
        origin.tag(tag)
    origin.commit({"dvc.yaml": artifacts(m="models/new.pkl")})
    origin.tag("m@v2.0.0")
    return origin


def clone(origin: GitRepository, path: Path, *options: str) -> Path:
    command = ["git", "clone", "--quiet", *options, f"file://{origin.path}", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def first(origin: GitRepository) -> str:
    return origin.git("rev-parse", "main^")


# ------------------------------------------------------------------------------- what is answered


def test_the_latest_version_is_meant_when_none_is_named(origin) -> None:
    found = registry.artifacts_show("m", repo=str(origin.path))

    assert found == {"path": "models/new.pkl", "rev": origin.head()}


@pytest.mark.parametrize("asked", [{"version": "v1.0.0"}, {"stage": "prod"}])
def test_path_and_revision_are_those_of_the_version_or_stage(origin, asked) -> None:
    found = registry.artifacts_show("m", **asked, repo=str(origin.path))

    assert found == {"path": "old.pkl", "rev": first(origin)}


@pytest.mark.parametrize("name", ["sub:n", "sub/dvc.yaml:n", "./sub:n"])
def test_an_artifact_of_another_dvc_yaml_has_a_path_from_the_root(origin, name) -> None:
    found = registry.artifacts_show(name, repo=str(origin.path))

    assert found == {"path": "n.pkl", "rev": first(origin)}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"name": "absent"}, ArtifactNotFound),
        ({"name": "m", "version": "v9.9.9"}, VersionNotFound),
        ({"name": "m", "stage": "dev"}, StageNotFound),
        ({"name": "m", "version": "v1.0.0", "stage": "prod"}, InvalidRequest),
        ({"name": "../m"}, InvalidRequest),
        ({"name": ""}, InvalidRequest),
    ],
)
def test_what_is_not_there_or_makes_no_sense_is_an_error_of_its_own(origin, asked, error) -> None:
    with pytest.raises(error) as raised:
        registry.artifacts_show(**asked, repo=str(origin.path))

    assert isinstance(raised.value, RegistryError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "error"), [("../m.pkl", UnsafePath), ("s3://bucket/m.pkl", PathNotFound)]
)
def test_a_path_outside_of_the_repository_is_refused(origin, path, error) -> None:
    origin.commit({"dvc.yaml": artifacts(m=path)})
    origin.tag("m@v3.0.0")

    with pytest.raises(error):
        registry.artifacts_show("m", repo=str(origin.path))


# ------------------------------------------------------------------------ where repositories are


def test_the_repository_is_the_one_that_the_directory_lies_in(
    origin, tmp_path, monkeypatch
) -> None:
    project = clone(origin, tmp_path / "project")
    (project / "deep/below").mkdir(parents=True)

    monkeypatch.chdir(project / "deep/below")

    assert registry.artifacts_show("m")["rev"] == origin.head()


@pytest.mark.parametrize("spell", ["{}", "{}/.git", "{}/sub", "file://{}"])
def test_a_clone_is_found_by_any_path_in_it(origin, tmp_path, spell) -> None:
    project = clone(origin, tmp_path / "project")

    assert registry.artifacts_show("m", repo=spell.format(project))["rev"] == origin.head()


def test_a_relative_path_counts_from_the_current_directory(origin, tmp_path, monkeypatch) -> None:
    clone(origin, tmp_path / "project")
    (tmp_path / "beside").mkdir()

    monkeypatch.chdir(tmp_path / "beside")

    assert registry.artifacts_show("m", repo="../project")["rev"] == origin.head()


def test_a_clone_is_asked_for_what_it_has_and_not_for_what_its_origin_has(origin, tmp_path) -> None:
    project = clone(origin, tmp_path / "project")
    origin.tag("m@v3.0.0", first(origin))

    assert registry.artifacts_show("m", repo=str(project))["rev"] == origin.head()
    assert registry.artifacts_show("m", repo=str(origin.path))["rev"] == first(origin)


def test_a_tag_that_was_made_a_moment_ago_counts(origin) -> None:
    before = registry.artifacts_show("m", repo=str(origin.path))

    origin.tag("m@v3.0.0", first(origin))

    assert registry.artifacts_show("m", repo=str(origin.path)) != before


def test_a_shallow_clone_of_a_pipeline_is_enough(origin, tmp_path) -> None:
    project = clone(origin, tmp_path / "project", "--depth=1", "--branch=m@v2.0.0")

    assert registry.artifacts_show("m", repo=str(project))["rev"] == origin.head()


def test_a_linked_work_tree_is_a_clone_too(origin, tmp_path) -> None:
    project = clone(origin, tmp_path / "project")
    linked = tmp_path / "linked"
    subprocess.run(
        ["git", "-C", str(project), "worktree", "add", "--quiet", str(linked)],
        check=True,
        capture_output=True,
    )

    assert registry.artifacts_show("m", repo=str(linked))["rev"] == origin.head()


def test_nothing_is_written_to_a_clone_and_nothing_in_it_is_run(origin, tmp_path, cache) -> None:
    project = clone(origin, tmp_path / "project")
    ran = tmp_path / "ran"
    config = f'[core]\n\tfsmonitor = "touch {ran}; false"\n\thooksPath = {tmp_path}\n'
    with open(project / ".git/config", "a") as file:
        file.write(config)
    before = state(project)

    registry.artifacts_show("m", repo=str(project))

    assert state(project) == before
    assert not ran.exists()
    assert not (cache / "mirrors").exists()


def state(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.parametrize("where", ["", "/nowhere/at/all", "nowhere", "./nowhere"])
def test_where_there_is_no_repository_it_says_so(tmp_path, monkeypatch, where) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    with pytest.raises(RepositoryNotFound):
        registry.artifacts_show("m", repo=where)


@pytest.mark.parametrize(
    "url", ["https://", "ftp://host/repo", "https://host/a b", "ext::sh -c id"]
)
def test_what_is_no_url_of_a_repository_is_an_invalid_request(url) -> None:
    with pytest.raises(InvalidRequest):
        registry.artifacts_show("m", repo=url)


def test_a_directory_that_only_looks_like_a_repository_is_an_error_of_ours(tmp_path) -> None:
    (tmp_path / "broken.git/objects").mkdir(parents=True)
    (tmp_path / "broken.git/HEAD").write_text("nonsense")

    with pytest.raises(OriginUnavailable):
        registry.artifacts_show("m", repo=str(tmp_path / "broken.git"))


# -------------------------------------------------------------------------------- URLs


@pytest.fixture
def server(origin):
    with serve_http(origin.path.parent) as running:
        yield running


def test_a_url_is_mirrored_in_the_cache_and_brought_up_to_date(origin, server, cache) -> None:
    url = f"{server.url}/origin.git"

    before = registry.artifacts_show("m", repo=url)
    fetched = len(server.requests)
    again = registry.artifacts_show("m", repo=url)
    asked = len(server.requests) - fetched
    origin.tag("m@v3.0.0", first(origin))
    after = registry.artifacts_show("m", repo=url)

    assert before == again == {"path": "models/new.pkl", "rev": origin.head()}
    assert after["rev"] == first(origin)
    assert asked < fetched
    assert list(cache.glob("mirrors/*/repository.git/HEAD"))


def test_a_moved_tag_means_what_it_means_at_the_origin_now(origin, server) -> None:
    url = f"{server.url}/origin.git"
    registry.artifacts_show("m", repo=url)

    origin.tag("m@v2.0.0", first(origin))

    assert registry.artifacts_show("m", repo=url)["rev"] == first(origin)


def test_credentials_in_a_url_are_used_and_written_nowhere(origin, cache, caplog) -> None:
    with serve_http(origin.path.parent, "ada", "p@ss/canary") as server:
        url = f"{server.url}/origin.git".replace("://", "://ada:p%40ss%2Fcanary@")

        found = registry.artifacts_show("m", repo=url)

    kept = [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert found["rev"] == origin.head()
    assert not [data for data in kept if b"canary" in data]
    assert "canary" not in caplog.text


def test_the_user_is_known_by_their_own_credential_helper(origin, tmp_path) -> None:
    """As they are to `git clone`: a service never reads the configuration of an account."""
    with serve_http(origin.path.parent, "ada", "secret") as server:
        (tmp_path / ".gitconfig").write_text("[credential]\n\thelper = store\n")
        store = tmp_path / ".git-credentials"
        store.write_text(server.url.replace("://", "://ada:secret@") + "\n")

        found = registry.artifacts_show("m", repo=f"{server.url}/origin.git")

    assert found["rev"] == origin.head()


def test_without_credentials_it_says_what_is_needed_and_asks_nobody(origin) -> None:
    with (
        serve_http(origin.path.parent, "ada", "secret") as server,
        pytest.raises(OriginUnavailable) as raised,
    ):
        registry.artifacts_show("m", repo=f"{server.url}/origin.git")

    assert "credentials" in raised.value.problem


def test_an_origin_that_is_down_is_an_error_and_not_an_old_answer(origin, server) -> None:
    url = f"{server.url}/origin.git"
    registry.artifacts_show("m", repo=url)

    server.broken = True

    with pytest.raises((OriginUnavailable, MirrorStale)):
        registry.artifacts_show("m", repo=url)
