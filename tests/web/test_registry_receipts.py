"""The registry's own API: what a selector means, and links to exactly that."""

import json
from hashlib import sha256

import pytest
from gitrepo import GitRepository
from service import (
    Registry,
    Store,
    WebServer,
    artifacts,
    digest,
    output,
    place,
    remote,
    unmarked,
)
from sqlalchemy import create_engine

from registry.dvc.manifest import object_key
from registry.receipt import Receipt
from registry.web.registry.receipts import LONGEST_PAGE

RESOLVE, URLS, MD5SUMS = "/api/v1/resolve", "/api/v1/urls", "/api/v1/md5sums"
DVC_YAML = """\
artifacts:
  m:
    path: model.pkl
    type: model
    desc: Tells cats from dogs.
    labels: [vision, pets]
    meta: {accuracy: 0.9, 1: .nan}
"""
TEXT, CURL, ARIA2 = "text/plain", "text/x-curl-config", "text/x-aria2"


def files(content: str) -> dict[str, str]:
    return {
        ".dvc/config": remote("s3://bucket/dvc"),
        "dvc.yaml": DVC_YAML,
        "model.pkl.dvc": output("model.pkl", digest(content)),
    }


@pytest.fixture
def origin(tmp_path) -> GitRepository:
    """Two versions, the first of them in prod."""
    made = GitRepository(tmp_path / "origin.git")
    made.commit(files("1"))
    made.tag("m@v1.0.0")
    made.tag("m#prod#1")
    made.commit(files("2"))
    made.tag("m@v2.0.0")
    return made


@pytest.fixture
def registry(serve, origin) -> Registry:
    return serve({"team/models": origin})


def ask(
    registry: Registry, route: str, /, *, token: str = "", accept: str = "", etag: str = "", **query
):
    headers = {"Authorization": f"token {token or registry.everything}"}
    headers |= {"Accept": accept} if accept else {}
    headers |= {"If-None-Match": etag} if etag else {}
    return registry.client.get(route, query_string=query, headers=headers)


def resolve(registry: Registry, *, name: str = "m", **query):
    return ask(registry, RESOLVE, repo="team/models", name=name, **query)


def links(registry: Registry, receipt: str, **query) -> dict[str, str]:
    answer = ask(registry, URLS, receipt=receipt, **query)
    assert answer.status_code == 200, answer.text
    return {file["path"]: file["url"] for file in answer.json["files"]}


def test_a_receipt_says_what_a_stage_means(registry, origin) -> None:
    answer = resolve(registry, stage="prod")
    revision = origin.git("rev-parse", "m@v1.0.0^{commit}")

    assert answer.content_type == "application/json"
    assert answer.json == {
        "repository": "team/models",
        "name": "m",
        "selector": {"stage": "prod"},
        "version": "v1.0.0",
        "revision": revision,
        "tag": "m#prod#1",
        "path": "model.pkl",
        "type": "model",
        "labels": ["vision", "pets"],
        "description": "Tells cats from dogs.",
        "meta": {"accuracy": 0.9, "1": ".nan"},
        "files": [{"path": "model.pkl", "md5": digest("1"), "size": 1}],
        "total_size": 1,
        "digest": answer.headers["ETag"].strip('"'),
    }
    assert bytes(Receipt.parse(answer.data)) == answer.data


def test_the_same_state_gives_the_same_bytes_on_every_host(registry, serve, origin) -> None:
    other = serve({"team/models": origin}, directory="other")
    other.clock.now += 1000

    for query in ({}, {"stage": "prod"}, {"version": "v1.0.0"}, {"rev": origin.head()}):
        here, there = resolve(registry, **query), resolve(other, **query)

        assert here.data == there.data
        assert here.headers["ETag"] == there.headers["ETag"]
        assert b"http" not in here.data


