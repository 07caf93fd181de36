"""MLflow's own client, unmodified, against a real service over each database."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import registry
from servers.mlflow import Client, early
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
    """A service over an empty database: SQLite and files below data_dir, or PostgreSQL and S3."""
    settings: dict[str, object] = {}
    storage = []
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgresql").create_database()
        store = request.getfixturevalue("seaweedfs")
        store.create_bucket("logged")
        settings["tracking"] = {"storage": "s3://logged/by/mlflow"}
        keys = store.keys
        storage.append(
            {
                "url": "s3://logged/by",
                "repositories": ["none"],
                "endpoint_url": store.endpoint_url,
                "access_key_id": keys.access_key_id,
                "secret_access_key": keys.secret_access_key,
            }
        )
    directory = tmp_path_factory.mktemp(request.param)
    with registry.start(directory, [], storage, **settings) as running:
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


def test_a_history_of_several_pages_is_read_whole(client: Callable[..., Client]) -> None:
    """The client asks for 25,000 values at a time."""
    found = client().run(
        BEGIN
        + """
mlflow.set_experiment("long")
with mlflow.start_run() as run:
    for start in range(0, 26_000, 1000):
        steps = range(start, start + 1000)
        client.log_batch(run.info.run_id, [Metric("m", it / 2, 1 + it // 7, it) for it in steps])
history = client.get_metric_history(run.info.run_id, "m")
found = {
    "steps": [it.step for it in history] == [*range(26_000)],
    "values": all(it.value == it.step / 2 for it in history),
    "latest": client.get_run(run.info.run_id).data.metrics["m"],
}
"""
    )

    assert found == {"steps": True, "values": True, "latest": 25_999 / 2}


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
    other = MetaDataset(source, name="test", digest="def")
    mlflow.log_inputs([other], contexts=["testing"], tags_list=[{"part": "1"}])
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
(used,) = [it for it in run.inputs.dataset_inputs if it.dataset.name == "train"]
(tested,) = [it for it in run.inputs.dataset_inputs if it.dataset.name == "test"]
root = f"mlflow-artifacts:/{experiment.experiment_id}/models/{model.model_id}/artifacts"
found = {
    "dataset": [used.dataset.name, used.dataset.digest,
                [(tag.key, tag.value) for tag in used.tags]],
    "tested": sorted((tag.key, tag.value) for tag in tested.tags),
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
    "by tag": search("tags.b IN ('1', '2') and params.depth NOT IN ('4')"),
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
        "tested": [["mlflow.data.context", "testing"], ["part", "1"]],
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
        "by tag": ["forest"],
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


FILES = """
import pathlib
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt, numpy as np
experiment = mlflow.set_experiment("files")
pathlib.Path("one.txt").write_text("one")
pathlib.Path("tree/sub").mkdir(parents=True, exist_ok=True)
pathlib.Path("tree/a.bin").write_bytes(b"x" * 100_000)
pathlib.Path("tree/sub/empty").write_text("")
with mlflow.start_run() as run:
    mlflow.log_artifact("one.txt")
    mlflow.log_artifact("one.txt", "in/dir")
    mlflow.log_artifacts("tree", "tree")
    mlflow.log_text("h\u00e4llo", "texts/\u00fc 100% +1.txt")
    mlflow.log_dict({"a": 1}, "dict.json")
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    mlflow.log_figure(figure, "figure.png")
    mlflow.log_image(np.zeros((4, 4, 3), dtype="uint8"), "image.png")
    mlflow.log_image(np.zeros((4, 4, 3), dtype="uint8"), key="steps", step=0)
    mlflow.log_table({"a": [1, 2]}, "table.json")
    mlflow.log_table({"a": [3]}, "table.json")
run_id, uri = run.info.run_id, run.info.artifact_uri

def walk(path=None):
    for it in client.list_artifacts(run_id, path):
        yield it.path, it.file_size
        if it.is_dir:
            yield from walk(it.path)

local = pathlib.Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="tree"))
sizes = dict(walk())
images = [path for path in sizes if path.startswith("images/")]
found = {
    "listed": {path: size for path, size in sizes.items() if path not in images
               and not path.endswith(".png")},
    "images": len(images),
    "of a file": client.list_artifacts(run_id, "one.txt"),
    "tree": sorted(str(it.relative_to(local)) for it in local.rglob("*") if it.is_file()),
    "same": (local / "a.bin").read_bytes() == b"x" * 100_000,
    "text": mlflow.artifacts.load_text(f"{uri}/texts/\u00fc 100% +1.txt"),
    "dict": mlflow.artifacts.load_dict(f"{uri}/dict.json"),
    "table": mlflow.load_table("table.json", run_ids=[run_id])["a"].tolist(),
}
try:
    mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="none")
