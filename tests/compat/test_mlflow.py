"""MLflow's own client, unmodified, against a real service over each database."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import registry
from servers.mlflow import Client
from servers.registry import Service

pytestmark = pytest.mark.servers

SCOPES = ("--scope", "tracking:read", "--scope", "tracking:write")

BEGIN = """
import math, mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
client = MlflowClient()
"""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Service]:
    """A service over an empty database."""
    settings = {}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgresql").create_database()
    directory = tmp_path_factory.mktemp(request.param)
    with registry.start(directory, [], [], **settings) as running:
        yield running


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Callable[..., Client]:
    """Somebody with a token: `client(path="/mlflow", scopes=[...], **environ)`."""

    def make(path: str = "", scopes=SCOPES, **environ: str) -> Client:
        if not environ:
            environ = {"MLFLOW_TRACKING_TOKEN": service.token(*scopes)}
        return Client(tmp_path, {"MLFLOW_TRACKING_URI": service.url + path, **environ})

    return make


def test_runs_are_tracked_and_found(client: Callable[..., Client]) -> None:
    found = client().run(
        BEGIN
        + """
experiment = mlflow.set_experiment("tracked")
again = mlflow.set_experiment("tracked")
mlflow.set_experiment_tag("team", "vision")
with mlflow.start_run(run_name="outer", description="what for") as outer:
    mlflow.log_param("lr", 0.1)
    mlflow.log_params({f"p{number}": number for number in range(150)})
    for step in range(3):
        mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
    mlflow.log_metrics({"a": 1, "b": 2.5}, step=7)
    mlflow.log_metric("odd", math.nan, step=0)
    mlflow.log_metric("odd", math.inf, step=1)
    mlflow.log_metric("odd", -math.inf, step=2)
    mlflow.set_tags({"kind": "cnn", "gone": "x"})
    mlflow.delete_tag("gone")
    with mlflow.start_run(nested=True) as inner:
        mlflow.log_metric("later", 1.0, synchronous=False).wait()
        mlflow.log_params({"async": "yes"}, synchronous=False).wait()
        mlflow.flush_async_logging()
    try:
        with mlflow.start_run(nested=True):
            raise RuntimeError
    except RuntimeError:
        pass

run = client.get_run(outer.info.run_id)
history = client.get_metric_history(run.info.run_id, "odd")
children = client.search_runs([experiment.experiment_id],
    f"tags.mlflow.parentRunId = '{run.info.run_id}'")
by_loss = client.search_runs([experiment.experiment_id],
    "metrics.loss < 0.5 and params.lr = '0.1' and tags.kind LIKE 'c%'",
    order_by=["metrics.loss ASC"])
found = {
    "same": experiment.experiment_id == again.experiment_id,
    "name": run.info.run_name, "status": run.info.status,
    "ended": run.info.end_time >= run.info.start_time,
    "params": len(run.data.params), "lr": run.data.params["lr"],
    "loss": run.data.metrics["loss"], "b": run.data.metrics["b"],
    "history": [repr(it.value) for it in history],
    "steps": [it.step for it in client.get_metric_history(run.info.run_id, "loss")],
    "tags": {key: value for key, value in run.data.tags.items() if key in ("kind", "gone")},
    "note": run.data.tags["mlflow.note.content"],
    "parent": mlflow.get_parent_run(inner.info.run_id).info.run_id == run.info.run_id,
    "children": sorted(it.info.status for it in children),
    "later": client.get_run(inner.info.run_id).data.metrics,
    "async": client.get_run(inner.info.run_id).data.params,
    "by loss": [it.info.run_id == run.info.run_id for it in by_loss],
    "random name": bool(inner.info.run_name),
    "experiment": mlflow.get_experiment_by_name("tracked").tags["team"],
    "location": run.info.artifact_uri.partition("/")[0],
}
"""
    )

    assert found == {
        "same": True,
        "name": "outer",
        "status": "FINISHED",
        "ended": True,
        "params": 151,
        "lr": "0.1",
        "loss": 1 / 3,
        "b": 2.5,
        "history": ["nan", "inf", "-inf"],
        "steps": [0, 1, 2],
        "tags": {"kind": "cnn"},
        "note": "what for",
        "parent": True,
        "children": ["FAILED", "FINISHED"],
        "later": {"later": 1.0},
        "async": {"async": "yes"},
        "by loss": [True],
        "random name": True,
        "experiment": "vision",
        "location": "mlflow-artifacts:",
    }


def test_searches_have_pages_orders_and_filters(client: Callable[..., Client]) -> None:
    found = client().run(
        BEGIN
        + """
