"""How bytes become objects: whole or not at all, and once."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.domain import StorageUrl
from registry.errors import InvalidRequest, StorageUnavailable
from registry.storage import Location
from registry.storage.gateway import GatewayLinks
from registry.storage.keeping import DirectoryKeeper
from registry.storage.local import LocalSigner


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


def test_an_object_lies_where_dvc_looks_for_it(keeper: DirectoryKeeper, tmp_path: Path) -> None:
    kept = keeper.put([b"a" * 10, b"", b"b"])
    data = b"a" * 10 + b"b"

    assert kept == (hashlib.md5(data).hexdigest(), 11)
    assert files(tmp_path / "objects") == [key(data)]
    object_ = tmp_path / "objects" / key(data)
    assert object_.read_bytes() == data
    assert stat.S_IMODE(object_.stat().st_mode) == 0o444
    assert keeper.put([]).size == 0
    assert keeper.put([b"[]"], ".dir").md5.endswith(".dir")
    assert f"{key(b'[]')}.dir" in files(tmp_path / "objects")


def test_the_same_bytes_are_one_object_and_are_not_written_again(
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


def test_what_breaks_off_leaves_nothing(keeper: DirectoryKeeper, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise InvalidRequest("body", "broke off")

    with pytest.raises(InvalidRequest):
        keeper.put(broken())

    assert files(tmp_path / "objects") == []


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
