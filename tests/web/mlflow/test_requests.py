"""What goes for every request: who may ask, how it is spelled, and how much it may hold."""

import base64
import json
from collections.abc import Iterator

import pytest
from service import Registry

from registry.tracking.records import Metric
from registry.tracking.runs import Batch
from registry.web.mlflow.envelope import CODES, code_of
from registry.web.mlflow.routes import READ, TABLES, WRITE

PREVIEW = "/api/2.0/preview/mlflow/"
CURRENT = "/api/2.0/mlflow/"
BOTH = pytest.mark.parametrize("prefix", [PREVIEW, CURRENT])


class Service:
    """A service with one run, asked by somebody who may do everything."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.tracking = registry.services.tracking
        self.run = self.tracking.runs.create(0).id
        self.token = registry.token(scopes=[READ, WRITE])

    def ask(self, method: str, path: str, *, token: str | None = None, **more: object):
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return self.registry.client.open(path, method=method, headers=headers, **more)

    def post(self, path: str, **message: object):
        return self.ask("POST", path, json=message)

    def refused(self, path: str, code: str = "INVALID_PARAMETER_VALUE", **message: object) -> str:
        """The message of a refusal."""
        answer = self.post(path, **message)
        assert answer.json["error_code"] == code, answer.text
        text: str = answer.json["message"]
        return text


@pytest.fixture
def service(registry: Registry) -> Service:
    return Service(registry)


def every_endpoint() -> Iterator[tuple[str, str, str]]:
    for prefix, table in TABLES.items():
        for route in table.routes:
            path = route.path.replace("{model_id}", "m-1").replace("{*tag_key}", "a/b")
            path = path.replace("{*path}", f"0/{'0' * 32}/artifacts/a")
            yield route.method, f"/{prefix}/{path}".replace("//", "/"), route.scope


@pytest.mark.parametrize(("method", "path", "scope"), [*every_endpoint()])
def test_an_endpoint_needs_its_scope_and_no_other_opens_it(
    service: Service, method: str, path: str, scope: str
) -> None:
    others = [it for it in (READ, WRITE, "models:read", "metrics:read") if it != scope]
    answer = service.ask(method, path, token=service.registry.token(scopes=others), json={})
    allowed = service.ask(method, path, token=service.registry.token(scopes=[scope]), json={})

    assert (answer.status_code, answer.json["error_code"]) == (403, "PERMISSION_DENIED")
    assert allowed.status_code in (200, 400, 404, 501)


def test_what_only_reads_needs_no_more_than_that() -> None:
    reading = {path for method, path, scope in every_endpoint() if scope == READ}
    writing = {path for method, path, scope in every_endpoint() if scope == WRITE}

    words = ("search", "get", "list", "server-info", "logged-models/m-1", "artifact", "presigned")
    assert all(any(word in path for word in words) for path in reading)
    assert {it.rpartition("/")[2] for it in writing} >= {"create", "delete", "restore", "update"}


def test_whoever_has_no_token_is_told_in_the_form_of_the_dialect(service: Service) -> None:
    for path in (PREVIEW, CURRENT, "/mlflow/ajax-api/2.0/mlflow/", "/api/3.0/mlflow/"):
        answer = service.registry.client.get(f"{path}runs/get")

        assert answer.status_code == 401
        assert answer.json["error_code"] == "UNAUTHENTICATED"
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_a_token_may_be_the_password_of_anybody(service: Service) -> None:
    def status(credentials: str) -> int:
        encoded = base64.b64encode(credentials.encode()).decode()
        headers = {"Authorization": f"Basic {encoded}"}
        return service.registry.client.get(
            f"{CURRENT}experiments/list", headers=headers
        ).status_code

    assert status(f"ada:{service.token}") == 200
    assert status(f":{service.token}") == 200
    assert status(f"{service.token}:") == 401
    assert status(service.token) == 401
    assert status("ada:wrong") == 401
    for header in ("Basic", "Basic !", "Basic 4pyT", "Basic /w=="):
        headers = {"Authorization": header}
        assert service.registry.client.get(f"{CURRENT}x", headers=headers).status_code == 401


def test_what_is_not_served_says_so(service: Service) -> None:
    for path in ("traces", "runs/none", "runs", "", "logged-models/a/b/c", "gateway/routes"):
        answer = service.post(CURRENT + path)
        if path:
            assert (answer.status_code, answer.json["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    assert service.ask("DELETE", f"{CURRENT}runs/get").json["error_code"] == "ENDPOINT_NOT_FOUND"
    assert service.post("/api/3.0/mlflow/traces").json["error_code"] == "ENDPOINT_NOT_FOUND"
    assert service.post("/api/2.0/mlflow-artifacts/x").json["error_code"] == "ENDPOINT_NOT_FOUND"
    for path in ("registered-models/create", "model-versions/search", "registered-models/get"):
        answer = service.post(CURRENT + path)
        assert (answer.status_code, answer.json["error_code"]) == (501, "NOT_IMPLEMENTED")


def test_deletions_leave_a_row_in_the_audit_log_and_refused_ones_do_not(service: Service) -> None:
    service.registry.services.audit._mode = "required"
    model = service.tracking.models.create(0, name="m").id
    service.post(f"{CURRENT}runs/delete", run_id="none")
    service.post(f"{PREVIEW}runs/delete", run_id=service.run)
    service.ask("DELETE", f"{CURRENT}logged-models/{model}")
    service.post(f"{PREVIEW}experiments/delete", experiment_id=0)

    records = [json.loads(row.record) for row in service.registry.services.audit.rows()]
    assert [(it["decision"], it["selector"]) for it in records] == [
        ("deleted", f"run {service.run}"),
        ("deleted", f"logged model {model}"),
        ("deleted", "experiment 0"),
    ]
    assert all(it["token"] and it["request"] for it in records)


# Spelling


def test_todays_generation_takes_json_alone_and_the_early_one_anything(service: Service) -> None:
    body = json.dumps({"run_uuid": service.run, "key": "a", "value": "b"})

    def status(prefix: str, **how: object) -> int:
        return service.ask("POST", f"{prefix}runs/set-tag", **how).status_code

    assert status(CURRENT, data=body, content_type="application/json; charset=utf-8") == 200
    assert status(CURRENT, data=body, content_type="text/plain") == 400
    assert status(CURRENT, data=body) == 400
    assert status(PREVIEW, data=body, content_type="text/plain") == 200
    assert status(PREVIEW, data=json.dumps(body)) == 200  # encoded twice
    assert status(CURRENT, data=json.dumps(body), content_type="application/json") == 400


@BOTH
@pytest.mark.parametrize(
    "body", ["{", "[]", "1", '"x"', "[" * 100_000, '{"run_id": 1' + "0" * 5000 + "}", "\xff"]
)
def test_what_is_no_message_is_refused(service: Service, prefix: str, body: str) -> None:
    answer = service.ask(
        "POST",
        f"{prefix}runs/set-tag",
        data=body.encode("latin-1"),
        content_type="application/json",
    )

    assert (answer.status_code, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


@BOTH
@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_no_text_holds_what_a_database_cannot(service: Service, prefix: str, value: str) -> None:
    for field in ("run_id", "key", "value"):
        message = {"run_id": service.run, "key": "a", "value": "b", field: value}
        assert service.refused(f"{prefix}runs/set-tag", **message)
    assert service.refused(f"{prefix}runs/search", experiment_ids=["0"], filter=value)


def test_what_no_index_holds_is_refused(service: Service) -> None:
    model = {"experiment_id": "0", "name": "m"}
    run = {"run_id": service.run}
    for name, message in (
        ("logged-models", {**model, "source_run_id": "x" * 251}),
        ("logged-models", {**model, "model_type": "x" * 501}),
        ("runs/outputs", {**run, "models": [{"model_id": "x" * 251, "step": 1}]}),
        ("runs/log-inputs", {**run, "models": [{"model_id": "x" * 251}]}),
    ):
        assert "maximum length" in service.refused(CURRENT + name, **message)


def test_a_search_for_more_than_a_statement_holds_is_refused(service: Service) -> None:
    several = [{"dataset_name": f"d{number}"} for number in range(1001)]
    pattern = "*" * 19_000
    where: dict[str, object] = {"experiment_ids": ["0"]}

    for name in ("runs/search", "logged-models/search"):
        service.refused(CURRENT + name, filter=f"tags.a LIKE '{pattern}'", **where)
    service.refused(f"{CURRENT}logged-models/search", datasets=several, **where)


@pytest.mark.parametrize("place", ["a\0b", "\ud800", 2**63, True, None, [], {}])
def test_a_token_that_somebody_made_up_is_refused(service: Service, place: object) -> None:
    for name in ("a", "b"):
        service.post(f"{CURRENT}experiments/create", name=name)
    search = {"order_by": ["name"], "max_results": 1}
    first = service.post(f"{CURRENT}experiments/search", **search).json["next_page_token"]
    question, _, last = json.loads(base64.urlsafe_b64decode(first))
    made_up = base64.urlsafe_b64encode(json.dumps([question, place, last]).encode()).decode()

    for token in (made_up, first[:-4], "x", "é"):
        text = service.refused(f"{CURRENT}experiments/search", page_token=token, **search)
        assert text.startswith("page_token")


@pytest.mark.parametrize("value", [10**400, 2**63, "1", True])
def test_a_number_in_a_token_is_one_that_a_database_takes(service: Service, value: object) -> None:
    message = {"run_id": service.run, "key": "m", "value": 0.5}
    for moment in (1, 2):
        service.post(f"{CURRENT}runs/log-metric", timestamp=moment, **message)
    query = {"run_id": service.run, "metric_key": "m", "max_results": "1"}
    name = f"{CURRENT}metrics/get-history"
    first = service.ask("GET", name, query_string=query).json["next_page_token"]
    question, moment, step, _, nan = json.loads(base64.urlsafe_b64decode(first))
    place = json.dumps([question, moment, step, value, nan]).encode()
    token = base64.urlsafe_b64encode(place).decode()
    answer = service.ask("GET", name, query_string={**query, "page_token": token})

    assert (answer.status_code, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


@BOTH
def test_numbers_are_read_as_protobuf_reads_them(service: Service, prefix: str) -> None:
    name = f"{prefix}runs/log-metric"
    message = {"run_id": service.run, "key": "m"}
    good = [(1, "1"), ("1.5", 1), ("-Infinity", 2.0), (1e300, "9223372036854775807"), ("1e3", 0)]
    bad = [
        (1, True),
        (1, "1.5"),
        (1, 1.5),
        (1, ""),
        (1, [1]),
        (1, 2**63),
        ("x", 1),
        ([], 1),
        ({}, 1),
    ]
    bad += [(10**400, 1), (1, None), (None, 1)]

    for value, timestamp in good:
        answer = service.post(name, value=value, timestamp=timestamp, **message)
        assert answer.status_code == 200, answer.text
    for value, timestamp in bad:
        service.refused(name, value=value, timestamp=timestamp, **message)


def test_both_names_of_a_run_will_do(service: Service) -> None:
    for prefix in (PREVIEW, CURRENT):
        for field in ("run_id", "run_uuid"):
            answer = service.ask("GET", f"{prefix}runs/get", query_string={field: service.run})
            info = answer.json["run"]["info"]
            assert info["run_id"] == info["run_uuid"] == service.run


# Limits


def metrics(count: int) -> list[dict[str, object]]:
    return [{"key": f"m{number}", "value": 1, "timestamp": 1} for number in range(count)]


def texts(count: int, letter: str = "t") -> list[dict[str, object]]:
    return [{"key": f"{letter}{number}", "value": "x"} for number in range(count)]


@BOTH
def test_a_batch_holds_so_much_and_no_more(service: Service, prefix: str) -> None:
    name = f"{prefix}runs/log-batch"

    def batch(measured: int, params: int, tags: int) -> dict[str, object]:
        return {
            "run_id": service.run,
            "metrics": metrics(measured),
            "params": texts(params, "p"),
            "tags": texts(tags),
        }

    for counts in ((1000, 0, 0), (0, 100, 0), (0, 0, 100), (900, 50, 50)):
        assert service.post(name, **batch(*counts)).status_code == 200
    for counts, what in (
        ((1001, 0, 0), "1000 metrics. Got 1001 metrics."),
        ((0, 101, 0), "100 params. Got 101 params."),
        ((0, 0, 101), "100 tags. Got 101 tags."),
        ((900, 50, 51), "1000 metrics, params, and tags. Got 1001 metrics, params, and tags."),
    ):
        assert f"can contain at most {what}" in service.refused(name, **batch(*counts))


@BOTH
def test_a_batch_of_more_than_a_megabyte_is_refused(service: Service, prefix: str) -> None:
    name = f"{prefix}runs/log-batch"
    body = json.dumps({"run_id": service.run, "metrics": metrics(1)})
    at_most = body.ljust(1_000_000)

    fits = service.ask("POST", name, data=at_most, content_type="application/json")
    answer = service.ask("POST", name, data=at_most + " ", content_type="application/json")

    assert fits.status_code == 200
    assert (answer.status_code, answer.json["error_code"]) == (413, "INVALID_PARAMETER_VALUE")
    assert "1000000 bytes" in answer.json["message"]


EARLY_LIMITS = [
    ("runs/set-tag", "key", 255),
    ("runs/set-tag", "value", 5000),
    ("runs/log-parameter", "key", 255),
    ("runs/log-parameter", "value", 500),
]


@pytest.mark.parametrize(("endpoint", "field", "limit"), EARLY_LIMITS)
def test_what_is_logged_alone_has_the_lengths_of_the_early_document_in_bytes(
    service: Service, endpoint: str, field: str, limit: int
) -> None:
    for letter, count in (("x", limit), ("é", limit // 2)):
        message = {"run_uuid": service.run, "key": f"{letter}", "value": "v"}
        message[field] = letter * count
        assert service.post(PREVIEW + endpoint, **message).status_code == 200
        message[field] += letter
        assert "maximum length" in service.refused(PREVIEW + endpoint, **message)


def test_a_new_run_of_an_early_client_has_tags_of_the_length_of_one_alone(
    service: Service,
) -> None:
    name = f"{PREVIEW}runs/create"
    tag = {"key": "mlflow.source.name", "value": "é" * 2500}
    run = service.post(name, experiment_id=0, tags=[tag]).json["run"]

    assert run["data"]["tags"] == [tag]
    assert service.refused(name, experiment_id=0, tags=[{**tag, "value": "é" * 2501}])
    assert service.refused(name, experiment_id=0, source_name="é" * 2501)


@pytest.mark.parametrize("kind", ["metrics", "params", "tags"])
def test_what_is_logged_together_has_250_characters(service: Service, kind: str) -> None:
    name = f"{PREVIEW}runs/log-batch"
    item: dict[str, object] = {"key": "é" * 250, "value": "é" * 250}
    if kind == "metrics":
        item |= {"value": 1, "timestamp": 1}
    assert service.post(name, run_id=service.run, **{kind: [item]}).status_code == 200
    assert service.refused(name, run_id=service.run, **{kind: [{**item, "key": "x" * 251}]})
    if kind != "metrics":
        too_long = [{"key": "y", "value": "x" * 251}]
        assert service.refused(name, run_id=service.run, **{kind: too_long})


def test_todays_generation_cuts_params_and_tags_and_refuses_long_keys(service: Service) -> None:
    for name, field, kept in (("log-parameter", "params", 6000), ("set-tag", "tags", 8000)):
        message = {"run_id": service.run, "key": "k", "value": "x" * 9000}
        assert service.post(f"{CURRENT}runs/{name}", **message).status_code == 200
        assert len(getattr(service.tracking.runs.get(service.run), field)["k"]) == kept
        assert service.refused(f"{CURRENT}runs/{name}", **{**message, "key": "k" * 251})


@pytest.mark.parametrize("key", ["a$b", "a\nb", "../x", "/x", "x/", "a//b", "x/../y", ".", "./x"])
def test_a_key_that_is_another_one_as_a_path_is_refused_today(service: Service, key: str) -> None:
    message = {"run_id": service.run, "key": key}

    assert service.refused(f"{CURRENT}runs/log-metric", value=1, timestamp=1, **message)
    assert service.refused(f"{CURRENT}runs/log-parameter", value="x", **message)
    assert service.post(f"{PREVIEW}runs/log-parameter", value="x", **message).status_code == 200


@BOTH
def test_the_id_of_an_experiment_is_a_number(service: Service, prefix: str) -> None:
    for wrong in ("abc", "1.5", "", " 1", "\u0661"):
        assert service.refused(f"{prefix}experiments/delete", experiment_id=wrong)
        assert service.refused(f"{prefix}runs/search", experiment_ids=[wrong])
    for none in ("-1", "99999", "9" * 40):
        assert service.refused(
            f"{prefix}experiments/delete", "RESOURCE_DOES_NOT_EXIST", experiment_id=none
        )


@pytest.mark.parametrize("column", ["tags.a", "params.a", "metrics.a", "name", "run_name", "x"])
def test_an_order_by_what_is_not_there_is_refused(service: Service, column: str) -> None:
    expected = {
        "experiments/search": {"name"},
        "logged-models/search": {"name", "metrics.a"},
        "runs/search": {"tags.a", "params.a", "metrics.a", "run_name"},
    }
    for path, known in expected.items():
        order = [{"field_name": column}] if path == "logged-models/search" else [column]
        message = {"order_by": order, "experiment_ids": ["0"]}
        if column in known:
            assert service.post(CURRENT + path, **message).status_code == 200
        else:
            assert "order_by: " in service.refused(CURRENT + path, **message)


@pytest.mark.parametrize(
    "location",
    [
        *("relative/path", "mlflow-artifacts:/0", "models:/m", "runs:/x", "javascript:x"),
        *("//host/x", "s3://bucket/../x", "/srv/../etc", "s3://bucket/x?y", "s3://bucket/x#y"),
        *("/srv\\x", "file:x", "file:/x"),
        *("/srv/a b", "s3://bucket/\n", "/" + "x" * 2000),
    ],
)
def test_a_location_that_could_be_taken_for_another_is_refused(
    service: Service, location: str
) -> None:
    name = f"{CURRENT}experiments/create"

    assert service.refused(name, name="x", artifact_location=location)
    assert service.post(name, name="x", artifact_location="s3://bucket/x").status_code == 200


def test_a_history_comes_in_pages_with_what_is_no_number(service: Service) -> None:
    values = ["NaN", "-Infinity", -1.0, 0.0, "Infinity"]
    for number, value in enumerate(values):
        for moment in (2, 1):
            metric = Metric("m", float(value), moment, number)
            service.tracking.runs.log(service.run, Batch(metrics=[metric, metric]))
    found, token = [], ""
    while True:
        query = {"run_id": service.run, "metric_key": "m", "max_results": "3", "page_token": token}
        answer = service.ask("GET", f"{CURRENT}metrics/get-history", query_string=query).json
        found += [(it["timestamp"], it["step"], it["value"]) for it in answer["metrics"]]
        token = answer.get("next_page_token")
        if not token:
            break

    assert found == [
        (moment, step, value) for moment in (1, 2) for step, value in enumerate(values)
    ]


@BOTH
def test_a_history_is_whole_however_long_it_is(service: Service, prefix: str) -> None:
    values = [Metric("m", number / 2, number) for number in range(25_001)]
    service.tracking.runs.log(service.run, Batch(metrics=values))
    query = {"run_id": service.run, "metric_key": "m"}
    answer = service.ask("GET", f"{prefix}metrics/get-history", query_string=query)

    assert [it["value"] for it in answer.json["metrics"]] == [it.value for it in values]
    assert answer.json.keys() == {"metrics"}
    assert "Content-Length" not in answer.headers, "it was all in memory at once"


def test_a_long_page_is_as_long_as_was_asked_for_and_another_follows(service: Service) -> None:
    runs = [service.run, *(service.tracking.runs.create(0).id for _ in range(2500))]
    search = {"experiment_ids": ["0"], "max_results": 2200, "order_by": ["start_time ASC"]}
    first = service.post(f"{CURRENT}runs/search", **search)
    token = first.json["next_page_token"]
    second = service.post(f"{CURRENT}runs/search", page_token=token, **search)
    early = service.post(f"{PREVIEW}runs/search", experiment_ids=[0])
    shown = service.ask("GET", f"{PREVIEW}experiments/get?experiment_id=0").json["runs"]

    assert len(first.json["runs"]) == 2200
    assert second.json.keys() == {"runs"}
    found = [it["info"]["run_id"] for it in first.json["runs"] + second.json["runs"]]
    assert sorted(found) == sorted(runs)
    assert early.json.keys() == {"runs"}
    assert {it["info"]["run_id"] for it in early.json["runs"]} == set(runs)
    assert {it["run_id"] for it in shown} == set(runs)
    assert "Content-Length" not in first.headers, "it was all in memory at once"


def test_what_can_be_read_can_be_asked_about(service: Service) -> None:
    for path in (f"{CURRENT}runs/get?run_id={service.run}", f"{PREVIEW}experiments/list"):
        answer = service.ask("GET", path)
        head = service.ask("HEAD", path)

        assert (head.status_code, head.data) == (200, b"")
        assert head.headers["Content-Length"] == answer.headers["Content-Length"]
    assert service.ask("HEAD", f"{CURRENT}runs/delete").status_code == 404


def test_many_histories_are_as_long_as_was_asked_for_together(
    service: Service,
) -> None:
    runs = sorted([service.run, *(service.tracking.runs.create(0).id for _ in range(2))])
    for run in runs:
        values = [Metric("m", float(number), number) for number in range(3)]
        service.tracking.runs.log(run, Batch(metrics=values))
    query = {"run_id": runs, "metric_key": "m", "max_results": "4"}
    answer = service.ask("GET", f"{CURRENT}metrics/get-history-bulk", query_string=query)

    found = [(it["run_id"], it["step"] + it["timestamp"]) for it in answer.json["metrics"]]
    assert found == [(runs[0], 0), (runs[0], 1), (runs[0], 2), (runs[1], 0)]
    assert len(service.tracking.runs.histories(runs, "m", 4)) == 4


def test_every_kind_of_error_has_a_code() -> None:
    assert set(CODES.values()) >= {"INTERNAL_ERROR", "NOT_IMPLEMENTED", "TEMPORARILY_UNAVAILABLE"}
    for kind in CODES:
        assert code_of(kind.__new__(kind)) == CODES[kind]
