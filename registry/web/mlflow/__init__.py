"""Dialect 2: MLflow's tracking API, of the early REST document and of today's client.

    routes.py       which function answers what, and the scope that it needs
    experiments.py runs.py models.py artifacts.py server.py    the functions
    wire.py         messages, both ways
    filters.py      the language of filters and orders -> comparisons of the core
    lists.py        answers that may be long
    envelope.py     failures
    names.py        names for what comes without one

Here is what binds them to Flask: one view for all. It matches in `routes` by itself, and loads that
with the first request, so that a worker which is never asked for runs does not pay for them.
What is answered and what is refused: docs/dialects/mlflow.md.
"""

import json
from functools import partial
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request

from registry import access
from registry.audit import Deletion
from registry.errors import InvalidRequest
from registry.services import Services
from registry.web.auth import principal, public
from registry.web.observe import trace

if TYPE_CHECKING:
    from registry.web.mlflow.routes import Route
    from registry.web.mlflow.wire import Flavour, Message

VERSION = "3.17.2"
"""The release of MLflow whose API this is. Clients decide by it what they may ask for."""

PREFIXES = (
    "api/2.0/preview/mlflow",
    "api/2.0/mlflow",
    "api/3.0/mlflow",
    "api/2.0/mlflow-artifacts",
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ROOTS = ("", "/mlflow")
"""Where the API begins: a service of its own, or a part of this one."""


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("mlflow", __name__)

    @public
    def health() -> Response:
        return Response("OK", mimetype="text/plain")

    @public
    def version() -> Response:
        return Response(VERSION, mimetype="text/plain")

    for root in ROOTS:
        routes.add_url_rule(f"{root}/health", "health", health)
        routes.add_url_rule(f"{root}/version", "version", version)
    for prefix in PREFIXES:
        view = partial(_answer, services, prefix)
        name = prefix.removeprefix("api/").replace(".", "_")
        for place in (f"{root}/{twin}" for root in ROOTS for twin in (prefix, f"ajax-{prefix}")):
            # What stands in a path is for the endpoint to judge: nothing is put right before.
            routes.add_url_rule(
                f"{place}/<path:endpoint>", name, view, methods=METHODS, merge_slashes=False
            )
    view = partial(_answer, services, "", "get-artifact")
    for root in ROOTS:
        routes.add_url_rule(f"{root}/get-artifact", "get-artifact", view)
    return routes


def _answer(services: Services, prefix: str, endpoint: str) -> Response:
    from registry.web.mlflow.routes import TABLES  # noqa: PLC0415 a worker may never need it

    table = TABLES[prefix]
    route, values = table.find(_method(), endpoint)
    trace().route = f"{prefix.removeprefix('api/')}/{route.path}"
    access.require(principal(), route.scope)
    message = _message(route, table.flavour).with_path(values)
    deleted = route.deletes(message) if route.deletes else None
    body = route.handler(services, principal(), message)
    if deleted is not None:
        _record(services, deleted)
    if isinstance(body, Response):
        return body
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(text, mimetype="application/json")


def _message(route: "Route", flavour: "Flavour") -> "Message":
    """What was sent: in the URL for GET, otherwise in the body. Raises InvalidRequest."""
    from registry.web.mlflow.wire import Message  # noqa: PLC0415 see above

    if route.sends or (_method() == "GET" and request.args):
        return Message.of_query(request.args.to_dict(flat=False), flavour)
    request.max_content_length = route.largest
    body = request.get_data(cache=False)
    # A page in a browser cannot send JSON elsewhere on behalf of whoever looks at it, and whatever
    # else it sends has an Origin, which the first clients do not know.
    if (
        body
        and request.mimetype != "application/json"
        and ("Origin" in request.headers or not flavour.early)
    ):
        raise InvalidRequest("Content-Type", "must be application/json")
    return Message.of_body(body, flavour)


def _method() -> str:
    """What is asked for: HEAD is GET, of which the body stays behind."""
    return "GET" if request.method == "HEAD" else request.method


def _record(services: Services, deleted: str) -> None:
    """Writes to the audit log what was deleted."""
    services.audit.write(
        Deletion(
            request=trace().request_id,
            address=request.remote_addr or "",
            token=principal().id,
            selector=deleted[:255],
        )
    )
