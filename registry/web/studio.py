"""Dialect 1: DVC Studio, as `dvc artifacts get` and dvc-studio-client speak it.

GET /api/model-registry/get-download-uris?repo=...&name=...[&version=...|&stage=...]
    -> {"path/in/repository": "https://signed.link/..."}

Only status 200 is success to the client, and it prints the body of any other answer as it is.
What is answered and what is refused: docs/dialects/studio.md.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from urllib.parse import parse_qsl

from flask import Blueprint, Response, request

from registry import access
from registry.catalog import Download
from registry.domain import Selector
from registry.errors import InvalidRequest
from registry.services import Services
from registry.web.auth import principal
from registry.web.observe import Record, trace

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

LARGEST_WHOLE = 2000
"""Files of the largest answer that is made before it is sent; a larger one is streamed."""
FILES_A_PART = 200
"""A millisecond's work: after each part it is the turn of other requests."""


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("studio", __name__)

    @routes.get("/api/model-registry/get-download-uris")
    def get_download_uris() -> Response:
        asked = _asked(request.environ.get("QUERY_STRING", ""))
        record = Record(services, asked.repository, asked.name, asked.version, asked.stage)
        asks = principal()
        with record.refusals():
            access.require(asks, "models:read")
            selector = Selector.parse(asked.name, asked.version, asked.stage)
            download = services.catalog.download_uris(
                asks, asked.repository, selector, _max_age(asked)
            )
        found = download.resolution
        record.granted(found.repository.name, found.revision, found.version, len(download))
        trace().headers += _headers(download, services.clock())
        body = _json(download.uris) if len(download) <= LARGEST_WHOLE else _streamed(download)
        return Response(body, mimetype="application/json")

    return routes


@dataclass(frozen=True)
class _Asked:
    """The parameters of a request, as they were spelled; empty where they are absent."""

    repository: str
    name: str
    version: str
    stage: str
    max_age: str


@lru_cache(512)  # a service is asked few questions, and each of them again and again
def _asked(query: str) -> _Asked:
    """What a query string asks, of which WSGI makes a text by Latin-1. The first of two counts."""
    pairs = parse_qsl(query.encode("latin-1").decode(errors="replace"), keep_blank_values=True)
    given = dict(reversed(pairs))
    return _Asked(*(given.get(key, "") for key in ("repo", "name", "version", "stage", "max_age")))


def _headers(download: Download, now: float) -> Iterator[tuple[str, str]]:
    resolution = download.resolution
    yield "Cache-Control", "private, no-store"
    yield "X-Registry-Revision", resolution.revision
    yield "X-Registry-Tag", resolution.tag or ""
    yield "X-Registry-Expires", _timestamp(download.expires)
    yield "X-Registry-Mirror-Age", str(max(0, int(now - resolution.checked)))
    if resolution.stale:
        yield "Warning", '110 - "Response is Stale"'  # RFC 7234, section 5.5.1
    if resolution.version:
        yield "X-Registry-Version", resolution.version
    if resolution.deprecated:
        yield "X-Registry-Deprecated", "true"


def _streamed(download: Download) -> Iterator[str]:
    """The same text in parts. Should one fail, the last brace is never sent: half is no JSON."""
    opening, pairs = "{", iter(download)
    while part := dict(islice(pairs, FILES_A_PART)):
        yield opening + _json(part)[1:-1]
        opening = ","
    yield "}"


def _json(links: Mapping[str, str]) -> str:
    return _ENCODE(links)


def _max_age(asked: _Asked) -> int | None:
    """The age in seconds that the answer may have, if the client says so. Raises InvalidRequest."""
    if asked.max_age and not re.fullmatch(r"[0-9]{1,9}", asked.max_age):
        raise InvalidRequest("max_age", "a whole number of seconds, such as 0")
    if "HTTP_CACHE_CONTROL" in request.environ and request.cache_control.no_cache:
        return 0
    return int(asked.max_age) if asked.max_age else None


@lru_cache(16)
def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