def test_who_has_the_receipt_is_not_sent_it_again(registry, origin) -> None:
    first = resolve(registry, stage="prod")
    etag = first.headers["ETag"]

    for sent in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = resolve(registry, stage="prod", etag=sent)

        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == etag
        assert again.headers["Cache-Control"] == "private, no-cache"
    assert resolve(registry, stage="prod", etag='"other"').status_code == 200

    origin.tag("m#prod#2")
    registry.clock.now += 60
    moved = resolve(registry, stage="prod", etag=etag)
    assert (moved.status_code, moved.json["version"]) == (200, "v2.0.0")


@pytest.mark.parametrize(
    ("query", "lasting"),
    [({}, False), ({"stage": "prod"}, False), ({"version": "v1.0.0"}, False), ({"rev": ""}, True)],
)
def test_only_what_cannot_change_may_be_kept(registry, origin, query, lasting) -> None:
    if "rev" in query:
        query = {"rev": origin.head()}
    answer = resolve(registry, **query)
    recalled = ask(registry, RESOLVE, receipt=answer.json["digest"])

    immutable = "private, max-age=31536000, immutable"
    assert answer.headers["Cache-Control"] == (immutable if lasting else "private, no-cache")
    assert "Authorization" in answer.headers["Vary"]
    assert recalled.data == answer.data
    assert recalled.headers["Cache-Control"] == immutable


def test_a_revision_is_answered_without_any_tag(registry, origin) -> None:
    revision = origin.commit({"model.pkl.dvc": output("model.pkl", digest("untagged"))})
    answer = resolve(registry, rev=revision)

    assert answer.json["revision"] == revision
    assert (answer.json["version"], answer.json["tag"]) == (None, None)
    assert answer.json["files"][0]["md5"] == digest("untagged")


@pytest.mark.parametrize(
    "rev", ["main", "HEAD", "v1.0.0", "0" * 39, "0" * 40 + "^", "-x", "G" * 40]
)
def test_a_revision_is_a_full_commit_id(registry, rev) -> None:
    answer = resolve(registry, rev=rev)

    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")


def test_a_revision_that_is_not_there_is_not_found(registry) -> None:
    answer = resolve(registry, rev="0" * 40)

    assert (answer.status_code, answer.json["code"]) == (404, "revision_not_found")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"verison": "v1.0.0"}, "verison"),
        ({"stage": ["prod", "qa"]}, "query"),
        ({"version": "v1.0.0", "stage": "prod"}, "version"),
        ({"rev": "0" * 40, "stage": "prod"}, "rev"),
        ({"receipt": "0" * 64}, "receipt"),
        ({"max_age": "soon"}, "max_age"),
        ({"max_age": "-1"}, "max_age"),
        ({f"x{n}": "1" for n in range(30)}, "query"),
    ],
)
def test_what_is_misspelled_or_contradicts_itself_is_refused_and_not_overlooked(
    registry, query, parameter
) -> None:
    answer = resolve(registry, **query)

    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
    assert answer.json["detail"].startswith(f"{parameter}: ")


def test_people_are_shown_a_receipt_without_what_moves_their_cursor(publish) -> None:
    evil = 'artifacts: {m: {path: model.pkl, desc: "a\\x1b[2Jb\\nc\\u202ed", labels: ["\\a"]}}'
    registry = publish({**files("1"), "dvc.yaml": evil})
    answer = resolve(registry, accept=TEXT)

    assert answer.content_type == "text/plain; charset=utf-8"
    assert set(answer.text) - {"\n"} == {it for it in answer.text if it.isprintable()}
    assert "    a\\x1b[2Jb\n    c\\u202ed\n" in answer.text
    for fact in ("m of team/models", "version=latest", "v1.0.0", "m@v1.0.0", digest("1"), "\\x07"):
        assert fact in answer.text
    assert resolve(registry, accept=TEXT, etag=answer.headers["ETag"]).status_code == 304
    assert resolve(registry).headers["ETag"] != answer.headers["ETag"]


