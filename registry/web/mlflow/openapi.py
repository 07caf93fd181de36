"""MLflow's endpoints for the document of the whole service, from the same table that answers them.

What a message holds is MLflow's to say; here stands where it goes, what it needs, and how it fails.
"""

import re

from registry.web.mlflow.routes import TABLES, Route
from registry.web.mlflow.wire import Json

_FAILURES = {
    400: "`INVALID_PARAMETER_VALUE`, `RESOURCE_ALREADY_EXISTS`, `INVALID_STATE` or `BAD_REQUEST`.",
    401: "`UNAUTHENTICATED`: no token, or one that does not hold.",
    403: "`PERMISSION_DENIED`: the token lacks the scope.",
    404: "`RESOURCE_DOES_NOT_EXIST`, or `ENDPOINT_NOT_FOUND`.",
    409: "`RESOURCE_CONFLICT`.",
    413: "`INVALID_PARAMETER_VALUE`: the body is too large.",
    429: "`REQUEST_LIMIT_EXCEEDED`: again after `Retry-After` seconds.",
    500: "`INTERNAL_ERROR`: a mistake of the service, which is in its log.",
    501: "`NOT_IMPLEMENTED`: a part of MLflow that is not served here.",
    503: "`TEMPORARILY_UNAVAILABLE`: again after `Retry-After` seconds.",
}
_MESSAGE: Json = {"application/json": {"schema": {"type": "object"}}}
_BYTES: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PARTS: Json = {
    "206": {"description": "The range that was asked for.", "content": _BYTES},
    "304": {"description": "It is the one whose `ETag` was given: the MD5 of its bytes."},
    "416": {"description": "It has no such range."},
}


def paths() -> dict[str, Json]:
    """Path -> method -> operation. `/ajax-api` and `/mlflow` before them lead to the same."""
    found: dict[str, Json] = {}
    for root in ("/", "/mlflow/"):
        for name, answer in (("health", "OK."), ("version", "The release of MLflow's API.")):
            found[root + name] = {"get": _public(root, name, answer)}
    for prefix, table in TABLES.items():
        for route in table.routes:
            for root in ("/",) if prefix else ("/", "/mlflow/"):
                path = f"{root}{prefix}/{route.path.replace('{*', '{')}".replace("//", "/")
                operation = _operation(route, root + prefix)
                found.setdefault(path, {})[route.method.lower()] = operation
    return found


def schemas() -> dict[str, Json]:
    """What the operations refer to."""
    return {
        "MlflowError": {
            "type": "object",
            "properties": {
                "error_code": {"type": "string", "pattern": "^[A-Z_]+$"},
                "message": {"type": "string", "minLength": 1},
                "request_id": {"type": "string"},
            },
            "required": ["error_code", "message"],
        }
    }


def _operation(route: Route, prefix: str) -> Json:
    places = re.findall(r"{\*?(\w+)}", route.path)
    words = re.sub(r"[^a-z0-9]+", "_", f"mlflow_{prefix}_{route.method}_{route.path}".lower())
    operation: Json = {
        "operationId": words.strip("_"),
        "summary": f"MLflow's {route.path}",
        "description": f"Needs the scope `{route.scope}`. Fields are as MLflow documents them.",
        "parameters": [
            {
                "name": place,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
            for place in places
        ],
        "responses": {
            "200": _bytes("The file.") if route.gives else _message("MLflow's message."),
            **(_PARTS if route.gives else {}),
            **{str(status): _failure(meaning) for status, meaning in _FAILURES.items()},
        },
    }
    if route.method != "GET":
        operation["requestBody"] = {"content": (_BYTES if route.sends else _MESSAGE)}
    return operation


def _message(meaning: str) -> Json:
    return {"description": meaning, "content": _MESSAGE}


def _bytes(meaning: str) -> Json:
    return {"description": meaning, "content": _BYTES}


def _failure(meaning: str) -> Json:
    schema = {"$ref": "#/components/schemas/MlflowError"}
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def _public(root: str, name: str, answer: str) -> Json:
    return {
        "operationId": f"mlflow{'_root' if root == '/' else ''}_{name}",
        "summary": f"MLflow's {name}",
        "security": [],
        "responses": {"200": {"description": answer, "content": {"text/plain": {}}}},
    }