except Exception as error:
    found["none"] = "RESOURCE_DOES_NOT_EXIST" in str(error) or type(error).__name__
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
get_artifact_repository(uri).delete_artifacts("tree/sub")
found["after"] = [it.path for it in client.list_artifacts(run_id, "tree")]
"""
LISTED = {
    "dict.json": 12,
    "images": None,
    "in": None,
    "in/dir": None,
    "in/dir/one.txt": 3,
    "one.txt": 3,
    "table.json": 38,
    "texts": None,
    "texts/\u00fc 100% +1.txt": 6,
    "tree": None,
    "tree/a.bin": 100_000,
    "tree/sub": None,
    "tree/sub/empty": 0,
}


def test_files_are_logged_listed_and_downloaded(client: Callable[..., Client]) -> None:
    found = client().run(BEGIN + FILES)

    assert found.pop("none")
    assert found == {
        "listed": LISTED,
        "images": 2,
        "of a file": [],
        "tree": ["a.bin", "sub/empty"],
        "same": True,
        "text": "h\u00e4llo",
        "dict": {"a": 1},
        "table": [1, 2, 3],
        "after": ["tree/a.bin"],
    }


PARTS = """
import os, pathlib, requests
put, sent = requests.put, []
def noted(url, **more):
    sent.append(url)
    return put(url, **more)
requests.put = noted  # by which the client sends parts, and nothing else
mlflow.set_experiment("large")
data = os.urandom(1 << 20) * 7 + b"end"
pathlib.Path("large.bin").write_bytes(data)
with mlflow.start_run() as run:
    mlflow.log_artifact("large.bin")
local = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="large.bin")
found = {"same": pathlib.Path(local).read_bytes() == data, "parts": len(sent)}
"""


def test_a_client_that_wants_parts_sends_and_fetches_them_by_links(
    client: Callable[..., Client], service: Service, request: pytest.FixtureRequest
) -> None:
    """Or uploads in one piece, where there is no store to send them to."""
    wanted = {
        "MLFLOW_TRACKING_TOKEN": service.token(*SCOPES),
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(5 << 20),
        "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(5 << 20),
        "MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE": str(1 << 20),
    }

    in_s3 = request.node.callspec.params["service"] == "postgresql"
    expected = {"same": True, "parts": 2 if in_s3 else 0}
    assert client(**wanted).run(BEGIN + PARTS) == expected


MODELS = """
import numpy as np
import mlflow.sklearn
from sklearn.linear_model import LinearRegression
mlflow.set_experiment("loadable")
x = np.arange(10.0).reshape(-1, 1)
fitted = LinearRegression().fit(x, x[:, 0] * 2)
with mlflow.start_run() as run:
    info = mlflow.sklearn.log_model(fitted, name="line", input_example=x[:2])
def predicted(model):
    return round(float(model.predict(np.array([[4.0]]))[0]), 6)