def test_links_are_those_of_the_receipt_also_when_the_stage_has_moved(registry, origin) -> None:
    receipt = resolve(registry, stage="prod").json["digest"]
    before = links(registry, receipt)
    origin.tag("m#prod#2")
    registry.clock.now += 60
    moved = resolve(registry, stage="prod").json["digest"]

    assert moved != receipt
    assert place(before["model.pkl"]).endswith(digest("1")[2:])
    assert place(links(registry, receipt)["model.pkl"]).endswith(digest("1")[2:])
    assert place(links(registry, moved)["model.pkl"]).endswith(digest("2")[2:])


def test_links_come_with_what_is_needed_to_check_them(registry) -> None:
    receipt = resolve(registry).json["digest"]
    answer = ask(registry, URLS, receipt=receipt)
    (file,) = answer.json["files"]

    assert answer.json["receipt"] == receipt
    assert answer.json["expires"] == answer.headers["X-Registry-Expires"] == "2027-01-15T09:00:00Z"
    assert answer.json["next"] is None
    assert (file["path"], file["md5"], file["size"]) == ("model.pkl", digest("2"), 1)
    assert answer.headers["Cache-Control"] == "private, no-store"


def test_a_receipt_survives_a_restart_and_is_known_on_every_host(serve, origin, tmp_path) -> None:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    first = serve({"team/models": origin}, database_url=database)
    receipt = resolve(first, stage="prod").json["digest"]
    first.services.close()

    other = serve({"team/models": origin}, directory="other", database_url=database)

    assert list(links(other, receipt)) == ["model.pkl"]
    assert ask(other, MD5SUMS, receipt=receipt).status_code == 200
    assert ask(other, RESOLVE, receipt=receipt).json["digest"] == receipt


def test_a_receipt_outlives_the_tags_that_it_came_from(registry, serve, origin, tmp_path) -> None:
    receipt = resolve(registry, stage="prod").json["digest"]
    for tag in ("m@v1.0.0", "m#prod#1"):
        origin.delete_tag(tag)
    registry.clock.now += 60

    assert resolve(registry, stage="prod").status_code == 404
    assert list(links(registry, receipt)) == ["model.pkl"]


def test_a_receipt_that_is_known_is_served_without_the_database(registry) -> None:
    receipt = resolve(registry).json["digest"]
    links(registry, receipt)
    forget_receipts(registry)

    assert resolve(registry).status_code == 200
    assert list(links(registry, receipt)) == ["model.pkl"]


def forget_receipts(registry: Registry) -> None:
    """Takes the table away: whoever asks it falls over."""
    engine = create_engine(registry.settings.database)
    with engine.begin() as connection:
        connection.exec_driver_sql("drop table receipts")
    engine.dispose()


def test_no_receipt_is_given_that_cannot_be_written_down(registry) -> None:
    forget_receipts(registry)

    answer = resolve(registry)

    assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")


@pytest.mark.parametrize("path", [URLS, MD5SUMS, RESOLVE])
def test_a_receipt_of_others_looks_like_one_that_does_not_exist(serve, origin, path) -> None:
    registry = serve({"team/models": origin, "other/models": origin})
    receipt = resolve(registry).json["digest"]
    foreign = registry.token("other/*")

    hidden = ask(registry, path, token=foreign, receipt=receipt)
    unknown = ask(registry, path, token=foreign, receipt="0" * 64)

    assert (hidden.status_code, hidden.json["code"]) == (404, "receipt_not_found")
    assert "resolve again" in hidden.json["detail"]
    assert unmarked(hidden).replace(receipt, "0" * 64) == unmarked(unknown)


def test_the_permission_is_asked_again_on_every_use(registry) -> None:
    token = registry.token("team/models")
    receipt = resolve(registry, token=token).json["digest"]
    assert ask(registry, URLS, token=token, receipt=receipt).status_code == 200
    access = registry.services.access
    access.revoke(access.principal(token).id)
    registry.clock.now += 5

    assert ask(registry, URLS, token=token, receipt=receipt).status_code == 401


