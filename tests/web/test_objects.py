"""The gateway: links of our own, behind which the service reads what no store can sign."""

import json
import sqlite3
from base64 import b64encode
from contextlib import closing
from hashlib import sha256
from urllib.parse import urlsplit

import pytest
from gitrepo import GitRepository
from service import Registry, Store, WebServer, artifacts, digest, key, output, remote

DATA = bytes(range(256)) * 40
MODEL = {
    "dvc.yaml": artifacts(m="mödel 1.pkl"),
    "mödel 1.pkl.dvc": output("mödel 1.pkl", digest(DATA)),
}


@pytest.fixture
def local(publish, store: Store) -> Registry:
    """A model in a file store."""
    store.put(DATA)
    location = {"url": store.url, "repositories": ["*"]}
    return publish({**MODEL, ".dvc/config": remote(store.url)}, storage=[location])


@pytest.fixture
def link(local: Registry) -> str:
    return local.links()["mödel 1.pkl"]


def test_a_link_gives_the_object_with_its_digest_as_a_download(local, link) -> None:
    answer = local.download(link)

    assert answer.data == DATA
    assert answer.status_code == 200
    assert answer.headers["ETag"] == f'"{digest(DATA)}"'
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == (
        "attachment; filename*=UTF-8''m%C3%B6del%201.pkl"
    )
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "Last-Modified" in answer.headers


def test_head_gives_the_same_headers_and_no_bytes(local, link) -> None:
    full, head = local.download(link), local.download(link, "HEAD")

    assert (head.status_code, head.data) == (200, b"")
    for answer in (head, full):
        assert answer.headers.pop("X-Request-Id")
    assert dict(head.headers) == dict(full.headers)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=10200-", 10200, len(DATA) - 1),
        ("bytes=-5", len(DATA) - 5, len(DATA) - 1),
        ("bytes=10000-999999", 10000, len(DATA) - 1),
    ],
)
def test_a_range_gives_just_these_bytes(local, link, wanted, first, last) -> None:
    answer = local.download(link, Range=wanted)

    assert answer.status_code == 206
    assert answer.data == DATA[first : last + 1]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert answer.headers["Content-Length"] == str(last - first + 1)
    assert answer.headers["ETag"] == f'"{digest(DATA)}"'


def test_a_range_beyond_the_end_cannot_be_satisfied(local, link) -> None:
    answer = local.download(link, Range=f"bytes={len(DATA)}-")

    assert (answer.status_code, answer.data) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize(
    "wanted", ["bytes=0-1,4-5", "lines=1-2", "bytes=5-1", "bytes=x", "bytes=-"]
)
def test_a_range_that_is_malformed_or_manifold_counts_as_none(local, link, wanted) -> None:
    answer = local.download(link, Range=wanted)

    assert (answer.status_code, answer.data) == (200, DATA)


def test_a_range_counts_only_if_the_object_is_the_one_it_was_begun_with(local, link) -> None:
    same = local.download(link, Range="bytes=0-3", If_Range=f'"{digest(DATA)}"')
    other = local.download(link, Range="bytes=0-3", If_Range=f'"{digest("other")}"')

    assert (same.status_code, same.data) == (206, DATA[:4])
    assert (other.status_code, other.data) == (200, DATA)


@pytest.mark.parametrize("known", [f'"{digest(DATA)}"', f'"x", W/"{digest(DATA)}"', "*"])
def test_a_client_that_has_the_object_gets_no_bytes(local, link, known) -> None:
    answer = local.download(link, If_None_Match=known)

    assert (answer.status_code, answer.data) == (304, b"")
    assert answer.headers["ETag"] == f'"{digest(DATA)}"'
    assert local.download(link, If_None_Match='"other"').status_code == 200


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_a_link_is_for_reading_alone(local, link, method) -> None:
    with_token = {"Authorization": f"token {local.everything}"}

    assert local.download(link, method).status_code == 401
    assert local.download(link, method, **with_token).status_code == 405


