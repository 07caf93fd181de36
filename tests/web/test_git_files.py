"""What Git tracks instead of DVC: refused, or handed out where the operator grants it."""

import pytest
from gitrepo import EXECUTABLE, LINK, GitRepository
from service import Registry, artifacts, digest, output, remote

from registry.contents import MOST_HASHED, MOST_TRACKED

FILES = {
    ".dvc/config": remote("s3://bucket/dvc"),
    "dvc.yaml": artifacts(
        m="model.bin", d="data", link="link", lfs="lfs.bin", gone="gone", dvc="x"
    ),
    "model.bin": "bytes of the model",
    "data/a.txt": "a",
    "data/deep/b é.txt": (EXECUTABLE, "bb"),
    "data/link": (LINK, "/etc/passwd"),
    "link": (LINK, "/etc/passwd"),
    "lfs.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
    "x.dvc": output("x", digest("x")),
}


@pytest.fixture
def origin(tmp_path) -> GitRepository:
    made = GitRepository(tmp_path / "origin.git")
    made.commit(FILES)
    for name in ("m", "d", "link", "lfs", "gone", "dvc"):
        made.tag(f"{name}@v1.0.0")
    return made


def granted(origin: GitRepository, **more: object) -> dict[str, object]:
    url = f"https://git.example/{origin.path.stem}.git"
    return {"url": str(origin.path), "git_files": "gateway", "aliases": [url], **more}


@pytest.fixture
def registry(serve, origin) -> Registry:
    return serve({"team/models": granted(origin)})


def test_nothing_is_handed_out_that_the_operator_did_not_grant(serve, origin) -> None:
    registry = serve({"team/models": origin})
    answer = registry.ask("m")

    assert (answer.status_code, answer.json["code"]) == (422, "not_in_storage")
    assert "tracked by Git, not by DVC" in answer.json["detail"]


def test_a_file_is_downloaded_by_a_link_of_the_gateway(registry) -> None:
    (link,) = registry.links("m").values()
    answer = registry.download(link)

    assert list(registry.links("m")) == ["model.bin"]
    assert link.startswith("https://registry.example/objects/")
    assert (answer.status_code, answer.data) == (200, b"bytes of the model")
    assert answer.headers["ETag"] == f'"{digest("bytes of the model")}"'
    assert answer.headers["Content-Length"] == "18"
    assert answer.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("wanted", "status", "data", "span"),
    [
        ("bytes=0-4", 206, b"bytes", "bytes 0-4/18"),
        ("bytes=13-", 206, b"model", "bytes 13-17/18"),
        ("bytes=-5", 206, b"model", "bytes 13-17/18"),
        ("bytes=18-", 416, b"", "bytes */18"),
    ],
)
def test_a_download_can_be_resumed(registry, wanted, status, data, span) -> None:
    (link,) = registry.links("m").values()
    answer = registry.download(link, Range=wanted)

    assert (answer.status_code, answer.data) == (status, data)
    assert answer.headers["Content-Range"] == span


def test_a_head_request_sends_no_bytes(registry) -> None:
    (link,) = registry.links("m").values()
    answer = registry.download(link, "HEAD")

    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["Content-Length"] == "18"


def test_a_directory_is_its_regular_files(registry) -> None:
    links = registry.links("d")

    assert list(links) == ["data/a.txt", "data/deep/b é.txt"]
    assert [registry.download(link).data for link in links.values()] == [b"a", b"bb"]


def test_a_receipt_of_it_can_be_checked(registry) -> None:
    headers = {"Authorization": f"token {registry.everything}"}
    query = {"repo": "team/models", "name": "d", "verify": "head"}
    receipt = registry.client.get("/api/v1/resolve", query_string=query, headers=headers).json

    assert receipt["files"] == [
        {"path": "data/a.txt", "md5": digest("a"), "size": 1},
        {"path": "data/deep/b é.txt", "md5": digest("bb"), "size": 2},
    ]
    assert receipt["total_size"] == 3