number = mlflow.create_experiment("searched", tags={"k": "v"})
for index in range(7):
    run = client.create_run(number, run_name=f"run {index}", tags={"parity": str(index % 2)})
    client.log_batch(run.info.run_id, metrics=[Metric("m", index, 1, 0)] if index != 3 else [],
                     params=[Param("index", str(index))])
    client.set_terminated(run.info.run_id, "KILLED" if index == 0 else None)

pages, token = [], None
while True:
    page = client.search_runs(
        [number], max_results=3, order_by=["metrics.m DESC"], page_token=token)
    pages.append([run.info.run_name for run in page])
    token = page.token
    if not token:
        break

def names(text, **more):
    return sorted(run.info.run_name for run in client.search_runs([number], text, **more))

mlflow.create_experiment("other searched")
(fourth,) = client.search_runs([number], "params.index = '4'")
found = {
    "pages": pages,
    "attribute": names("attributes.run_name = 'run 2'"),
    "status": names("status != 'FINISHED'"),
    "in": names(f"run_id IN ('x', '{fourth.info.run_id}')"),
    "quoted": names("tags.`parity` = '1' and metrics.m >= 3"),
    "null": names("metrics.m >= 0 and tags.parity IS NOT NULL and params.none IS NULL"),
    "all": len(client.search_runs([number])),
    "experiments": [it.name for it in client.search_experiments(
        filter_string="name LIKE '%searched' and tags.k = 'v'", order_by=["name DESC"])],
    "paged": [it.name for it in mlflow.search_experiments(filter_string="name ILIKE '%SEARCHED'",
        order_by=["name ASC"], max_results=1)],
    "listed": len(mlflow.search_runs(search_all_experiments=True, output_format="list")) >= 7,
}
"""
    )

    assert found == {
        "pages": [["run 6", "run 5", "run 4"], ["run 2", "run 1", "run 0"], ["run 3"]],
        "attribute": ["run 2"],
        "status": ["run 0"],
        "in": ["run 4"],
        "quoted": ["run 5"],
        "null": [f"run {index}" for index in (0, 1, 2, 4, 5, 6)],
        "all": 7,
        "experiments": ["searched"],
        "paged": ["other searched"],
        "listed": True,
    }


def test_what_is_deleted_is_hidden_and_comes_back(client: Callable[..., Client]) -> None:
    found = client().run(
        BEGIN
        + """
from mlflow.entities import ViewType
number = mlflow.create_experiment("deleted")
run = client.create_run(number)
def shown(view=ViewType.ACTIVE_ONLY):
    return len(client.search_runs([number], run_view_type=view))
found = {"before": shown()}
client.delete_run(run.info.run_id)
stage = client.get_run(run.info.run_id).info.lifecycle_stage
found["run"] = [shown(), shown(ViewType.DELETED_ONLY), stage]
client.restore_run(run.info.run_id)
client.delete_experiment(number)
stage = client.get_experiment(number).lifecycle_stage
found["experiment"] = [shown(), shown(ViewType.DELETED_ONLY), stage]
try:
    mlflow.create_experiment("deleted")
except MlflowException as error:
    found["again"] = error.error_code
try:
    client.log_metric(run.info.run_id, "m", 1)
except MlflowException as error:
    found["log"] = error.error_code
client.restore_experiment(number)
client.rename_experiment(number, "restored")
found["after"] = [shown(), client.get_experiment(number).name]
"""
    )

    assert found == {
        "before": 1,
        "run": [0, 1, "deleted"],
        "experiment": [0, 1, "deleted"],
        "again": "RESOURCE_ALREADY_EXISTS",
        "log": "INVALID_PARAMETER_VALUE",
        "after": [1, "restored"],
    }


def test_datasets_and_logged_models_belong_to_runs(client: Callable[..., Client]) -> None:
    found = client().run(
        BEGIN
        + """
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelStatus
experiment = mlflow.set_experiment("models")
source = HTTPDatasetSource("http://data.example/train.csv")
dataset = MetaDataset(source, name="train", digest="abc")
with mlflow.start_run() as run:
    mlflow.log_input(dataset, context="training")
    model = mlflow.initialize_logged_model(name="forest", params={"depth": "3"}, tags={"a": "1"},
                                           model_type="agent")
    mlflow.log_metric("acc", 0.5, step=0, model_id=model.model_id, dataset=dataset)
    mlflow.log_metric("acc", 0.75, step=1, model_id=model.model_id, dataset=dataset)
    mlflow.log_outputs(models=[mlflow.entities.LoggedModelOutput(model.model_id, step=3)])
    mlflow.log_model_params({"more": "x"}, model_id=model.model_id)
mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
mlflow.set_logged_model_tags(model.model_id, {"b": "2"})
mlflow.delete_logged_model_tag(model.model_id, "a")
other = mlflow.initialize_logged_model(name="outside")
read = mlflow.get_logged_model(model.model_id)
run = client.get_run(run.info.run_id)
def search(text=None, **more):
    return [it.name for it in mlflow.search_logged_models([experiment.experiment_id], text,
                                                          output_format="list", **more)]
(used,) = run.inputs.dataset_inputs
root = f"mlflow-artifacts:/{experiment.experiment_id}/models/{model.model_id}/artifacts"
found = {
    "dataset": [used.dataset.name, used.dataset.digest,
                [(tag.key, tag.value) for tag in used.tags]],
    "outputs": [[it.model_id == model.model_id, it.step] for it in run.outputs.model_outputs],
    "history": [it.value for it in client.get_metric_history(run.info.run_id, "acc")],
    "status": str(read.status), "params": read.params, "tags": read.tags,
    "metric": [[it.key, it.value, it.dataset_name, it.dataset_digest] for it in read.metrics],
    "source": read.source_run_id == run.info.run_id,
    "uri": read.artifact_location == root,
    "by name": search("name = 'forest'"),
    "by metric": search(order_by=[{"field_name": "metrics.acc", "ascending": False}]),
    "on dataset": search("metrics.acc > 0.7", datasets=[{"dataset_name": "train"}]),
    "by run": search(f"source_run_id = '{run.info.run_id}'"),
    "runs on it": [it.info.run_id == run.info.run_id for it in client.search_runs(
        [experiment.experiment_id], "datasets.name = 'train' and dataset.context = 'training'")],
}
client.delete_logged_model(other.model_id)
found["after"] = search()
try:
    mlflow.get_logged_model(other.model_id)
except MlflowException as error:
    found["gone"] = error.error_code
"""
    )

    assert found == {
        "dataset": ["train", "abc", [["mlflow.data.context", "training"]]],
        "outputs": [[True, 3]],
        "history": [0.5, 0.75],
        "status": "READY",
        "params": {"depth": "3", "more": "x"},
        "tags": {**found["tags"], "b": "2"},
        "metric": [["acc", 0.75, "train", "abc"]],
        "source": True,
        "uri": True,
        "by name": ["forest"],
        "by metric": ["forest", "outside"],
        "on dataset": ["forest"],
        "by run": ["forest"],
        "runs on it": [True],
        "after": ["forest"],
        "gone": "RESOURCE_DOES_NOT_EXIST",
    }
    assert "a" not in found["tags"]


def test_a_token_is_a_password_too_and_the_service_may_be_a_part_of_another(
    client: Callable[..., Client], service: Service
) -> None:
    basic = {
        "MLFLOW_TRACKING_USERNAME": "anybody",
        "MLFLOW_TRACKING_PASSWORD": service.token(*SCOPES),
    }
    found = client("/mlflow", **basic).run(
        BEGIN
        + """
mlflow.set_experiment("by password")
with mlflow.start_run() as run:
    mlflow.log_metric("m", 1)
found = client.get_run(run.info.run_id).data.metrics
"""
    )

    assert found == {"m": 1.0}


def test_what_a_client_may_not_do_it_is_told_by_name(client: Callable[..., Client]) -> None:
    script = (
        BEGIN
        + """
found = []
for call in (lambda: client.search_experiments(), lambda: client.create_experiment("refused"),
             lambda: client.get_run("0" * 32), lambda: client.get_experiment("987654"),
             lambda: client.search_runs(["0"], "metrics.m = 1 or metrics.m = 2"),
             lambda: client.search_runs(["0"], page_token="nonsense"),
             lambda: client.create_registered_model("m")):
    try:
        call()
        found.append("ok")
    except MlflowException as error:
        found.append(error.error_code)
"""
    )

    assert client(scopes=("--scope", "tracking:read")).run(script) == [
        "ok",
        "PERMISSION_DENIED",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_DOES_NOT_EXIST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_PARAMETER_VALUE",
        "NOT_IMPLEMENTED",
    ]
    refused = client(scopes=("--scope", "models:read")).run(script)
    assert refused == ["PERMISSION_DENIED"] * 6 + ["NOT_IMPLEMENTED"]
    assert set(client(MLFLOW_TRACKING_TOKEN="reg_nonsense").run(script)) == {"UNAUTHENTICATED"}