def test_a_large_object_is_streamed_in_pieces(publish, store) -> None:
    size = 50 << 20
    md5 = store.put("large")
    with open(store.directory / key("large"), "wb") as file:
        file.truncate(size)
    files = {"dvc.yaml": artifacts(m="m"), "m.dvc": output("m", md5)}
    location = {"url": store.url, "repositories": ["*"]}
    registry = publish({**files, ".dvc/config": remote(store.url)}, storage=[location])
    path = urlsplit(registry.links()["m"]).path

    with registry.client.get(path) as answer:
        pieces = [len(piece) for piece in answer.response]

    assert answer.headers["Content-Length"] == str(size) == str(sum(pieces))
    assert max(pieces) <= 1 << 20


def refused(answer) -> bool:
    return answer.status_code == 403 and answer.json == {
        "detail": "This link is not valid or has expired: ask for a new one.",
        "code": "invalid_link",
        "request_id": answer.headers["X-Request-Id"],
    }


def test_a_link_ends_after_its_hour(local, link) -> None:
    local.clock.now += 3599
    before = local.download(link)
    local.clock.now += 1

    assert before.status_code == 200
    assert refused(local.download(link))


def test_a_link_that_was_changed_anywhere_is_refused(local, link) -> None:
    start = link.rindex("/") + 1
    for place in range(start, len(link), 7):
        changed = link[:place] + ("A" if link[place] != "A" else "B") + link[place + 1 :]
        assert refused(local.download(changed)), place
    assert refused(local.download(link[:-1]))
    assert refused(local.download(link[:start] + "garbage"))


def test_a_token_of_the_registry_is_no_link(local, link) -> None:
    base = link[: link.rindex("/") + 1]

    assert refused(local.download(base + local.everything))
    assert refused(local.download(base + local.everything.removeprefix("reg_")))


def test_a_link_dies_with_its_location_in_the_configuration(local, link, serve, tmp_path) -> None:
    origins = {"team/models": GitRepository(tmp_path / "origin.git")}
    elsewhere = [{"url": f"file://{tmp_path}/other", "repositories": ["*"]}]

    assert refused(serve(origins, elsewhere).download(link))
    assert refused(serve(origins, []).download(link))


def test_a_link_of_a_process_with_another_key_is_refused(local, link, serve, tmp_path) -> None:
    origins = {"team/models": GitRepository(tmp_path / "origin.git")}
    rotated = ["a secret key for tests, long enough", "another secret key, the newest one"]
    storage = [{"url": f"file://{tmp_path}/store", "repositories": ["*"]}]

    assert serve(origins, storage, secret_key=rotated).download(link).status_code == 200
    assert refused(serve(origins, storage, secret_key=rotated[1:]).download(link))


def test_an_object_that_is_missing_is_said_to_be_missing(local, link, store) -> None:
    (store.directory / key(DATA)).unlink()

    answer = local.download(link)

    assert answer.status_code == 424
    for word in ("dvc push", digest(DATA)):
        assert word in answer.json["detail"]
    assert str(store.directory) not in answer.text


