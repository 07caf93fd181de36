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
from functools import lru_cache
from itertools import islice
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from flask import Blueprint, Response, request
from werkzeug.http import parse_cache_control_header

from registry import access
from registry.catalog import Download
from registry.domain import Selector
from registry.errors import InvalidRequest
from registry.services import Services
from registry.web.auth import principal
from registry.web.observe import Record, trace

Headers = list[tuple[str, str]]

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

LARGEST_WHOLE = 2000
"""Files of the largest answer that is made before it is sent; a larger one is streamed."""
FILES_A_PART = 200
"""A millisecond's work: after each part it is the turn of other requests."""


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("studio", __name__)
    # The core gives the same small download again for the rest of its second, and then drops it.
    answers: WeakKeyDictionary[Download, tuple[Headers, bytes]] = WeakKeyDictionary()

    @routes.get("/api/model-registry/get-download-uris")
    def get_download_uris() -> Response:
        environ = request.environ
        asked = _asked(environ.get("QUERY_STRING", ""))
        record = Record(services, asked.repository, asked.name, asked.version, asked.stage)
        asks = principal()
        with record.refusals():
            access.require(asks, "models:read")
            selector = Selector.parse(asked.name, asked.version, asked.stage)
            max_age = _max_age(asked, environ.get("HTTP_CACHE_CONTROL"))
            download = services.catalog.download_uris(asks, asked.repository, selector, max_age)
        found = download.resolution
        record.granted(found.repository.name, found.revision, found.version, len(download))
        if len(download) > LARGEST_WHOLE:
            trace().headers += _headers(download, services.clock())
            return Response(_streamed(download), mimetype="application/json")
        answer = answers.get(download)
        if answer is None:
            answer = _headers(download, services.clock()), _json(download.uris).encode()
            answers[download] = answer
        trace().headers += answer[0]
        return Response(answer[1], mimetype="application/json")

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


def _headers(download: Download, now: float) -> Headers:
    resolution = download.resolution
    headers = [
        ("Cache-Control", "private, no-store"),
        ("X-Registry-Revision", resolution.revision),
        ("X-Registry-Tag", resolution.tag or ""),
        ("X-Registry-Expires", download.expires.strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("X-Registry-Mirror-Age", str(max(0, int(now - resolution.checked)))),
    ]
    if resolution.stale:
        headers.append(("Warning", '110 - "Response is Stale"'))  # RFC 7234, section 5.5.1
    if resolution.version:
        headers.append(("X-Registry-Version", resolution.version))
    if resolution.deprecated:
        headers.append(("X-Registry-Deprecated", "true"))
    return headers


def _streamed(download: Download) -> Iterator[str]:
    """The same text in parts. Should one fail, the last brace is never sent: half is no JSON."""
    opening, pairs = "{", iter(download)
    while part := dict(islice(pairs, FILES_A_PART)):
        yield opening + _json(part)[1:-1]
        opening = ","
    yield "}"


def _json(links: Mapping[str, str]) -> str:
    return _ENCODE(links)


def _max_age(asked: _Asked, cache_control: str | None) -> int | None:
    """The age in seconds that the answer may have, if the client says so. Raises InvalidRequest."""
    if asked.max_age and not re.fullmatch(r"[0-9]{1,9}", asked.max_age):
        raise InvalidRequest("max_age", "a whole number of seconds, such as 0")
    if cache_control and parse_cache_control_header(cache_control).no_cache:
        return 0
    return int(asked.max_age) if asked.max_age else None
