"""Downloads: whole and checked or not there at all, whatever the store and the target do."""

import os
import resource
import threading
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import pytest
from rangeserver import RangeServer

from registry import transfer
from registry.connections import Connections
from registry.domain import RelPath
from registry.errors import (
    FileInTheWay,
    ObjectCorrupt,
    ObjectMissing,
    StorageUnavailable,
    TargetUnusable,
    UnsafePath,
)
from registry.receipt import ReceiptFile
from registry.storage import Origin
from registry.transfer import Job

FILES = {
    "model.pkl": b"weights " * 50_000,
    "tokens/vocab.txt": b"a\nb\n",
    "tokens/deep/er/é +%.bin": b"odd",
    "empty": b"",
}


class Links:
    """Links that end in a number: a fresh one has the next."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fresh = 0

    def origin(self, file: ReceiptFile, stale: Origin | None) -> Origin:
        self.fresh += stale is not None
        path = "/" + "/".join(part.encode().hex() for part in file.path.split("/"))
        return Origin(f"{self.url}{path}?link={self.fresh}")


def served(path: str) -> str:
    return "/" + "/".join(part.encode().hex() for part in path.split("/"))


def wanted(path: str, data: bytes, **more: object) -> ReceiptFile:
    known = {"md5": md5(data).hexdigest(), "size": len(data), **more}
    return ReceiptFile(RelPath(path), **known)


@pytest.fixture
def store() -> Iterator[RangeServer]:
    with RangeServer({served(path): data for path, data in FILES.items()}) as server:
        yield server


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections(4)
    yield made
    made.close()


@pytest.fixture
def download(store, connections, tmp_path, monkeypatch):
    """Downloads files into `out`: all of them unless it is told which."""
    monkeypatch.setattr(transfer, "_SHORTEST_PAUSE", 0.001)  # seconds that tests need not wait

    def run(*files: ReceiptFile, **options: object) -> list[Path]:
        chosen = files or [wanted(path, data) for path, data in FILES.items()]
        options = {"sources": Links(store.url), "target": tmp_path / "out", **options}
        return Job(chosen, connections=connections, **options).run()

    return run


def on_disk(directory: Path) -> dict[str, bytes]:
    found = [path for path in directory.rglob("*") if not path.is_dir()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def parts(directory: Path) -> list[Path]:
    return list(directory.rglob(".registry-*.part"))


# ------------------------------------------------------------------------------------ what is got


def test_every_file_is_where_the_receipt_says_and_nothing_else_is(download, tmp_path) -> None:
    paths = download()

    assert paths == [tmp_path / "out" / path for path in FILES]
    assert on_disk(tmp_path / "out") == FILES


def test_what_is_there_already_is_not_got_again(download, store) -> None:
    download()
    store.requests.clear()

    download()

    assert store.requests == []


def test_how_far_it_is_adds_up_to_all_bytes(download) -> None:
    told, lock = [], threading.Lock()

    def advance(count: int) -> None:
        with lock:
            told.append(count)

    download(advance=advance)

    assert sum(told) == sum(map(len, FILES.values()))


def test_a_redirect_is_followed(download, store, tmp_path) -> None:
    store.redirects[served("model.pkl")] = f"{store.url}/elsewhere"
    store.files["/elsewhere"] = FILES["model.pkl"]

    download(wanted("model.pkl", FILES["model.pkl"]))

    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_file_of_unknown_md5_and_size_is_taken_as_it_comes(download, tmp_path) -> None:
    download(wanted("model.pkl", b"", md5=None, size=None))

    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_text_that_dvc_2_hashed_by_its_lines_is_right_with_its_own_line_ends(
    download, store, tmp_path
) -> None:
    store.files[served("text")] = b"one\r\ntwo\r\n"
    text = wanted("text", b"", md5=md5(b"one\ntwo\n").hexdigest(), size=10)

    download(text)
    download(text)

    assert on_disk(tmp_path / "out") == {"text": b"one\r\ntwo\r\n"}


def test_a_large_file_is_hashed_aside_and_still_checked(
    download, store, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(transfer, "_HASHED_ASIDE", 1000)
    data = os.urandom(3 << 20)
    store.files[served("large")] = data
    store.files[served("wrong")] = data[:-1] + bytes([data[-1] ^ 1])

    download(wanted("large", data))
    with pytest.raises(ObjectCorrupt):
        download(wanted("wrong", data))

    assert on_disk(tmp_path / "out") == {"large": data, **empty_part(tmp_path / "out")}


def empty_part(directory: Path) -> dict[str, bytes]:
    return {part.name: b"" for part in parts(directory)}


# -------------------------------------------------------------------------- a store that breaks off


def test_what_broke_off_is_gone_on_with(download, store, tmp_path) -> None:
    store.breaks[served("model.pkl")] = [100_000, 50_000]

    download()

    asked = [first for path, first in store.requests if path.startswith(served("model.pkl"))]
    assert asked == [0, 100_000, 150_000]
    assert on_disk(tmp_path / "out") == FILES


def test_the_next_run_goes_on_where_the_last_one_gave_up(download, store, tmp_path) -> None:
    model = wanted("model.pkl", FILES["model.pkl"])
    store.breaks[served("model.pkl")] = [100_000, *[0] * 20]
    with pytest.raises(StorageUnavailable):
        download(model)
    assert [part.stat().st_size for part in parts(tmp_path / "out")] == [100_000]
    assert not (tmp_path / "out/model.pkl").exists()
    store.breaks.clear()
    store.requests.clear()

    download(model)

    assert [first for _, first in store.requests] == [100_000]
    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_store_that_ignores_ranges_is_read_from_the_start(download, store, tmp_path) -> None:
    store.whole = True
    store.breaks[served("model.pkl")] = [100_000]

    download()

    assert on_disk(tmp_path / "out") == FILES


@pytest.mark.parametrize("left", [b"rubbish", b"w" * 399_999, b"weights " * 60_000])
def test_what_an_earlier_run_left_is_not_believed(download, store, tmp_path, left) -> None:
    model = wanted("model.pkl", FILES["model.pkl"])
    store.breaks[served("model.pkl")] = [1, *[0] * 20]
    with pytest.raises(StorageUnavailable):
        download(model)
    (part,) = parts(tmp_path / "out")
    part.write_bytes(left)
    store.breaks.clear()

    download(model)

    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_part_that_is_longer_than_the_object_is_dropped(download, store, tmp_path) -> None:
    model = wanted("model.pkl", FILES["model.pkl"], size=None)
    store.breaks[served("model.pkl")] = [1, *[0] * 20]
    with pytest.raises(StorageUnavailable):
        download(model)
    (part,) = parts(tmp_path / "out")
    part.write_bytes(FILES["model.pkl"] + b"more")
    store.breaks.clear()

    download(model)

    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_part_that_was_whole_needs_only_the_check(download, store, tmp_path) -> None:
    model = wanted("model.pkl", FILES["model.pkl"])
    store.breaks[served("model.pkl")] = [1, *[0] * 20]
    with pytest.raises(StorageUnavailable):
        download(model)
    (part,) = parts(tmp_path / "out")
    part.write_bytes(FILES["model.pkl"])
    store.requests.clear()

    download(model)

    assert store.requests == []
    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_store_that_says_later_is_asked_later(download, store, tmp_path, status) -> None:
    store.answers[served("model.pkl")] = [status, status]
    store.headers["Retry-After"] = "0"

    download()

    assert on_disk(tmp_path / "out") == FILES


def test_a_store_that_never_answers_well_is_an_error_with_its_place(download, store) -> None:
    store.answers[served("model.pkl")] = [503] * 50

    with pytest.raises(StorageUnavailable) as raised:
        download()

    assert "it answers 503" in raised.value.detail
    assert "link=" not in raised.value.detail


def test_a_store_that_cannot_be_reached_is_an_error(download, connections, tmp_path) -> None:
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        download(sources=Links("http://127.0.0.1:9"))


# ---------------------------------------------------------------------------------- links that end


@pytest.mark.parametrize("status", [400, 401, 403, 410])
def test_when_a_link_is_over_a_fresh_one_is_asked_for(download, store, tmp_path, status) -> None:
    links = Links(store.url)
    store.answers[served("model.pkl")] = [status]

    download(wanted("model.pkl", FILES["model.pkl"]), sources=links)

    assert links.fresh == 1
    assert store.requests[-1][0].endswith("?link=1")
    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_link_may_be_over_in_the_middle_of_a_file(download, store, tmp_path) -> None:
    store.breaks[served("model.pkl")] = [100_000]
    answers = store.answers[served("model.pkl")]

    class Ending(Links):
        def origin(self, file: ReceiptFile, stale: Origin | None) -> Origin:
            if store.requests and stale is None:
                answers.append(403)
            return super().origin(file, stale)

    download(wanted("model.pkl", FILES["model.pkl"]), sources=Ending(store.url))

    assert [(path[-1], first) for path, first in store.requests] == [
        ("0", 0), ("0", 100_000), ("1", 100_000),
    ]  # fmt: skip
    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_store_that_refuses_every_link_is_not_asked_for_ever(download, store) -> None:
    links = Links(store.url)
    store.answers[served("model.pkl")] = [403] * 50

    with pytest.raises(StorageUnavailable, match="403 to fresh links"):
        download(wanted("model.pkl", FILES["model.pkl"]), sources=links)

    assert links.fresh <= transfer.RENEWALS


# ---------------------------------------------------------------------------------- bytes that lie


def test_other_bytes_are_refused_after_a_second_look(download, store, tmp_path) -> None:
    store.files[served("model.pkl")] = FILES["model.pkl"][:-1] + b"!"

    with pytest.raises(ObjectCorrupt):
        download(wanted("model.pkl", FILES["model.pkl"]))

    assert len(store.requests) == 2
    assert not (tmp_path / "out/model.pkl").exists()


def test_an_object_without_an_end_does_not_fill_the_disk(download, store, tmp_path) -> None:
    store.files[served("model.pkl")] = b"x" * (8 << 20)

    with pytest.raises(ObjectCorrupt):
        download(wanted("model.pkl", b"x" * 1000))

    assert sum(len(data) for data in on_disk(tmp_path / "out").values()) == 0


def test_an_object_that_is_missing_is_named(download, store) -> None:
    del store.files[served("tokens/vocab.txt")]

    with pytest.raises(ObjectMissing) as raised:
        download()

    assert raised.value.path == "tokens/vocab.txt"


# -------------------------------------------------------------------------------------- the target


@pytest.mark.parametrize("link", ["tokens", "tokens/deep"])
def test_a_link_in_the_target_leads_nowhere(download, tmp_path, link) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out" / link).parent.mkdir(parents=True)
    (tmp_path / "out" / link).symlink_to(outside)

    with pytest.raises(UnsafePath):
        download()

    assert list(outside.iterdir()) == []


def test_a_link_where_the_file_belongs_is_in_the_way_and_is_not_followed(
    download, tmp_path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.pkl").symlink_to(victim)

    with pytest.raises(FileInTheWay):
        download()
    download(force=True)

    assert victim.read_text() == "precious"
    assert not (tmp_path / "out/model.pkl").is_symlink()
    assert (tmp_path / "out/model.pkl").read_bytes() == FILES["model.pkl"]


def test_a_link_where_the_part_belongs_is_not_followed(download, store, tmp_path) -> None:
    model = wanted("model.pkl", FILES["model.pkl"])
    store.breaks[served("model.pkl")] = [1, *[0] * 20]
    with pytest.raises(StorageUnavailable):
        download(model)
    (part,) = parts(tmp_path / "out")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    part.unlink()
    part.symlink_to(victim)
    store.breaks.clear()

    with pytest.raises(TargetUnusable):
        download(model)

    assert victim.read_text() == "precious"


def test_what_else_has_the_name_of_the_part_is_not_written_to(download, store, tmp_path) -> None:
    """A second name of another file, or a pipe whose reader would never come."""
    model = wanted("model.pkl", FILES["model.pkl"])
    store.breaks[served("model.pkl")] = [0] * 20
    with pytest.raises(StorageUnavailable):
        download(model)
    store.breaks.clear()
    (part,) = parts(tmp_path / "out")
    (tmp_path / "precious").write_bytes(b"precious")
    for make in (lambda: os.link(tmp_path / "precious", part), lambda: os.mkfifo(part)):
        part.unlink()
        make()

        with pytest.raises(FileInTheWay):
            download(model)

    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "out/model.pkl").exists()


def test_the_target_itself_may_be_a_link(download, tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")

    download()

    assert on_disk(tmp_path / "real") == FILES


def test_another_file_is_not_replaced_unless_that_is_wanted(download, store, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.pkl").write_text("mine")

    with pytest.raises(FileInTheWay, match="--force"):
        download()
    assert on_disk(tmp_path / "out") == {"model.pkl": b"mine"}
    assert store.requests == []

    download(force=True)
    assert on_disk(tmp_path / "out") == FILES


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_where_a_file_belongs_is_in_the_way(download, tmp_path, force) -> None:
    (tmp_path / "out/model.pkl").mkdir(parents=True)

    with pytest.raises(FileInTheWay, match="directory"):
        download(force=force)


def test_a_file_where_a_directory_belongs_is_in_the_way(download, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tokens").touch()

    with pytest.raises(UnsafePath):
        download()


def test_two_files_of_one_path_are_refused(download, tmp_path) -> None:
    with pytest.raises(UnsafePath):
        download(wanted("a", b"1"), wanted("a/b", b"2"))

    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_made_is_an_error_of_ours(download, tmp_path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(TargetUnusable):
        download(target=tmp_path / "file/below")


def test_more_than_fits_on_the_disk_is_refused_before_anything_is_asked_for(
    download, store
) -> None:
    with pytest.raises(TargetUnusable, match="are free"):
        download(wanted("model.pkl", FILES["model.pkl"], size=1 << 60))

    assert store.requests == []


def test_what_an_earlier_run_left_needs_no_room_again(
    download, store, tmp_path, monkeypatch
) -> None:
    model = wanted("model.pkl", FILES["model.pkl"])
    store.breaks[served("model.pkl")] = [100_000, *[0] * 20]
    with pytest.raises(StorageUnavailable):
        download(model)
    store.breaks.clear()
    free = len(FILES["model.pkl"]) - 100_000
    for short in (1, 0):
        room = SimpleNamespace(free=free - short)
        monkeypatch.setattr(transfer, "disk_usage", lambda _, room=room: room)
        if short:
            with pytest.raises(TargetUnusable, match="are free"):
                download(model)

    download(model)

    assert on_disk(tmp_path / "out") == {"model.pkl": FILES["model.pkl"]}


def test_a_disk_that_fills_up_leaves_no_file_and_no_part(download, tmp_path) -> None:
    """The system refuses to write on, as it does for a quota; a full disk is refused alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TargetUnusable):
            download(wanted("model.pkl", FILES["model.pkl"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert list((tmp_path / "out").iterdir()) == []


def test_two_downloads_of_one_file_do_not_mix(download, store, tmp_path, connections) -> None:
    model = wanted("model.pkl", FILES["model.pkl"])
    store.hang = True
    first = threading.Thread(target=lambda: download(model))
    first.start()
    assert store.hung.wait(60)

    with pytest.raises(FileInTheWay, match="under way"):
        download(model)

    store.hang = False
    store.release.set()
    first.join(60)
    assert (tmp_path / "out/model.pkl").read_bytes() == FILES["model.pkl"]
