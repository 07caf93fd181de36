"""Looking around: artifacts, versions, history, and why a tag won."""

import pytest
from gitrepo import GitRepository
from service import Registry, artifacts, digest, output, remote, unmarked

ROOT = "/api/v1/repositories"
HERE = f"{ROOT}/team~models/artifacts"
DVC_YAML = """\
artifacts:
  cats: {path: a.pkl, type: model, desc: Finds cats., labels: [vision, pets]}
  dogs: {path: a.pkl, type: model, desc: Finds DOGS., labels: [vision]}
  words: {path: a.pkl, type: dataset, meta: {rows: 7}}
"""


@pytest.fixture
def origin(tmp_path) -> GitRepository:
    made = GitRepository(tmp_path / "origin.git")
    made.commit(
        {
            ".dvc/config": remote("s3://bucket/dvc"),
            "dvc.yaml": DVC_YAML,
            "a.pkl.dvc": output("a.pkl", digest("1")),
            "sub/dir/dvc.yaml": artifacts(**{"nested/versions": "b.pkl"}),
        }
    )
    for tag in (
        "words@v1.0.0", "dogs@v1.0.0", "dogs#prod#1", "cats@v1.0.0", "cats@v2.0.0", "cats#prod#1",
        "sub/dir=nested/versions@v1.0.0", "ghost@v1.0.0",
    ):  # fmt: skip
        made.tag(tag)
    return made


@pytest.fixture
def registry(serve, origin) -> Registry:
    return serve({"team/models": origin, "other/models": origin})


def get(registry: Registry, path: str, *, token: str = "", status: int = 200, **query):
    headers = {"Authorization": f"token {token or registry.everything}"}
    answer = registry.client.get(path, query_string=query, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json


def names(registry: Registry, **query) -> list[str]:
    return [it["name"] for it in get(registry, HERE, **query)["artifacts"]]


def test_repositories_are_those_that_the_token_may_see(registry) -> None:
    assert [it["name"] for it in get(registry, ROOT)["repositories"]] == [
        "other/models",
        "team/models",
    ]
    (only,) = get(registry, ROOT, token=registry.token("team/*"))["repositories"]
    assert (only["name"], only["artifacts"]) == ("team/models", HERE)


def test_a_repository_of_others_looks_like_one_that_does_not_exist(registry) -> None:
    headers = {"Authorization": f"token {registry.token('other/*')}"}
    for rest in ("", "/cats", "/cats/versions", "/cats/history", "/cats/explain"):
        hidden = registry.client.get(HERE + rest, headers=headers)
        unknown = registry.client.get(HERE.replace("models", "xxxxxx") + rest, headers=headers)

        assert hidden.status_code == unknown.status_code == 404
        assert unmarked(hidden) == unmarked(unknown).replace("xxxxxx", "models")


def test_an_artifact_is_listed_with_what_its_tags_and_its_dvc_yaml_say(registry, origin) -> None:
    listed = get(registry, HERE)["artifacts"][0]
    version = {"version": "v2.0.0", "revision": origin.head()}

    assert listed == {
        "name": "cats",
        "type": "model",
        "labels": ["vision", "pets"],
        "description": "Finds cats.",
        "deprecated": False,
        "latest": {**version, "tag": "cats@v2.0.0"},
        "stages": {"prod": {**version, "tag": "cats#prod#1"}},
        "updated": "2023-11-14T22:13:27Z",
        "shown": origin.head(),
        "problem": None,
        "links": {
            "self": f"{HERE}/cats",
            "versions": f"{HERE}/cats/versions",
            "history": f"{HERE}/cats/history",
            "explain": f"{HERE}/cats/explain",
        },
    }
    assert get(registry, listed["links"]["self"]) == {**listed, "meta": None, "versions": 2}
    assert get(registry, f"{HERE}/words")["meta"] == {"rows": 7}


def test_one_that_no_dvc_yaml_declares_is_listed_with_the_reason(registry) -> None:
    ghost = get(registry, f"{HERE}/ghost")

    assert (ghost["type"], ghost["latest"]["version"]) == (None, "v1.0.0")
    assert "not declared in dvc.yaml" in ghost["problem"]


def test_names_with_slashes_and_colons_have_paths_that_mean_one_thing(registry) -> None:
    (nested,) = [it for it in get(registry, HERE)["artifacts"] if "nested" in it["name"]]

    assert nested["name"] == "sub/dir:nested/versions"
    assert nested["links"]["self"] == f"{HERE}/sub~dir:nested~versions"
    assert nested["type"] == "model"
    for link in nested["links"].values():
        get(registry, link)
    get(registry, f"{HERE}/sub/dir:nested/versions", status=404)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["cats", "dogs", "ghost", "sub/dir:nested/versions", "words"]),
        ({"search": "CAT"}, ["cats"]),
        ({"search": "finds"}, ["cats", "dogs"]),
        ({"type": "model"}, ["cats", "dogs", "sub/dir:nested/versions"]),
        ({"label": "vision"}, ["cats", "dogs"]),
        ({"label": "vision", "search": "dogs"}, ["dogs"]),
        ({"stage": "prod"}, ["cats", "dogs"]),
        ({"stage": "never"}, []),
        ({"sort": "-name", "type": "model"}, ["sub/dir:nested/versions", "dogs", "cats"]),
        ({"sort": "updated"}, ["words", "dogs", "cats", "sub/dir:nested/versions", "ghost"]),
        ({"sort": "-updated", "stage": "prod"}, ["cats", "dogs"]),
    ],
)
def test_artifacts_can_be_searched_and_sorted(registry, query, found) -> None:
    assert names(registry, **query) == found


