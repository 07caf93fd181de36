"""Remotes that no link can be signed for: read by a library, handed out through the gateway."""

import json
from collections.abc import Iterator

import pytest
from servers import sftp
from service import Registry, Store, artifacts, digest, output, remote

from registry.errors import SettingsError

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[sftp.Sftp]:
    with sftp.start(tmp_path_factory.mktemp("sftp")) as running:
        yield running


@pytest.fixture
def files(server: sftp.Sftp) -> dict[str, str]:
    """A file and a directory in the store of the server."""
    store = Store(server.root / "store")
    listed = [{"md5": store.put(text), "relpath": text} for text in ("one", "two é")]
    return {
        ".dvc/config": remote(server.url),
        "dvc.yaml": artifacts(m="model.bin", d="data"),
        "model.bin.dvc": output("model.bin", store.put("bytes of the model")),
        "data.dvc": output("data", store.put(json.dumps(listed), ".dir")),
    }


def granted(server: sftp.Sftp, **options: str) -> list[dict[str, object]]:
    url = f"ssh://127.0.0.1:{server.port}/store"
    return [{"url": url, "repositories": ["*"], "options": {**server.options, **options}}]


@pytest.fixture
def registry(publish, server, files) -> Registry:
    return publish(files, "m", "d", storage=granted(server))


def test_nothing_is_connected_to_that_is_not_granted(publish, files) -> None:
    answer = publish(files).ask("m")

    assert (answer.status_code, answer.json["code"]) == (422, "location_not_granted")


def test_an_object_over_ssh_is_downloaded_through_the_gateway(registry) -> None:
    (link,) = registry.links("m").values()
    whole, part = registry.download(link), registry.download(link, Range="bytes=13-")

    assert link.startswith("https://registry.example/objects/")
    assert (whole.status_code, whole.data) == (200, b"bytes of the model")
    assert (part.status_code, part.data) == (206, b"model")
    assert part.headers["Content-Range"] == "bytes 13-17/18"
    assert "Last-Modified" in whole.headers
    assert registry.download(link, "HEAD").headers["Content-Length"] == "18"


def test_a_directory_over_ssh_is_listed_by_its_manifest(registry) -> None:
    links = registry.links("d")

    assert [registry.download(link).data for link in links.values()] == [b"one", "two é".encode()]


def test_an_object_that_is_missing_is_told_from_a_server_that_fails(
    registry, server, publish, files, tmp_path
) -> None:
    (link,) = registry.links("m").values()
    md5 = digest("bytes of the model")
    file = server.root / "store/files/md5" / md5[:2] / md5[2:]
    aside = file.rename(file.with_suffix(".aside"))
    try:
        missing = registry.download(link)
    finally:
        aside.rename(file)

    assert (missing.status_code, missing.json["code"]) == (424, "object_missing")
    assert registry.download(link).status_code == 200


def test_a_server_with_another_host_key_is_given_nothing(publish, server, files, tmp_path) -> None:
    known = (server.root.parent / "known_hosts").read_text().rpartition(" ")[0]
    other = (server.root.parent / "authorized").read_text().split()[1]
    impostor = tmp_path / "known_hosts"
    impostor.write_text(f"{known} {other}\n")
    registry = publish(files, storage=granted(server, known_hosts=str(impostor)))
    (link,) = registry.links("m").values()

    answer = registry.download(link)

    assert (answer.status_code, answer.json["code"]) == (502, "storage_unavailable")


def test_a_connection_that_was_lost_is_made_again(registry, server) -> None:
    (link,) = registry.links("m").values()
    before = registry.download(link)
    server.hang_up()
    after = registry.download(link)

    assert (before.data, after.data) == (b"bytes of the model", b"bytes of the model")


def test_a_server_that_is_gone_is_said_to_be_so(tmp_path, publish) -> None:
    with sftp.start(tmp_path / "brief") as brief:
        store = Store(brief.root / "store")
        registry = publish(
            {
                ".dvc/config": remote(brief.url),
                "dvc.yaml": artifacts(m="model.bin"),
                "model.bin.dvc": output("model.bin", store.put("x")),
            },
            storage=granted(brief),
        )
        (link,) = registry.links("m").values()
        before = registry.download(link)
    after = registry.download(link)

    assert (before.status_code, before.data) == (200, b"x")
    assert (after.status_code, after.json["code"]) == (502, "storage_unavailable")


def test_a_scheme_without_its_library_is_said_at_the_start(publish) -> None:
    with pytest.raises(SettingsError, match="gs needs a library: pip install gcsfs"):
        publish({}, storage=[{"url": "gs://bucket/x", "repositories": ["*"]}])
