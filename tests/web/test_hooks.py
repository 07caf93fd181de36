"""Webhooks: what each forge sends, signed as it signs, and what others send."""

import hmac
import json
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from gitrepo import GitRepository
from service import Registry, artifacts, digest, output, remote, unmarked

from registry.web.hooks import LARGEST

SECRET = "a secret of the forge"
NAME = "team/models"
CLONE, SSH, HTML = (
    "https://git.example/team/models.git",
    "git@git.example:team/models.git",
    "https://git.example/team/models",
)
FILES = {
    ".dvc/config": remote("s3://bucket/dvc"),
    "dvc.yaml": artifacts(m="model.pkl"),
    "model.pkl.dvc": output("model.pkl", digest("1")),
}

GITHUB = {
    "ref": "refs/tags/m@v2.0.0",
    "before": "0" * 40,
    "created": True,
    "repository": {
        "id": 1,
        "full_name": NAME,
        "html_url": HTML,
        "git_url": "git://git.example/team/models.git",
        "ssh_url": SSH,
        "clone_url": CLONE,
    },
    "sender": {"login": "ada"},
}
GITEA = {"ref": "refs/tags/m@v2.0.0", "repository": {"html_url": HTML, "ssh_url": SSH}}
GITLAB = {
    "object_kind": "tag_push",
    "ref": "refs/tags/m@v2.0.0",
    "project": {
        "web_url": HTML,
        "git_ssh_url": SSH,
        "git_http_url": CLONE,
        "path_with_namespace": NAME,
    },
    "repository": {"name": "models", "url": SSH, "homepage": HTML, "git_http_url": CLONE},
}
BITBUCKET = {
    "push": {"changes": [{"new": {"type": "tag", "name": "m@v2.0.0"}}]},
    "repository": {
        "full_name": NAME,
        "links": {"self": {"href": "https://api.git.example/2.0/x"}, "html": {"href": HTML}},
    },
}
DATA_CENTER = {
    "eventKey": "repo:refs_changed",
    "repository": {
        "slug": "models",
        "links": {
            "clone": [{"href": SSH, "name": "ssh"}, {"href": CLONE, "name": "http"}],
            "self": [{"href": "https://bb.example/projects/T/repos/models/browse"}],
        },
    },
}


def mac(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, "sha256").hexdigest()


SIGNED = {
    "github": lambda body, secret: {"X-Hub-Signature-256": f"sha256={mac(body, secret)}"},
    "gitlab": lambda _, secret: {"X-Gitlab-Token": secret},
    "gitea": lambda body, secret: {"X-Gitea-Signature": mac(body, secret)},
    "bitbucket": lambda body, secret: {"X-Hub-Signature": f"sha256={mac(body, secret)}"},
    "generic": lambda _, secret: {"Authorization": f"Bearer {secret}"},
}
SENT = [
    ("github", GITHUB),
    ("gitlab", GITLAB),
    ("gitea", GITEA),
    ("bitbucket", BITBUCKET),
    ("bitbucket", DATA_CENTER),
    ("generic", GITHUB),
]


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    made = GitRepository(tmp_path / "origin.git")
    made.commit(FILES)
    made.tag("m@v1.0.0")
    return made


@pytest.fixture
def registry(serve, origin) -> Registry:
    """With an hour between looks, and a second repository that takes no webhooks."""
    item = {"url": str(origin.path), "aliases": [CLONE], "refresh": 3600}
    open_to_hooks = {**item, "webhook_secret": SECRET}
    closed = {**item, "aliases": ["https://git.example/team/closed.git"]}
    return serve({NAME: open_to_hooks, "team/closed": closed})


def send(registry: Registry, forge: str, payload: object, secret: str = SECRET, **more):
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = SIGNED[forge](body, secret) | more.pop("headers", {})
    kind = more.pop("content_type", "application/json")
    return registry.client.post(
        f"/hooks/{forge}", data=body, headers=headers, content_type=kind, **more
    )


def latest(registry: Registry, wanted: str) -> str:
    """The latest version, once it is the one that is wanted, or after 30 s."""
    deadline = time.monotonic() + 30
    while True:
        found = registry.ask().headers["X-Registry-Version"]
        if found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.02)  # or else the thread that looks at the origin hardly gets a turn


@pytest.mark.parametrize(("forge", "payload"), SENT)
def test_a_pushed_tag_is_served_once_the_forge_has_said_so(registry, origin, forge, payload):
    assert registry.ask().headers["X-Registry-Version"] == "v1.0.0"
    origin.tag("m@v2.0.0")
    assert registry.ask().headers["X-Registry-Version"] == "v1.0.0"
    answer = send(registry, forge, payload)

    assert (answer.status_code, answer.json) == (202, {"repository": NAME, "refresh": "started"})
    assert latest(registry, "v2.0.0") == "v2.0.0"


def test_every_worker_serves_what_one_of_them_was_told(serve, origin) -> None:
    item = {"url": str(origin.path), "refresh": 3600, "webhook_secret": SECRET}
    told, other = (serve({NAME: item}) for _ in range(2))
    assert [worker.ask().headers["X-Registry-Version"] for worker in (told, other)] == [
        "v1.0.0"
    ] * 2
    origin.tag("m@v2.0.0")
    send(told, "generic", b"", query_string={"repo": NAME})

    assert latest(other, "v2.0.0") == "v2.0.0"


