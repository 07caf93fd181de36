"""How bytes become objects: whole or not at all, and once."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from servers import s3

from registry.domain import StorageUrl
from registry.errors import InvalidRequest, StorageUnavailable
from registry.storage import Location
from registry.storage.gateway import GatewayLinks
from registry.storage.keeping import DirectoryKeeper, Keeper, S3Keeper
from registry.storage.local import LocalSigner
from registry.storage.s3 import S3Signer, static_credentials

BUCKET = "kept"
LEAST_PART = 5 << 20
"""Bytes: S3 takes no smaller part, but for the last."""


class Place:
    """A keeper, and what lies where it keeps objects."""

    keeper: Keeper

    def keys(self) -> list[str]:
        """Whatever lies there, by its place below the URL."""
        raise NotImplementedError

    def get(self, key: str) -> bytes:
        """The bytes of an object."""
        raise NotImplementedError


class Directory(Place):
    """A directory that is not there yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keeper = keeper_of(root)

    def keys(self) -> list[str]:
        return files(self.root)

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()


class Bucket(Place):
    """A new prefix in a bucket of a real store."""

    def __init__(self, server: s3.Server, spool: Path) -> None:
        self.server, self.prefix, self.spool = server, f"p{uuid4().hex}", spool
        server.create_bucket(BUCKET)
        keys = static_credentials(server.keys.access_key_id, server.keys.secret_access_key)
        signer = S3Signer(BUCKET, credentials=keys, endpoint_url=server.endpoint_url)
        url = StorageUrl.parse(f"s3://{BUCKET}/{self.prefix}")
        self.keeper = S3Keeper(Location(url, (), signer), url, signer, spool, part=LEAST_PART)

    def keys(self) -> list[str]:
        found = self.server.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}/")
        begun = self.server.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix)
        assert not begun.get("Uploads")
        assert files(self.spool) == []
        return sorted(it["Key"][len(self.prefix) + 1 :] for it in found.get("Contents", ()))

    def get(self, key: str) -> bytes:
        return self.server.get(BUCKET, f"{self.prefix}/{key}")


