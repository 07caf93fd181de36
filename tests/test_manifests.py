"""The lists of directories: read once, kept on disk, and not too many of them at a time."""

import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.domain import RelPath, StorageUrl
from registry.dvc.manifest import Listing, Text
from registry.errors import ManifestNotReady, ObjectTooLarge, StorageUnavailable
from registry.manifests import LARGE, Manifests

A, B = (StorageUrl.parse(f"s3://bucket/files/md5/{name}.dir") for name in ("aa/a", "bb/b"))
LONG = 20_000
MOMENT, LONG_ENOUGH = 0.1, 30.0


def listing(count: int) -> Listing:
    lines = b"".join(b"%032x%s/%d.png\n" % (n, b"directory" * 5, n) for n in range(count))
    return Listing.of(Text(lines), count, RelPath.ROOT, legacy=False)


def parse(data: bytes | bytearray) -> Listing:
    return listing(int(data))


def nobody(_: int) -> bytes:
    raise AssertionError("it is asked of the store again")


class Store:
    """An object of some size. Whoever reads it waits until it is `opened`."""

    def __init__(self, count: int, size: int = 1) -> None:
        self.count = count
        self.size = size
        self.reads = 0
        self.reached, self.opened = threading.Event(), threading.Event()
        self.opened.set()

    def __call__(self, limit: int) -> bytes:
        if self.size > limit:
            raise ObjectTooLarge("s3://bucket/x", "too large", size=self.size)
        self.reads += 1
        self.reached.set()
        assert self.opened.wait(LONG_ENOUGH)
        return b"%d" % self.count


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Manifests]:
    """Those of one more process, over one cache."""
    return lambda **options: Manifests(tmp_path / "manifests", **options)


def kept(tmp_path: Path) -> Path:
    (file,) = (it for it in (tmp_path / "manifests").rglob("*") if it.is_file())
    return file


@pytest.mark.parametrize("count", [1, LONG])
def test_a_list_is_read_once_by_all_processes(opened, count) -> None:
    first = opened().listing(A, Store(count), parse)
    second = opened().listing(A, nobody, parse)

    assert [*first.lines] == [*second.lines] == [*listing(count).lines]
    assert len(first) == len(second) == count


def test_a_long_list_is_not_kept_in_memory_and_outlives_its_file(opened, tmp_path) -> None:
    found = opened().listing(A, Store(LONG), parse)
    kept(tmp_path).unlink()
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: [*found.lines], range(4)))

    assert not isinstance(found.lines, Text)
    assert read == [[*listing(LONG).lines]] * 4
    below = found.below(RelPath("directory" * 5 + "/7.png"))
    assert [entry.path for entry in below] == ["directory" * 5 + "/7.png"]


def test_a_list_that_cannot_be_kept_stays_in_memory(opened, tmp_path, caplog) -> None:
    (tmp_path / "manifests").write_text("not a directory")
    found = opened().listing(A, Store(LONG), parse)

    assert isinstance(found.lines, Text)
    assert len([*found.lines]) == LONG
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:50],
        lambda data: data + b"0" * 32 + b"../evil\n",
        lambda data: data.replace(b"directory", b"../../../", 1),
        lambda data: data.replace(b"files 1 20000", b"files 1 19999"),
        lambda data: b'[{"md5": "' + data,
    ],
    ids=["empty", "shorter", "cut in the header", "longer", "changed", "count", "another form"],
)
def test_a_damaged_file_is_read_again(opened, tmp_path, damage) -> None:
    opened().listing(A, Store(LONG), parse)
    file = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    store = Store(LONG)

    assert len([*opened().listing(A, store, parse).lines]) == LONG
    assert store.reads == 1
    assert kept(tmp_path).read_bytes() == whole


def test_what_the_store_does_not_have_is_asked_for_again(opened) -> None:
    manifests = opened()

    assert manifests.listing(A, lambda _: None, parse) is None
    assert len(manifests.listing(A, Store(3), parse)) == 3


def test_a_failure_is_that_of_all_who_wait_and_of_nobody_after(opened) -> None:
    def down(_: int) -> bytes:
        raise StorageUnavailable("s3://bucket/x", "it is down")

    manifests = opened()
    with pytest.raises(StorageUnavailable):
        manifests.listing(A, down, parse)

    assert len(manifests.listing(A, Store(3), parse)) == 3


def test_threads_that_want_one_list_read_it_once(opened) -> None:
    manifests, store = opened(patience=LONG_ENOUGH), Store(LONG)
    store.opened.clear()
    with ThreadPoolExecutor(4) as pool:
        wanted = [pool.submit(manifests.listing, A, store, parse) for _ in range(4)]
        assert store.reached.wait(LONG_ENOUGH)
        store.opened.set()
        found = [one.result(LONG_ENOUGH) for one in wanted]

    assert store.reads == 1
    assert [len(one) for one in found] == [LONG] * 4


def test_who_waits_too_long_is_told_to_come_back(opened) -> None:
    manifests, store = opened(patience=MOMENT), Store(1)
    store.opened.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(manifests.listing, A, store, parse)
        assert store.reached.wait(LONG_ENOUGH)
        with pytest.raises(ManifestNotReady) as caught:
            manifests.listing(A, nobody, parse)
        assert len(manifests.listing(B, Store(2), parse)) == 2
        store.opened.set()

    assert caught.value.retry_after > 0
    assert len(first.result()) == 1
    assert len(manifests.listing(A, nobody, parse)) == 1


def test_large_lists_wait_for_room_and_small_ones_do_not(opened) -> None:
    manifests = opened(room=3 * LARGE, patience=MOMENT)
    first = Store(1, 2 * LARGE)
    first.opened.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(manifests.listing, A, first, parse)
        assert first.reached.wait(LONG_ENOUGH)
        with pytest.raises(ManifestNotReady):
            manifests.listing(B, Store(2, 2 * LARGE), parse)
        assert len(manifests.listing(B, Store(2, LARGE), parse)) == 2
        first.opened.set()
        running.result(LONG_ENOUGH)

    larger = StorageUrl.parse("s3://bucket/files/md5/cc/c.dir")
    assert len(manifests.listing(larger, Store(3, 9 * LARGE), parse)) == 3


def test_room_is_given_to_who_waits(opened) -> None:
    manifests = opened(room=2 * LARGE, patience=LONG_ENOUGH)
    stores = [Store(number, 2 * LARGE) for number in range(4)]
    busy, most, lock = 0, 0, threading.Lock()

    def ask(store: Store) -> int:
        def read(limit: int) -> bytes:
            nonlocal busy, most
            if limit > LARGE:
                with lock:
                    busy += 1
                    most = max(most, busy)
            try:
                return store(limit)
            finally:
                if limit > LARGE:
                    with lock:
                        busy -= 1

        url = StorageUrl.parse(f"s3://bucket/files/md5/{store.count}.dir")
        return len(manifests.listing(url, read, parse))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, stores)) == [0, 1, 2, 3]
    assert most == 1


def test_a_list_that_another_process_reads_is_waited_for(opened, tmp_path) -> None:
    opened().listing(A, Store(5), parse)
    file = kept(tmp_path)
    whole = file.read_bytes()
    file.unlink()
    descriptor = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ManifestNotReady):
        opened(patience=MOMENT).listing(A, nobody, parse)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(opened(patience=LONG_ENOUGH).listing, A, nobody, parse)
        file.write_bytes(whole)
        os.close(descriptor)

        assert len(waiting.result(LONG_ENOUGH)) == 5
