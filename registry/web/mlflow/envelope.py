"""What MLflow's clients understand of a failure: a code by name, and a message.

    {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "...", "request_id": "..."}

A client decides by the code, and asks again by the status. Some statuses are MLflow's own: what
exists already is 400 there and not 409.
"""

import json
import re

from registry.errors import (
    Conflict,
    EndpointNotFound,
    ExperimentDeleted,
    ExperimentExists,
    Forbidden,
    InvalidLink,
    InvalidReceipt,
    InvalidRequest,
    NotFound,
    NotServed,
    ParamExists,
    RegistryError,
    RunDeleted,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unsignable,
)

_PLACES = re.compile(
    r"(?:/mlflow)?/(?:(?:ajax-)?api/\d\.\d/(?:preview/)?mlflow(?:-artifacts)?/|get-artifact$)"
)

CODES: dict[type[RegistryError], str] = {
    InvalidRequest: "INVALID_PARAMETER_VALUE",
    InvalidReceipt: "INVALID_PARAMETER_VALUE",
    ParamExists: "INVALID_PARAMETER_VALUE",
    RunDeleted: "INVALID_PARAMETER_VALUE",
    ExperimentDeleted: "INVALID_STATE",
    ExperimentExists: "RESOURCE_ALREADY_EXISTS",
    Conflict: "RESOURCE_CONFLICT",
    Unauthenticated: "UNAUTHENTICATED",
    Forbidden: "PERMISSION_DENIED",
    InvalidLink: "PERMISSION_DENIED",
    TooManyRequests: "REQUEST_LIMIT_EXCEEDED",
    EndpointNotFound: "ENDPOINT_NOT_FOUND",
    NotFound: "RESOURCE_DOES_NOT_EXIST",
    NotServed: "NOT_IMPLEMENTED",
    Unsignable: "BAD_REQUEST",
    Unavailable: "TEMPORARILY_UNAVAILABLE",
    RegistryError: "INTERNAL_ERROR",
}
"""The nearest kind that an error derives from decides."""

STATUS: dict[type[RegistryError], int] = {
    ParamExists: 400,
    RunDeleted: 400,
    # MLflow says 500, which its clients take for a reason to ask again, for minutes.
    ExperimentDeleted: 400,
    ExperimentExists: 400,
}
"""Where MLflow's status is not the one of `registry.web.errors`."""

_OF_STATUS = {
    400: "BAD_REQUEST",
    404: "ENDPOINT_NOT_FOUND",
    405: "ENDPOINT_NOT_FOUND",
    413: "INVALID_PARAMETER_VALUE",
    415: "BAD_REQUEST",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}


def speaks(path: str) -> bool:
    """Whether who asks at this path is a client of MLflow's."""
    return _PLACES.match(path) is not None


def code_of(error: RegistryError) -> str:
    """The name of a failure."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def status_of(error: RegistryError) -> int | None:
    """The status that only MLflow has for a failure."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)


def code_of_status(status: int) -> str:
    """The name of a failure of which only the status is known."""
    return _OF_STATUS.get(status, "INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST")


def envelope(code: str, message: str, request_id: str) -> str:
    """The body of a failure."""
    body = {"error_code": code, "message": message, "request_id": request_id}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
