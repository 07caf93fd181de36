"""The document that the service serves of itself says all that there is, and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from gitrepo import GitRepository
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.specs.openapi.checks import positive_data_acceptance
from service import ENDPOINT, S3_KEYS, Registry, Store, artifacts, digest, output, remote

from registry.access import SCOPES
from registry.web.errors import STATUS
from registry.web.mlflow.routes import TABLES
from registry.web.openapi import document

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = "/api/openapi.json"
OPERATIONS = [
    (path, method.upper())
    for path, item in document()["paths"].items()
    for method in item
    if method != "parameters"
]
MLFLOW = {
    (f"/{prefix}/{route.path.replace('{*', '{')}", route.method)
    for prefix, table in TABLES.items()
    if prefix
    for route in table.routes
}
UNLOCKED = ([], [{}, {"token": []}])
"""Of a route that needs no token, or shows more with one."""
KNOWN = {"repo": ["team/models"], "name": ["m", "local"], "version": ["", "v1.0.0"], "stage": [""]}
"""Values that lead on, so that what comes after the first check is asked, too."""

unhurried = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Iterator[Registry]:
    """A repository with an artifact in S3 and one behind the gateway."""
    directory = tmp_path_factory.mktemp("openapi")
    store = Store(directory / "store")
    origin = GitRepository(directory / "origin.git")
    local = remote(store.url, "local").partition("\n")[2].partition("\n")[2]
    origin.commit(
        {
            ".dvc/config": remote("s3://bucket/dvc", more=local),
            "dvc.yaml": artifacts(m="model.pkl", local="local.pkl"),
            "model.pkl.dvc": output("model.pkl", digest("1")),
            "local.pkl.dvc": output("local.pkl", store.put("local"), "remote: local"),
        }
    )
    for tag in ("m@v1.0.0", "local@v1.0.0", "m#prod#1"):
        origin.tag(tag)
    storage = [
        {"url": "s3://bucket/dvc", "repositories": ["*"], **S3_KEYS},
        {"url": store.url, "repositories": ["*"]},
    ]
    with Registry(directory / "var", {"team/models": origin}, storage) as running:
        yield running


@pytest.fixture(scope="module")
def schema(registry):
    """What schemathesis reads from the running service."""

    token = registry.token(scopes=SCOPES)

    return schemathesis.openapi.from_wsgi(
        DOCUMENT, registry.whole, headers={"Authorization": f"Bearer {token}"}
    )


def test_every_route_is_in_the_document_and_the_other_way_round(registry) -> None:
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in registry.app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}  # which Flask adds by itself
    }

    # One view answers for all that MLflow has: its own table says for what.
    routes = {(path, method) for path, method in routes if "{endpoint}" not in path}
    routes |= MLFLOW

    assert routes == {operation for operation in OPERATIONS if operation[1] != "HEAD"}


def test_a_route_needs_a_token_in_the_document_if_it_does_in_the_service(registry) -> None:
    for path, method in OPERATIONS:
        answer = registry.client.open(re.sub(r"{\w+}", "x", path), method=method)
        operation = document()["paths"][path][method.lower()]

        assert ("Invalid token." in answer.text) == (
            operation.get("security", True) not in UNLOCKED
        ), path


def test_whoever_has_no_token_is_not_shown_the_document(registry) -> None:
    headers = {"Authorization": f"token {registry.token(scopes=[])}"}

    assert registry.client.get(DOCUMENT).status_code == 401
    assert registry.client.get(DOCUMENT, headers=headers).json == document()


def test_every_status_that_an_error_has_is_an_answer_of_some_route() -> None:
    answers = {
        int(status)
        for path, method in OPERATIONS
        for status in document()["paths"][path][method.lower()]["responses"]
    }

    assert set(STATUS.values()) <= answers


def test_the_page_for_people_has_the_same_statuses_headers_and_parameters() -> None:
    page = (ROOT / "docs/dialects/studio.md").read_text()
    operation = document()["paths"][ENDPOINT]["get"]
    answer = operation["responses"]["200"]

    assert set(re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)) == (
        operation["responses"].keys() - {"200", "500"}
    )
    assert set(re.findall(r"^\| `(X-[\w-]+)` \|", page, re.MULTILINE)) == {
        name for name in answer["headers"] if name.startswith("X-")
    }
    assert set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)) == {
        parameter["name"] for parameter in operation["parameters"]
    }


def conforms(case: Case) -> Response:
    """Asks, and checks status, headers and body, and that without a token nothing is answered."""
    # What is well-formed may still be refused: a version beside a stage, a range beyond the end.
    return case.call_and_validate(excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize(("path", "method"), [it for it in OPERATIONS if it not in MLFLOW])
def test_every_answer_to_any_question_is_as_the_document_says(schema, path, method) -> None:
    @unhurried
    @given(case=schema[path][method].as_strategy())
    def ask(case) -> None:
        conforms(case)

    ask()


@unhurried
@given(data=st.data())
def test_a_question_against_the_document_is_refused_as_it_says(schema, data) -> None:
    wrong = schema[ENDPOINT]["GET"].as_strategy(generation_mode=GenerationMode.NEGATIVE)
    case = data.draw(wrong)

    conforms(case)


@unhurried
@given(data=st.data())
def test_every_answer_about_what_is_there_is_as_the_document_says(schema, data) -> None:
    case = data.draw(schema[ENDPOINT]["GET"].as_strategy())
    for name, values in KNOWN.items():
        if data.draw(st.integers(0, 3)):
            case.query[name] = data.draw(st.sampled_from(values))

    conforms(case)


@unhurried
@given(data=st.data())
def test_every_answer_to_a_link_that_holds_is_as_the_document_says(schema, registry, data) -> None:
    method = data.draw(st.sampled_from(["GET", "HEAD"]))
    case = data.draw(schema["/objects/{token}"][method].as_strategy())
    case.path_parameters["token"] = registry.links("local")["local.pkl"].rpartition("/")[2]
    if data.draw(st.booleans()):
        bound = st.just("") | st.integers(0, 9).map(str)
        case.headers["Range"] = f"bytes={data.draw(bound)}-{data.draw(bound)}"

    response = conforms(case)

    assert response.status_code in (200, 206, 304, 416)