@pytest.fixture(
    params=[
        "directory",
        pytest.param("seaweedfs", marks=pytest.mark.servers),
        pytest.param("juicefs", marks=pytest.mark.servers),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of place."""
    if request.param == "directory":
        return Directory(tmp_path / "objects")
    return Bucket(request.getfixturevalue(request.param), tmp_path / "spool")


@pytest.fixture
def keeper(tmp_path: Path) -> DirectoryKeeper:
    """A keeper of a directory that is not there yet."""
    return keeper_of(tmp_path / "objects")


def keeper_of(root: Path) -> DirectoryKeeper:
    url = StorageUrl.parse(f"file://{root}")
    gateway = GatewayLinks(["key"], "http://registry.example")
    return DirectoryKeeper(Location(url, (), LocalSigner(root, gateway)), url)


def files(directory: Path) -> list[str]:
    return sorted(str(it.relative_to(directory)) for it in directory.rglob("*") if it.is_file())


def key(data: bytes) -> str:
    md5 = hashlib.md5(data).hexdigest()
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def test_an_object_lies_where_dvc_looks_for_it(place: Place) -> None:
    kept = place.keeper.put([b"a" * 10, b"", b"b"])
    data = b"a" * 10 + b"b"

    assert kept == (hashlib.md5(data).hexdigest(), 11)
    assert place.keys() == [key(data)]
    assert place.get(key(data)) == data
    assert place.keeper.put([]).size == 0
    assert place.get(key(b"")) == b""
    assert place.keeper.put([b"[]"], ".dir").md5.endswith(".dir")
    assert place.get(f"{key(b'[]')}.dir") == b"[]"


@pytest.mark.parametrize("more", [-1, 0, 1, LEAST_PART + 7])
def test_a_large_object_is_the_same(place: Place, more: int) -> None:
    data = b"0123456789abcdef" * (LEAST_PART // 16) + b"x" * max(more, 0)
    data = data[: LEAST_PART + more]

    kept = place.keeper.put(data[start : start + 70_000] for start in range(0, len(data), 70_000))

    assert kept == (hashlib.md5(data).hexdigest(), len(data))
    assert place.keys() == [key(data)]
    assert place.get(key(data)) == data


def test_what_breaks_off_leaves_nothing(place: Place) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half" * LEAST_PART
        raise InvalidRequest("body", "broke off")

    with pytest.raises(InvalidRequest):
        place.keeper.put(broken())

    assert place.keys() == []


def test_the_same_bytes_are_one_object(place: Place) -> None:
    for chunks in ([b"same"], [b"sa", b"me"]):
        place.keeper.put(chunks)

    assert place.keys() == [key(b"same")]


def test_every_name_on_the_way_to_an_object_outlives_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = set(), os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    root = tmp_path / "root"
    for data in (b"a", b"a", b"b"):
        synced.clear()
        kept = keeper_of(root).put([data])
        below = Path("root/files/md5", kept.md5[:2])

        assert {(tmp_path / it).stat().st_ino for it in (below, *below.parents)} <= synced


def test_an_object_is_nobodys_to_change(keeper: DirectoryKeeper, tmp_path: Path) -> None:
    keeper.put([b"x"])

    assert stat.S_IMODE((tmp_path / "objects" / key(b"x")).stat().st_mode) == 0o444


@pytest.mark.servers
def test_a_store_that_refuses_or_is_away_is_told_without_a_signature(
    seaweedfs: s3.Server, tmp_path: Path
) -> None:
    def keeper_at(endpoint: str, secret: str) -> S3Keeper:
        keys = static_credentials(seaweedfs.keys.access_key_id, secret)
        signer = S3Signer(BUCKET, credentials=keys, endpoint_url=endpoint)
        url = StorageUrl.parse(f"s3://{BUCKET}/x")
        return S3Keeper(Location(url, (), signer), url, signer, tmp_path)

    seaweedfs.create_bucket(BUCKET)
    for keeper in (
        keeper_at(seaweedfs.endpoint_url, "another secret"),
        keeper_at("http://127.0.0.1:9", seaweedfs.keys.secret_access_key),
    ):
        with pytest.raises(StorageUnavailable) as caught:
            keeper.put([b"x"])
        assert "Signature" not in caught.value.detail
        assert files(tmp_path) == []


def test_bytes_that_are_there_are_not_written_again(
    keeper: DirectoryKeeper, tmp_path: Path
) -> None:
    keeper.put([b"same"])
    before = (tmp_path / "objects" / key(b"same")).stat().st_ino
    keeper.put([b"sa", b"me"])

    assert files(tmp_path / "objects") == [key(b"same")]
    assert (tmp_path / "objects" / key(b"same")).stat().st_ino == before


def test_an_object_that_was_cut_off_is_written_again(
    keeper: DirectoryKeeper, tmp_path: Path
) -> None:
    object_ = tmp_path / "objects" / key(b"whole")
    object_.parent.mkdir(parents=True)
    object_.write_bytes(b"who")

    keeper.put([b"whole"])

    assert object_.read_bytes() == b"whole"


def test_what_cannot_be_written_is_told_as_the_failure_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("no directory")

    with pytest.raises(StorageUnavailable) as caught:
        keeper_of(tmp_path / "objects").put([b"x"])
    assert "cannot be written" in caught.value.detail

    with pytest.raises(StorageUnavailable):
        keeper_of(Path("/proc/none")).put([b"x"])


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path) -> None:
    uploads = tmp_path / "objects/.uploads"
    uploads.mkdir(parents=True)
    for name, age in (("old", 100_000), ("new", 0)):
        (uploads / name).write_bytes(b"half")
        then = (uploads / name).stat().st_mtime - age
        os.utime(uploads / name, (then, then))

    keeper_of(tmp_path / "objects").put([b"x"])

    assert files(uploads) == ["new"]
