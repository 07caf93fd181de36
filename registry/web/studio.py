"""Dialect 1: DVC Studio, as `dvc artifacts get` and dvc-studio-client speak it.

GET /api/model-registry/get-download-uris?repo=...&name=...[&version=...|&stage=...]
    -> {"path/in/repository": "https://signed.link/..."}

Only status 200 is success to the client, and it prints the body of any other answer as it is.
What is answered and what is refused: docs/dialects/studio.md.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from flask import Blueprint, Response, request
from werkzeug.http import parse_cache_control_header

from registry import access
from registry.catalog import Download
from registry.domain import Selector
from registry.errors import InvalidRequest, RegistryError
from registry.services import Services
from registry.web.auth import principal, token_of
from registry.web.observe import Record, trace, trace_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROUTE = "/api/model-registry/get-download-uris"

Headers = list[tuple[str, str]]

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

LARGEST_WHOLE = 2000
"""Files of the largest answer that is made before it is sent; a larger one is streamed."""
FILES_A_PART = 200
"""A millisecond's work: after each part it is the turn of other requests."""


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("studio", __name__)

    @routes.get(ROUTE)
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
        trace().headers += _headers(download, services.clock())
        body = _json(download.uris) if len(download) <= LARGEST_WHOLE else _streamed(download)
        return Response(body, mimetype="application/json")

    return routes


class Again:
    """A WSGI application before `app`, for a question that was answered within the same second:
    a hundred pipelines that start at once ask for one model.

    It looks at all that the view looks at which can have changed: the token, its scope and quota,
    what it may see, the tags of the repository and their age. Whatever is not this one plain
    question, and whatever is refused, is left to `app`, which finds the same and says it.
    """

    def __init__(self, app: "WSGIApplication", services: Services) -> None:
        self._app = app
        self._services = services
        # The core drops a download when its second is over.
        self._answers: WeakKeyDictionary[Download, tuple[Headers, bytes]] = WeakKeyDictionary()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answers as `app` does."""
        if (
            environ["PATH_INFO"] == ROUTE
            and environ["REQUEST_METHOD"] == "GET"
            and "HTTP_CACHE_CONTROL" not in environ
            and not self._services.audit.is_required
        ):
            try:
                body = self._known(environ)
            except RegistryError:
                body = None
            if body is not None:
                length = str(len(body))
                headers = [("Content-Type", "application/json"), ("Content-Length", length)]
                start_response("200 OK", headers)
                return (body,)
        return self._app(environ, start_response)

    def _known(self, environ: "WSGIEnvironment") -> bytes | None:
        """The body of the answer; then the question is counted, and its headers are set."""
        services, asked = self._services, _asked(environ.get("QUERY_STRING", ""))
        asks = services.access.principal(token_of(environ.get("HTTP_AUTHORIZATION", "")))
        access.require(asks, "models:read")
        selector = Selector.parse(asked.name, asked.version, asked.stage)
        download = None
        if not asked.max_age:
            download = services.catalog.again(asks, asked.repository, selector)
        if download is None:
            return None
        seen = trace_of(environ)
        if services.rate_limit:
            quota = services.rate_limit.take(asks.id)
            if quota.wait:
                return None
            seen.quota = quota
        seen.route, seen.dialect, seen.principal = ROUTE, "studio", asks
        spelled = (asked.repository, asked.name, asked.version, asked.stage)
        found = download.resolution
        Record(services, *spelled, seen).granted(
            found.repository.name, found.revision, found.version, len(download)
        )
        answer = self._answers.get(download)
        if answer is None:
            answer = _headers(download, services.clock()), _json(download.uris).encode()
            self._answers[download] = answer
        seen.headers += answer[0]
        return answer[1]


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
