"""Dialect 1: DVC Studio, as `dvc artifacts get` and dvc-studio-client speak it.

GET /api/model-registry/get-download-uris?repo=...&name=...[&version=...|&stage=...]
    -> {"path/in/repository": "https://signed.link/..."}

Only status 200 is success to the client, and it prints the body of any other answer as it is.
What is answered and what is refused: docs/dialects/studio.md.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice

from flask import Blueprint, Response, request

from registry import access
from registry.catalog import Download
from registry.domain import Selector
from registry.errors import InvalidRequest
from registry.services import Services
from registry.web.auth import principal
from registry.web.observe import Record

LARGEST_WHOLE = 2000
"""Files of the largest answer that is made before it is sent; a larger one is streamed."""
FILES_A_PART = 200
"""A millisecond's work: after each part it is the turn of other requests."""


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("studio", __name__)

    @routes.get("/api/model-registry/get-download-uris")
    def get_download_uris() -> Response:
        repository = request.args.get("repo", "")
        asked = tuple(request.args.get(key, "") for key in ("name", "version", "stage"))
        record = Record(services, repository, *asked)
        with record.refusals():
            access.require(principal(), "models:read")
            selector = Selector.parse(*asked)
            download = services.catalog.download_uris(principal(), repository, selector, _max_age())
        record.granted(download.resolution, len(download))
        return _answer(download, services.clock())

    return routes


def _answer(download: Download, now: float) -> Response:
    resolution = download.resolution
    headers: dict[str, str] = {}
    headers["Cache-Control"] = "private, no-store"
    headers["X-Registry-Revision"] = resolution.revision
    headers["X-Registry-Tag"] = resolution.tag
    headers["X-Registry-Expires"] = _timestamp(download.expires)
    headers["X-Registry-Mirror-Age"] = str(max(0, int(now - resolution.checked)))
    if resolution.stale:
        headers["Warning"] = '110 - "Response is Stale"'  # RFC 7234, section 5.5.1
    if resolution.version:
        headers["X-Registry-Version"] = resolution.version
    if resolution.deprecated:
        headers["X-Registry-Deprecated"] = "true"
    body = _json(download.uris) if len(download) <= LARGEST_WHOLE else _streamed(download)
    return Response(body, mimetype="application/json", headers=headers)


def _streamed(download: Download) -> Iterator[str]:
    """The same text in parts. Should one fail, the last brace is never sent: half is no JSON."""
    opening, pairs = "{", iter(download)
    while part := dict(islice(pairs, FILES_A_PART)):
        yield opening + _json(part)[1:-1]
        opening = ","
    yield "}"


def _json(links: Mapping[str, str]) -> str:
    return json.dumps(links, ensure_ascii=False, separators=(",", ":"))


def _max_age() -> int | None:
    """The age in seconds that the answer may have, if the client says so. Raises InvalidRequest."""
    text = request.args.get("max_age", "")
    if text and not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidRequest("max_age", "a whole number of seconds, such as 0")
    if request.cache_control.no_cache:
        return 0
    return int(text) if text else None


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
