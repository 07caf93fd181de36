"""Any question to any endpoint of MLflow's is answered as the service's document says."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from service import Registry

from registry.access import SCOPES
from registry.web.mlflow.routes import TABLES

OPERATIONS = [
    (f"/{prefix}/{route.path.replace('{*', '{')}".replace("//", "/"), route.method)
    for prefix, table in TABLES.items()
    for route in table.routes
]
TEXTS = st.sampled_from(["", "0", "1", "x", "m-1", "é", "\x00", "\ud800", "NaN", "9" * 20, "a/b"])
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["key", "value", "timestamp", "dataset", "name", "model_id", "metric", "field_name"]
    ), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from(
    [
        *("run_id", "run_uuid", "experiment_id", "experiment_ids", "name", "new_name", "key"),
        *(
            "value",
            "timestamp",
            "step",
            "metrics",
            "params",
            "tags",
            "filter",
            "order_by",
            "status",
        ),
        *("max_results", "page_token", "view_type", "run_view_type", "metric_key", "datasets"),
        *("models", "anded_expressions", "start_time", "end_time", "source_type", "model_id"),
        *("artifact_location", "experiment_name"),
    ]
)
MESSAGES = st.dictionaries(FIELDS, VALUES, max_size=6)


@pytest.fixture
def schema(registry: Registry) -> Iterator[object]:
    """What schemathesis reads from the running service."""

    token = registry.token(scopes=SCOPES)
    return schemathesis.openapi.from_wsgi(
        "/api/openapi.json", registry.whole, headers={"Authorization": f"Bearer {token}"}
    )


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_every_answer_is_as_the_document_says(schema, registry: Registry, data) -> None:
    run = registry.services.tracking.runs.create(0).id
    path, method = data.draw(st.sampled_from(OPERATIONS))
    case = data.draw(schema[path][method].as_strategy())
    if method != "GET":
        case.body = {"run_id": run, "experiment_id": "0", **data.draw(MESSAGES)}
        case.media_type = "application/json"

    # What is well-formed may still be refused: no run has that id.
    response = case.call_and_validate(excluded_checks=[positive_data_acceptance])

    assert response.status_code < 500