@pytest.mark.parametrize("path", [URLS, MD5SUMS, RESOLVE])
def test_every_route_wants_the_scope(registry, path) -> None:
    answer = ask(registry, path, token=registry.token(scopes=["metrics:read"]), receipt="0" * 64)

    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "receipt", ["", "x", "0" * 63, "0" * 65, "A" * 64, "../" * 20, "0" * 63 + "\n"]
)
def test_what_is_no_digest_is_refused(registry, receipt) -> None:
    for path in (URLS, MD5SUMS):
        assert ask(registry, path, receipt=receipt).status_code == 400


def test_links_are_written_down_and_receipts_are_not(registry) -> None:
    receipt = resolve(registry, stage="prod").json["digest"]
    ask(registry, URLS, receipt=receipt)
    ask(registry, URLS, receipt="0" * 64)
    registry.services.audit.close()
    granted, refused = [json.loads(row.record) for row in registry.services.audit.rows()]

    assert granted["decision"] == "granted"
    assert granted["selector"] == f"receipt:{receipt} m#prod"
    assert (granted["repository"], granted["version"], granted["files"]) == (
        "team/models",
        "v1.0.0",
        1,
    )
    assert refused["decision"] == "refused"
    assert (refused["reason"], refused["selector"]) == ("ReceiptNotFound", f"receipt:{'0' * 64}")


@pytest.fixture
def many(publish, store: Store) -> tuple[Registry, str]:
    """A directory of 2,500 files, and its receipt."""
    listed = [{"md5": digest(str(n)), "relpath": f"{n % 5}/{n:04}.bin"} for n in range(2500)]
    md5 = store.put(json.dumps(listed), ".dir")
    registry = publish(
        {
            ".dvc/config": remote(store.url),
            "dvc.yaml": artifacts(m="data"),
            "data.dvc": output("data", md5, "size: 12345").replace("  size: 1\n", "", 1),
        },
        storage=[{"url": store.url, "repositories": ["*"]}],
    )
    return registry, resolve(registry).json["digest"]


def test_a_large_receipt_is_streamed_and_is_what_its_digest_says(many) -> None:
    registry, receipt = many
    answer = resolve(registry)
    value = json.loads(answer.data)

    assert "Content-Length" not in answer.headers
    assert (len(value["files"]), value["total_size"]) == (2500, 12345)
    assert Receipt.parse(answer.data).digest == receipt == value["digest"]


def test_links_come_in_pages_that_leave_nothing_out(many) -> None:
    registry, receipt = many
    found, after, pages = [], 0, 0
    while after is not None:
        answer = ask(registry, URLS, receipt=receipt, after=after, limit=900).json
        found += [file["path"] for file in answer["files"]]
        after, pages = answer["next"], pages + 1

    assert pages == 3
    assert found == list(links(registry, receipt))
    assert len(found) == 2500


def test_links_can_be_had_for_some_of_the_files(many) -> None:
    registry, receipt = many
    all_of_three = ask(registry, URLS, receipt=receipt, path="data/3/*").json
    first = ask(registry, URLS, receipt=receipt, path="*/00*.bin", limit=60).json
    rest = ask(
        registry, URLS, receipt=receipt, path="*/00*.bin", limit=60, after=first["next"]
    ).json

    assert len(all_of_three["files"]) == 500
    assert all(file["path"].startswith("data/3/") for file in all_of_three["files"])
    assert (len(first["files"]), len(rest["files"]), rest["next"]) == (60, 40, None)
    for query in ({"path": "data/9/*"}, {"after": 2500}, {"path": "*/0000.bin", "after": 1}):
        answer = ask(registry, URLS, receipt=receipt, **query)
        assert (answer.status_code, answer.json["code"]) == (404, "path_not_found")


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": str(LONGEST_PAGE + 1)},
        {"limit": "x"},
        {"after": "-1"},
        {"after": "9" * 20},
        {"path": "x" * 1025},
        {"stage": "prod"},
    ],
)
def test_a_page_that_cannot_be_is_refused(registry, query) -> None:
    receipt = resolve(registry).json["digest"]

    assert ask(registry, URLS, receipt=receipt, **query).status_code == 400


