"""The service described for people: its OpenAPI document as a page, made here and without scripts.

    GET  /api/docs              with a token in the header: the page; without one: a form for it
    POST /api/docs              token=...   what a browser sends from that form
    GET  /api/docs/style.css

A browser that opens a page sends no token, and who has none learns nothing from this service. So
the form asks for one, sends it to this address alone, and nothing keeps it: no cookie, no script.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, render_template, request
from markupsafe import Markup, escape

from registry.errors import TooManyRequests, Unauthenticated
from registry.services import Services
from registry.web import openapi
from registry.web.auth import public, token_of
from registry.web.errors import answer
from registry.web.observe import trace

ROUTE = "/api/docs"
LARGEST = 4096
"""Bytes of the form."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
_METHODS = ("get", "head", "post", "put", "patch", "delete")
_CODE = re.compile(r"`([^`]+)`")
_REFERENCE = re.compile(r"&#34;#/components/schemas/(\w+)&#34;")


def blueprint(services: Services) -> Blueprint:
    """The page, and what it looks like."""
    routes = Blueprint("docs", __name__, template_folder="templates")
    style = (Path(__file__).parent / "templates/docs.css").read_text()

    @routes.get(ROUTE)
    @public
    def docs() -> Response:
        header = request.environ.get("HTTP_AUTHORIZATION")
        if header is None:
            return _page(render_template("docs.html", document=None))
        _admit(services, token_of(header))
        return _page(_whole())

    @routes.post(ROUTE)
    @public
    def docs_for_a_browser() -> Response:
        request.max_content_length = LARGEST
        try:
            _admit(services, request.form.get("token", "").strip())
        except Unauthenticated as error:
            refused = answer(error)  # for the log, as any other refusal
            refused.data = render_template(
                "docs.html", document=None, problem="This token does not hold."
            )
            return _page(refused)
        return _page(_whole())

    @routes.get(f"{ROUTE}/style.css")
    @public
    def docs_style() -> Response:
        return Response(style, mimetype="text/css", headers={"Cache-Control": "max-age=3600"})

    return routes


def _admit(services: Services, token: str) -> None:
    """Raises Unauthenticated and TooManyRequests, as for any route that asks for a token."""
    seen = trace()
    asks = seen.principal = services.access.principal(token)
    if services.rate_limit:
        seen.quota = quota = services.rate_limit.take(asks.id)
        if quota.wait:
            raise TooManyRequests(quota.limit, quota.wait)


def _page(page: "str | Response") -> Response:
    found = page if isinstance(page, Response) else Response(page)
    found.mimetype = "text/html"
    found.headers["Content-Security-Policy"] = _POLICY
    found.headers["Cache-Control"] = "no-store"
    return found


@cache  # it says the same to everybody, until the service is another one
def _whole() -> str:
    document: Mapping[str, Any] = openapi.document()
    groups: dict[str, list[dict[str, Any]]] = {"The registry's own API": [], "DVC Studio": []}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = {**methods[method], "path": path, "method": method.upper()}
                operation["parameters"] = [
                    *methods.get("parameters", []),
                    *operation.get("parameters", []),
                ]
                groups.setdefault(_group(path), []).append(operation)
    return render_template(
        "docs.html",
        document=document,
        groups=groups,
        prose=_prose,
        schema=_schema,
        limits=_limits,
    )


def _group(path: str) -> str:
    """The heading that an operation stands under."""
    prefixes = {
        "/api/v1/": "The registry's own API",
        "/api/model-registry/": "DVC Studio",
        "/api/2.0/": "MLflow",
        "/ajax-api/": "MLflow",
        "/api/3.0/": "MLflow",
        "/mlflow": "MLflow",
    }
    return next((name for start, name in prefixes.items() if path.startswith(start)), "The service")


def _prose(text: str) -> Markup:
    """A text with `code` in it."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 it is escaped


def _schema(value: object) -> Markup:
    """A schema as JSON, with its references as links."""
    written = str(escape(json.dumps(value, indent=2, ensure_ascii=False)))
    linked = _REFERENCE.sub(r'<a href="#schema-\1">\1</a>', written)
    return Markup(linked)  # noqa: S704 it is escaped


def _limits(schema: Mapping[str, object]) -> str:
    """What a parameter may be, in a line."""
    return ", ".join(
        f"{key}: {json.dumps(value, ensure_ascii=False) if key == 'enum' else value}"
        for key, value in schema.items()
        if key != "description" and (key, value) != ("type", "string")
    )