@pytest.mark.parametrize("sort", ["name", "-name", "updated", "-updated"])
def test_pages_leave_nothing_out_and_what_comes_meanwhile_moves_nothing(
    registry, origin, sort
) -> None:
    everything = names(registry, sort=sort)
    found, query = [], {}
    while True:
        answer = get(registry, HERE, sort=sort, limit=2, max_age=0, **query)
        found += [it["name"] for it in answer["artifacts"]]
        if answer["next"] is None:
            break
        query = {"after": answer["next"]}
        if not sort.endswith("updated"):
            origin.tag("a@v1.0.0")
    assert [it for it in found if it != "a"] == everything


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "size"},
        {"limit": "0"},
        {"limit": "1001"},
        {"after": "x"},
        {"after": "bm90"},
        {"after": "W3t9XQ"},
        {"search": "x" * 256},
        {"order": "name"},
        {"max_age": "x"},
    ],
)
def test_a_list_that_cannot_be_is_refused(registry, query) -> None:
    assert get(registry, HERE, status=400, **query)["code"] == "invalid_request"


def test_versions_are_listed_greatest_first_with_their_stages(registry, origin) -> None:
    origin.tag("cats@v10.0.0-rc.1")
    origin.tag("cats@v3.0.0")
    origin.tag("cats@v3.0.0!")
    versions = get(registry, f"{HERE}/cats/versions", max_age=0)["versions"]
    first = get(registry, f"{HERE}/cats/versions", limit=2)
    rest = get(registry, f"{HERE}/cats/versions", limit=2, after=first["next"])

    assert [it["version"] for it in versions] == ["v10.0.0-rc.1", "v2.0.0", "v1.0.0"]
    assert versions[0]["stages"] == ["prod"]
    assert versions[0]["tag"] == "cats@v10.0.0-rc.1"
    assert versions[1]["registered"] == "2023-11-14T22:13:26Z"
    assert [*first["versions"], *rest["versions"]] == versions
    assert rest["next"] is None


def test_history_tells_who_did_what_and_why(registry, origin) -> None:
    origin.tag("cats#prod!#2")
    origin.tag("cats@v9.0.0", lightweight=True)
    answer = get(registry, f"{HERE}/cats/history", max_age=0)

    assert [it["tag"] for it in answer["events"]] == [
        "cats#prod!#2", "cats#prod#1", "cats@v2.0.0", "cats@v1.0.0",
    ]  # fmt: skip
    assert answer["events"][0] == {
        "tag": "cats#prod!#2",
        "action": "unassign",
        "version": None,
        "stage": "prod",
        "revision": origin.head(),
        "time": "2023-11-14T22:13:30Z",
        "who": "Ada <ada@example.com>",
        "message": "Tag cats#prod!#2",
    }
    assert answer["void"] == [
        {
            "tag": "cats@v9.0.0",
            "action": "register",
            "version": "v9.0.0",
            "stage": None,
            "problem": "it is lightweight, GTO needs an annotated one",
        }
    ]


def test_history_comes_in_pages(registry) -> None:
    first = get(registry, f"{HERE}/cats/history", limit=2)
    rest = get(registry, f"{HERE}/cats/history", limit=2, after=first["next"])

    assert [it["tag"] for it in (*first["events"], *rest["events"])] == [
        "cats#prod#1", "cats@v2.0.0", "cats@v1.0.0",
    ]  # fmt: skip
    assert rest["next"] is None


def raw_tag(origin: GitRepository, name: str, data: bytes) -> None:
    oid = origin.git("hash-object", "-t", "tag", "-w", "--stdin", "--literally", given=data)
    origin.git("update-ref", f"refs/tags/{name}", oid)