def test_a_stale_answer_is_labelled_and_a_newer_one_can_be_asked_for(registry, origin) -> None:
    resolve(registry, stage="prod")
    origin.tag("m#prod#2")
    registry.clock.now += 10
    lagging = resolve(registry, stage="prod")
    asked = resolve(registry, stage="prod", max_age=0)
    origin.path.rename(origin.path.with_name("gone.git"))
    registry.clock.now += 100
    stale = resolve(registry, stage="prod")

    assert (lagging.json["version"], lagging.headers["X-Registry-Mirror-Age"]) == ("v1.0.0", "10")
    assert (asked.json["version"], asked.headers["X-Registry-Mirror-Age"]) == ("v2.0.0", "0")
    assert stale.headers["Warning"].startswith("110 ")
    assert (stale.status_code, stale.data) == (200, asked.data)


def test_a_deprecated_artifact_says_so(registry, origin) -> None:
    origin.tag("m@deprecated")

    assert resolve(registry, version="v1.0.0", max_age=0).headers["X-Registry-Deprecated"] == "true"


def test_what_people_wrote_cannot_make_an_answer_grow_without_end(publish) -> None:
    laughs = "x: &a [" + "lol, " * 500 + "]\n" + "y: &b [" + "*a, " * 100 + "]\n"
    bomb = f"{laughs}artifacts: {{m: {{path: model.pkl, meta: *b}}}}\n"
    registry = publish({**files("1"), "dvc.yaml": bomb})
    answer = resolve(registry)

    assert (answer.status_code, answer.json["code"]) == (422, "invalid_metadata")
    assert "dvc.yaml" in answer.json["detail"]
    assert registry.ask().status_code == 200


def test_checksums_are_those_of_the_files(registry) -> None:
    receipt = resolve(registry).json["digest"]
    answer = ask(registry, MD5SUMS, receipt=receipt)

    assert answer.text == f"{digest('2')}  model.pkl\n"
    assert answer.headers["Cache-Control"].endswith("immutable")


def test_a_receipt_is_of_the_import_only_for_who_sees_its_source(tmp_path, serve) -> None:
    source = GitRepository(tmp_path / "source.git")
    revision = source.commit(files("1"))
    origin = GitRepository(tmp_path / "importer.git")
    imported = (
        f"deps:\n- path: model.pkl\n  repo:\n    url: https://git.example/team/source.git\n"
        f"    rev_lock: {revision}\nouts:\n- md5: {digest('1')}\n  hash: md5\n  path: model.pkl\n"
    )
    origin.commit({**files("1"), "model.pkl.dvc": imported})
    origin.tag("m@v1.0.0")
    registry = serve({"team/models": origin, "team/source": source})
    narrow = registry.token("team/models")
    receipt = resolve(registry).json["digest"]

    refused = [
        resolve(registry, token=narrow),
        ask(registry, URLS, token=narrow, receipt=receipt),
        ask(registry, MD5SUMS, token=narrow, receipt=receipt),
    ]

    assert {(answer.status_code, answer.json["code"]) for answer in refused} == {
        (422, "not_in_storage")
    }
    assert list(links(registry, receipt)) == ["model.pkl"]


def test_formats_for_programs_are_as_they_were(registry) -> None:
    receipt = resolve(registry).json["digest"]
    (link,) = links(registry, receipt).values()

    assert ask(registry, URLS, receipt=receipt, accept=CURL).text == (
        "# These links end at 2027-01-15T09:00:00Z.\n"
        "create-dirs\nfail\nfail-early\ngloboff\n"
        'proto = "=http,https"\n'
        f'\nurl = "{link}"\noutput = "model.pkl"\n'
    )
    assert ask(registry, URLS, receipt=receipt, accept=ARIA2).text == (
        f"{link}\n out=./model.pkl\n checksum=md5={digest('2')}\n"
        " allow-overwrite=true\n auto-file-renaming=false\n"
    )
    assert ask(registry, URLS, receipt=receipt, accept="text/html, */*").is_json