found = {
    "runs:/": predicted(mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/line")),
    "models:/": predicted(mlflow.pyfunc.load_model(f"models:/{info.model_id}")),
    "flavors": sorted(mlflow.models.get_model_info(info.model_uri).flavors),
}
mlflow.sklearn.autolog()
LinearRegression().fit(x, x[:, 0])
last = mlflow.last_active_run()
found["autolog"] = [it.path for it in client.list_artifacts(last.info.run_id)]
found["autologged"] = predicted(mlflow.pyfunc.load_model(mlflow.last_logged_model().model_uri))
"""


def test_models_are_logged_and_loaded_by_run_and_by_id(client: Callable[..., Client]) -> None:
    assert client().run(BEGIN + MODELS) == {
        "runs:/": 8.0,
        "models:/": 8.0,
        "flavors": ["python_function", "sklearn"],
        "autolog": ["estimator.html"],
        "autologged": 4.0,
    }


MEASURED = """
import time
mlflow.set_experiment("measured")
mlflow.set_system_metrics_sampling_interval(0.1)
mlflow.set_system_metrics_samples_before_logging(1)
with mlflow.start_run(log_system_metrics=True) as run:
    until = time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in client.get_run(run.info.run_id).data.metrics:
        assert time.monotonic() < until
        time.sleep(0.1)
run = client.get_run(run.info.run_id)
measured = {key for key in run.data.metrics if key.startswith("system/")}
history = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
found = {
    "missing": sorted({"system/system_memory_usage_megabytes", "system/network_receive_megabytes",
                       "system/disk_usage_percentage"} - measured),
    "steps": [it.step for it in history] == [*range(len(history))],
    "status": run.info.status,
}
"""


def test_the_machine_is_measured_while_a_run_goes_on(client: Callable[..., Client]) -> None:
    assert client().run(BEGIN + MEASURED) == {"missing": [], "steps": True, "status": "FINISHED"}


def test_files_and_models_are_logged_to_a_service_that_is_a_part_of_another(
    client: Callable[..., Client],
) -> None:
    script = """
import pathlib
import mlflow.sklearn
from sklearn.linear_model import LinearRegression
mlflow.set_experiment("below a path")
pathlib.Path("one.txt").write_text("one")
with mlflow.start_run() as run:
    mlflow.log_artifact("one.txt", "in/dir")
    info = mlflow.sklearn.log_model(LinearRegression().fit([[0], [1]], [0, 2]), name="line")
local = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="in")
found = {
    "read": (pathlib.Path(local) / "dir/one.txt").read_text(),
    "listed": [it.path for it in client.list_artifacts(run.info.run_id, "in/dir")],
    "predicted": float(mlflow.sklearn.load_model(f"models:/{info.model_id}").predict([[4]])[0]),
}
"""

    found = client("/mlflow").run(BEGIN + script)
    assert round(found.pop("predicted"), 6) == 8.0
    assert found == {"read": "one", "listed": ["in/dir/one.txt"]}


FIRST = """
import pathlib, mlflow
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.utils import _get_store
client = MlflowClient()
version = mlflow.__version__
named = "early " + version

def mapped(logged):  # of 0.9 it is a list
    return logged if isinstance(logged, dict) else {it.key: it.value for it in logged}

def refused(call, *arguments):
    try:
        call(*arguments)
    except MlflowException as error:
        return str(error).partition(":")[0]

def count(text="", view=ViewType.ACTIVE_ONLY):
    return len(client.search_runs([number], text, view))

place = pathlib.Path("kept").absolute()
number = mlflow.create_experiment(named, str(place))
mlflow.set_experiment(named)
pathlib.Path("tree/sub").mkdir(parents=True, exist_ok=True)
pathlib.Path("tree/sub/one.txt").write_text("one")
with mlflow.start_run(run_name="outer") as outer:
    mlflow.log_param("lr", 0.1)
    mlflow.log_params({"kind": "a b", "deep": "yes"})
    mlflow.log_metric("loss", 0.25)  # of one second the largest counts, and 0.9 has no steps
    mlflow.log_metric("loss", 0.5, **({} if version < "1" else {"step": 3}))
    mlflow.log_metrics({"a": 1, "odd": float("nan")})
    mlflow.set_tag("owner", "ada")
    mlflow.log_artifact("tree/sub/one.txt")
    mlflow.log_artifacts("tree", "all")
    with mlflow.start_run(nested=True) as inner:
        mlflow.log_metric("loss", 9)
