"""Every kind of error has a status, a form, and no secrets."""

import json
from collections.abc import Iterator
from dataclasses import fields

import pytest
from flask import Flask

from registry import errors
from registry.errors import RegistryError
from registry.metrics import Metrics
from registry.web import errors as web_errors
from registry.web.observe import Watch

KINDS = (errors.NotFound, errors.Unsignable, errors.Unavailable)


def leaves(kind: type[RegistryError] = RegistryError) -> Iterator[type[RegistryError]]:
    below = kind.__subclasses__()
    yield from [kind] if not below else [leaf for sub in below for leaf in leaves(sub)]


def example(kind: type[RegistryError]) -> RegistryError:
    values = {field.name: 7 if field.type is int else "what" for field in fields(kind)}
    return kind(**values)


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    web_errors.install(app)
    app.wsgi_app = Watch(app.wsgi_app, Metrics())
    return app


@pytest.mark.parametrize("kind", [*leaves()])
def test_every_error_becomes_one_short_line_of_json(app: Flask, kind: type[RegistryError]) -> None:
    @app.get("/")
    def view() -> str:
        raise example(kind)

    answer = app.test_client().get("/")

    assert answer.status_code == web_errors.status_of(example(kind)) >= 400
    assert answer.is_json
    assert list(answer.json)[:3] == ["detail", "code", "request_id"]
    assert answer.json["code"] == web_errors.code_of(kind.__name__)
    assert "\n" not in answer.text
    assert answer.headers.get("Retry-After", type=int) == answer.json.get("retry_after")
    if answer.status_code > 501:
        assert answer.json["retry_after"] > 0


@pytest.mark.parametrize("kind", [*leaves()])
def test_every_error_says_what_is_wrong(kind: type[RegistryError]) -> None:
    assert example(kind).detail == str(example(kind))
    assert len(example(kind).detail) > 3


def test_codes_are_words_joined_by_underscores_and_no_two_kinds_share_one() -> None:
    codes = [web_errors.code_of(kind.__name__) for kind in leaves()]

    assert len(set(codes)) == len(codes)
    assert {"version_not_found", "invalid_request", "too_many_requests"} <= set(codes)
    assert web_errors.code_of("Method Not Allowed") == "method_not_allowed"


@pytest.mark.parametrize("text", ["x" * 5000, "€" * 5000, "\x01" * 5000, '"' * 511, "😀" * 127])
def test_a_body_has_room_for_no_more_than_512_bytes(app: Flask, text: str) -> None:
    @app.get("/")
    def view() -> str:
        raise errors.ArtifactNotFound("x", text)

    answer = app.test_client().get("/")

    assert 400 < len(answer.data) <= web_errors.LARGEST_BODY
    assert answer.json["detail"].startswith("Artifact 'x' not found: " + text[:20])
    assert answer.json["detail"].endswith("...")
    assert answer.json["code"] == "artifact_not_found"


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = errors.__doc__ or ""

    for kind in [*leaves(), *KINDS]:
        assert f"── {kind.__name__} " in drawn or f"── {kind.__name__}\n" in drawn, kind


def test_what_flask_raises_keeps_its_headers(app: Flask) -> None:
    @app.get("/only-get")
    def view() -> str:
        return ""

    client = app.test_client()

    assert "GET" in client.post("/only-get").headers["Allow"]
    assert client.get("/absent").status_code == 404
    assert json.loads(client.get("/absent").text)["detail"]


def test_an_unexpected_error_is_logged_and_never_echoed(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/")
    def view() -> str:
        raise KeyError("canary")

    answer = app.test_client().get("/")

    assert answer.status_code == 500
    assert "canary" not in answer.text
    assert "canary" in caplog.text


def test_a_caller_learns_nothing_from_a_refused_token(app: Flask) -> None:
    @app.get("/")
    def view() -> str:
        raise errors.Unauthenticated("token 1234 is revoked")

    answer = app.test_client().get("/")

    request_id = answer.headers["X-Request-Id"]
    assert answer.json == {
        "detail": "Invalid token.",
        "code": "unauthenticated",
        "request_id": request_id,
    }
    assert answer.headers["WWW-Authenticate"] == "Token"