def test_the_digest_is_of_the_bytes(registry) -> None:
    value = resolve(registry).json
    text = resolve(registry).text.replace(f'"digest":"{value["digest"]}",', "")

    assert sha256(text.encode()).hexdigest() == value["digest"]


class TestMany:
    """`POST /resolve`: many selectors, one state."""

    def post(self, registry: Registry, *selectors, token: str = "", **more):
        headers = {"Authorization": f"token {token or registry.everything}"}
        body = {"selectors": list(selectors), **more}
        return registry.client.post(RESOLVE, json=body, headers=headers)

    def test_each_is_answered_as_if_it_was_asked_alone(self, registry, origin) -> None:
        here = {"repo": "team/models", "name": "m"}
        queries = [{}, {"stage": "prod"}, {"version": "v1.0.0"}, {"rev": origin.head()}, {}]
        answer = self.post(registry, *({**here, **query} for query in queries))

        assert answer.status_code == 200, answer.text
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert answer.json["receipts"] == [resolve(registry, **query).json for query in queries]
        assert '{"receipts":[' + resolve(registry).text + "," in answer.text

    def test_all_are_of_one_state(self, registry, origin) -> None:
        """A version may be answered from what is known; beside a stage it may not."""
        origin.tag("n@v1.0.0", origin.head())
        origin.commit({"dvc.yaml": artifacts(m="model.pkl", n="model.pkl")})
        origin.tag("m@v3.0.0")
        origin.tag("n@v3.0.0")
        resolve(registry, max_age=0)
        origin.commit(files("moved"))
        origin.commit({"dvc.yaml": artifacts(m="model.pkl", n="model.pkl")})
        for name in "mn":
            origin.tag(f"{name}@v4.0.0")
            origin.tag(f"{name}#prod#9")
        registry.clock.now += 60

        answer = self.post(
            registry,
            {"repo": "team/models", "name": "m"},
            {"repo": "https://git.example/team/models.git", "name": "n", "stage": "prod"},
            {"repo": "team/models", "name": "m", "version": "v4.0.0"},
        )

        assert {receipt["revision"] for receipt in answer.json["receipts"]} == {origin.head()}
        assert answer.headers["X-Registry-Mirror-Age"] == "0"

    @pytest.mark.parametrize(
        ("wrong", "status", "code"),
        [
            ({"name": "other"}, 404, "artifact_not_found"),
            ({"stage": "never"}, 404, "stage_not_found"),
            ({"repo": "team/other"}, 404, "repository_not_found"),
            ({"version": "v1.0.0", "stage": "prod"}, 400, "invalid_request"),
            ({"verison": "v1.0.0"}, 400, "invalid_request"),
            ({"version": 1}, 400, "invalid_request"),
            ({"name": ""}, 400, "invalid_request"),
        ],
    )
    def test_one_that_is_wrong_is_the_answer_for_all(self, registry, wrong, status, code) -> None:
        right = {"repo": "team/models", "name": "m"}
        answer = self.post(registry, right, {**right, **wrong})

        assert (answer.status_code, answer.json["code"]) == (status, code)

    @pytest.mark.parametrize(
        "body",
        [b"", b"null", b"[]", b"{}", b'{"selectors": []}', b'{"selectors": {}}', b"[" * 100_000,
         b'{"selectors": [1]}', b'{"selectors": [{}], "more": 1}', b"\xff"],
    )  # fmt: skip
    def test_a_body_that_makes_no_sense_is_refused(self, registry, body) -> None:
        headers = {"Authorization": f"token {registry.everything}"}
        answer = registry.client.post(
            RESOLVE, data=body, content_type="application/json", headers=headers
        )

        assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")

    def test_there_are_limits(self, registry) -> None:
        selector = {"repo": "team/models", "name": "m"}
        headers = {"Authorization": f"token {registry.everything}"}
        form = registry.client.post(RESOLVE, data="selectors=1", headers=headers)

        assert self.post(registry, *[selector] * 100).status_code == 200
        assert self.post(registry, *[selector] * 101).status_code == 400
        assert self.post(registry, {**selector, "stage": "x" * (1 << 18)}).status_code == 413
        for max_age in (-1, 1.5, "0", True):
            assert self.post(registry, selector, max_age=max_age).status_code == 400
        assert form.status_code == 400
        assert self.post(registry, selector, token=registry.token(scopes=[])).status_code == 403