@pytest.mark.parametrize(
    ("tagger", "message", "who", "shown"),
    [
        (b"Eve <e@x> 1700000100 +0000", b"a\x1b[2Jb\x00c\n", "Eve <e@x>", "a\ufffd[2Jb\ufffdc"),
        (b"\xff\xfe <e@x> 1700000100 +0000", b"\xff\xfe", "\ufffd\ufffd <e@x>", "\ufffd\ufffd"),
        (b"Eve <e@x> 1700000100 +0000", b"a\r\nb\n\n\nc", "Eve <e@x>", "a\ufffd\nb\n\n\nc"),
        (b"Eve <e@x> 1700000100 +0000", b"", "Eve <e@x>", ""),
        (
            b"Eve <e@x> 1700000100 +0000",
            b"Signed\n-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n",
            "Eve <e@x>",
            "Signed",
        ),
        (b"Eve <e@x> 1700000100 +0000", b"x" * 20_000, "Eve <e@x>", "x" * 10_000),
        (b"Eve <e@x> 1700000100 +0000", b"x" * 100_000, None, None),
    ],
)  # fmt: skip
def test_what_people_wrote_is_shown_and_never_believed(
    registry, origin, tagger, message, who, shown
) -> None:
    head = f"object {origin.head()}\ntype commit\ntag cats@v7.0.0\ntagger ".encode()
    raw_tag(origin, "cats@v7.0.0", head + tagger + b"\n\n" + message)
    event = get(registry, f"{HERE}/cats/history", max_age=0)["events"][0]

    assert (event["tag"], event["who"], event["message"]) == ("cats@v7.0.0", who, shown)


def test_what_a_tag_that_was_moved_says_is_not_told_of_the_one_that_counts(
    registry, origin
) -> None:
    get(registry, HERE)
    origin.commit({"other": "x"})
    origin.tag("cats@v2.0.0")
    registry.clock.now += 60
    (event,) = [
        it
        for it in get(registry, f"{HERE}/cats/history", max_age=0)["events"]
        if it["tag"] == "cats@v2.0.0"
    ]

    assert event["revision"] != origin.head()
    assert (event["who"], event["message"]) == (None, None)


def test_a_time_beyond_all_years_is_no_reason_to_fail(registry, origin) -> None:
    origin.raw_tag("cats@v8.0.0", origin.head(), "tagger Eve <e@x> 99999999999999 +0000")
    event = get(registry, f"{HERE}/cats/history", max_age=0)["events"][0]

    assert (event["tag"], event["time"]) == ("cats@v8.0.0", None)
    get(registry, HERE, sort="updated")


def test_an_answer_is_explained_by_every_tag_that_was_considered(registry, origin) -> None:
    for tag in ("cats@v3.0.0", "cats@v3.0.0!", "cats@v4.0.0"):
        origin.tag(tag, lightweight=tag.endswith("v4.0.0"))
    answer = get(registry, f"{HERE}/cats/explain", max_age=0)

    assert answer["selector"] == {"version": "latest"}
    assert answer["answer"]["version"] == "v2.0.0"
    assert answer["problem"] is None
    assert {it["tag"]: (it["won"], it["reason"]) for it in answer["considered"]} == {
        "cats@v1.0.0": (False, "v2.0.0 is greater"),
        "cats@v2.0.0": (True, "it registers the greatest version"),
        "cats@v3.0.0": (False, "cats@v3.0.0! came after it"),
        "cats@v3.0.0!": (False, "it deregisters the version"),
        "cats@v4.0.0": (False, "it is lightweight, GTO needs an annotated one"),
    }


def test_that_there_is_no_answer_is_explained_as_well(registry, origin) -> None:
    origin.tag("cats#prod!#2")
    answer = get(registry, f"{HERE}/cats/explain", stage="prod", max_age=0)

    assert answer["answer"] is None
    assert "unassigned by the tag cats#prod!#2" in answer["problem"]
    assert [(it["tag"], it["won"]) for it in answer["considered"]] == [
        ("cats#prod#1", False),
        ("cats#prod!#2", False),
    ]
    assert get(registry, f"{HERE}/cats/explain", version="v9.9.9")["considered"] == []
    get(registry, f"{HERE}/cats/explain", version="v1.0.0", stage="prod", status=400)


@pytest.mark.parametrize("rest", ["", "/versions", "/history", "/explain"])
@pytest.mark.parametrize("name", ["absent", "sub~dir:absent", "sub~dir:absent~x"])
def test_what_no_tag_speaks_of_is_not_found(registry, name, rest) -> None:
    assert get(registry, f"{HERE}/{name}{rest}", status=404)["code"] == "artifact_not_found"


@pytest.mark.parametrize("name", ["-x", "..~x:m", "a b", "é", "x" * 256, "%00", "a%0Ab"])
def test_what_is_no_name_is_refused(registry, name) -> None:
    assert get(registry, f"{HERE}/{name}", status=400)["code"] == "invalid_request"


def test_looking_around_wants_the_scope(registry) -> None:
    token = registry.token(scopes=["metrics:read"])
    for path in (ROOT, HERE, f"{HERE}/cats", f"{HERE}/cats/history"):
        assert get(registry, path, token=token, status=403)["code"] == "forbidden"


def test_a_broken_dvc_yaml_breaks_no_list(registry, origin) -> None:
    origin.commit({"dvc.yaml": "artifacts: [\n"})
    origin.tag("cats@v5.0.0")
    listed = {it["name"]: it for it in get(registry, HERE, max_age=0)["artifacts"]}

    assert listed["dogs"]["type"] == "model"
    assert listed["cats"]["type"] is None
    assert listed["cats"]["latest"]["version"] == "v5.0.0"
    assert "not valid YAML" in listed["cats"]["problem"]
