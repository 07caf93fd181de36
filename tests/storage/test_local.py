"""Files of this machine: read in ranges, and never from outside of their location."""

import os
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import storage
from registry.domain import Entry, RelPath
from registry.errors import StorageUnavailable
from registry.storage import Origin, Reader
from registry.storage.gateway import GatewayLinks
from registry.storage.local import LocalSigner

NOW = datetime(2025, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
CONTENT = bytes(range(256)) * 4


@pytest.fixture(params=["by descriptors", "by paths"])
def reader(request, monkeypatch):
    """On Linux, and where a system does not tell what a descriptor holds."""
    if request.param == "by paths":
        monkeypatch.setattr(storage, "_DESCRIPTORS", "")
        monkeypatch.setattr(storage, "_AS_NAMED", os.O_NOFOLLOW)
    return Reader()


@pytest.fixture
def store(tmp_path):
    root = tmp_path / "store"
    root.mkdir()
    (root / "object é+%41#?").write_bytes(CONTENT)
    (root / "empty").touch()
    (tmp_path / "secret").write_text("outside")
    return root


def origin(store, key="object é+%41#?"):
    signer = LocalSigner(store, GatewayLinks(["k" * 32], "https://models.example.com"))
    path = f"{store}/{key}".removeprefix("/")
    return signer.origin(path, Entry(RelPath("file"), key), NOW)


def fetched(reader, origin, byte_range=None, method="GET"):
    stream = reader.stream(origin, byte_range, method)
    try:
        return stream.status, stream.headers, b"".join(stream)
    finally:
        stream.close()


def test_a_file_is_read_whole(reader, store):
    status, headers, content = fetched(reader, origin(store))

    assert (status, content) == (200, CONTENT)
    assert headers["Content-Length"] == str(len(CONTENT))
    assert headers["Content-Type"] == "application/octet-stream"
    assert parsedate_to_datetime(headers["Last-Modified"]).timestamp() == int(
        os.stat(store / "object é+%41#?").st_mtime
    )
    assert reader.read(origin(store), 2000) == CONTENT


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1000-", 1000, 1023),
        ("bytes=1000-99999", 1000, 1023),
        ("bytes=-24", 1000, 1023),
    ],
)
def test_one_range_is_served_as_it_was_asked(reader, store, asked, first, last):
    status, headers, content = fetched(reader, origin(store), asked)

    assert (status, content) == (206, CONTENT[first : last + 1])
    assert headers["Content-Range"] == f"bytes {first}-{last}/1024"
    assert headers["Content-Length"] == str(last - first + 1)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_satisfied(reader, store, asked):
    status, headers, content = fetched(reader, origin(store), asked)

    assert (status, content) == (416, b"")
    assert headers["Content-Range"] == "bytes */1024"
    assert headers["Content-Length"] == "0"


@pytest.mark.parametrize(
    "asked",
    ["bytes=", "bytes=-", "bytes=5-1", "bytes=0-1,5-6", "lines=1-2", f"bytes={'9' * 5000}-"],
)
def test_a_range_that_makes_no_sense_counts_as_none(reader, store, asked):
    status, headers, content = fetched(reader, origin(store), asked)

    assert (status, content) == (200, CONTENT)
    assert "Content-Range" not in headers


@given(st.integers(0, 2000), st.none() | st.integers(0, 2000))
def test_ranges_agree_with_slices(tmp_path_factory, first, last):
    path = tmp_path_factory.getbasetemp() / "sliced"
    path.write_bytes(CONTENT)
    asked = f"bytes={first}-{'' if last is None else last}"

    status, _, content = fetched(Reader(), Origin(f"file://{path}", root=path.parent), asked)

    if last is not None and last < first:
        assert (status, content) == (200, CONTENT)
    else:
        end = len(CONTENT) if last is None else last + 1
        assert content == CONTENT[first:end]
        assert status == (416 if first >= 1024 else 206 if len(content) < 1024 else 200)


def test_a_question_for_the_head_gets_no_bytes(reader, store):
    status, headers, content = fetched(reader, origin(store), method="HEAD")

    assert (status, content) == (200, b"")
    assert headers["Content-Length"] == "1024"


def test_an_empty_file_is_an_object_too(reader, store):
    assert reader.read(origin(store, "empty"), 10) == b""
    assert fetched(reader, origin(store, "empty"))[0] == 200


@pytest.mark.parametrize("key", ["missing", "object é+%41#?/below", "."])
def test_what_is_no_file_is_not_there(reader, store, key):
    assert reader.read(origin(store, key), 10) is None


def test_a_named_pipe_is_no_object_and_holds_nobody_up(reader, store):
    os.mkfifo(store / "pipe")

    assert reader.stream(origin(store, "pipe")) is None


def test_a_file_outside_of_the_location_is_refused(reader, store):
    (store / "link").symlink_to(store.parent / "secret")
    (store / "directory").symlink_to(store.parent)
    sibling = store.parent / "store-of-others"
    sibling.mkdir()
    (sibling / "secret").write_text("outside")

    for key in ("link", "directory/secret", "../secret", "../store-of-others/secret"):
        with pytest.raises(StorageUnavailable):
            reader.read(origin(store, key), 100)


def test_links_within_the_location_are_followed_and_the_location_may_be_one(reader, store):
    (store / "link").symlink_to("object é+%41#?")
    alias = store.parent / "alias"
    alias.symlink_to(store)

    assert reader.read(origin(store, "link"), 2000) == CONTENT
    assert reader.read(origin(alias), 2000) == CONTENT


def test_a_path_with_a_null_byte_is_refused_and_not_a_crash(reader, store):
    with pytest.raises(StorageUnavailable):
        reader.read(origin(store, "a\0b"), 10)


def test_no_more_than_the_limit_is_read(reader, store):
    with pytest.raises(StorageUnavailable):
        reader.read(origin(store), len(CONTENT) - 1)


def test_a_file_that_shrinks_meanwhile_never_looks_complete(reader, store):
    stream = reader.stream(origin(store))
    os.truncate(store / "object é+%41#?", 100)

    with pytest.raises(StorageUnavailable):
        b"".join(stream)
    stream.close()


def test_a_location_is_absolute():
    from pathlib import Path

    with pytest.raises(ValueError, match="absolute"):
        LocalSigner(Path("here"), GatewayLinks(["k" * 32], "https://models.example.com"))