outer, inner = outer.info.run_uuid, inner.info.run_uuid
step = {} if version < "1" else {"step": 1}
client.log_batch(outer, [Metric("b", 1.5, 1, **step)], [Param("late", "x")], [RunTag("t", "y")])
run = client.get_run(outer)
metrics = mapped(run.data.metrics)
status = run.info.status
found = {
    "metrics": {key: repr(metrics[key]) for key in ("loss", "a", "odd", "b")},
    "params": mapped(run.data.params),
    "tags": {key: value for key, value in mapped(run.data.tags).items()
             if key in ("owner", "t", "mlflow.runName")},
    "parent": mapped(client.get_run(inner).data.tags)["mlflow.parentRunId"] == outer,
    "status": status if isinstance(status, str) else RunStatus.to_string(status),
    "times": run.info.start_time <= run.info.end_time,
    "files": [[it.path, it.is_dir, it.file_size] for it in client.list_artifacts(outer)],
    "read": (pathlib.Path(client.download_artifacts(outer, "all")) / "sub/one.txt").read_text(),
    "experiment": client.get_experiment(number).name == named,
    "listed": number in [it.experiment_id for it in client.list_experiments()],
    "runs": [len(client.list_run_infos(number)), count()],
    "found": [count("metrics.loss < 1 and params.kind = 'a b'"), count("tags.owner LIKE 'a%'"),
              count('params.deep = "no"'), count("metrics.loss != 9")],
    "no filter": refused(count, "metrics.loss < 1 or metrics.loss > 2"),
    "same param": refused(client.log_param, outer, "lr", "0.1"),
    "other param": refused(client.log_param, outer, "lr", "0.2"),
    "same name": refused(client.create_experiment, named),
    "no run": refused(client.get_run, "0" * 32),
    "no experiment": refused(client.get_experiment, "99999"),
}
if version < "1":  # 1.0 has no such expressions any more
    from mlflow.protos.service_pb2 import SearchExpression
    from mlflow.utils.search_utils import SearchFilter
    wanted = SearchExpression()
    wanted.metric.key = "loss"
    wanted.metric.double.comparator, wanted.metric.double.value = "<=", 0.5
    both = SearchExpression()
    both.parameter.key = "kind"
    both.parameter.string.comparator, both.parameter.string.value = "==", "a b"
    some = SearchFilter(anded_expressions=[wanted, both])
    found["anded"] = len(_get_store().search_runs([number], some, ViewType.ALL))
else:
    found["steps"] = [it.step for it in client.get_metric_history(outer, "loss")]
    client.set_terminated(inner, "KILLED")
    found["killed"] = client.get_run(inner).info.status
client.delete_run(inner)
found["deleted run"] = [client.get_run(inner).info.lifecycle_stage, count(),
                        count(view=ViewType.DELETED_ONLY),
                        refused(client.log_metric, inner, "m", 1)]
client.restore_run(inner)
client.rename_experiment(number, named + " again")
client.delete_experiment(number)
found["deleted experiment"] = [client.get_experiment(number).lifecycle_stage,
                               refused(client.create_run, number)]
client.restore_experiment(number)
found["restored"] = [client.get_experiment(number).name == named + " again", count()]
"""


@pytest.mark.parametrize(
    ("version", "own"),
    [("0.9.1", {"anded": 1}), ("1.0.0", {"steps": [0, 3], "killed": "KILLED"})],
)
def test_the_first_clients_track_runs_and_keep_their_files_themselves(
    service: Service, tmp_path: Path, version: str, own: dict[str, object]
) -> None:
    """They do not know `mlflow-artifacts:`, and are given a location that they can write to."""
    environ = {
        "MLFLOW_TRACKING_URI": service.url + "/mlflow",
        "MLFLOW_TRACKING_TOKEN": service.token(*SCOPES),
    }

    assert early(tmp_path, environ, version).run(FIRST) == {
        "metrics": {"loss": "0.5", "a": "1.0", "odd": "nan", "b": "1.5"},
        "params": {"lr": "0.1", "kind": "a b", "deep": "yes", "late": "x"},
        "tags": {"owner": "ada", "t": "y", "mlflow.runName": "outer"},
        "parent": True,
        "status": "FINISHED",
        "times": True,
        "files": [["all", True, None], ["one.txt", False, 3]],
        "read": "one",
        "experiment": True,
        "listed": True,
        "runs": [2, 2],
        "found": [1, 1, 0, 1],
        "no filter": "INVALID_PARAMETER_VALUE",
        "same param": None,
        "other param": "INVALID_PARAMETER_VALUE",
        "same name": "RESOURCE_ALREADY_EXISTS",
        "no run": "RESOURCE_DOES_NOT_EXIST",
        "no experiment": "RESOURCE_DOES_NOT_EXIST",
        "deleted run": ["deleted", 1, 1, "INVALID_PARAMETER_VALUE"],
        "deleted experiment": ["deleted", "INVALID_STATE"],
        "restored": [True, 2],
        **own,
    }
