"""Which function answers what: one table for each generation of the API.

Every row says which scope it needs. Both `/api` and `/ajax-api` lead here, so that there is no twin
of an endpoint that asks for less.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from registry.domain import Principal
from registry.errors import EndpointNotFound, NotServed
from registry.services import Services
from registry.web.mlflow import artifacts, experiments, models, runs, server
from registry.web.mlflow.wire import CURRENT, EARLY, Flavour, Json, Message

if TYPE_CHECKING:
    from flask import Response

READ = "tracking:read"
WRITE = "tracking:write"

LARGEST_BODY = 8 * 1024 * 1024
"""Bytes of a request."""

Handler = Callable[[Services, Principal, Message], "Json | Response"]


@dataclass(frozen=True)
class Route:
    """One endpoint. `{name}` in its path stands for one part of it, and `{*name}` for all the rest.

    `deletes` says what the audit log will say was deleted. `sends` and `gives` are said of bytes:
    that they are the body of the request, which the handler reads, or of the answer.
    """

    method: str
    path: str
    handler: Handler
    scope: str
    deletes: Callable[[Message], str] | None = None
    largest: int = LARGEST_BODY
    sends: bool = False
    gives: bool = False


@dataclass(frozen=True)
class Table:
    """The endpoints below one prefix. `refused` are beginnings of what is not served here."""

    flavour: Flavour
    routes: Sequence[Route]
    refused: tuple[str, ...] = ()
    _plain: dict[tuple[str, str], Route] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for route in self.routes:
            if "{" not in route.path:
                self._plain[route.method, route.path] = route

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The endpoint, and what its path says. Raises EndpointNotFound or NotServed."""
        route = self._plain.get((method, path))
        if route:
            return route, {}
        for route in self.routes:
            values = _values(route.path, path) if route.method == method else None
            if values is not None:
                return route, values
        if path.startswith(self.refused):
            raise NotServed(path)
        raise EndpointNotFound(method, path)


def _values(pattern: str, path: str) -> dict[str, str] | None:
    """What stands in the places of a pattern, None if the path is another one."""
    wanted = pattern.split("/")
    given = path.split("/", len(wanted) - 1 if "{*" in pattern else -1)
    if len(given) != len(wanted) or not all(given):
        return None
    values = {}
    for name, value in zip(wanted, given, strict=True):
        if name.startswith("{"):
            values[name.strip("{*}")] = value
        elif name != value:
            return None
    return values


def _experiment(message: Message) -> str:
    return f"experiment {message.experiment_id()}"


def _run(message: Message) -> str:
    return f"run {message.run_id()}"


def _model(message: Message) -> str:
    return f"logged model {message.needed('model_id')}"


# Both generations have these; what differs is how a message is spelled.
_SHARED = (
    Route("POST", "experiments/create", experiments.create, WRITE),
    Route("GET", "experiments/list", experiments.list_all, READ),
    Route("GET", "experiments/get", experiments.get, READ),
    Route("POST", "experiments/delete", experiments.delete, WRITE, deletes=_experiment),
    Route("POST", "experiments/restore", experiments.restore, WRITE),
    Route("POST", "experiments/update", experiments.update, WRITE),
    Route("POST", "runs/create", runs.create, WRITE),
    Route("POST", "runs/delete", runs.delete, WRITE, deletes=_run),
    Route("POST", "runs/restore", runs.restore, WRITE),
    Route("GET", "runs/get", runs.get, READ),
    Route("POST", "runs/update", runs.update, WRITE),
    Route("POST", "runs/log-metric", runs.log_metric, WRITE),
    Route("POST", "runs/log-batch", runs.log_batch, WRITE, largest=runs.LARGEST_BATCH),
    Route("POST", "runs/set-tag", runs.set_tag, WRITE),
    Route("POST", "runs/log-parameter", runs.log_parameter, WRITE),
    Route("GET", "metrics/get-history", runs.get_history, READ),
    Route("POST", "runs/search", runs.search, READ),
    Route("GET", "runs/search", runs.search, READ),
    Route("GET", "artifacts/list", artifacts.list_run, READ),
)
PREVIEW = Table(EARLY, _SHARED)
SECOND = Table(
    CURRENT,
    (
        *_SHARED,
        Route("GET", "experiments/get-by-name", experiments.get_by_name, READ),
        Route("POST", "experiments/search", experiments.search, READ),
        Route("GET", "experiments/search", experiments.search, READ),
        Route("POST", "experiments/set-experiment-tag", experiments.set_tag, WRITE),
        Route("POST", "experiments/delete-experiment-tag", experiments.delete_tag, WRITE),
        Route("POST", "runs/delete-tag", runs.delete_tag, WRITE),
        Route("POST", "runs/log-inputs", runs.log_inputs, WRITE),
        Route("POST", "runs/outputs", runs.log_outputs, WRITE),
        Route("POST", "runs/log-model", runs.log_model, WRITE),
        Route("GET", "metrics/get-history-bulk", runs.get_history_bulk, READ),
        Route("GET", "metrics/get-history-bulk-interval", runs.get_history_bulk_interval, READ),
        Route("POST", "logged-models", models.create, WRITE),
        Route("POST", "logged-models/search", models.search, READ),
        Route("GET", "logged-models/{model_id}", models.get, READ),
        Route("PATCH", "logged-models/{model_id}", models.finish, WRITE),
        Route("DELETE", "logged-models/{model_id}", models.delete, WRITE, deletes=_model),
        Route("POST", "logged-models/{model_id}/params", models.log_params, WRITE),
        Route("PATCH", "logged-models/{model_id}/tags", models.set_tags, WRITE),
        Route("DELETE", "logged-models/{model_id}/tags/{*tag_key}", models.delete_tag, WRITE),
        Route("GET", "logged-models/{model_id}/artifacts/directories", artifacts.list_model, READ),
        Route(
            "GET",
            "logged-models/{model_id}/artifacts/files",
            artifacts.download_of_model,
            READ,
            gives=True,
        ),
    ),
    refused=("registered-models/", "model-versions/"),
)
THIRD = Table(CURRENT, (Route("GET", "server-info", server.info, READ),))
FILES = Table(
    CURRENT,
    (
        Route("GET", "artifacts", artifacts.list_below, READ),
        Route("GET", "artifacts/{*path}", artifacts.download, READ, gives=True),
        Route("PUT", "artifacts/{*path}", artifacts.upload, WRITE, sends=True),
        Route("DELETE", "artifacts/{*path}", artifacts.delete, WRITE, deletes=artifacts.named),
        Route("GET", "presigned/{*path}", artifacts.presigned, READ),
        Route("POST", "mpu/create/{*directory}", artifacts.create_parts, WRITE),
        Route(
            "POST",
            "mpu/complete/{*directory}",
            artifacts.complete_parts,
            WRITE,
            largest=artifacts.LARGEST_LIST,
        ),
        Route("POST", "mpu/abort/{*directory}", artifacts.abort_parts, WRITE),
    ),
)
PAGES = Table(CURRENT, (Route("GET", "get-artifact", artifacts.download_of_run, READ, gives=True),))

TABLES: Mapping[str, Table] = {
    "api/2.0/preview/mlflow": PREVIEW,
    "api/2.0/mlflow": SECOND,
    "api/3.0/mlflow": THIRD,
    "api/2.0/mlflow-artifacts": FILES,
    "": PAGES,
}
"""What a URL begins with -> the endpoints that follow."""
