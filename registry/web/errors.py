"""The only mapping from what went wrong to HTTP.

A kind of error has a status; what derives from it inherits that. The body is one short line of
JSON, because DVC's client prints it as it is:

    {"detail": "...", "code": "version_not_found", "request_id": "..."}

`detail` is what DVC Studio said, for people; `code` is the kind of error, for programs. Where it is
worth asking again, `retry_after` says in how many seconds, as the header does.

Below the prefixes of a dialect with a form of its own, its envelope is put around the same.
"""

import json
import logging
import re
from collections.abc import Mapping

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from registry.errors import (
    ClientError,
    Conflict,
    DatabaseUnavailable,
    ExchangeRefused,
    Forbidden,
    InvalidLink,
    InvalidReceipt,
    InvalidRequest,
    IssuerUnavailable,
    NotFound,
    NotServed,
    ObjectCorrupt,
    ObjectMissing,
    ObjectsMissing,
    OriginUnavailable,
    RegistryError,
    SettingsError,
    StorageUnavailable,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unsignable,
)
from registry.web.mlflow import envelope as mlflow
from registry.web.observe import trace

log = logging.getLogger(__name__)

STATUS: dict[type[RegistryError], int] = {
    InvalidRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    TooManyRequests: 429,
    InvalidLink: 403,
    InvalidReceipt: 400,
    Conflict: 409,
    NotServed: 501,
    NotFound: 404,
    Unsignable: 422,
    ObjectMissing: 424,
    ObjectsMissing: 424,
    Unavailable: 503,
    DatabaseUnavailable: 503,
    ObjectCorrupt: 502,
    OriginUnavailable: 502,
    StorageUnavailable: 502,
    SettingsError: 500,  # found at start-up, before there is anybody to answer
    ClientError: 500,  # and these where nobody answers at all
}


def status_of(error: RegistryError) -> int:
    """The HTTP status of the error's kind, or of the nearest kind it derives from."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


LARGEST_BODY = 512
"""Bytes of the body of a failure: what is too long for it is cut."""


def code_of(name: str) -> str:
    """The `code` of a kind of error, or of what HTTP calls it.

    >>> code_of("VersionNotFound"), code_of("Method Not Allowed")
    ('version_not_found', 'method_not_allowed')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return re.sub(r"[^a-z0-9]+", "_", words)


def envelope(
    detail: str, code: str, retry_after: int | None = None, more: Mapping[str, object] | None = None
) -> str:
    """The body of a failure."""
    rest: dict[str, object] = {"code": code, "request_id": trace().request_id, **(more or {})}
    if retry_after is not None:
        rest["retry_after"] = retry_after
    body = _json({"detail": detail, **rest})
    if len(body.encode()) > LARGEST_BODY:
        # As a text in JSON, where one character can take six.
        room = max(64, LARGEST_BODY - len(_json({"detail": "...", **rest}).encode()))
        detail = _shortened(detail, room) + "..."
        body = _json({"detail": detail, **rest})
    return body


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shortened(text: str, room: int) -> str:
    """As much of a text as takes no more than `room` bytes in JSON."""
    for end, character in enumerate(text):
        room -= len(json.dumps(character, ensure_ascii=False).encode()) - 2
        if room < 0:
            return text[:end]
    return text


def answer(error: RegistryError, more: Mapping[str, object] | None = None) -> Response:
    """The answer that tells of an error, with the headers that go with its kind.

    `more` are fields that a dialect has in the body besides.
    """
    name = type(error).__name__
    # For the line that the request will have in the log: there is one, and it says all.
    seen = trace()
    seen.refusal, seen.reason = name, _evidence(error)
    again = error.retry_after if isinstance(error, Unavailable | TooManyRequests) else None
    if mlflow.speaks(request.path):
        status = mlflow.status_of(error) or status_of(error)
        body = mlflow.envelope(mlflow.code_of(error), error.detail, seen.request_id)
    else:
        status = status_of(error)
        body = envelope(error.detail, code_of(name), again, more)
    response = Response(body, status, mimetype="application/json")
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Token"
    if again is not None:
        response.headers["Retry-After"] = str(again)
    return response


def install(app: Flask) -> None:
    """Makes every failure of `app` an answer in this form, unmatched URLs included."""
    app.register_error_handler(RegistryError, answer)

    @app.errorhandler(HTTPException)
    def _http_exception(error: HTTPException) -> Response:
        # Started from Werkzeug's own answer, which knows Allow and Retry-After.
        response = Response(headers=error.get_response().headers, status=error.code)
        detail = error.description or error.name
        if isinstance(error, RequestEntityTooLarge) and request.max_content_length is not None:
            detail = (
                f"The body has more than {request.max_content_length} bytes: send less at once."
            )
        if mlflow.speaks(request.path):
            code = mlflow.code_of_status(error.code or 500)
            response.data = mlflow.envelope(code, detail, trace().request_id)
        else:
            response.data = envelope(detail, code_of(error.name))
        response.mimetype = "application/json"
        return response

    @app.errorhandler(Exception)
    def _unexpected(error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        if mlflow.speaks(request.path):
            body = mlflow.envelope("INTERNAL_ERROR", "Internal error.", trace().request_id)
        else:
            body = envelope("Internal error.", "internal_error", 5)
        response = Response(body, 500, mimetype="application/json")
        response.headers["Retry-After"] = "5"
        return response


def _evidence(error: RegistryError) -> str:
    if isinstance(error, ExchangeRefused):
        return f"{error.reason}: {error.problem}"
    if isinstance(error, Unauthenticated | InvalidLink):
        return error.reason
    if isinstance(error, DatabaseUnavailable | IssuerUnavailable):
        return error.problem
    return error.detail
