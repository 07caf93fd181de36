"""Who is let in: deny by default, on every route there is and on those there are not."""

import pytest
from gitrepo import GitRepository
from service import ENDPOINT, Registry, artifacts, digest, output, remote

FILES = {
    ".dvc/config": remote("s3://bucket/dvc"),
    "dvc.yaml": artifacts(m="model.pkl"),
    "model.pkl.dvc": output("model.pkl", digest("1")),
}
PUBLIC = {
    **dict.fromkeys(("/health", "/version", "/mlflow/health", "/mlflow/version"), 200),
    "/healthz": 200,
    "/readyz": 200,
    "/api/docs/style.css": 200,
    "/objects/<token>": 403,
    "/api/v1/token/exchange": 400,
}


@pytest.fixture
def registry(publish) -> Registry:
    return publish(FILES)


def every_route(registry: Registry):
    for rule in registry.app.url_map.iter_rules():
        for method in sorted(rule.methods - {"OPTIONS"}):
            yield rule.rule, rule.rule.replace("<token>", "garbage"), method


def held_out(registry: Registry, header: str | None, path: str, method: str = "GET"):
    headers = {} if header is None else {"Authorization": header}
    return registry.client.open(path, method=method, headers=headers)


def test_no_route_answers_without_a_token_but_those_that_are_public_on_purpose(registry) -> None:
    seen = set()
    for rule, path, method in every_route(registry):
        answer = held_out(registry, None, path, method)
        seen.add(rule)

        asks_for_one = rule == "/api/docs" and method != "POST"
        expected = 200 if asks_for_one else PUBLIC.get(rule, 401)
        assert answer.status_code == expected, (method, rule)
    assert set(PUBLIC) < seen


def refused(answer) -> dict[str, str]:
    """The one body for whoever is not let in: only the id of the request differs."""
    request_id = answer.headers["X-Request-Id"]
    return {"detail": "Invalid token.", "code": "unauthenticated", "request_id": request_id}


@pytest.mark.parametrize("header", [
    "", "token", "token ", "Bearer", "Basic dXNlcjpwYXNz", "reg_x.y", "token reg_", "token reg_x.y",
    "token é", "token \x7f", "token " + "x" * 5000, "token a b",
])  # fmt: skip
def test_what_is_no_token_is_refused_with_one_answer_for_all(registry, header) -> None:
    answer = held_out(registry, header, ENDPOINT)

    assert answer.status_code == 401
    assert answer.json == refused(answer)
    assert answer.headers["WWW-Authenticate"] == "Token"


@pytest.mark.parametrize("form", ["token {}", "Token {}", "TOKEN {}", "Bearer {}", "bearer  {} "])
def test_a_token_is_taken_in_every_form_that_clients_send(registry, form) -> None:
    header = form.format(registry.everything)

    answer = registry.client.get(
        f"{ENDPOINT}?repo=team/models&name=m", headers={"Authorization": header}
    )

    assert answer.status_code == 200


def test_a_token_is_not_taken_from_the_query(registry) -> None:
    path = f"{ENDPOINT}?repo=team/models&name=m&token={registry.everything}"

    assert registry.client.get(path).status_code == 401


def test_a_revoked_token_ends_within_five_seconds(registry) -> None:
    token = registry.token()
    assert registry.ask(token=token).status_code == 200
    access = registry.services.access
    access.revoke(access.principal(token).id)
    registry.clock.now += 5

    answer = registry.ask(token=token)

    assert (answer.status_code, answer.json) == (401, refused(answer))
    assert registry.ask().status_code == 200


def test_a_token_ends_with_its_life_and_on_every_route(registry) -> None:
    token = registry.token(lives=60)
    registry.clock.now += 60

    for rule, path, method in every_route(registry):
        status = held_out(registry, f"token {token}", path, method).status_code

        assert status == PUBLIC.get(rule, 401), rule


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/model-registry/", "/static/x", "/objects", "/x" * 999]
)
def test_an_unknown_url_tells_nothing_to_who_has_no_token(registry, path) -> None:
    without = held_out(registry, None, path)
    with_one = held_out(registry, f"token {registry.everything}", path)

    assert (without.status_code, without.json) == (401, refused(without))
    assert (with_one.status_code, with_one.json["code"]) == (404, "not_found")


def test_a_token_without_the_scope_is_told_which_one_it_lacks(registry) -> None:
    answer = registry.ask(token=registry.token(scopes=[]))

    assert answer.status_code == 403
    assert answer.json["detail"] == "This token lacks the scope models:read."
    assert answer.json["code"] == "forbidden"


@pytest.mark.parametrize(
    ("patterns", "status"),
    [
        (["team/models"], 200),
        (["team/*"], 200),
        (["other/*", "*/models"], 200),
        (["team"], 404),
        (["team/model"], 404),
        (["Team/*"], 404),
        (["other/*"], 404),
    ],
)
def test_a_token_is_good_for_the_repositories_that_its_patterns_match(
    registry, patterns, status
) -> None:
    assert registry.ask(token=registry.token(*patterns)).status_code == status


def test_whether_the_service_lives_is_no_secret(registry) -> None:
    answer = registry.client.get("/healthz")

    assert (answer.status_code, answer.data) == (200, b'{"status":"ok"}')


def test_a_token_survives_a_restart_and_stays_in_no_file(registry, serve, tmp_path) -> None:
    again = serve({"team/models": GitRepository(tmp_path / "origin.git")})
    secret = registry.everything.removeprefix("reg_").partition(".")[0]
    stored = b"".join(file.read_bytes() for file in (tmp_path / "var").glob("registry.db*"))

    assert again.ask(token=registry.everything).status_code == 200
    assert secret.encode() not in stored
