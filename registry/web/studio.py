"""Dialect 1: DVC Studio, as `dvc artifacts get` and dvc-studio-client speak it.

GET /api/model-registry/get-download-uris?repo=...&name=...[&version=...|&stage=...]
    -> {"path/in/repository": "https://signed.link/..."}

Only status 200 is success to the client, and it prints the body of any other answer as it is.
What is answered and what is refused: docs/dialects/studio.md.
"""

import json
from datetime import datetime

from flask import Blueprint, Response, request

from registry import access
from registry.catalog import Download
from registry.domain import Selector
from registry.services import Services
from registry.web.auth import principal


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("studio", __name__)

    @routes.get("/api/model-registry/get-download-uris")
    def get_download_uris() -> Response:
        access.require(principal(), "models:read")
        selector = Selector.parse(
            request.args.get("name", ""),
            request.args.get("version", ""),
            request.args.get("stage", ""),
        )
        repository = request.args.get("repo", "")
        download = services.catalog.download_uris(principal(), repository, selector)
        return _answer(download, services.clock())

    return routes


def _answer(download: Download, now: float) -> Response:
    resolution = download.resolution
    body = json.dumps(download.uris, ensure_ascii=False, separators=(",", ":"))
    response = Response(body, mimetype="application/json")
    headers = response.headers
    headers["Cache-Control"] = "private, no-store"
    headers["X-Registry-Revision"] = resolution.revision
    headers["X-Registry-Tag"] = resolution.tag
    headers["X-Registry-Expires"] = _timestamp(download.expires)
    headers["X-Registry-Mirror-Age"] = str(max(0, int(now - resolution.checked)))
    if resolution.version:
        headers["X-Registry-Version"] = resolution.version
    if resolution.deprecated:
        headers["X-Registry-Deprecated"] = "true"
    return response


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