def test_a_link_out_of_the_store_is_not_followed(local, link, store, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    (store.directory / key(DATA)).unlink()
    (store.directory / key(DATA)).symlink_to(secret)

    answer = local.download(link)

    assert answer.status_code == 502
    assert DATA not in answer.data


def test_nginx_is_told_to_send_the_file_where_it_can(publish, store) -> None:
    store.put(DATA)
    location = {"url": store.url, "repositories": ["*"], "x_accel_redirect": "/_files/"}
    registry = publish({**MODEL, ".dvc/config": remote(f"{store.url}/a%20b é")}, storage=[location])
    link = registry.links()["mödel 1.pkl"]

    answer = registry.download(link)

    assert answer.data == b""
    assert answer.headers["X-Accel-Redirect"] == f"/_files/a%2520b%20%C3%A9/{key(DATA)}"
    assert answer.headers["ETag"] == f'"{digest(DATA)}"'
    assert "filename*" in answer.headers["Content-Disposition"]
    registry.clock.now += 3600
    assert refused(registry.download(link))


@pytest.fixture
def web():
    basic = "Basic " + b64encode(b"reader:pass").decode()
    with WebServer({f"/dvc/{key(DATA)}": DATA}, basic) as server:
        yield server


def behind_a_password(publish, web: WebServer, **credentials: str) -> Registry:
    location = {"url": web.url, "repositories": ["*"], "signing": "gateway", **credentials}
    return publish({**MODEL, ".dvc/config": remote(f"{web.url}/dvc")}, storage=[location])


def test_a_web_server_behind_a_password_is_read_with_it_and_the_client_never_sees_it(
    publish, web
) -> None:
    registry = behind_a_password(publish, web, username="reader", password="pass")
    link = registry.links()["mödel 1.pkl"]

    answer = registry.download(link)

    assert answer.data == DATA
    assert answer.headers["ETag"] == f'"{digest(DATA)}"'
    assert web.requests == [f"GET /dvc/{key(DATA)}"]
    assert registry.download(link, "HEAD").headers["Content-Length"] == str(len(DATA))
    assert "pass" not in link + str(answer.headers)


@pytest.mark.parametrize(("status", "detail"), [(401, "401"), (500, "500"), (302, "302")])
def test_a_web_server_that_refuses_is_the_fault_of_the_store(publish, web, status, detail) -> None:
    registry = behind_a_password(publish, web, username="reader", password="pass")
    web.status = status

    answer = registry.download(registry.links()["mödel 1.pkl"])

    assert (answer.status_code, detail in answer.json["detail"]) == (502, True)


def test_a_file_that_a_web_server_lacks_is_missing(publish, web) -> None:
    registry = behind_a_password(publish, web, username="reader", password="pass")
    web.files.clear()

    assert registry.download(registry.links()["mödel 1.pkl"]).status_code == 424


def deliveries(registry: Registry) -> list[dict[str, object]]:
    """The rows of the audit log about the gateway, with all that was waiting to be written."""
    registry.services.audit.close()
    records = [json.loads(row.record) for row in registry.services.audit.rows()]
    return [record for record in records if "link" in record]


def test_what_was_handed_out_is_in_the_audit_log_and_the_link_is_not(local, link, store) -> None:
    whole, part = local.download(link), local.download(link, Range="bytes=1-2")

    rows = deliveries(local)
    token = link.rpartition("/")[2]
    for row, answer in zip(rows, (whole, part), strict=True):
        row.pop("at")
        assert row == {
            "request": answer.headers["X-Request-Id"],
            "address": "127.0.0.1",
            "link": sha256(token.encode()).hexdigest()[:16],
            "selector": f"{store.url}/{key(DATA)}",
            "md5": digest(DATA),
            "decision": "granted",
            "reason": None,
        }
    assert token not in json.dumps(rows)
    assert list(local.services.audit.verify()) == []


def test_an_object_that_was_not_handed_out_is_in_the_audit_log_with_the_reason(
    local, link, store
) -> None:
    (store.directory / key(DATA)).unlink()
    local.download(link)

    (row,) = deliveries(local)
    assert (row["decision"], row["reason"]) == ("refused", "ObjectMissing")


def test_what_gave_no_byte_is_not_in_the_audit_log(local, link) -> None:
    local.download(link, "HEAD")
    local.download(link, If_None_Match=f'"{digest(DATA)}"')
    local.download(link, Range="bytes=99999-")
    local.download(f"{link}x")

    assert deliveries(local) == []


def test_where_a_row_is_required_no_byte_is_sent_without_one(publish, store, tmp_path) -> None:
    files = {**MODEL, ".dvc/config": remote(store.url)}
    store.put(DATA)
    registry = publish(files, storage=[{"url": store.url, "repositories": ["*"]}], audit="required")
    (link,) = registry.links().values()
    with closing(sqlite3.connect(tmp_path / "var" / "registry.db")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        answer = registry.download(link)

        assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")
        assert DATA not in answer.data
    assert registry.download(link).data == DATA
    assert [row["decision"] for row in deliveries(registry)] == ["granted"]
