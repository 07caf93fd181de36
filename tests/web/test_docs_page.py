"""The page that describes the service: for whoever has a token, and without a single script."""

import re

import pytest
from service import ENDPOINT, Registry, artifacts, digest, output, remote

from registry.web.openapi import document

DOCS = "/api/docs"


@pytest.fixture
def registry(publish) -> Registry:
    return publish(
        {
            ".dvc/config": remote("s3://bucket/dvc"),
            "dvc.yaml": artifacts(m="model.pkl"),
            "model.pkl.dvc": output("model.pkl", digest("1")),
        }
    )


def with_header(registry: Registry, header: str | None):
    return registry.client.get(DOCS, headers={} if header is None else {"Authorization": header})


def with_form(registry: Registry, **form: str):
    return registry.client.post(DOCS, data=form)


def test_whoever_has_no_token_is_asked_for_one_and_shown_nothing(registry) -> None:
    answer = with_header(registry, None)

    assert answer.status_code == 200
    assert '<input id="token" name="token" type="password"' in answer.text
    assert ENDPOINT not in answer.text
    assert "resolve" not in answer.text


@pytest.mark.parametrize("way", ["header", "form"])
def test_whoever_has_one_is_shown_every_operation_and_every_schema(registry, way) -> None:
    token = registry.token(scopes=[])
    ways = {
        "header": lambda: with_header(registry, f"Bearer {token}"),
        "form": lambda: with_form(registry, token=f" {token} "),
    }
    answer = ways[way]()
    sections = set(re.findall(r'<section id="([^"]+)">', answer.text))

    assert answer.status_code == 200
    assert sections == {
        operation["operationId"]
        for item in document()["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    } | {f"schema-{name}" for name in document()["components"]["schemas"]}
    anchors = set(re.findall(r'href="#([^"]+)"', answer.text))
    assert anchors <= sections
    assert token not in answer.text


def test_a_wrong_token_is_asked_for_again(registry) -> None:
    for form in ({"token": "wrong"}, {"token": ""}, {}):
        answer = with_form(registry, **form)
        assert answer.status_code == 401
        assert answer.mimetype == "text/html"
        assert "This token does not hold." in answer.text
        assert ENDPOINT not in answer.text
    assert with_header(registry, "token wrong").status_code == 401


def test_a_form_that_is_too_large_is_refused(registry) -> None:
    assert with_form(registry, token="x" * 10_000).status_code == 413


def test_the_page_can_load_nothing_run_nothing_and_send_nothing_elsewhere(registry) -> None:
    for answer in (
        with_header(registry, None),
        with_header(registry, f"token {registry.everything}"),
        with_form(registry, token="wrong"),
    ):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; form-action 'self'; ")
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in answer.headers
        assert "<script" not in answer.text
        assert "style=" not in answer.text
        assert re.findall(r'(?:src|href|action)="(?!#|/api/)', answer.text) == []
    style = registry.client.get(f"{DOCS}/style.css")
    assert style.mimetype == "text/css"
    assert "url(" not in style.text


def test_a_token_that_asks_too_often_is_told_here_as_well(publish) -> None:
    registry = publish(
        {
            ".dvc/config": remote("s3://bucket/dvc"),
            "dvc.yaml": artifacts(m="model.pkl"),
            "model.pkl.dvc": output("model.pkl", digest("1")),
        },
        rate_limit=2,
    )
    statuses = [with_form(registry, token=registry.everything).status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
