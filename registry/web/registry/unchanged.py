"""Answers 304 to who asks again what they know, before Flask is asked at all.

Pipelines ask every minute whether a stage moved, and nearly always it did not. All that a view
would look at is looked at here as well: the token, its scope and its quota, what it may see, the
tags of the repository, their age. It waits for nothing: whatever is not this one plain question,
not in memory, or refused, is left to Flask, which has the time of a request for it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from registry import access
from registry.errors import RegistryError
from registry.services import Services
from registry.web.auth import token_of
from registry.web.observe import trace_of
from registry.web.registry.asked import SELECTOR, parsed, selector_of
from registry.web.registry.receipts import CHANGING, IMMUTABLE, RESOLVE, freshness, labels

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_ROUTE, _DIALECT = "/api/v1/resolve", "registry"


class Unchanged:
    """A WSGI application before `app`, which answers everything that this does not."""

    def __init__(self, app: "WSGIApplication", services: Services) -> None:
        self._app = app
        self._services = services

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answers as `app` does."""
        if (
            "HTTP_IF_NONE_MATCH" in environ
            and environ["PATH_INFO"] == _ROUTE
            and environ["REQUEST_METHOD"] == "GET"
            and "HTTP_CACHE_CONTROL" not in environ
            and "text/" not in environ.get("HTTP_ACCEPT", "")
        ):
            try:
                unchanged = self._is_unchanged(environ)
            except RegistryError:
                unchanged = False
            if unchanged:
                start_response("304 NOT MODIFIED", [])
                return ()
        return self._app(environ, start_response)

    def _is_unchanged(self, environ: "WSGIEnvironment") -> bool:
        """Whether the client has the answer; then it is counted, and its headers are set."""
        services = self._services
        given = parsed(environ.get("QUERY_STRING", ""), RESOLVE)
        if not given.keys() <= SELECTOR:
            return False
        asks = services.access.principal(token_of(environ.get("HTTP_AUTHORIZATION", "")))
        access.require(asks, "models:read")
        selector = selector_of(given)
        resolution = services.catalog.resolve(asks, given.get("repo", ""), selector, wait=0.0)
        known = None if resolution.stale else services.ledger.known(asks, resolution)
        if known is None:
            return False
        etag = f'"{known.receipt.digest}"'
        if environ["HTTP_IF_NONE_MATCH"] != etag:
            return False
        seen = trace_of(environ)
        if services.rate_limit:
            quota = services.rate_limit.take(asks.id)
            if quota.wait:
                return False
            seen.quota = quota
        seen.route, seen.dialect, seen.principal = _ROUTE, _DIALECT, asks
        seen.headers += freshness(resolution, services.clock())
        seen.headers += labels(etag, IMMUTABLE if selector.revision else CHANGING)
        return True