class TestPresence:
    """`?verify=head`: whether the store has what the receipt lists."""

    @pytest.fixture
    def registry(self, publish, store: Store) -> Registry:
        listed = [{"md5": store.put(f"{n}"), "relpath": f"{n}"} for n in range(30)]
        listed.append({"md5": digest("0"), "relpath": "same as 0"})
        md5 = store.put(json.dumps(listed), ".dir")
        return publish(
            {
                ".dvc/config": remote(store.url),
                "dvc.yaml": artifacts(m="data"),
                "data.dvc": output("data", md5),
            },
            storage=[{"url": store.url, "repositories": ["*"]}],
        )

    def lose(self, store: Store, *contents: str) -> None:
        for content in contents:
            (store.directory / object_key(digest(content), legacy=False)).unlink()

    def test_what_is_there_is_resolved_as_ever(self, registry) -> None:
        answer = resolve(registry, verify="head")

        assert answer.data == resolve(registry).data
        assert answer.headers["X-Registry-Verified"] == "30"
        assert answer.headers["Cache-Control"] == "private, no-cache"

    def test_what_was_never_pushed_is_named(self, registry, store) -> None:
        self.lose(store, "7", "0", "29")
        receipt = resolve(registry).json["digest"]

        for query in ({"repo": "team/models", "name": "m"}, {"receipt": receipt}):
            answer = ask(registry, RESOLVE, verify="head", **query)

            assert (answer.status_code, answer.json["code"]) == (424, "objects_missing")
            assert answer.json["missing"] == ["data/0", "data/7", "data/29", "data/same as 0"]
            assert answer.json["detail"] == (
                "The objects of 4 files are missing in the store: run `dvc push`: "
                "'data/0', 'data/7', 'data/29', ..."
                "."
            )
            assert "X-Registry-Verified" not in answer.headers
        assert resolve(registry).status_code == 200

    def test_who_has_the_receipt_is_told_as_well(self, registry, store) -> None:
        etag = resolve(registry).headers["ETag"]
        before = resolve(registry, verify="head", etag=etag)
        self.lose(store, "7")
        after = resolve(registry, verify="head", etag=etag)

        assert (before.status_code, after.status_code) == (304, 424)

    def test_what_is_not_granted_is_not_asked_for(self, publish) -> None:
        with WebServer() as attacker:
            registry = publish({**files("1"), ".dvc/config": remote(f"{attacker.url}/x")})
            answer = resolve(registry, verify="head")

        assert (answer.status_code, answer.json["code"]) == (422, "location_not_granted")
        assert attacker.requests == []

    def test_a_store_that_fails_is_not_a_store_that_lacks(self, publish) -> None:
        with WebServer() as server:
            registry = publish(
                {**files("1"), ".dvc/config": remote(server.url)},
                storage=[{"url": server.url, "repositories": ["*"]}],
            )
            missing = resolve(registry, verify="head")
            server.status = 403
            refused = resolve(registry, verify="head")

        assert (missing.status_code, missing.json["missing"]) == (424, ["model.pkl"])
        assert (refused.status_code, refused.json["code"]) == (502, "storage_unavailable")

    def test_there_is_a_limit(self, many) -> None:
        registry, _ = many
        answer = resolve(registry, verify="head")

        assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
        assert resolve(registry, verify="get").status_code == 400


