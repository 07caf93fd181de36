"""The core: which repository is meant, how fresh an answer is, and what signs its links."""

import gc
import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from gitrepo import GitRepository
from service import S3_KEYS, Registry, artifacts, digest, key, output, place, remote

from registry.catalog import RECHECK, Catalog
from registry.contents import Contents
from registry.domain import Principal, Selector, StorageUrl
from registry.errors import InvalidRequest, RepositoryNotFound, SettingsError, VersionNotFound
from registry.storage import Grants, Links, Location

ANYBODY = Principal("t", "test", frozenset(), ("*",))
NAME = "team/models"
REFRESH = 30


class CountingOrigin(GitRepository):
    """An origin of which can be told how often it was looked at, and which can go away."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commit(
            {
                ".dvc/config": remote("s3://bucket/dvc"),
                "dvc.yaml": artifacts(m="model.pkl"),
                "model.pkl.dvc": output("model.pkl", digest("1")),
            }
        )
        self.tag("m@v1.0.0")

    def register(self, version: str) -> str:
        """A new commit with a version of its own."""
        revision = self.commit({"model.pkl.dvc": output("model.pkl", digest(version))})
        self.tag(f"m@{version}")
        return revision

    def hide(self) -> None:
        self.path.rename(self.path.with_name("away"))

    def show(self) -> None:
        self.path.with_name("away").rename(self.path)


@pytest.fixture
def origin(tmp_path: Path) -> CountingOrigin:
    return CountingOrigin(tmp_path / "origin.git")


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    with ExitStack() as running:

        def started(origins, directory="var", **more) -> Registry:
            storage = [{"url": "s3://bucket", "repositories": ["*"], **S3_KEYS}]
            registry = Registry(tmp_path / directory, origins, storage, **more)
            return running.enter_context(registry)

        yield started


def resolve(registry: Registry, **query: str):
    selector = Selector.parse("m", **query)
    return registry.services.catalog.resolve(ANYBODY, registry.name, selector)


# ---------------------------------------------------------------------------- freshness


def test_a_stage_or_the_latest_lags_behind_by_no_more_than_the_refresh(origin, start) -> None:
    registry = start({NAME: origin})
    before = resolve(registry)
    newer = origin.register("v2.0.0")

    registry.clock.now += REFRESH
    known = resolve(registry)
    registry.clock.now += 1
    fresh = resolve(registry)

    assert known.revision == before.revision
    assert known.checked == registry.clock() - REFRESH - 1
    assert (fresh.revision, fresh.version) == (newer, "v2.0.0")
    assert fresh.checked == registry.clock()


def test_a_refresh_of_zero_looks_at_the_origin_for_every_new_second(origin, start) -> None:
    registry = start({NAME: {"url": str(origin.path), "refresh": 0}})
    resolve(registry)
    newer = origin.register("v2.0.0")
    registry.clock.now += 1

    assert resolve(registry).revision == newer


def test_a_registered_version_is_answered_while_the_origin_is_gone(origin, start) -> None:
    registry = start({NAME: origin})
    known = resolve(registry, version="v1.0.0")
    origin.hide()
    registry.clock.now += 10 * REFRESH

    pinned, latest = resolve(registry, version="v1.0.0"), resolve(registry)

    assert pinned.revision == latest.revision == known.revision
    assert pinned.checked == latest.checked == known.checked


def test_the_first_answer_of_a_version_waits_for_the_clone(origin, start) -> None:
    assert resolve(start({NAME: origin}), version="v1.0.0").version == "v1.0.0"


def test_what_is_unknown_is_looked_for_again_but_not_more_often_than_every_few_seconds(
    origin, start
) -> None:
    registry = start({NAME: origin})
    resolve(registry)
    newer = origin.register("v2.0.0")

    with pytest.raises(VersionNotFound):
        resolve(registry, version="v2.0.0")
    registry.clock.now += RECHECK
    with pytest.raises(VersionNotFound):
        resolve(registry, version="v2.0.0")
    registry.clock.now += 1

    assert resolve(registry, version="v2.0.0").revision == newer


def test_a_version_that_was_deregistered_is_gone_once_that_was_seen(origin, start) -> None:
    origin.register("v2.0.0")
    registry = start({NAME: origin})
    resolve(registry, version="v1.0.0")
    origin.tag("m@v1.0.0!")
    registry.clock.now += REFRESH + 1
    resolve(registry)

    with pytest.raises(VersionNotFound, match="deregistered"):
        resolve(registry, version="v1.0.0")


def test_of_tags_that_changed_nothing_is_left_but_what_is_still_true(origin, start) -> None:
    """A pipeline that asks for each new version once would keep a state of all tags for each."""
    registry = start({NAME: origin})
    known = []
    for version in ("v2.0.0", "v3.0.0", "v4.0.0"):
        origin.register(version)
        registry.clock.now += REFRESH + 1
        resolve(registry, version="v1.0.0")
        resolve(registry)
        resolve(registry, version=version)
        registry.links(version=version)
        (mirrored,) = registry.services.repositories
        known.append(weakref.ref(mirrored.repository.snapshot(math.inf).index))

    gc.collect()

    assert [index() is not None for index in known] == [False, False, True]


def test_many_threads_get_one_answer(origin, start) -> None:
    registry = start({NAME: origin})
    answers = []

    def ask() -> None:
        answers.append(resolve(registry).revision)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [origin.head()] * 12


def test_two_services_over_one_directory_share_the_mirror(origin, start) -> None:
    first, second = start({NAME: origin}), start({NAME: origin})
    known = resolve(first)
    origin.hide()

    assert resolve(second).revision == known.revision


# ----------------------------------------------------------------------- repositories


def test_a_path_that_two_hosts_share_is_found_by_its_host_alone(origin, start) -> None:
    urls = {host: f"https://{host}.example/team/models.git" for host in ("one", "two")}
    origins = {
        f"{host}/m": {"url": str(origin.path), "aliases": [url]} for host, url in urls.items()
    }
    repositories = start(origins).services.repositories

    assert {repositories.open(ANYBODY, url).repository.name for url in urls.values()} == set(
        origins
    )
    with pytest.raises(RepositoryNotFound):
        repositories.open(ANYBODY, "team/models")


def test_a_path_that_two_hosts_share_is_found_by_who_sees_only_one_of_them(origin, start) -> None:
    origins = {
        f"{host}/m": {
            "url": str(origin.path),
            "aliases": [f"https://{host}.example/team/models.git"],
        }
        for host in ("one", "two")
    }
    only = Principal("t", "test", frozenset(), ("two/*",))

    found = start(origins).services.repositories.open(only, "team/models")

    assert found.repository.name == "two/m"


def test_two_repositories_with_one_url_are_a_mistake_in_the_configuration(origin, start) -> None:
    url = "https://git.example/team/models.git"
    origins = {name: {"url": str(origin.path), "aliases": [url]} for name in ("a/m", "b/m")}

    with pytest.raises(SettingsError, match="claimed by a/m and b/m"):
        start(origins)


def test_a_repository_must_be_named(origin, start) -> None:
    catalog = start({NAME: origin}).services.catalog

    with pytest.raises(InvalidRequest, match="repo"):
        catalog.resolve(ANYBODY, "", Selector.parse("m"))


# --------------------------------------------------------------------------------- links


class Rotating:
    """A signer whose credentials are others every time it is asked: only one set may serve an
    answer. It signs with the number of the set.
    """

    store = None

    def __init__(self) -> None:
        self.asked = 0

    def links(self, now, lifetime) -> Links:
        self.asked += 1
        sign = f"?set={self.asked}"
        end = now + timedelta(seconds=lifetime - self.asked)
        return Links(end, lambda path, entry: f"https://store/{path}{sign}")

    def origin(self, path, entry, now):
        raise AssertionError("nothing is read here")


def signed(registry: Registry, *locations: tuple[str, Rotating]):
    """What a catalog answers that signs with these instead."""
    grants = Grants(
        tuple(Location(StorageUrl.parse(url), ("*",), signer) for url, signer in locations)
    )
    services = registry.services
    cache = registry.settings.data_dir / "manifests"
    contents = Contents(services.repositories.at, grants, services.reader, cache, registry.clock)
    catalog = Catalog(
        services.repositories, contents, grants, services.stores, 3600, registry.clock
    )
    return catalog.download_uris(ANYBODY, NAME, Selector.parse("all"))


@pytest.fixture
def many(origin, start) -> Registry:
    """An artifact of two outputs below one remote."""
    origin.commit(
        {
            "dvc.yaml": artifacts(all="models"),
            "models/a.dvc": output("a", digest("a")),
            "models/b.dvc": output("b", digest("b")),
        }
    )
    origin.tag("all@v1.0.0")
    return start({NAME: origin})


def test_all_links_of_a_location_are_signed_with_one_set_of_credentials(many) -> None:
    signer = Rotating()

    download = signed(many, ("s3://bucket", signer))

    assert signer.asked == 1
    assert download.uris == {
        "models/a": f"https://store/dvc/{key('a')}?set=1",
        "models/b": f"https://store/dvc/{key('b')}?set=1",
    }


def test_entries_are_located_one_by_one_where_a_location_divides_the_remote(many) -> None:
    whole, part = Rotating(), Rotating()
    part.asked = 40  # its links end forty seconds earlier
    corner = f"s3://bucket/dvc/files/md5/{digest('b')[:2]}"

    download = signed(many, ("s3://bucket", whole), (corner, part))

    assert download.uris["models/a"].endswith("?set=1")
    assert download.uris["models/b"].endswith("?set=41")
    assert download.expires.timestamp() == many.clock() + 3600 - 41


def test_a_download_says_what_was_resolved(many) -> None:
    services = many.services

    download = services.catalog.download_uris(ANYBODY, NAME, Selector.parse("all"))

    assert download.resolution.tag == "all@v1.0.0"
    assert download.expires.timestamp() == many.clock() + 3600
    assert place(download.uris["models/a"]) == f"s3://bucket/dvc/{key('a')}"