def test_a_webhook_ends_the_peace_after_a_failure(registry, origin) -> None:
    registry.ask()
    away = origin.path.with_suffix(".away")
    origin.path.rename(away)
    registry.clock.now += 3601
    assert "Warning" in registry.ask().headers
    away.rename(origin.path)
    origin.tag("m@v2.0.0")
    send(registry, "github", GITHUB)

    assert latest(registry, "v2.0.0") == "v2.0.0"


@pytest.mark.parametrize("forge", SIGNED)
def test_whoever_proves_nothing_gets_one_answer_for_all(registry, forge) -> None:
    renamed = json.loads(json.dumps(GITHUB).replace("team/models", "team/nothing"))
    closed = json.loads(json.dumps(GITHUB).replace("team/models", "team/closed"))
    answers = [
        send(registry, forge, GITHUB, "another secret"),
        send(registry, forge, GITHUB, ""),
        send(registry, forge, renamed),
        send(registry, forge, closed),
        send(registry, forge, closed, "none"),
        send(registry, forge, closed, ""),
        send(registry, forge, b"[" * 100_000),
        send(registry, forge, b""),
        send(registry, forge, b"\xff"),
        send(registry, forge, {"repository": [NAME], "project": {"links": {"clone": {"a": 1}}}}),
        send(registry, forge, b"", query_string={"repo": "team/closed"}),
        registry.client.post(f"/hooks/{forge}", json=GITHUB),
        registry.client.post("/hooks/sourceforge", json=GITHUB),
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert len({unmarked(answer) for answer in answers}) == 1
    assert len({str(answer.headers) for answer in answers}) == len(
        {answer.headers.get("X-Request-Id") for answer in answers}
    )


def test_a_body_that_was_changed_on_its_way_is_refused(registry) -> None:
    signature = {"X-Hub-Signature-256": f"sha256={mac(json.dumps(GITHUB).encode())}"}

    assert registry.client.post("/hooks/github", json=GITEA, headers=signature).status_code == 401


@pytest.mark.parametrize("forge", ["github", "gitea", "bitbucket"])
def test_the_secret_itself_proves_nothing_where_a_signature_is_due(registry, forge) -> None:
    headers = {"X-Gitlab-Token": SECRET, "Authorization": f"Bearer {SECRET}"}

    answer = registry.client.post(f"/hooks/{forge}", json=GITHUB, headers=headers)

    assert answer.status_code == 401


def test_an_old_signature_by_sha1_is_refused(registry) -> None:
    body = json.dumps(GITHUB).encode()
    signature = hmac.new(SECRET.encode(), body, "sha1").hexdigest()
    for forge in ("github", "bitbucket"):
        answer = registry.client.post(
            f"/hooks/{forge}", data=body, headers={"X-Hub-Signature": f"sha1={signature}"}
        )

        assert answer.status_code == 401


def test_a_ping_of_github_is_answered(registry) -> None:
    ping = {"X-GitHub-Event": "ping"}
    payload = {"zen": "Keep it logically awesome.", "repository": GITHUB["repository"]}

    assert send(registry, "github", payload, headers=ping).status_code == 200
    assert send(registry, "github", payload, "wrong secret", headers=ping).status_code == 401


def test_github_may_send_its_payload_as_a_form(registry) -> None:
    body = urlencode({"payload": json.dumps(GITHUB)}).encode()

    answer = send(registry, "github", body, content_type="application/x-www-form-urlencoded")

    assert answer.status_code == 202


def test_forgejo_signs_as_gitea_does_under_its_own_name(registry) -> None:
    body = json.dumps(GITEA).encode()

    answer = registry.client.post(
        "/hooks/gitea", data=body, headers={"X-Forgejo-Signature": mac(body)}
    )

    assert answer.status_code == 202


def test_anything_may_sign_for_a_repository_that_it_names(registry) -> None:
    signature = {"X-Hub-Signature-256": f"sha256={mac(b'')}"}
    for spelling in (NAME, CLONE, SSH):
        answer = registry.client.post(
            "/hooks/generic", query_string={"repo": spelling}, headers=signature
        )

        assert answer.status_code == 202


def test_a_payload_may_have_a_mebibyte_and_no_more(registry) -> None:
    query = {"repo": NAME}

    assert send(registry, "github", b" " * LARGEST, query_string=query).status_code == 202
    assert send(registry, "github", b" " * (LARGEST + 1), query_string=query).status_code == 413


def test_a_token_of_the_registry_is_neither_needed_nor_enough(registry) -> None:
    headers = {"Authorization": f"Bearer {registry.everything}"}

    assert send(registry, "generic", GITHUB, headers=headers).status_code == 401


def test_secrets_of_webhooks_do_not_show(registry, caplog) -> None:
    caplog.set_level("DEBUG")
    send(registry, "generic", GITHUB)
    send(registry, "generic", GITHUB, "another secret")

    assert SECRET not in caplog.text + repr(registry.settings) + repr(registry.services)