class TestUnchanged:
    """Who has the answer is told so before Flask is asked: nothing else may differ."""

    def headers(self, answer) -> dict[str, str]:
        return {name: it for name, it in answer.headers.items() if name != "X-Request-Id"}

    @pytest.mark.parametrize("query", [{}, {"stage": "prod"}, {"version": "v1.0.0"}, {"rev": ""}])
    def test_the_answer_is_that_of_the_view(self, registry, origin, query) -> None:
        if "rev" in query:
            query = {"rev": origin.head()}
        etag = resolve(registry, **query).headers["ETag"]
        registry.clock.now += 1
        quick, slow = (resolve(registry, etag=it, **query) for it in (etag, f"W/{etag}"))

        assert (quick.status_code, quick.data) == (slow.status_code, slow.data) == (304, b"")
        assert self.headers(quick) == self.headers(slow)
        assert quick.headers["X-Request-Id"] != slow.headers["X-Request-Id"]

    def test_what_takes_time_is_not_tried_twice(self, publish) -> None:
        """Whoever waits 4 s for a store that fails must not wait for it again."""
        with WebServer() as server:
            server.status = 500
            registry = publish(
                {
                    ".dvc/config": remote(server.url),
                    "dvc.yaml": artifacts(m="data"),
                    "data.dvc": output("data", f"{digest('1')}.dir"),
                },
                storage=[{"url": server.url, "repositories": ["*"]}],
            )
            without = resolve(registry)
            asked = len(server.requests)
            answer = resolve(registry, etag='"0"')

        assert without.status_code == answer.status_code == 502
        assert len(server.requests) == 2 * asked

    def test_a_stage_that_moved_is_noticed(self, registry, origin) -> None:
        etag = resolve(registry, stage="prod").headers["ETag"]
        origin.tag("m#prod#2")
        registry.clock.now += 60

        assert resolve(registry, stage="prod", etag=etag).json["version"] == "v2.0.0"

    def test_a_stale_answer_is_labelled_here_as_well(self, registry, origin) -> None:
        etag = resolve(registry, stage="prod").headers["ETag"]
        origin.path.rename(origin.path.with_name("gone.git"))
        registry.clock.now += 100
        answer = resolve(registry, stage="prod", etag=etag)

        assert answer.status_code == 304
        assert answer.headers["Warning"].startswith("110 ")
        assert answer.headers["X-Registry-Mirror-Age"] == "100"

    def test_whoever_may_not_see_it_learns_nothing_from_having_it(self, registry) -> None:
        etag = resolve(registry).headers["ETag"]
        token = registry.token("other/*")
        revoked = registry.token()
        assert resolve(registry, token=revoked, etag=etag).status_code == 304
        access = registry.services.access
        access.revoke(access.principal(revoked).id)
        registry.clock.now += 5

        for given, status in ((token, 404), (revoked, 401), ("wrong", 401)):
            with_it = resolve(registry, token=given, etag=etag)
            without = resolve(registry, token=given)
            assert with_it.status_code == without.status_code == status
            assert unmarked(with_it) == unmarked(without)
        assert resolve(registry, token=registry.token(scopes=[]), etag=etag).status_code == 403

    def test_it_counts_against_the_quota_of_the_token(self, serve, origin) -> None:
        registry = serve({"team/models": origin}, rate_limit=3)
        etag = resolve(registry).headers["ETag"]
        answers = [resolve(registry, etag=etag) for _ in range(3)]

        assert [it.status_code for it in answers] == [304, 304, 429]
        assert answers[0].headers["RateLimit"] == '"token";r=1;t=40'
        assert answers[2].json["code"] == "too_many_requests"

    def test_what_is_malformed_is_refused_as_ever(self, registry) -> None:
        etag = resolve(registry).headers["ETag"]

        assert resolve(registry, etag=etag, verison="v1.0.0").status_code == 400
        assert resolve(registry, etag=etag, version="v1.0.0", stage="prod").status_code == 400

    def test_it_is_counted_and_logged_by_its_route(self, registry) -> None:
        etag = resolve(registry).headers["ETag"]
        resolve(registry, etag=etag)
        token = registry.token(scopes=["metrics:read"])
        text = ask(registry, "/metrics", token=token).text

        assert 'registry_requests_total{dialect="registry",outcome="ok"} 2.0' in text