def test_what_dvc_tracks_is_signed_as_ever(registry) -> None:
    (link,) = registry.links("dvc").values()

    assert ".s3.amazonaws.com/" in link


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [("link", 422, "a link or a submodule"), ("lfs", 422, "Git LFS"), ("gone", 404, "neither")],
)
def test_what_git_has_no_bytes_of_is_refused(registry, name, status, word) -> None:
    answer = registry.ask(name)

    assert (answer.status_code, word in answer.json["detail"]) == (status, True), answer.text


def test_a_large_file_is_streamed_and_not_hashed(registry, origin) -> None:
    data = bytes(range(256)) * (MOST_HASHED // 256) + b"the end"
    origin.commit({"model.bin": data})
    origin.tag("m@v2.0.0")
    (link,) = registry.links("m", max_age="0").values()
    answer = registry.download(link, Range=f"bytes={len(data) - 7}-")
    with registry.client.get("/objects/" + link.rpartition("/")[2]) as whole:
        first = next(iter(whole.response))

    assert answer.data == b"the end"
    assert "ETag" not in whole.headers
    assert whole.headers["Content-Length"] == str(len(data))
    assert 0 < len(first) <= 1 << 20
    assert data.startswith(first)


def test_a_directory_of_many_small_files_is_answered_without_a_process_for_each(
    registry, origin
) -> None:
    origin.commit({f"data/{n:04}": f"{n}" for n in range(MOST_TRACKED - 2)})
    origin.tag("d@v2.0.0")
    full = registry.links("d", max_age="0")
    origin.commit({"data/more": "x"})
    origin.tag("d@v3.0.0")
    registry.clock.now += 60
    more = registry.ask("d", max_age="0")

    assert len(full) == MOST_TRACKED
    assert (more.status_code, "more than" in more.json["detail"]) == (422, True)


def test_a_link_dies_with_the_grant(serve, origin, registry) -> None:
    (link,) = registry.links("m").values()
    without = serve({"team/models": origin}, directory="without")

    assert without.download(link).status_code == 403


def test_a_link_ends_after_its_hour(registry) -> None:
    (link,) = registry.links("m").values()
    registry.clock.now += 3600

    assert registry.download(link).status_code == 403


def test_a_grant_is_of_one_repository_and_not_of_those_with_a_longer_name(serve, origin) -> None:
    registry = serve({"team": granted(origin), "team/models": {"url": str(origin.path)}})

    assert registry.ask("m", repo="team").status_code == 200
    assert registry.ask("m", repo="team/models").status_code == 422


@pytest.mark.parametrize("url", ["git://team~models", "git://team~models/x", "git:///team/models"])
def test_no_configuration_of_dvc_can_name_the_blobs_of_a_repository(serve, origin, url) -> None:
    origin.commit({".dvc/config": remote(url)})
    origin.tag("dvc@v2.0.0")
    registry = serve({"team/models": granted(origin)})

    assert registry.ask("dvc").status_code == 422


def test_an_import_of_it_is_for_who_may_see_its_source(serve, origin, tmp_path) -> None:
    importer = GitRepository(tmp_path / "importer.git")
    importer.commit(
        {
            ".dvc/config": remote("s3://bucket/dvc"),
            "dvc.yaml": artifacts(m="here.bin"),
            "here.bin.dvc": (
                "deps:\n- path: model.bin\n  repo:\n    url: https://git.example/origin.git\n"
                f"    rev_lock: {origin.head()}\nouts:\n- md5: {digest('bytes of the model')}\n"
                "  hash: md5\n  path: here.bin\n"
            ),
        }
    )
    importer.tag("m@v1.0.0")
    registry = serve({"team/importer": importer, "team/models": granted(origin)})
    links = registry.links("m")

    assert list(links) == ["here.bin"]
    assert registry.download(links["here.bin"]).data == b"bytes of the model"
    assert registry.ask("m", token=registry.token("team/importer")).status_code == 422
