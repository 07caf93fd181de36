"""The only mapping from what went wrong to HTTP.

A kind of error has a status; what derives from it inherits that. The body is one short line of
JSON, because DVC's client prints it as it is: `{"detail": "..."}`, the form DVC Studio spoke.
"""

import json
import logging

from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException

from registry.errors import (
    DatabaseUnavailable,
    Forbidden,
    InvalidLink,
    InvalidReceipt,
    InvalidRequest,
    NotFound,
    ObjectCorrupt,
    ObjectMissing,
    OriginUnavailable,
    RegistryError,
    SettingsError,
    StorageUnavailable,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unsignable,
)

log = logging.getLogger(__name__)

STATUS: dict[type[RegistryError], int] = {
    InvalidRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    TooManyRequests: 429,
    InvalidLink: 403,
    InvalidReceipt: 400,
    NotFound: 404,
    Unsignable: 422,
    ObjectMissing: 424,
    Unavailable: 503,
    DatabaseUnavailable: 503,
    ObjectCorrupt: 502,
    OriginUnavailable: 502,
    StorageUnavailable: 502,
    SettingsError: 500,  # found at start-up, before there is anybody to answer
}


def status_of(error: RegistryError) -> int:
    """The HTTP status of the error's kind, or of the nearest kind it derives from."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def envelope(detail: str) -> str:
    """The body of a failure."""
    return json.dumps({"detail": detail}, ensure_ascii=False, separators=(",", ":"))


def install(app: Flask) -> None:
    """Makes every failure of `app` an answer in this form, unmatched URLs included."""

    @app.errorhandler(RegistryError)
    def _registry_error(error: RegistryError) -> Response:
        status = status_of(error)
        # For the line that the request will have in the log: there is one, and it says all.
        g.error, g.reason = type(error).__name__, _evidence(error)
        response = Response(envelope(error.detail), status, mimetype="application/json")
        if isinstance(error, Unauthenticated):
            response.headers["WWW-Authenticate"] = "Token"
        if isinstance(error, Unavailable | TooManyRequests):
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.errorhandler(HTTPException)
    def _http_exception(error: HTTPException) -> Response:
        # Started from Werkzeug's own answer, which knows Allow and Retry-After.
        response = Response(headers=error.get_response().headers, status=error.code)
        response.data = envelope(error.description or error.name)
        response.mimetype = "application/json"
        return response

    @app.errorhandler(Exception)
    def _unexpected(error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        response = Response(envelope("Internal error."), 500, mimetype="application/json")
        response.headers["Retry-After"] = "5"
        return response


def _evidence(error: RegistryError) -> str:
    if isinstance(error, Unauthenticated | InvalidLink):
        return error.reason
    return error.problem if isinstance(error, DatabaseUnavailable) else error.detail
